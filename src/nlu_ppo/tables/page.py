"""A study as one HTML page that needs nothing beside itself: no network, no script, pictures inside."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import jinja2
from matplotlib.figure import Figure

from nlu_ppo.tables.collect import Study
from nlu_ppo.tables.confusion import UNPARSABLE, confusion_matrices
from nlu_ppo.tables.plots import to_svg
from nlu_ppo.tables.sections import Table, sections

_TEMPLATE = Path(__file__).with_name("page.html.jinja")


def to_html(study: Study, table: Table, pictures: dict[str, Figure]) -> str:
    """The page. `pictures` by caption, in the order in which they are shown."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    groups, without = confusion_matrices(study, table)
    shown = sections(table)
    return template.render(
        table=table,
        results=[section for section in shown if section.result],
        rest=[section for section in shown if not section.result],
        pictures=[(caption, _inline(to_svg(figure))) for caption, figure in pictures.items()],
        groups=groups,
        without=without,
        unparsable=UNPARSABLE,
        runs=sorted(study.runs, key=lambda run: str(run.folder)),
        commits=_most_first(_short(run.commit) for run in study.runs if run.commit),
        versions=_most_first(
            ", ".join(f"{name} {version}" for name, version in run.versions.items())
            for run in study.runs
            if run.versions
        ),
    )


def _inline(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def _short(commit: str) -> str:
    digits, dirty, _ = commit.partition("-dirty")
    return digits[:12] + dirty


def _most_first(words: Iterable[str]) -> list[str]:
    return [word for word, _ in Counter(words).most_common()]
