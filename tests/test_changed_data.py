"""Files that change between two starts of a run, or while it reads them: told by name, never mixed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from composing import run_of
from test_runs import SHORT, STEPS

from nlu_ppo.errors import DataError, RunFolderError
from nlu_ppo.run import execute


@pytest.fixture
def files(tmp_path: Path, model_dir: Path) -> dict[str, Path]:
    """A benchmark's raw files, pairs, a reward function and a model, all of which a run may read."""
    sst2 = tmp_path / "data" / "glue" / "SST-2"
    sst2.mkdir(parents=True)
    for name, count in (("train.tsv", 60), ("dev.tsv", 12)):
        rows = [f"a {'fine' if i % 2 else 'poor'} film number {i}\t{i % 2}\n" for i in range(count)]
        (sst2 / name).write_text("sentence\tlabel\n" + "".join(rows))
    (tmp_path / "reward.py").write_text(
        "def pays(completion, answer, example, *, task, config):\n    return float(answer == example.label)\n"
    )
    shutil.copytree(model_dir, tmp_path / "model")
    return {
        "train": sst2 / "train.tsv", "dev": sst2 / "dev.tsv", "reward": tmp_path / "reward.py",
        "model": tmp_path / "model" / "config.json", "folder": tmp_path,
    }  # fmt: skip


def begin(files: dict[str, Path], method: str = "ppo", *more: str) -> dict[str, Any]:
    folder = files["folder"]
    words = [
        "task=sst2", "task.source=raw", f"task.data_dir={folder / 'data'}", "model=local",
        f"model.path={folder / 'model'}", "model.learning_rate.sft=1e-3", "model.learning_rate.ppo=1e-3",
        f"method={method}", *STEPS[method], *SHORT, "tracking=none",
    ]  # fmt: skip
    if method == "ppo":
        words += [f"reward.name={folder / 'reward.py'}:pays", "method.max_steps=1"]
    return execute(run_of(folder / "outputs" / "run", *words, *more))


CHANGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "train": (
        lambda f: f.write_text(f.read_text().replace("number 7", "number 77")),
        "the data of task sst2",
    ),
    "dev": (lambda f: f.write_text(f.read_text().replace("number 3", "number 33")), "the data of task sst2"),
    "reward": (lambda f: f.write_text(f.read_text() + "# other\n"), "the reward function's file"),
    "model": (lambda f: f.write_text(f.read_text() + "\n"), "the model's files"),
}


@pytest.mark.promise(
    "a data file, a reward function or a model changed between two starts",
    "it is another run; in the old one's folder it is refused, and the error says what has changed",
)
def test_what_has_changed_between_two_starts_is_named(
    files: dict[str, Path], figures: dict[str, Any]
) -> None:
    begin(files)
    result = (files["folder"] / "outputs" / "run" / "result.json").read_bytes()
    for name, (change, said) in CHANGES.items():
        before = files[name].read_text()
        change(files[name])
        with pytest.raises(
            RunFolderError, match=rf"already holds run .* \(what differs: {said}\): choose another"
        ):
            begin(files)
        files[name].write_text(before)
    with pytest.raises(RunFolderError, match=r"\(what differs: seed\)"):
        begin(files, "ppo", "seed=1")
    assert begin(files)["status"] == "finished"  # as it was
    assert (files["folder"] / "outputs" / "run" / "result.json").read_bytes() == result
    figures["kinds of files"] = len(CHANGES)


@pytest.mark.promise("a data file vanishes between key and reading", "one error names it; nothing is trained")
def test_a_file_that_vanishes(files: dict[str, Path]) -> None:
    files["train"].unlink()
    with pytest.raises(DataError, match=r"no file for split 'train'; tried .*train\.tsv"):
        begin(files)


@pytest.mark.promise(
    "a data file changed between its key and its reading", "the run refuses before it trains"
)
@pytest.mark.parametrize("method", ["zero_shot", "ppo"])
def test_a_file_that_changes_while_it_is_read(files: dict[str, Path], method: str) -> None:
    """It is replaced as soon as run.json is there: behind the key, and before the rows are read."""
    dev, other = files["dev"], files["dev"].with_name("other")
    other.write_text(dev.read_text().replace("number 3", "number 33"))
    os.utime(other, (0, 0))
    writer = subprocess.Popen(
        ["sh", "-c", f"until test -e '{files['folder']}/outputs/run/run.json'; do sleep 0.01; done; "
         f"mv '{other}' '{dev}'"],
    )  # fmt: skip
    try:
        with pytest.raises(DataError, match=r"has changed while it was read.*start again"):
            begin(files, method)
    finally:
        writer.wait(timeout=60)
    run = files["folder"] / "outputs" / "run"
    assert json.loads((run / "result.json").read_text())["status"] == "failed"
    assert not (run / "predictions.jsonl").exists()
