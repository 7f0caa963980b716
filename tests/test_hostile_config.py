"""Settings and names that lead elsewhere, or that a page or a table would take for code."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from composing import config_of
from run_folders import write_run

from nlu_ppo.composition import LONGEST_NAME
from nlu_ppo.errors import ConfigError
from nlu_ppo.tables.__main__ import main

ROOT = Path(__file__).parents[1]
ESCAPE = "A name that leads out of outputs/"
CODE = "Names and answers that a page or a table could take for code"
ELSEWHERE = (
    "../../x",
    "/tmp/x",
    "a/b",
    "..",
    ".",
    "",
    " ",
    "a\\b",
    "a\x01b",
    "a\nb",
    "a\0b",
    "n" * 101,
    "\u202ex",
    "-rf",
    "=1+1",
)


def quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


@pytest.mark.promise(ESCAPE, "It is refused by its key before anything is written")
@pytest.mark.parametrize("key", ["study", "model.name", "method.name", "lora.name", "task.name"])
def test_names_stay_names(key: str, figures: dict[str, Any]) -> None:
    for name in ELSEWHERE:
        with pytest.raises(Exception, match=rf"{key}|NUL|null|override") as caught:
            config_of(f"{key}={quoted(name)}")
        if isinstance(caught.value, ConfigError):
            assert "folder" in str(caught.value) or "there is" in str(caught.value)
    with pytest.raises(ConfigError, match=r"task\.members"):
        config_of("task=glue", "task.members=[../x]")
    assert (
        config_of(f"study={'n' * LONGEST_NAME}", "model.name='Größe 2 (neu)'").model.name == "Größe 2 (neu)"
    )
    figures["names"] = len(ELSEWHERE)


@pytest.mark.promise(ESCAPE, "A run and a sweep that are started so end with code 2 and leave no file")
def test_processes_leave_nothing_behind(tmp_path: Path, figures: dict[str, Any]) -> None:
    words = [
        f"outputs={tmp_path / 'deep' / 'er' / 'outputs'}",
        "tracking=none",
        "method=zero_shot",
        "task.limit.eval=2",
    ]
    tries = (
        ["study=../../x"], ["model.name=../../../../x"], ["-m", "study=../../x", "seed=0,1"],
        ["-m", "model.name=../../../x,../y"],
    )  # fmt: skip
    for more in tries:
        done = subprocess.run(
            [sys.executable, str(ROOT / "train.py"), *more, *words], cwd=tmp_path, capture_output=True, text=True,
            check=False, timeout=100,
        )  # fmt: skip
        assert done.returncode != 0
        assert "is to name a folder" in done.stdout + done.stderr
        files = [
            p for p in tmp_path.rglob("*") if p.is_file() and p.name not in ("multirun.yaml", "sweep.log")
        ]
        assert files == []
        assert not any((tmp_path / place).exists() for place in ("x", "deep/x", "deep/er/x", "deep/er/y"))
    figures["processes"] = len(tries)


BAIT = "<script>alert(1)</script>{{ 7 * 7 }}\\input{/etc/passwd}|=cmd()"


@pytest.mark.promise(CODE, "They are shown as they are, in HTML, LaTeX, Markdown and CSV")
def test_tables_show_names_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        folder = write_run(
            tmp_path,
            "=HYPERLINK()",
            seed,
            model="m",
            task="rte",
            lora=BAIT,
            versions={BAIT: BAIT},
            commit=BAIT,
        )
        path = folder / "result.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"model": BAIT}))
        lines = [
            json.loads(line) | {"label": BAIT, "reference": BAIT}
            for line in (folder / "predictions.jsonl").open()
        ]
        (folder / "predictions.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    main(["demo", "--outputs", str(tmp_path)])
    written = {
        path.name: path.read_text()
        for path in (tmp_path / "demo").rglob("*.*")
        if path.suffix in (".html", ".tex", ".md", ".csv")
    }
    assert {path.rpartition(".")[2] for path in written} == {"html", "tex", "md", "csv"}
    for name, text in written.items():
        if name.endswith("html"):
            assert "<script>" not in text
            assert "&lt;script&gt;" in text
            assert "{{ 7 * 7 }}" in text
        if name.endswith("tex"):
            assert "\\input{/etc" not in text
            assert "textbackslash{}input" in text
        if name.endswith("md"):
            assert "<script>" not in text.replace("\\<", "")
            assert "}|=cmd" not in text
        if name.endswith("csv"):
            cells = [cell for row in csv.reader(io.StringIO(text)) for cell in row]
            assert BAIT in cells
            assert not [cell for cell in cells if cell[:1] in "=+@" and cell]
    capsys.readouterr()


@pytest.mark.promise(CODE, "What looks like an interpolation or a template in data stays text")
def test_data_are_not_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from composing import run_of

    from nlu_ppo.run import execute

    monkeypatch.setenv("PLANTED", "planted-in-the-environment")
    lure = "${oc.env:PLANTED} {{ 7 * 7 }} ${now:%Y} film"
    (tmp_path / "dev.tsv").write_text(f"sentence\tlabel\n{lure}\t1\n{lure}\t0\n")
    place = tmp_path / "glue" / "SST-2"
    place.mkdir(parents=True)
    for name in ("train.tsv", "dev.tsv"):
        shutil.copy(tmp_path / "dev.tsv", place / name)
    run = run_of(tmp_path / "run", "task=sst2", "task.source=raw", f"task.data_dir={tmp_path}", "method=zero_shot",
                 "tracking=none", "eval.bootstrap_samples=10")  # fmt: skip
    execute(run)
    everything = b"".join(path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert b"planted-in-the-environment" not in everything
    from nlu_ppo.prompting import Prompter
    from nlu_ppo.tasks import get_task, read_split

    (first, _) = read_split("sst2", "validation", "raw", tmp_path)
    assert lure in Prompter(get_task("sst2"), None).render(first)
    assert os.environ["PLANTED"] not in Prompter(get_task("sst2"), None).render(first)


@pytest.mark.promise(CODE, "MLflow takes odd names as they are, and writes below outputs only")
def test_odd_names_in_mlflow(outputs: Path, tmp_path: Path) -> None:
    from composing import run_of
    from mlflow.tracking import MlflowClient

    from nlu_ppo.run import execute

    experiment, model = "../../x <b>{{ 7 * 7 }}</b>'; drop table runs; --", "<b>m</b> {{ 7 }} ä"
    with pytest.raises(ConfigError, match="folder"):
        config_of(f"model.name={quoted(model)}")
    model = model.replace("/", "")
    run = run_of(outputs / "run", "task=toy_sentiment", "method=zero_shot", "task.limit.eval=4", f"outputs={outputs}",
                 f"tracking.experiment={quoted(experiment)}", f"model.name={quoted(model)}",
                 "eval.bootstrap_samples=10", "eval.likelihood=false", "model.path=tiny")  # fmt: skip
    execute(run)
    client = MlflowClient(tracking_uri=f"sqlite:///{outputs / 'mlflow.db'}")
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    (row,) = client.search_runs([found.experiment_id])
    assert row.data.tags["model"] == model
    assert {path.name for path in tmp_path.iterdir()} <= {"outputs", "cwd"}
