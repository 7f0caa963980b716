"""Real servers for tests: `mlflow server`, and a PostgreSQL of one's own behind it."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class MlflowServer:
    """`mlflow server` in a process group of its own, which can be killed and started again on the same port."""

    def __init__(self, folder: Path, store: str) -> None:
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._folder, self._store = folder, store
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns as soon as the server answers."""
        words = [
            "--backend-store-uri",
            self._store,
            "--artifacts-destination",
            str(self._folder / "artifacts"),
        ]
        words += ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *words],
                cwd=self._folder, stdout=log, stderr=log, start_new_session=True,
                # eight more processes, for features of MLflow that have nothing to do with runs
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            )  # fmt: skip
        deadline = time.monotonic() + 180
        while not self._answers():
            assert self._process.poll() is None, (self._folder / "server.log").read_text()[-3000:]
            assert time.monotonic() < deadline, "the server doesn't come up"
            time.sleep(0.3)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as reply:
                return reply.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def kill(self) -> None:
        """kill -9 of the server and its workers."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextlib.contextmanager
def mlflow_server(folder: Path, store: str) -> Iterator[MlflowServer]:
    server = MlflowServer(folder, store)
    server.start()
    try:
        yield server
    finally:
        server.kill()


def postgres_programs() -> Path | None:
    """The folder with initdb and pg_ctl, which Debian keeps off the PATH; the newest of several."""
    found = shutil.which("initdb")
    if found:
        return Path(found).parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return folders[-1].parent if folders else None


@contextlib.contextmanager
def postgres(programs: Path) -> Iterator[str]:
    """A new, empty PostgreSQL database on a free port; yields its address, as SQLAlchemy takes it."""
    port = free_port()
    folder = Path(tempfile.mkdtemp(prefix="nlu_ppo_postgres_"))  # pytest's own are closed to other users
    user = (
        ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    )  # PostgreSQL refuses to run as root
    if user:
        owner = pwd.getpwnam("postgres")
        os.chown(folder, owner.pw_uid, owner.pw_gid)

    def call(program: str, *words: str) -> None:
        subprocess.run(
            [*user, str(programs / program), "-D", str(folder / "data"), *words],
            check=True, cwd=folder, stdout=subprocess.DEVNULL, timeout=120,
        )  # fmt: skip

    try:
        call("initdb", "-U", "tests", "--auth=trust", "-E", "UTF8", "--no-sync")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
        call("pg_ctl", "start", "-w", "-l", str(folder / "log"), "-o", options)
        try:
            yield f"postgresql+psycopg2://tests@127.0.0.1:{port}/postgres"
        finally:
            call("pg_ctl", "stop", "-m", "immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
