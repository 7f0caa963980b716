"""What is shown of a grid at work, and how long it is said to take; all numbers worked out by hand."""

from __future__ import annotations

import io
import json
import os
import time
from pathlib import Path

import pytest
from rich.console import Console

from nlu_ppo.launching.display import Active, Display, Grid, drawn, duration, headline, last_metrics, line
from nlu_ppo.launching.estimate import Durations

PPO, SFT = ("ppo", "tiny", "rte"), ("sft", "tiny", "rte")

# -- remaining time ------------------------------------------------------------------------------------------


def test_the_most_alike_cells_say_how_long_one_takes() -> None:
    durations = Durations()
    assert durations.expected(PPO) is None
    durations.add(SFT, 10)
    assert durations.expected(PPO) == 10  # better than nothing
    durations.add(("ppo", "tiny", "cb"), 40)
    assert durations.expected(PPO) == 40  # the same method and model
    durations.add(("ppo", "large", "cb"), 400)
    assert durations.expected(PPO) == 40
    assert durations.expected(("ppo", "middle", "rte")) == 220  # the same method
    durations.add(PPO, 60)
    durations.add(PPO, 80)
    assert durations.expected(PPO) == 70
    assert durations.expected(("zero_shot", "tiny", "rte")) == pytest.approx((10 + 40 + 400 + 60 + 80) / 5)


def test_the_remaining_time_is_that_of_the_slot_that_is_free_last() -> None:
    durations = Durations()
    assert durations.remaining([(PPO, 5)], [], 2) is None
    durations.add(PPO, 100)
    durations.add(SFT, 10)
    # slots free in 70 and 90; the first waiting PPO ends at 170, SFT at 100, the next PPO at 200
    assert durations.remaining([(PPO, 30), (PPO, 10)], [PPO, SFT, PPO], 2) == 200
    # the second slot is idle; one that takes longer than expected may end now
    assert durations.remaining([(SFT, 50)], [SFT, SFT, SFT], 2) == 20
    assert durations.remaining([], [], 2) == 0


# -- metrics -------------------------------------------------------------------------------------------------


def written(path: Path, *lines: dict[str, float | None]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_the_last_word_of_a_run_is_read_from_its_metrics(tmp_path: Path) -> None:
    path = written(
        tmp_path / "metrics.jsonl",
        {"step": 0, "examples": 0, "seconds": 4.0, "select/score": 50.0},
        {
            "step": 1,
            "examples": 16,
            "seconds": 6.0,
            "train/reward": -1.0,
            "ppo/kl": 0.0,
            "train/accuracy": 0.25,
        },
        {
            "step": 2,
            "examples": 32,
            "seconds": 8.0,
            "train/reward": 0.5,
            "ppo/kl": None,
            "train/accuracy": 0.75,
        },
        {"step": 2, "examples": 32, "seconds": 12.0, "select/score": 62.5},
    )
    with path.open("a") as stream:
        stream.write('{"step": 3, "exam')  # caught in the middle of a write
    assert last_metrics(path, since=0) == {
        "step": 2, "reward": 0.5, "KL": 0.0, "accuracy": 0.75, "held out": 62.5, "samples/s": 32 / 8,
    }  # fmt: skip


def test_an_earlier_attempt_is_not_taken_for_this_one(tmp_path: Path) -> None:
    first = {"step": 7, "examples": 112, "seconds": 500.0}
    path = written(tmp_path / "metrics.jsonl", first)
    began = time.time() + 10
    assert last_metrics(path, since=began) == {}
    # it goes on behind what the first one wrote, with a clock of its own
    written(
        path,
        first,
        {"step": 8, "examples": 128, "seconds": 5.0},
        {"step": 9, "examples": 144, "seconds": 9.0},
    )
    os.utime(path, (began + 20, began + 20))
    assert last_metrics(path, since=began) == {"step": 9, "samples/s": 4.0}


def test_a_long_file_is_read_from_its_end(tmp_path: Path) -> None:
    lines = [{"step": n, "examples": n, "seconds": 0.5 * n, "note" + "x" * 200: 0} for n in range(1, 2001)]
    path = written(tmp_path / "metrics.jsonl", *lines)
    assert last_metrics(path, since=0) == {"step": 2000, "samples/s": 2.0}
    assert last_metrics(tmp_path / "none.jsonl", since=0) == {}


# -- what is shown -------------------------------------------------------------------------------------------

CELL = Active("task=rte method=ppo", 75.0, {"step": 12, "reward": 0.5, "KL": 0.031, "samples/s": 91.14})
GRID = Grid("demo", done=3, failed=1, waiting=5, running=[CELL], seconds=600.0, remaining=4000.0)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (89, "89 s"), (90, "2 min"), (3540, "59 min"), (3599, "1 h 0 min"), (12000, "3 h 20 min"),
     (172800 + 3 * 3600, "2 d 3 h")],
)  # fmt: skip
def test_durations_in_words(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_one_line_says_how_the_grid_stands() -> None:
    assert headline(GRID) == (
        "demo: 3 of 10 done, 1 running, 1 failed, 5 waiting; 10 min gone, left: about 1 h 7 min"
    )
    assert headline(Grid("demo", 0, 0, 2, [], 1.0)).endswith("left: unknown until a cell is done")
    assert "left" not in headline(Grid("demo", 2, 0, 0, [], 1.0))
    assert headline(Grid("demo", 2, 0, 3, [], 1.0), over=True).endswith("0 failed, 3 waiting; 1 s gone")


def test_one_line_per_running_cell_says_what_it_has() -> None:
    assert line(CELL) == (
        "  task=rte method=ppo: step 12, reward 0.50, KL 0.03, samples/s 91.1, running for 75 s"
    )


def test_a_terminal_gets_a_table() -> None:
    console = Console(file=io.StringIO(), width=100)
    console.print(drawn(GRID))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    top, names, values = text.splitlines()
    assert top.strip() == headline(GRID)[:100].strip()
    assert names.split() == [
        "running", "step", "reward", "KL", "accuracy", "held", "out", "samples/s", "time",
    ]  # fmt: skip
    assert values.split() == ["task=rte", "method=ppo", "12", "0.50", "0.03", "-", "-", "91.1", "75", "s"]


def test_a_log_file_gets_lines_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with Display(terminal=False) as display:
        assert not display.due()
        display.say("done: a")
        display.show(GRID)
    assert capsys.readouterr().out.splitlines() == ["done: a", headline(GRID), line(CELL)]


def test_on_a_terminal_what_is_said_stays_and_the_grid_is_redrawn(capsys: pytest.CaptureFixture[str]) -> None:
    with Display(terminal=True) as display:
        display.show(GRID)
        display.say("done: [a]")
        display.show(GRID)
    assert "done: [a]" in capsys.readouterr().out
