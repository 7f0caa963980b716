"""The hub breaks in the middle of a download; afterwards nothing half is taken for whole, and the same command goes on.

The hub is one of our own (hub_server.py), which real runs ask through the real `huggingface_hub`.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from composing import ROOT, command
from hub_server import HubServer

SMALL = ("method=zero_shot", "tracking=none", "eval.bootstrap_samples=20", "task.limit.eval=12")


def run(
    hub: HubServer, home: Path, folder: Path, *arguments: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """A run that knows no hub but ours, and keeps what it downloads below `home`."""
    environment = {
        **os.environ, "HF_ENDPOINT": hub.uri, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "2", "HF_HUB_ETAG_TIMEOUT": "5", "HF_HUB_DISABLE_TELEMETRY": "1", **variables,
    }  # fmt: skip
    return subprocess.run(
        command(*SMALL, *arguments, f"outputs={folder.parent}", f"hydra.run.dir={folder}"),
        cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment,
    )  # fmt: skip


@pytest.fixture(scope="module")
def hub(model_dir: Path):
    with HubServer({"owner/model": model_dir}) as server:
        yield server


broken_download = pytest.mark.promise(
    "the hub breaks off, hangs or answers 500 or 429 in the middle of a download",
    "one error that names the model or the task; the same command downloads it anew and ends like a run with the files "
    "at hand; what was downloaded needs no hub any more",
)


@pytest.mark.thorough
@broken_download
@pytest.mark.parametrize("fault", ["cut", "hangs", 500, 503, 429])
def test_a_model_whose_download_breaks_off(
    hub: HubServer, model_dir: Path, tmp_path: Path, fault: str | int, figures: dict[str, Any]
) -> None:
    words = ("model=local", "model.path=owner/model", "task=toy_nli")
    home, folder = tmp_path / "home", tmp_path / "run"
    hub.fault = fault
    done = run(hub, home, folder, *words)
    assert done.returncode == 2, done.stderr[-3000:]
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert said.startswith("error: model.path=owner/model: ")
    assert "Traceback" not in done.stderr
    assert not list(home.rglob("snapshots/*/*.safetensors"))  # which only whole files are linked into
    assert json.loads((folder / "result.json").read_text())["status"] == "failed"

    hub.fault = None
    done = run(hub, home, folder, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    expected = run(hub, home, tmp_path / "local", "model=local", f"model.path={model_dir}", "task=toy_nli")
    assert expected.returncode == 0, expected.stderr[-3000:]
    assert (folder / "predictions.jsonl").read_bytes() == (
        tmp_path / "local" / "predictions.jsonl"
    ).read_bytes()
    figures["faults"] = 1
    if fault == "cut":
        with HubServer({}) as nothing:  # has nothing, and is gone
            pass
        for name, variables in (("gone", {}), ("offline", {"HF_HUB_OFFLINE": "1"})):
            done = run(nothing, home, tmp_path / name, *words, **variables)
            assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.thorough
@broken_download
@pytest.mark.parametrize("fault", ["cut", 503])
def test_data_whose_download_breaks_off(tmp_path: Path, fault: str | int, figures: dict[str, Any]) -> None:
    folder, home = tmp_path / "glue", tmp_path / "home"
    (folder / "sst2").mkdir(parents=True)
    rows = [
        {"sentence": f"it is {'good' if i % 2 else 'bad'} {i}", "label": i % 2, "idx": i} for i in range(40)
    ]
    card = "---\nconfigs:\n- config_name: sst2\n  data_files:\n"
    for split in ("train", "validation", "test"):
        pq.write_table(pa.Table.from_pylist(rows), folder / "sst2" / f"{split}-00000-of-00001.parquet")
        card += f"  - split: {split}\n    path: sst2/{split}-*\n"
    (folder / "README.md").write_text(f"{card}---\n")
    words = ("model=tiny", "task=sst2", "task.source=hub", "task.hub_path=owner/glue")
    with HubServer({"owner/glue": folder}, broken=".parquet") as hub:
        hub.fault = fault
        done = run(hub, home, tmp_path / "run", *words)
        assert done.returncode == 2, done.stderr[-3000:]
        (said,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert said.startswith("error: task sst2: can't load owner/glue (sst2, ")
        assert "Traceback" not in done.stderr
        hub.fault = None
        done = run(hub, home, tmp_path / "run", *words)
        assert done.returncode == 0, done.stderr[-3000:]
    at_hand = run(hub, tmp_path / "no", tmp_path / "local", *words[:-1], f"task.hub_path={folder}")
    assert at_hand.returncode == 0, at_hand.stderr[-3000:]
    assert (tmp_path / "run" / "predictions.jsonl").read_bytes() == (
        tmp_path / "local" / "predictions.jsonl"
    ).read_bytes()
    figures["faults"] = 1
    offline = run(hub, home, tmp_path / "offline", *words, HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr[-3000:]
