"""The records of GLUE and SuperGLUE. Adding a task means adding a record here.

Label names stand in the order of the hub's ids. The instruction is what all prompts of a task begin with, so
whatever doesn't differ between examples belongs there; templates put what several examples share first.
Instructions and templates are our own wording; answer words follow the short-answer framing of the papers.
"""

from __future__ import annotations

from collections.abc import Mapping

from nlu_ppo.tasks import fields
from nlu_ppo.tasks.record import HubSource, Kind, RawSource, Task

_GLUE = ("nyu-mll/glue", "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c")
_SUPERGLUE = ("aps/super_glue", "3de24cf8022e94f4ee4b9d55a6f539891524d646")
_THREE = ("train", "validation", "test")

_DIGITS = {"0": 0, "1": 1}
_TRUTH = {"false": 0, "true": 1, **_DIGITS}
_ENTAILMENT = {"entailment": 0, "not_entailment": 1}
_NLI = {"entailment": 0, "neutral": 1, "contradiction": 2}

_COLA_FILE = ("source", "label", "mark", "sentence")  # train and dev have no header line


def _glue(config: str, splits: Mapping[str, str] | None = None, left_out: tuple[str, ...] = ()) -> HubSource:
    return HubSource(_GLUE[0], config, _GLUE[1], splits or {s: s for s in _THREE}, left_out=left_out)


def _superglue(config: str, splits: tuple[str, ...] = _THREE) -> HubSource:
    return HubSource(_SUPERGLUE[0], config, _SUPERGLUE[1], {s: s for s in splits})


def _sizes(*counts: int) -> dict[str, int]:
    return dict(zip(_THREE, counts, strict=True))


def _tsv(folder: str) -> dict[str, tuple[str, ...]]:
    names = {"train": "train", "validation": "dev", "test": "test"}
    return {split: (f"glue/{folder}/{name}.tsv",) for split, name in names.items()}


def _jsonl(folder: str) -> dict[str, tuple[str, ...]]:
    names = {"train": "train", "validation": "val", "test": "test"}
    return {split: (f"superglue/{folder}/{name}.jsonl",) for split, name in names.items()}


# -- GLUE ---------------------------------------------------------------------------------------------------

COLA = Task(
    name="cola",
    benchmark="glue",
    kind=Kind.CLASSIFY,
    instruction="Judge the grammar of an English sentence. Could a native speaker have written it this way?",
    template="Sentence: {sentence}",
    labels=("unacceptable", "acceptable"),
    verbalizers=("No", "Yes"),
    metrics=("matthews",),
    columns=("sentence",),
    hub=_glue("cola"),
    raw=RawSource(_tsv("CoLA"), _DIGITS, header=_COLA_FILE),
    sizes=_sizes(8551, 1043, 1063),
)

SST2 = Task(
    name="sst2",
    benchmark="glue",
    kind=Kind.CLASSIFY,
    instruction="Read a passage from a film review. Is the opinion that it voices positive or negative?",
    template="Review: {sentence}",
    labels=("negative", "positive"),
    verbalizers=("Negative", "Positive"),
    metrics=("accuracy",),
    columns=("sentence",),
    hub=_glue("sst2"),
    raw=RawSource(_tsv("SST-2"), _DIGITS),
    sizes=_sizes(67_349, 872, 1821),
)

MRPC = Task(
    name="mrpc",
    benchmark="glue",
    kind=Kind.CLASSIFY,
    instruction="Compare two sentences from news texts. Do both say the same thing in different words?",
    template="Sentence 1: {sentence1}\nSentence 2: {sentence2}",
    labels=("not_equivalent", "equivalent"),
    verbalizers=("No", "Yes"),
    metrics=("f1", "accuracy"),
    columns=("sentence1", "sentence2"),
    hub=_glue("mrpc"),
    raw=RawSource(
        # The hub's test split is the labelled file of the original corpus.
        {**_tsv("MRPC"), "test": ("glue/MRPC/msr_paraphrase_test.txt", "glue/MRPC/test.tsv")},
        _DIGITS,
        columns={"sentence1": ("#1 String",), "sentence2": ("#2 String",)},
        label_columns=("Quality",),
        shared_file=("glue/MRPC/msr_paraphrase_train.txt", "glue/MRPC/mrpc_dev_ids.tsv"),
    ),
    sizes=_sizes(3668, 408, 1725),
    note="the test split has labels on the hub, and in the release's `msr_paraphrase_test.txt`.",
)

STSB = Task(
    name="stsb",
    benchmark="glue",
    kind=Kind.REGRESS,
    instruction=(
        "Rate how close two sentences are in meaning, "
        "from 0.0 (about different things) to 5.0 (they mean exactly the same)."
    ),
    template="Sentence 1: {sentence1}\nSentence 2: {sentence2}",
    low=0.0,
    high=5.0,
    metrics=("pearson", "spearman"),
    columns=("sentence1", "sentence2"),
    hub=_glue("stsb"),
    raw=RawSource(_tsv("STS-B"), label_columns=("score",)),
    sizes=_sizes(5749, 1500, 1379),
    note=(
        "gold numbers are worded in steps of 0.2. An unparsable answer counts as 2.5, the middle of "
        "the scale."
    ),
)

QQP = Task(
    name="qqp",
    benchmark="glue",
    kind=Kind.CLASSIFY,
    instruction="Compare two questions from a question-and-answer site. Would one answer settle both?",
    template="Question 1: {question1}\nQuestion 2: {question2}",
    labels=("not_duplicate", "duplicate"),
    verbalizers=("No", "Yes"),
    metrics=("f1", "accuracy"),
    columns=("question1", "question2"),
    hub=_glue("qqp"),
    raw=RawSource(_tsv("QQP"), _DIGITS, label_columns=("is_duplicate",), short_rows=3),
    sizes=_sizes(363_846, 40_430, 390_965),
    note="three rows of the release's train file lack columns and are left out, as on the hub.",
)

_NLI_INSTRUCTION = (
    "Take the premise to be true. Does the hypothesis follow from it (Entailment), "
    "is it ruled out by it (Contradiction), or is it left open (Neutral)?"
)
_NLI_TEMPLATE = "Premise: {premise}\nHypothesis: {hypothesis}"
_NLI_COLUMNS = {"premise": ("sentence1", "Premise"), "hypothesis": ("sentence2", "Hypothesis")}

MNLI = Task(
    name="mnli",
    benchmark="glue",
    kind=Kind.CLASSIFY,
    instruction=_NLI_INSTRUCTION,
    template=_NLI_TEMPLATE,
    labels=("entailment", "neutral", "contradiction"),
    verbalizers=("Entailment", "Neutral", "Contradiction"),
    metrics=("accuracy",),
    columns=("premise", "hypothesis"),
    eval_splits=("validation", "validation_mismatched"),
    hub=_glue(
        "mnli",
        {
            "train": "train",
            "validation": "validation_matched",
            "validation_mismatched": "validation_mismatched",
            "test": "test_matched",
            "test_mismatched": "test_mismatched",
        },
        left_out=("-1",),  # no agreed label; in the test splits, none at all
    ),
    raw=RawSource(
        {
            "train": ("glue/MNLI/train.tsv",),
            "validation": ("glue/MNLI/dev_matched.tsv",),
            "validation_mismatched": ("glue/MNLI/dev_mismatched.tsv",),
            "test": ("glue/MNLI/test_matched.tsv",),
            "test_mismatched": ("glue/MNLI/test_mismatched.tsv",),
        },
        _NLI,
        columns=_NLI_COLUMNS,
        label_columns=("gold_label",),
        left_out=("-",),
    ),
    sizes={
        "train": 392_702,
        "validation": 9815,
        "validation_mismatched": 9832,
        "test": 9796,
        "test_mismatched": 9847,
    },
    note=("matched and mismatched validation are scored apart; the matched one gives the run's score."),
)

QNLI = Task(
    name="qnli",
    benchmark="glue",
    kind=Kind.CLASSIFY,
    instruction="Read a question and a sentence from an encyclopedia. Does the sentence hold the answer?",
    template="Question: {question}\nSentence: {sentence}",
    labels=("entailment", "not_entailment"),
    verbalizers=("Yes", "No"),
    metrics=("accuracy",),
    columns=("question", "sentence"),
    hub=_glue("qnli"),
    raw=RawSource(_tsv("QNLI"), _ENTAILMENT),
    sizes=_sizes(104_743, 5463, 5463),
)

_RTE_INSTRUCTION = "Take the premise to be true. Does the hypothesis follow from it?"

RTE = Task(
    name="rte",
    benchmark="glue",  # SuperGLUE's RTE is the same data
    kind=Kind.CLASSIFY,
    instruction=_RTE_INSTRUCTION,
    template="Premise: {sentence1}\nHypothesis: {sentence2}",
    labels=("entailment", "not_entailment"),
    verbalizers=("Yes", "No"),
    metrics=("accuracy",),
    columns=("sentence1", "sentence2"),
    hub=_glue("rte"),
    raw=RawSource(
        {split: _tsv("RTE")[split] + _jsonl("RTE")[split] for split in _THREE},
        _ENTAILMENT,
        columns={"sentence1": ("sentence1", "premise"), "sentence2": ("sentence2", "hypothesis")},
    ),
    sizes=_sizes(2490, 277, 3000),
)

WNLI = Task(
    name="wnli",
    benchmark="glue",
    kind=Kind.CLASSIFY,
    instruction=(
        "Sentence 2 repeats a part of sentence 1 with a pronoun replaced by what it may stand for. "
        "If sentence 1 is true, is sentence 2 true as well?"
    ),
    template="Sentence 1: {sentence1}\nSentence 2: {sentence2}",
    labels=("not_entailment", "entailment"),  # the other way round than RTE and QNLI
    verbalizers=("No", "Yes"),
    metrics=("accuracy",),
    columns=("sentence1", "sentence2"),
    hub=_glue("wnli"),
    raw=RawSource(_tsv("WNLI"), _DIGITS),
    sizes=_sizes(635, 71, 146),
    note="label ids run the other way round than RTE's and QNLI's.",
)

AX = Task(
    name="ax",
    benchmark="glue",
    kind=Kind.CLASSIFY,
    instruction=_NLI_INSTRUCTION,
    template=_NLI_TEMPLATE,
    labels=("entailment", "neutral", "contradiction"),
    verbalizers=("Entailment", "Neutral", "Contradiction"),
    metrics=("matthews",),
    columns=("premise", "hypothesis"),
    eval_splits=("test",),
    trainable=False,
    train_on="mnli",
    hub=_glue("ax", {"test": "test"}),
    raw=RawSource(
        # Only diagnostic-full.tsv has labels; the others are the unlabelled pairs of the server's task.
        {
            "test": tuple(
                f"glue/{place}{name}"
                for name in ("diagnostic-full.tsv", "AX.tsv", "diagnostic.tsv")
                for place in ("AX/", "diagnostic/", "")
            )
        },
        _NLI,
        columns=_NLI_COLUMNS,
        label_columns=("Label", "label"),
    ),
    sizes={"test": 1104},
    note="only the release's `diagnostic-full.tsv` has labels; the hub has none.",
)

# -- SuperGLUE ----------------------------------------------------------------------------------------------

BOOLQ = Task(
    name="boolq",
    benchmark="super_glue",
    kind=Kind.CLASSIFY,
    instruction="Read a passage and answer the question about it with yes or no.",
    template="Passage: {passage}\nQuestion: {question}",
    labels=("False", "True"),
    verbalizers=("No", "Yes"),
    metrics=("accuracy",),
    columns=("passage", "question"),
    fields_of=fields.boolq_fields,
    hub=_superglue("boolq"),
    raw=RawSource(_jsonl("BoolQ"), _TRUTH),
    sizes=_sizes(9427, 3270, 3245),
)

CB = Task(
    name="cb",
    benchmark="super_glue",
    kind=Kind.CLASSIFY,
    instruction=(
        "Read a premise and a hypothesis. Does the author of the premise hold the hypothesis to be true "
        "(Entailment), to be false (Contradiction), or is it left open (Neutral)?"
    ),
    template="Premise: {premise}\nHypothesis: {hypothesis}",
    labels=("entailment", "contradiction", "neutral"),  # not in MNLI's order
    verbalizers=("Entailment", "Contradiction", "Neutral"),
    metrics=("f1_macro", "accuracy"),
    columns=("premise", "hypothesis"),
    hub=_superglue("cb"),
    raw=RawSource(_jsonl("CB"), {"entailment": 0, "contradiction": 1, "neutral": 2}),
    sizes=_sizes(250, 56, 250),
    note="label ids are not in MNLI's order.",
)

COPA = Task(
    name="copa",
    benchmark="super_glue",
    kind=Kind.CLASSIFY,
    instruction="Choose the more plausible of two alternatives.",
    template=(
        "Premise: {premise}\nFirst: {choice1}\nSecond: {choice2}\n"
        "Question: Which of the two is the more likely {question} of the premise?"
    ),
    labels=("choice1", "choice2"),
    verbalizers=("First", "Second"),
    metrics=("accuracy",),
    columns=("premise", "choice1", "choice2", "question"),
    hub=_superglue("copa"),
    raw=RawSource(_jsonl("COPA"), _DIGITS),
    sizes=_sizes(400, 100, 500),
)

MULTIRC = Task(
    name="multirc",
    benchmark="super_glue",
    kind=Kind.CLASSIFY,
    instruction=(
        "Read a text, a question about it and a proposed answer. Is the answer right? "
        "A question may have several right answers."
    ),
    template="Text: {paragraph}\nQuestion: {question}\nProposed answer: {answer}",
    labels=("False", "True"),
    verbalizers=("False", "True"),
    metrics=("f1a", "em"),
    columns=("paragraph", "question", "answer"),
    fields_of=fields.multirc_fields,
    group_of=fields.multirc_group,
    hub=_superglue("multirc"),
    raw=RawSource(_jsonl("MultiRC"), _TRUTH, rows=fields.multirc_rows),
    sizes=_sizes(27_243, 4848, 9693),
    note=("every answer is asked about by itself. Exact match counts the questions without a wrong answer."),
)

RECORD = Task(
    name="record",
    benchmark="super_glue",
    kind=Kind.CHOOSE,
    instruction=(
        "Read a news text, a list of names from it and a statement in which one name was replaced by "
        "@placeholder. Which of the listed names belongs there?"
    ),
    template="Text: {passage}\nNames:\n{entities}\nStatement: {query}",
    metrics=("f1", "em"),
    columns=("passage", "query", "entities"),
    fields_of=fields.record_fields,
    candidates_of=fields.record_candidates,
    label_of=fields.record_answers,
    hub=_superglue("record"),
    raw=RawSource(_jsonl("ReCoRD"), rows=fields.record_rows),
    sizes=_sizes(100_730, 10_000, 10_000),
    note="the model copies a name from the list of the passage's entities.",
)

# The second framing of ReCoRD, paper A's: each entity of the passage is put in for @placeholder, and the model
# says whether it belongs there. A query's answers are put together to one entity, so that the metrics are those
# of RECORD. Trained on are one true and one false entity of each query: with all of them (10 to 20), nine
# answers of ten would be "No", which PPO learns to say always. They are drawn once and not anew in every
# epoch, so that all methods and seeds train on the same examples.
RECORD_YESNO = Task(
    name="record_yesno",
    benchmark="super_glue",
    kind=Kind.CLASSIFY,
    instruction=(
        "Read a news text and a statement about it in which a missing name was filled in. "
        "Is it the right name?"
    ),
    template="Text: {passage}\nStatement: {query}",
    labels=("False", "True"),
    verbalizers=("No", "Yes"),
    metrics=RECORD.metrics,
    columns=("passage", "query", "candidate"),
    fields_of=fields.record_yesno_fields,
    items_of=fields.record_items,
    candidates_of=fields.record_item_candidate,
    group_of=fields.record_group,
    judged_as=RECORD,
    train_rows=fields.one_of_each_label,
    hub=RECORD.hub,
    raw=RawSource(_jsonl("ReCoRD"), _DIGITS, rows=fields.record_rows),
    sizes=_sizes(100_730, 10_000, 10_000),
    note=(
        "ReCoRD in paper A's framing: every entity of the passage is put in for the missing name and "
        "asked about. A query's answers are put together to one entity: the first one affirmed in "
        "passage order, or where none is, the first of all; by likelihood the one whose Yes is the "
        "most probable. The metrics are ReCoRD's, and `n`, `unparsable` and the interval count "
        "queries. Training takes one true and one false entity of each query, drawn once and the same "
        "for all methods and seeds."
    ),
)

WIC = Task(
    name="wic",
    benchmark="super_glue",
    kind=Kind.CLASSIFY,
    instruction=(
        "A word stands between asterisks in two sentences. Does it have the same meaning in both, "
        "or a different one?"
    ),
    template="Word: {word}\nSentence 1: {sentence1}\nSentence 2: {sentence2}",
    labels=("False", "True"),
    verbalizers=("Different", "Same"),
    metrics=("accuracy",),
    columns=("word", "sentence1", "sentence2", "start1", "end1", "start2", "end2"),
    fields_of=fields.wic_fields,
    hub=_superglue("wic"),
    raw=RawSource(_jsonl("WiC"), _TRUTH),
    sizes=_sizes(5428, 638, 1400),
)

WSC = Task(
    name="wsc",
    benchmark="super_glue",
    kind=Kind.CLASSIFY,
    instruction=(
        "In a text, a pronoun stands between asterisks and a noun phrase between square brackets. "
        "Does the pronoun refer to the noun phrase?"
    ),
    template="Text: {text}\nPronoun: {pronoun}\nNoun phrase: {noun}",
    labels=("False", "True"),
    verbalizers=("No", "Yes"),
    metrics=("accuracy",),
    columns=("text", "span1_text", "span1_index", "span2_text", "span2_index"),
    fields_of=fields.wsc_fields,
    hub=_superglue("wsc.fixed"),
    raw=RawSource(_jsonl("WSC"), _TRUTH, rows=fields.wsc_rows),
    sizes=_sizes(554, 104, 146),
    note="both spans are marked in the text, since pronouns recur.",
)

# AX-b and AX-g are answered by a model trained on RTE, hence with RTE's words.
AXB = Task(
    name="axb",
    benchmark="super_glue",
    kind=Kind.CLASSIFY,
    instruction=_RTE_INSTRUCTION,
    template="Premise: {sentence1}\nHypothesis: {sentence2}",
    labels=("entailment", "not_entailment"),
    verbalizers=("Yes", "No"),
    metrics=("matthews",),
    columns=("sentence1", "sentence2"),
    eval_splits=("test",),
    trainable=False,
    train_on="rte",
    hub=_superglue("axb", ("test",)),
    raw=RawSource({"test": ("superglue/AX-b/AX-b.jsonl",)}, _ENTAILMENT),
    sizes={"test": 1104},
)

AXG = Task(
    name="axg",
    benchmark="super_glue",
    kind=Kind.CLASSIFY,
    instruction=_RTE_INSTRUCTION,
    template="Premise: {premise}\nHypothesis: {hypothesis}",
    labels=("entailment", "not_entailment"),
    verbalizers=("Yes", "No"),
    metrics=("gender_parity", "accuracy"),
    columns=("premise", "hypothesis"),
    group_of=fields.axg_group,
    eval_splits=("test",),
    trainable=False,
    train_on="rte",
    hub=_superglue("axg", ("test",)),
    raw=RawSource({"test": ("superglue/AX-g/AX-g.jsonl",)}, _ENTAILMENT),
    sizes={"test": 356},
    note="gender parity is the share of pairs (rows 2k and 2k+1) with equal answers.",
)

_GLUE_TASKS = (COLA, SST2, MRPC, STSB, QQP, MNLI, QNLI, RTE, WNLI, AX)
_SUPERGLUE_TASKS = (BOOLQ, CB, COPA, MULTIRC, RECORD, RECORD_YESNO, WIC, WSC, AXB, AXG)

BENCHMARK_TASKS: dict[str, Task] = {task.name: task for task in (*_GLUE_TASKS, *_SUPERGLUE_TASKS)}
