"""Keys, tokens and passwords: planted in all places that a user has for them, and looked for in all that is written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer, refusal
from servers import mlflow_server

from nlu_ppo.config import TrackingConfig
from nlu_ppo.credentials import check_tracking_uri, hidden
from nlu_ppo.endpoint import check_address
from nlu_ppo.errors import ConfigError

ROOT = Path(__file__).parents[1]
FAULT = "Keys, tokens and passwords of the user"
PLANTED = {
    "HF_TOKEN": "hf_plantedTokenOfNobody0001",
    "OPENAI_API_KEY": "sk-planted-key-of-nobody-0002",
    "MLFLOW_TRACKING_PASSWORD": "planted-pass-0003",
    "MLFLOW_TRACKING_TOKEN": "planted-token-0004",
    "AWS_SECRET_ACCESS_KEY": "planted-aws-0005",
    "WANDB_API_KEY": "planted-wandb-0006",
}
IN_ADDRESS = "planted-in-the-address-0007"
SMALL = ("task=toy_sentiment", "task.limit.train=16", "task.limit.eval=4", "eval.bootstrap_samples=10",
         "eval.likelihood=false", "method.max_steps=2", "method.batch_size=4")  # fmt: skip


def start(
    words: Sequence[str], folder: Path, *, key: bool = True, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """train.py as a process of its own, with everything planted."""
    planted = {name: value for name, value in PLANTED.items() if key or name == "HF_TOKEN"}
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *words], cwd=folder, capture_output=True, text=True, check=False,
        timeout=timeout, env={**os.environ, **planted},
    )  # fmt: skip


def traces(folder: Path, *said: str) -> list[str]:
    """Where a planted word stands: files below the folder, and what was printed."""
    words = [*PLANTED.values(), IN_ADDRESS]
    found = [
        f"{p}: {word}"
        for p in folder.rglob("*")
        if p.is_file()
        for word in words
        if word.encode() in p.read_bytes()
    ]
    return found + [f"printed: {word}" for text in said for word in words if word in text]


@pytest.mark.slow
@pytest.mark.promise(
    FAULT, "None of them stands in a file or in what is printed, be a run finished, failed, or one of a sweep"
)
def test_no_secret_is_written(outputs: Path, figures: dict[str, Any]) -> None:
    place = [f"outputs={outputs}"]
    with_sqlite = [*SMALL, *place]
    done = start(["method=sft", *with_sqlite], outputs)
    assert done.returncode == 0, done.stderr[-2000:]
    # a server that echoes the key, in a run that fails
    with ChatServer(lambda *_: refusal(401, f"your key is {PLANTED['OPENAI_API_KEY']}")) as server:
        words = [w for w in SMALL if not w.startswith("method.")]
        asked = [
            *words,
            *place,
            "model=openai_compatible",
            "model.name=r",
            "model.endpoint.model=m",
            "method=zero_shot",
        ]
        failed = start([*asked, f"model.endpoint.base_url={server.url}"], outputs)
        assert server.keys, failed.stderr[-2000:]
    assert failed.returncode != 0
    # a sweep by the local launcher, one cell of which can't be, and a password in an address that nobody answers at
    uri = f"tracking.uri=http://ann:{IN_ADDRESS}@127.0.0.1:9"
    sweep = start(["-m", "method=zero_shot", "seed=0,1", "task.limit.eval=4,-1", "hydra/launcher=local", *place, uri,
                   "task=toy_sentiment", "eval.bootstrap_samples=10", "eval.likelihood=false"], outputs)  # fmt: skip
    mysql = start(["-m", "method=zero_shot", "seed=0,1", *place, f"tracking.uri=mysql+pymysql://ann:{IN_ADDRESS}@127.0.0.1/x",
                   "task=toy_sentiment"], outputs)  # fmt: skip
    assert mysql.returncode != 0
    said = [text for d in (done, failed, sweep, mysql) for text in (d.stdout, d.stderr)]
    table = subprocess.run(
        [sys.executable, "-m", "nlu_ppo.tables", "default", "--outputs", str(outputs)], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert traces(outputs, *said, table.stdout, table.stderr) == []
    files = [path for path in outputs.rglob("*") if path.is_file()]
    assert {"mlflow.db", "result.json", "config.yaml", "multirun.yaml", "index.html"} & {p.name for p in files} >= {
        "mlflow.db", "result.json", "config.yaml", "multirun.yaml",
    }  # fmt: skip
    figures.update(secrets=len(PLANTED) + 1, files=len(files), processes=4)


@pytest.mark.thorough
@pytest.mark.promise(
    FAULT, "A password in the address of an MLflow server reaches the server, and no file and no record of it"
)
def test_no_password_of_a_server_is_written(tmp_path: Path, migrated: Path, figures: dict[str, Any]) -> None:
    shutil.copy(migrated, tmp_path / "store.db")
    with mlflow_server(tmp_path, f"sqlite:///{tmp_path / 'store.db'}") as server:
        uri = server.uri.replace("://", f"://ann:{IN_ADDRESS}@")
        for word in (f"tracking.uri={uri}", f"++tracking.uri='{uri}'"):
            folder = tmp_path / str(len(word))
            folder.mkdir()
            done = start(["method=sft", *SMALL, f"outputs={folder}", word], folder, key=False)
            assert done.returncode == 0, done.stderr[-2000:]
            assert traces(tmp_path, done.stdout, done.stderr) == []
    assert b"toy_sentiment" in (tmp_path / "store.db").read_bytes()
    figures["files"] = sum(path.is_file() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize(
    "address",
    [f"https://h/v1?api_key={IN_ADDRESS}", f"https://a:{IN_ADDRESS}@h/v1", f"ftp://a:{IN_ADDRESS}@h"],
)
def test_a_key_in_an_endpoints_address_is_refused_unseen(address: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.endpoint\.base_url") as caught:
        check_address(address, "model.endpoint.base_url")
    assert IN_ADDRESS not in str(caught.value)


def test_passwords_that_cannot_be_kept_out_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"ann:\*\*\*@db.*read_default_file") as caught:
        check_tracking_uri(f"mysql+pymysql://ann:{IN_ADDRESS}@db/x")
    assert IN_ADDRESS not in str(caught.value)
    for fine in (
        None,
        "sqlite:////tmp/a.db",
        "http://ann:pw@h",
        "mysql+pymysql://ann@db/x?read_default_file=~/.my.cnf",
        "file:///a:b@c",
    ):
        check_tracking_uri(fine)
    assert (
        hidden("a http://ann:p:w@h/x 'mysql://:q@h' http://h:80/x@y")
        == "a http://ann:***@h/x 'mysql://:***@h' http://h:80/x@y"
    )
    assert TrackingConfig().uri is None
