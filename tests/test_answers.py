"""From completions to labels."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nlu_ppo.errors import ConfigError
from nlu_ppo.tasks import TASKS, Kind, parse_answer
from nlu_ppo.tasks.answers import _essence, normalize_answer

# Also halves of surrogate pairs, which a tokenizer's decoding can leave.
ANY_TEXT = st.text(st.characters())
MARKS = " \t\n\u00a0.,;:!?\"'*`()[]“”"
CLASSES = [task for task in TASKS.values() if task.kind is Kind.CLASSIFY]
ALL = sorted(TASKS)


@pytest.mark.promise("Any text as an answer", "It gives a legal label or none, and never an error")
@given(st.sampled_from(ALL), ANY_TEXT, ANY_TEXT)
def test_no_text_raises(task, text, other):
    for completion in (text, f"{text}</Judgement>{other}", f"{other}</Judgement>", f"4{text}", f"{text}4.5"):
        for candidates in (None, (), (other, "a"), (text, other)):
            answer = parse_answer(task, completion, candidates)
            assert answer is None or isinstance(answer, (int, float, str))


@given(st.sampled_from(ALL), ANY_TEXT)
@example("squad", "\x1b")  # neither white space nor a letter
def test_an_answer_is_always_a_legal_one(task, text):
    record, answer = TASKS[task], parse_answer(task, text)
    if answer is None:
        return
    if record.kind is Kind.CLASSIFY:
        assert answer in range(len(record.labels))
    elif record.kind is Kind.REGRESS:
        assert record.low <= answer <= record.high
    elif record.kind is Kind.EXTRACT:  # SQuAD's own script compares whatever there is
        assert answer == " ".join(answer.split()) != ""
    else:
        assert any(char.isalnum() for char in answer)


@given(
    st.sampled_from([task for task in TASKS.values() if task.kind is Kind.REGRESS]),
    st.data(),
    # A sign, point or comma in front would belong to the number.
    st.text(" \t\n\u00a0\"'*`()[]“”:", max_size=5),
    st.text(MARKS.replace(";", ""), max_size=5),
    st.sampled_from(["", "</Judgement>", "</Judgement>3.0"]),
)
def test_numbers_survive_blanks_and_punctuation(task, data, before, after, tail):
    word = data.draw(st.sampled_from(task.answers(None)))
    for spelling in (word, word.replace(".", ",")):
        assert parse_answer(task, before + spelling + after + tail) == float(word)
    gold = data.draw(st.floats(task.low, task.high))
    assert abs(parse_answer(task, before + task.verbalize(gold) + after + tail) - gold) <= 0.1 + 1e-9


NAMES = st.text(st.sampled_from("abcXYZ éÖñ 019.-'’&"), min_size=1, max_size=12).map(
    lambda name: " ".join(name.split())
)


@given(
    st.lists(NAMES, min_size=1, max_size=6, unique_by=_essence).filter(
        lambda names: all(map(_essence, names))
    ),
    st.sampled_from([str.lower, str.upper, str.title, str]),
    st.text(MARKS, max_size=5),
    st.text(MARKS, max_size=5),
    st.sampled_from(["", "</Judgement>", "</Judgement> and more"]),
)
def test_candidates_survive_case_blanks_and_punctuation(names, case, before, after, tail):
    for name in names:
        assert parse_answer("record", before + case(name) + after + tail, names) == name


@given(
    st.sampled_from(CLASSES),
    st.sampled_from([str.lower, str.upper, str.title, str]),
    st.text(MARKS, max_size=5),
    st.text(MARKS, max_size=5),
    st.sampled_from(["", "</Judgement>", "</Judgement> and more", "</Judgement>Yes</Judgement>"]),
)
def test_answer_words_survive_case_blanks_and_punctuation(task, case, before, after, tail):
    for label, word in enumerate(task.verbalizers):
        assert parse_answer(task, before + case(word) + after + tail) == label


def test_answer_words_stay_apart():
    for task in CLASSES:
        assert len({normalize_answer(word) for word in task.verbalizers}) == len(task.labels), task.name


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "Not",
        "None",
        "Cannot",
        "Unknown",
        "I do not know",
        "yes and no",
        "Yes, it is",
        "1",
        "acceptable",
        "Yesno",
        "Y e s",
        "\ud800",
        "Yes\nbecause it is",
        "</Judgement>Yes",
        "<Judgement>Yes",
    ],
)
def test_nothing_but_the_whole_answer_counts(text):
    assert parse_answer("cola", text) is None


def test_only_the_text_before_the_closing_tag_counts():
    assert parse_answer("cola", "Yes</Judgement>\n\nSentence: No") == 1
    assert parse_answer("cola", "No\n</Judgement></Judgement>") == 0


def test_inner_white_space_is_squeezed():
    record = TASKS["copa"]
    assert parse_answer(record, " first \n") == 0
    assert normalize_answer(" Option \n one. ") == "option one"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4", 4.0),
        ("4.5", 4.5),
        ("4,5", 4.5),
        (" 3.8</Judgement>", 3.8),
        ("0", 0.0),
        ("5.0", 5.0),
        ("4.", 4.0),
        (".5", 0.5),
        ("+2.5", 2.5),
        ('"2.5"', 2.5),
        ("**3.2**", 3.2),
        ("(1.0)!", 1.0),
        ("-0", 0.0),
    ],
)
def test_numbers(text, value):
    assert parse_answer("stsb", text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nan",
        "inf",
        "-inf",
        "NaN",
        "infinity",
        "-1",
        "5.1",
        "42",
        "9" * 400,
        "4 (range 0.0 to 5.0)",
        "4/5",
        "four",
        "4 out of 5",
        "1e0",
        "0x1",
        "4%",
        "4_0",
        "٤",
        "4.5.1",
        "1,000.5",
        "- 4",
        "--4",
        ".",
    ],
)
def test_no_numbers(text):
    assert parse_answer("stsb", text) is None


def test_choices():
    names = ("New York", "The Hague", "U.S.")
    assert parse_answer("record", " new  york.</Judgement>", names) == "New York"
    assert parse_answer("record", "hague", names) == "The Hague"
    assert parse_answer("record", "US", names) == "U.S."
    assert parse_answer("record", "“New York”", names) == "New York"
    assert parse_answer("record", "The", ("A", "The Hague")) == "The"  # without articles, nothing to match
    assert parse_answer("record", "York", names) == "York"  # the metric gives it partial credit
    assert parse_answer("record", "New  York") == "New York"
    assert parse_answer("record", " ... </Judgement>x", names) is None


def test_unknown_task():
    with pytest.raises(ConfigError, match="no task 'colaa'"):
        parse_answer("colaa", "Yes")
