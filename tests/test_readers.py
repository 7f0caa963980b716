"""Raw files and the hub: every trap of the formats, and that both give the same examples."""

import csv
import json
import logging
from pathlib import Path

import pytest

from nlu_ppo.errors import ConfigError, DataError
from nlu_ppo.prompting import Prompter
from nlu_ppo.tasks import TASKS, Kind, get_task, raw_files, read_split

STSB = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
MNLI_TEXTS = "index\tpromptID\tpairID\tgenre\tp1\tp2\tp3\tp4\tsentence1\tsentence2"
MNLI_DEV = MNLI_TEXTS + "\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label\n"
MRPC = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
QQP = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"


def put(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return path


def put_lines(folder: Path, name: str, *items: object) -> Path:
    return put(folder, name, "".join(json.dumps(item) + "\n" for item in items))


def raw(task: str, folder: Path, split: str = "validation", **options):
    return list(read_split(task, split, "raw", folder, **options))


# -- TSV ----------------------------------------------------------------------------------------------------


def test_quotes_na_words_and_odd_line_separators_are_text(tmp_path):
    text = 'sentence\tlabel\n"one open quote \t1\nNA \t0\nnull\t1\na\u2028b\u0085c\rd \t0\r\n\n'
    put(tmp_path, "glue/SST-2/dev.tsv", text)
    examples = raw("sst2", tmp_path)
    assert [e.fields["sentence"] for e in examples] == ['"one open quote', "NA", "null", "a\u2028b\u0085c\rd"]
    assert [e.label for e in examples] == [1, 0, 1, 0]
    assert [e.id for e in examples] == [f"validation-{i}" for i in range(4)]


def test_cola_has_no_header_but_its_test_file_has(tmp_path):
    put(tmp_path, "glue/CoLA/dev.tsv", "gj04\t1\t\tThe first.\nks08\t0\t*\tThe the second.\n")
    put(tmp_path, "glue/CoLA/test.tsv", "index\tsentence\n7\tUnlabelled.\n")
    assert [(e.fields["sentence"], e.label) for e in raw("cola", tmp_path)] == [
        ("The first.", 1),
        ("The the second.", 0),
    ]
    (example,) = raw("cola", tmp_path, "test")
    assert (example.label, example.idx, example.id) == (None, 7, "test-7")


def test_mnli_columns_by_name(tmp_path):
    row = "\t".join(["0", "1", "1n", "fiction", "a", "b", "c", "d", "P.", "H."])
    dev = row + "\tneutral\tneutral\tentailment\tneutral\tneutral\tcontradiction\n"
    put(tmp_path, "glue/MNLI/dev_matched.tsv", MNLI_DEV + dev)
    put(tmp_path, "glue/MNLI/dev_mismatched.tsv", MNLI_DEV + dev)
    put(
        tmp_path,
        "glue/MNLI/train.tsv",
        MNLI_TEXTS + "\tlabel1\tgold_label\n" + row + "\tneutral\tentailment\n",
    )
    put(tmp_path, "glue/MNLI/test_matched.tsv", MNLI_TEXTS + "\n" + row + "\n")
    (example,) = raw("mnli", tmp_path)
    assert (example.fields, example.label) == ({"premise": "P.", "hypothesis": "H."}, 2)
    assert raw("mnli", tmp_path, "train")[0].label == 0
    assert raw("mnli", tmp_path, "test")[0].label is None
    assert raw("mnli", tmp_path, "validation_mismatched")[0].id == "validation_mismatched-0"


def test_mnli_rows_without_agreed_label_are_left_out(tmp_path):
    rows = "".join(
        "\t".join([str(i), *"1234567PH12345", gold]) + "\n" for i, gold in enumerate(["neutral", "-"])
    )
    put(tmp_path, "glue/MNLI/dev_matched.tsv", MNLI_DEV + rows)
    assert [e.label for e in raw("mnli", tmp_path)] == [1]


def test_mrpc_from_its_own_split_files(tmp_path):
    put(tmp_path, "glue/MRPC/dev.tsv", MRPC + '1\t11\t12\t"A\tB\n')
    (example,) = raw("mrpc", tmp_path)
    assert (example.fields, example.label) == ({"sentence1": '"A', "sentence2": "B"}, 1)


def test_mrpc_from_the_corpus_file_and_the_list_of_ids(tmp_path):
    put(
        tmp_path, "glue/MRPC/msr_paraphrase_train.txt", MRPC + "1\t1\t2\tA\tB\n0\t3\t4\tC\tD\n1\t5\t6\tE\tF\n"
    )
    put(tmp_path, "glue/MRPC/mrpc_dev_ids.tsv", "3\t4\n")
    put(tmp_path, "glue/MRPC/msr_paraphrase_test.txt", MRPC + "1\t7\t8\tG\tH\n")
    # Both splits share one numbering, as on the hub.
    assert [e.id for e in raw("mrpc", tmp_path, "train")] == ["train-0", "train-2"]
    assert [(e.id, e.label) for e in raw("mrpc", tmp_path)] == [("validation-1", 0)]
    assert raw("mrpc", tmp_path, "test")[0].label == 1
    assert [p.name for p in raw_files("mrpc", ["train", "validation"], tmp_path)] == [
        "msr_paraphrase_train.txt",
        "mrpc_dev_ids.tsv",
    ]


def test_qqp_broken_rows_of_the_release_are_left_out_as_on_the_hub(tmp_path):
    broken = "364011\t1\t2\tonly one question\n"
    put(tmp_path, "glue/QQP/train.tsv", QQP + "1\t1\t2\tA?\tB?\t1\n" + 3 * broken + "2\t1\t2\tC?\tD?\t0\n")
    assert [e.id for e in raw("qqp", tmp_path, "train")] == ["train-0", "train-4"]
    put(tmp_path, "glue/QQP/dev.tsv", QQP + "1\t1\t2\tA?\tB?\t1\n" + 4 * broken)
    with pytest.raises(DataError, match=r"dev\.tsv:6: 4 columns instead of 6"):
        raw("qqp", tmp_path)


def test_an_empty_text_is_a_text(tmp_path):
    put(tmp_path, "glue/QQP/dev.tsv", QQP + "1\t1\t2\tA?\t\t0\n")
    assert raw("qqp", tmp_path)[0].fields == {"question1": "A?", "question2": ""}


def test_a_test_row_with_too_many_columns_is_an_error_and_not_dropped(tmp_path):
    # Left out silently, it would shift the answers of all later rows in a submission.
    put(tmp_path, "glue/QNLI/test.tsv", "index\tquestion\tsentence\n0\tQ?\tS\n1\tQ?\tS\tS\n")
    with pytest.raises(DataError, match=r"test\.tsv:3: 4 columns instead of 3"):
        raw("qnli", tmp_path, "test")


def test_wnli_and_rte_labels_run_opposite_ways(tmp_path):
    put(tmp_path, "glue/WNLI/dev.tsv", "index\tsentence1\tsentence2\tlabel\n0\tA\tB\t1\n")
    put(tmp_path, "glue/RTE/dev.tsv", "index\tsentence1\tsentence2\tlabel\n0\tA\tB\tentailment\n")
    wnli, rte = raw("wnli", tmp_path)[0].label, raw("rte", tmp_path)[0].label
    assert (wnli, rte) == (1, 0)
    assert TASKS["wnli"].verbalize(wnli) == TASKS["rte"].verbalize(rte) == "Yes"


def test_rte_also_from_superglue(tmp_path):
    row = {"premise": "P", "hypothesis": "H", "label": "not_entailment", "idx": 3}
    put_lines(tmp_path, "superglue/RTE/val.jsonl", row)
    (example,) = raw("rte", tmp_path)
    assert (example.fields, example.label) == ({"sentence1": "P", "sentence2": "H"}, 1)


def test_ax_labels_where_the_full_file_is(tmp_path):
    put(tmp_path, "glue/AX/AX.tsv", "index\tsentence1\tsentence2\n0\tA\tB\n")
    assert raw("ax", tmp_path, "test")[0].label is None
    full = "Lexical Semantics\tLogic\tDomain\tPremise\tHypothesis\tLabel\n\t\tNews\tA\tB\tcontradiction\n"
    put(tmp_path, "glue/AX/diagnostic-full.tsv", full)
    (example,) = raw("ax", tmp_path, "test")
    assert (example.fields, example.label) == ({"premise": "A", "hypothesis": "B"}, 2)


def test_stsb_scores(tmp_path):
    row = "0\tg\tf\ty\t0\tn\tn\tA\tB\t{}\n"
    put(tmp_path, "glue/STS-B/dev.tsv", STSB + row.format("5.000") + row.format("3.77777777777778"))
    assert [e.label for e in raw("stsb", tmp_path)] == [5.0, 3.77778]
    for bad in ("5.1", "-0.5", "nan", "high"):
        put(tmp_path, "glue/STS-B/dev.tsv", STSB + row.format(bad))
        with pytest.raises(DataError, match=rf"dev\.tsv:2: the score '{bad}'"):
            raw("stsb", tmp_path)


# -- JSON lines ---------------------------------------------------------------------------------------------


def test_a_byte_order_mark_and_odd_line_separators_within_json(tmp_path):
    row = '{"premise": "a\u2028b\u0085c", "hypothesis": "NA", "label": "neutral", "idx": 0}\r\n'
    put(tmp_path, "superglue/CB/val.jsonl", "\ufeff" + row + "\n" + row.replace('"idx": 0', '"idx": 1'))
    examples = raw("cb", tmp_path)
    assert [e.id for e in examples] == ["validation-0", "validation-1"]
    assert examples[0].fields == {"premise": "a\u2028b\u0085c", "hypothesis": "NA"}


def test_boolq_question_mark_and_json_booleans(tmp_path):
    row = {"question": "is it so", "passage": "T -- text.", "idx": 5, "label": True}
    put_lines(tmp_path, "superglue/BoolQ/val.jsonl", row, {**row, "label": False, "idx": 6, "question": "x?"})
    first, second = raw("boolq", tmp_path)
    assert (first.fields["question"], first.label, first.id) == ("is it so?", 1, "validation-5")
    assert (second.fields["question"], second.label) == ("x?", 0)


def test_multirc_is_flattened_with_the_question_as_group(tmp_path):
    answers = [{"idx": 7, "text": "yes", "label": 1}, {"idx": 8, "text": "no", "label": 0}]
    text = "<b>Sent 1: </b>One.<br>Two."
    item = {
        "idx": 2,
        "passage": {"text": text, "questions": [{"idx": 3, "question": "Q?", "answers": answers}]},
    }
    put_lines(tmp_path, "superglue/MultiRC/val.jsonl", item)
    first, second = raw("multirc", tmp_path)
    assert first.fields == {"paragraph": "Sent 1: One. Two.", "question": "Q?", "answer": "yes"}
    assert (first.label, second.label) == (1, 0)
    assert first.group == second.group == (2, 3)
    assert first.id == "validation-2-3-7"
    assert first.idx == {"paragraph": 2, "question": 3, "answer": 7}


def test_record_ends_are_inclusive_and_entities_sorted(tmp_path):
    text = "Bob met Al in Rome.\n@highlight\nAl smiled"
    spans = [
        {"start": 0, "end": 2},
        {"start": 8, "end": 9},
        {"start": 14, "end": 17},
        {"start": 31, "end": 32},
    ]
    gold = [{"start": 8, "end": 9, "text": "Al"}, {"start": 31, "end": 32, "text": "Al"}]
    item = {"source": "x", "idx": 1, "passage": {"text": text, "entities": spans}}
    qas = [{"idx": 4, "query": "@placeholder smiled", "answers": gold}]
    put_lines(tmp_path, "superglue/ReCoRD/val.jsonl", {**item, "qas": qas})
    (example,) = raw("record", tmp_path)
    assert example.candidates == ("Al", "Bob", "Rome")
    assert example.label == ("Al",)
    assert example.fields["passage"] == "Bob met Al in Rome. Al smiled."
    assert (example.id, example.idx) == ("validation-1-4", {"passage": 1, "query": 4})
    put_lines(tmp_path, "superglue/ReCoRD/test.jsonl", {**item, "qas": [{"idx": 4, "query": "q"}]})
    assert raw("record", tmp_path, "test")[0].label is None


def test_wic_marks_the_form(tmp_path):
    row = {"word": "go", "sentence1": "He goes.", "sentence2": "Went home", "idx": 0, "label": False}
    offsets = {"start1": 3, "end1": 7, "start2": 0, "end2": 4}
    put_lines(tmp_path, "superglue/WiC/val.jsonl", {**row, **offsets}, {**row, **offsets, "idx": 0})
    first, second = raw("wic", tmp_path)
    assert first.fields == {"word": "go", "sentence1": "He *goes*.", "sentence2": "*Went* home"}
    assert (first.id, second.id) == ("validation-0", "validation-0.2")  # an index that occurs twice
    put_lines(tmp_path, "superglue/WiC/val.jsonl", {**row, **offsets, "end1": 99})
    with pytest.raises(DataError, match=r"val\.jsonl:1: start1=3, end1=99"):
        raw("wic", tmp_path)


@pytest.mark.parametrize(
    ("text", "noun", "noun_at", "pronoun", "pronoun_at", "marked"),
    [
        ("Mark told Pete that he lied.", "Mark", 0, "he", 4, "[Mark] told Pete that *he* lied."),
        # The pronoun stands twice: the index decides.
        ("He saw Al and he left.", "Al", 2, "he", 4, "He saw [Al] and *he* left."),
        ("He saw Al and he left.", "Al", 2, "He", 0, "*He* saw [Al] and he left."),
        # Glued to punctuation, and inside a quotation.
        ('Al saw Bo. "Good for him," he said.', "Bo", 2, "him", 5, 'Al saw [Bo]. "Good for *him*," he said.'),
        # The index hits the word before; "with" holds "it".
        (
            "Bo put the cup with tea to use it again",
            "the cup",
            2,
            "it",
            7,
            "Bo put [the cup] with tea to use *it* again",
        ),
        # The word at the index holds the pronoun, though it stands alone elsewhere.
        ("Al hurt himself, so Bo helped him", "Al", 0, "him", 2, "[Al] hurt *him*self, so Bo helped him"),
        # Case, a full stop and a line break in the span.
        ("Then the dog ran; it hid", "The dog.", 1, "it", 4, "Then [the dog] ran; *it* hid"),
        ("My old car is red, it is fast", "old\ncar", 1, "it", 5, "My [old car] is red, *it* is fast"),
        # Not in the text in one piece.
        ("A, B and C said they win", "A and C", 0, "they", 5, "A, B and C said *they* win"),
        # Overlapping spans: the pronoun only. An index out of range.
        ("Al saw his mother", "his mother", 2, "his", 2, "Al saw *his* mother"),
        ("Al saw him", "Al", 0, "they", 99, "[Al] saw *him*"),
    ],
)
def test_wsc_marks(tmp_path, text, noun, noun_at, pronoun, pronoun_at, marked):
    target = {"span1_text": noun, "span1_index": noun_at, "span2_text": pronoun, "span2_index": pronoun_at}
    row = {"text": text, "target": target, "idx": 0, "label": True}
    put_lines(tmp_path, "superglue/WSC/val.jsonl", row)
    (example,) = raw("wsc", tmp_path)
    assert example.fields["text"] == marked
    assert example.label == 1


def test_diagnostics_of_superglue(tmp_path):
    row = {"idx": "12", "sentence1": "A", "sentence2": "B", "label": "entailment", "logic": "x"}
    put_lines(tmp_path, "superglue/AX-b/AX-b.jsonl", row)
    (example,) = raw("axb", tmp_path, "test")
    assert (example.id, example.idx, example.label) == ("test-12", 12, 0)
    pair = {"premise": "P", "label": "not_entailment"}
    rows = [{**pair, "hypothesis": f"H{i}", "idx": i, "pair_id": 551646 + 2 * i} for i in range(4)]
    put_lines(tmp_path, "superglue/AX-g/AX-g.jsonl", *rows)
    assert [e.group for e in raw("axg", tmp_path, "test")] == [0, 0, 1, 1]


# -- errors -------------------------------------------------------------------------------------------------


def test_missing_file_says_where_it_looked(tmp_path):
    with pytest.raises(DataError) as caught:
        read_split("sst2", "validation", "raw", tmp_path)
    assert str(tmp_path / "glue/SST-2/dev.tsv") in str(caught.value)
    assert "task.data_dir should hold" in str(caught.value)
    with pytest.raises(DataError, match=r"task\.data_dir=DIR"):
        read_split("sst2", "validation", "raw")
    assert raw_files("sst2", ["train", "validation", "nonsense"], tmp_path) == []


def test_the_benchmarks_own_folder_will_do(tmp_path):
    put(tmp_path, "SST-2/dev.tsv", "sentence\tlabel\ngood\t1\n")
    assert len(raw("sst2", tmp_path)) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sentence\tlabel\ngood\t1\nbad\n", r"dev\.tsv:3: 1 columns instead of 2"),
        ("sentence\tlabel\ngood\t2\n", r"dev\.tsv:2: unknown label '2'; legal are 0, 1"),
        ("sentence\tlabel\ngood\t\n", r"dev\.tsv:2: unknown label ''"),
        ("text\tlabel\ngood\t1\n", r"dev\.tsv:1: the header has no column 'sentence'"),
        ("index\tsentence\n0\tgood\n", r"dev\.tsv:1: the header has no column 'label'"),
        ("sentence\tlabel\n", r"split 'validation' is empty"),
        ("", r"dev\.tsv is empty"),
        (b"sentence\tlabel\n\xff\xfe\t1\n", r"dev\.tsv:2: not UTF-8"),
    ],
)
def test_tsv_errors_name_file_and_line(tmp_path, text, message):
    put(tmp_path, "glue/SST-2/dev.tsv", text)
    with pytest.raises(DataError, match=message):
        raw("sst2", tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'premise': 1}", r"val\.jsonl:2: invalid JSON"),
        ("[1]", r"val\.jsonl:2: a JSON object is due"),
        ('{"premise": "P", "label": "neutral", "idx": 1}', r"val\.jsonl:2: no 'hypothesis'"),
        (
            '{"premise": "P", "hypothesis": 3, "label": "neutral", "idx": 1}',
            r"val\.jsonl:2: a column of the wrong",
        ),
        (
            '{"premise": "P", "hypothesis": "H", "label": "maybe", "idx": 1}',
            r"unknown label 'maybe'; legal are ent",
        ),
        ('{"premise": "P", "hypothesis": "H", "label": "neutral"}', r"val\.jsonl:2: no 'idx'"),
        (
            '{"premise": "P", "hypothesis": "H", "label": "neutral", "idx": "x"}',
            r"idx 'x' is not a whole number",
        ),
        ('{"premise": "P", "hypothesis": "H", "idx": 1}', r"val\.jsonl:2: no label"),
    ],
)
def test_json_errors_name_file_and_line(tmp_path, line, message):
    good = '{"premise": "P", "hypothesis": "H", "label": "neutral", "idx": 0}'
    put(tmp_path, "superglue/CB/val.jsonl", f"{good}\n{line}\n")
    with pytest.raises(DataError, match=message):
        raw("cb", tmp_path)


def test_nested_json_of_another_shape(tmp_path):
    for task, folder in (("multirc", "MultiRC"), ("record", "ReCoRD"), ("wsc", "WSC")):
        put_lines(tmp_path, f"superglue/{folder}/val.jsonl", {"idx": 0, "text": "x"})
        with pytest.raises(DataError, match=r"val\.jsonl:1: not the release's shape: no key"):
            raw(task, tmp_path)


def test_bad_rows_can_be_skipped_and_are_counted(tmp_path, caplog):
    put(tmp_path, "glue/SST-2/dev.tsv", "sentence\tlabel\ngood\t1\nshort\nodd\t7\nbad\t0\n")
    with caplog.at_level(logging.WARNING):
        examples = raw("sst2", tmp_path, on_bad_row="skip")
    assert [e.id for e in examples] == ["validation-0", "validation-3"]  # the numbers stay those of the file
    assert "skipped 2 bad rows" in caplog.text
    assert "dev.tsv:3" in caplog.text
    bad_rows: list[str] = []
    raw("sst2", tmp_path, on_bad_row="skip", bad_rows=bad_rows)
    assert [message.partition(": ")[0].rpartition("/")[2] for message in bad_rows] == [
        "dev.tsv:3",
        "dev.tsv:4",
    ]
    put(tmp_path, "glue/SST-2/dev.tsv", "sentence\tlabel\nshort\n")
    with pytest.raises(DataError, match=r"empty.*1 bad ones were skipped"):
        raw("sst2", tmp_path, on_bad_row="skip")


def test_wrong_choices():
    with pytest.raises(ConfigError, match="choose one of hub, raw, generated"):
        read_split("sst2", "validation", "disk")
    with pytest.raises(ConfigError, match="choose error or skip"):
        read_split("sst2", "validation", "raw", ".", on_bad_row="ignore")
    with pytest.raises(ConfigError, match="Did you mean 'boolq'"):
        get_task("BoolQ2")
    with pytest.raises(DataError, match="no split 'train'"):
        read_split("axb", "train", "raw", ".")


# -- the hub ------------------------------------------------------------------------------------------------


def hub_table(folder: Path, task: str, split: str, rows: list[dict]) -> Path:
    """Writes rows in the hub's own schema where the hub has them, and returns the repository's folder."""
    from datasets import ClassLabel, Dataset, Features, Value

    record = get_task(task)
    data = Dataset.from_list(rows)
    if record.kind is Kind.CLASSIFY:
        features = data.features.copy()
        features["label"] = ClassLabel(names=list(record.labels))
        data = data.cast(Features(features))
    elif record.kind is Kind.REGRESS:
        data = data.cast_column("label", Value("float32"))
    path = folder / record.hub.config / f"{record.hub.splits[split]}-00000-of-00001.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    data.to_parquet(str(path))
    return folder


def hub(task: str, folder: Path, split: str = "validation", **options):
    return list(read_split(task, split, "hub", hub_path=folder, **options))


def test_hub_and_raw_agree_on_glue(tmp_path):
    put(tmp_path, "glue/SST-2/dev.tsv", "sentence\tlabel\nfine film \t1\n")
    put(tmp_path, "glue/CoLA/dev.tsv", "gj04\t0\t*\tThe the.\n")
    put(tmp_path, "glue/RTE/dev.tsv", "index\tsentence1\tsentence2\tlabel\n0\tA\tB\tnot_entailment\n")
    put(tmp_path, "glue/WNLI/dev.tsv", "index\tsentence1\tsentence2\tlabel\n0\tA\tB\t0\n")
    put(tmp_path, "glue/QNLI/dev.tsv", "index\tquestion\tsentence\tlabel\n0\tQ?\tS\tentailment\n")
    put(tmp_path, "glue/STS-B/dev.tsv", STSB + "0\tg\tf\ty\t0\tn\tn\tA\tB\t3.800\n")
    put(tmp_path, "glue/MRPC/dev.tsv", MRPC + '1\t11\t12\t"A\tB\n')
    put(tmp_path, "glue/QQP/dev.tsv", QQP + "9\t1\t2\tA?\tB?\t1\n")
    mnli = "\t".join([*"01234567", "P", "H", *"12345", "contradiction"]) + "\n"
    put(tmp_path, "glue/MNLI/dev_matched.tsv", MNLI_DEV + mnli + mnli.replace("contradiction", "-"))
    pair = {"sentence1": "A", "sentence2": "B", "idx": 0}
    tables = {
        "sst2": [{"sentence": "fine film ", "label": 1, "idx": 0}],
        "cola": [{"sentence": "The the.", "label": 0, "idx": 0}],
        "rte": [{**pair, "label": 1}],
        "wnli": [{**pair, "label": 0}],
        "qnli": [{"question": "Q?", "sentence": "S", "label": 0, "idx": 0}],
        "stsb": [{**pair, "label": 3.8}],
        "mrpc": [{**pair, "sentence1": '"A', "label": 1}],
        "qqp": [{"question1": "A?", "question2": "B?", "label": 1, "idx": 0}],
        "mnli": [
            {"premise": "P", "hypothesis": "H", "label": label, "idx": i} for i, label in enumerate([2, -1])
        ],
    }
    for task, rows in tables.items():
        assert raw(task, tmp_path) == hub(task, hub_table(tmp_path / "hub", task, "validation", rows)), task
        assert len(raw(task, tmp_path)) == 1


def test_hub_and_raw_agree_on_superglue(tmp_path):
    boolq = {"question": "is it", "passage": "T -- text", "idx": 3, "label": True}
    put_lines(tmp_path, "superglue/BoolQ/val.jsonl", boolq)
    cb = {"premise": "P", "hypothesis": "H", "idx": 3, "label": "neutral"}
    put_lines(tmp_path, "superglue/CB/val.jsonl", cb)
    copa = {"premise": "P", "choice1": "A", "choice2": "B", "question": "cause", "idx": 0, "label": 1}
    put_lines(tmp_path, "superglue/COPA/val.jsonl", copa)
    wic = {"word": "go", "sentence1": "He goes.", "sentence2": "Go!", "idx": 0, "label": False}
    wic |= {"start1": 3, "end1": 7, "start2": 0, "end2": 2}
    put_lines(tmp_path, "superglue/WiC/val.jsonl", {**wic, "version": 1.1})
    spans = {"span1_text": "The dog.", "span1_index": 1, "span2_text": "it", "span2_index": 4}
    wsc = {"text": "Then the dog ran; it hid", "idx": 0, "label": True}
    put_lines(tmp_path, "superglue/WSC/val.jsonl", {**wsc, "target": spans})
    question = {"idx": 3, "question": "Q?", "answers": [{"idx": 7, "text": "yes", "label": 1}]}
    put_lines(
        tmp_path, "superglue/MultiRC/val.jsonl", {"idx": 2, "passage": {"text": "T", "questions": [question]}}
    )
    multirc = {"paragraph": "T", "question": "Q?", "answer": "yes", "label": 1}
    passage = {"text": "Bo met Al", "entities": [{"start": 7, "end": 8}, {"start": 0, "end": 1}]}
    qa = {"idx": 4, "query": "@placeholder", "answers": [{"start": 7, "end": 8, "text": "Al"}]}
    put_lines(tmp_path, "superglue/ReCoRD/val.jsonl", {"idx": 1, "passage": passage, "qas": [qa]})
    record = {"passage": "Bo met Al", "query": "@placeholder", "entities": ["Bo", "Al"], "answers": ["Al"]}
    tables = {
        "boolq": [{**boolq, "label": 1}],
        "cb": [{**cb, "label": 2}],
        "copa": [copa],
        "wic": [{**wic, "label": 0}],
        "wsc": [{**wsc, **spans, "span1_text": "the dog", "label": 1}],  # the hub mends the span
        "multirc": [{**multirc, "idx": {"paragraph": 2, "question": 3, "answer": 7}}],
        "record": [{**record, "idx": {"passage": 1, "query": 4}}],
    }
    for task, rows in tables.items():
        assert raw(task, tmp_path) == hub(task, hub_table(tmp_path / "hub", task, "validation", rows)), task
        assert len(raw(task, tmp_path)) == 1


def test_hub_test_rows_are_unlabelled(tmp_path):
    rows = [{"sentence": "x", "label": -1, "idx": 0}]
    assert hub("sst2", hub_table(tmp_path, "sst2", "test", rows), "test")[0].label is None
    with pytest.raises(DataError, match=r"row 0: no label, but split 'train'"):
        hub("sst2", hub_table(tmp_path, "sst2", "train", rows), "train")
    rows = [{"sentence1": "A", "sentence2": "B", "label": -1.0, "idx": 0}]
    assert hub("stsb", hub_table(tmp_path, "stsb", "test", rows), "test")[0].label is None
    rows = [{"premise": "A", "hypothesis": "B", "label": -1, "idx": 0}]
    assert hub("ax", hub_table(tmp_path, "ax", "test", rows), "test")[0].label is None
    query = {"passage": "Al", "query": "@placeholder", "entities": ["Al"], "idx": {"passage": 0, "query": 0}}
    rows = [{**query, "answers": []}]
    assert hub("record", hub_table(tmp_path, "record", "test", rows), "test")[0].label is None


def test_mrpc_has_its_test_labels_on_the_hub(tmp_path):
    rows = [{"sentence1": "A", "sentence2": "B", "label": 1, "idx": 0}]
    assert hub("mrpc", hub_table(tmp_path, "mrpc", "test", rows), "test")[0].label == 1


def test_hub_labels_go_by_name_not_by_number(tmp_path):
    from datasets import ClassLabel, Dataset, Features, Value

    names = ["entailment", "neutral", "contradiction"]  # MNLI's order in a copy of CB
    features = {c: Value("string") for c in ("premise", "hypothesis")}
    features |= {"label": ClassLabel(names=names), "idx": Value("int32")}
    data = Dataset.from_dict(
        {"premise": ["P"], "hypothesis": ["H"], "label": [1], "idx": [0]}, features=Features(features)
    )
    (tmp_path / "cb").mkdir()
    data.to_parquet(str(tmp_path / "cb" / "validation-00000-of-00001.parquet"))
    assert TASKS["cb"].verbalize(hub("cb", tmp_path)[0].label) == "Neutral"


def test_hub_is_asked_for_the_pinned_revision(monkeypatch):
    import datasets

    asked = {}

    def load_dataset(path, config, **options):
        asked.update(path=path, config=config, **options)
        return datasets.Dataset.from_list([{"premise": "P", "hypothesis": "H", "label": 0, "idx": 0}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(list(read_split("mnli", "validation_mismatched"))) == 1
    assert asked == {
        "path": "nyu-mll/glue",
        "config": "mnli",
        "split": "validation_mismatched",
        "revision": "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c",
    }


def test_hub_failures_say_what_to_do(tmp_path, monkeypatch):
    import datasets

    def load_dataset(*_, **__):
        raise ConnectionError("no route")

    with pytest.raises(DataError, match=r"no parquet files for split 'train'"):
        read_split("sst2", "train", "hub", hub_path=tmp_path)
    with pytest.raises(DataError, match="no split 'train' on the hub"):
        read_split("axg", "train", "hub")
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"no route.*task\.source=raw task\.data_dir=DIR"):
        read_split("sst2", "train", "hub")


# -- the real files -----------------------------------------------------------------------------------------


def hub_rows_of_real_file(path: Path, task: str) -> list[dict]:
    """What the hub's conversion makes of a file, written down once more, independently of the readers."""
    words = {"entailment": 0, "not_entailment": 1, "contradiction": 1, "neutral": 2}  # RTE's and CB's ids
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.open(encoding="utf-8")]
        return [{**row, "label": words.get(row["label"], row["label"])} for row in rows]
    names = ("source", "label", "mark", "sentence") if task == "cola" else None
    rows = []
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for idx, row in enumerate(csv.DictReader(file, names, delimiter="\t", quoting=csv.QUOTE_NONE)):
            if task == "mrpc":
                row = {"sentence1": row["#1 String"], "sentence2": row["#2 String"], "label": row["Quality"]}
            label = float(row["score"]) if task == "stsb" else words.get(row["label"])
            label = int(row["label"]) if label is None else label
            texts = {name: row[name] for name in get_task(task).columns}
            rows.append({**texts, "label": label, "idx": idx})
    return rows


@pytest.mark.parametrize(
    ("task", "file"),
    [
        ("sst2", "glue/SST-2/dev.tsv"),
        ("cola", "glue/CoLA/dev.tsv"),
        ("rte", "glue/RTE/dev.tsv"),
        ("mrpc", "glue/MRPC/dev.tsv"),
        ("stsb", "glue/STS-B/dev.tsv"),
        ("boolq", "superglue/BoolQ/val.jsonl"),
        ("cb", "superglue/CB/val.jsonl"),
        ("copa", "superglue/COPA/val.jsonl"),
    ],
)
def test_hub_and_raw_agree_on_real_files(shared, tmp_path, task, file):
    rows = hub_rows_of_real_file(shared / "data" / file, task)
    if task == "boolq":
        rows = [{**row, "label": int(row["label"])} for row in rows]
    assert raw(task, shared / "data") == hub(task, hub_table(tmp_path, task, "validation", rows))


# Rows and label counts as the data's own list of contents states them.
REAL = {
    ("cola", "validation"): (1043, {0: 322, 1: 721}),
    ("cola", "train"): (2000, {0: 585, 1: 1415}),
    ("sst2", "validation"): (872, {0: 428, 1: 444}),
    ("mrpc", "train"): (3668, {0: 1194, 1: 2474}),
    ("mrpc", "validation"): (408, {0: 129, 1: 279}),
    ("mrpc", "test"): (1725, {0: 578, 1: 1147}),
    ("stsb", "validation"): (1500, None),
    ("qqp", "validation"): (1000, {0: 660, 1: 340}),
    ("mnli", "validation"): (1000, {0: 358, 1: 309, 2: 333}),
    ("mnli", "validation_mismatched"): (73, {0: 31, 1: 17, 2: 25}),
    ("qnli", "validation"): (1000, {0: 483, 1: 517}),
    ("rte", "train"): (2490, {0: 1249, 1: 1241}),
    ("rte", "validation"): (277, {0: 146, 1: 131}),
    ("rte", "test"): (200, None),
    ("wnli", "validation"): (71, {0: 40, 1: 31}),
    ("boolq", "validation"): (1000, {0: 389, 1: 611}),
    ("cb", "validation"): (56, {0: 23, 1: 28, 2: 5}),
    ("copa", "validation"): (100, {0: 55, 1: 45}),
    ("multirc", "validation"): (4848, {0: 2773, 1: 2075}),
    ("record", "validation"): (32, None),
    ("wic", "validation"): (638, {0: 319, 1: 319}),
    ("wic", "train"): (2000, {0: 1007, 1: 993}),
    ("wsc", "train"): (388, {0: 199, 1: 189}),
    ("wsc", "validation"): (104, {0: 66, 1: 38}),
}


@pytest.mark.parametrize(("task", "split"), REAL)
def test_real_files(shared, task, split):
    record = get_task(task)
    examples = raw(task, shared / "data", split)
    rows, counts = REAL[task, split]
    assert len(examples) == rows
    assert len({e.id for e in examples}) == rows
    if counts:
        found = [e.label for e in examples]
        assert {label: found.count(label) for label in sorted(set(found))} == counts
    prompter = Prompter(record, tokenizer=None)
    for example in examples[:50]:
        assert prompter.render(example).startswith(prompter.instruction)
        assert all(value == value.strip() for value in example.fields.values())


def test_real_wsc_pronouns_are_all_marked_as_named(shared):
    for split in ("train", "validation"):
        for item in raw("wsc", shared / "data", split):
            assert f"*{item.fields['pronoun']}*" in item.fields["text"]
            assert (
                f"[{item.fields['noun']}]" in item.fields["text"]
                or item.fields["noun"] not in item.fields["text"]
            )


def test_real_multirc_groups(shared):
    examples = raw("multirc", shared / "data")
    assert len({e.group for e in examples}) == 953
    assert len({e.idx["paragraph"] for e in examples}) == 83


def test_real_record_golds_are_candidates(shared):
    for example in raw("record", shared / "data"):
        assert set(example.label) <= set(example.candidates)
        assert list(example.candidates) == sorted(set(example.candidates))
