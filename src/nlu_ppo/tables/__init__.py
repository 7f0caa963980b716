"""Tables and plots of a study, from its run folders alone: `python -m nlu_ppo.tables STUDY`.

`collect` reads the folders, `summarize` makes one row per cell, `compare` tests methods against zero-shot,
`render` writes rows as text, `plots` draws. Nothing here needs torch, Hydra or a tracking server.
"""

from nlu_ppo.tables.collect import Cell, Problem, Run, Study, collect
from nlu_ppo.tables.compare import Comparison, compare
from nlu_ppo.tables.render import Table, build_table, to_csv, to_markdown, to_rich
from nlu_ppo.tables.summarize import Row, summarize

__all__ = [
    "Cell",
    "Comparison",
    "Problem",
    "Row",
    "Run",
    "Study",
    "Table",
    "build_table",
    "collect",
    "compare",
    "summarize",
    "to_csv",
    "to_markdown",
    "to_rich",
]
