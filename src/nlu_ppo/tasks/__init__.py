"""The tasks: records, readers, answer extraction, official metrics. Needs no torch."""

from nlu_ppo.tasks.answers import normalize_answer, parse_answer
from nlu_ppo.tasks.averages import bert_paper_average, glue_average, superglue_average
from nlu_ppo.tasks.metrics import Scorer, normalize_record_answer, score
from nlu_ppo.tasks.readers import default_source, raw_files, read_split
from nlu_ppo.tasks.record import Example, HubSource, Kind, Label, RawSource, Task
from nlu_ppo.tasks.registry import TASK_GROUPS, TASKS, get_task, tasks_of

__all__ = [
    "TASKS",
    "TASK_GROUPS",
    "Example",
    "HubSource",
    "Kind",
    "Label",
    "RawSource",
    "Scorer",
    "Task",
    "bert_paper_average",
    "default_source",
    "get_task",
    "glue_average",
    "normalize_answer",
    "normalize_record_answer",
    "parse_answer",
    "raw_files",
    "read_split",
    "score",
    "superglue_average",
    "tasks_of",
]
