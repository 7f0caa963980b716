"""Tables and plots of a study, from its run folders alone: `python -m nlu_ppo.tables STUDY`.

`collect` reads the folders, `summarize` makes one row per cell, `compare` tests methods against each other,
`beside` lays the papers' numbers beside ours, `expected` holds the table to what is expected of it, `sections`
puts all of it into words, `render`, `latex` and `page` write it, `plots` draws. Nothing here needs torch or a
tracking server.
"""

from nlu_ppo.tables.collect import Cell, Problem, Run, Study, collect
from nlu_ppo.tables.compare import Comparison, compare
from nlu_ppo.tables.expected import Expected, load_expected
from nlu_ppo.tables.latex import to_latex
from nlu_ppo.tables.render import metrics_to_csv, to_csv, to_markdown, to_rich
from nlu_ppo.tables.sections import Section, Table, build_table, sections
from nlu_ppo.tables.summarize import Row, summarize

__all__ = [
    "Cell",
    "Comparison",
    "Expected",
    "Problem",
    "Row",
    "Run",
    "Section",
    "Study",
    "Table",
    "build_table",
    "collect",
    "compare",
    "load_expected",
    "metrics_to_csv",
    "sections",
    "summarize",
    "to_csv",
    "to_latex",
    "to_markdown",
    "to_rich",
]
