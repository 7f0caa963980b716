"""Servers with OpenAI's chat interface: one that does what a test says, and `transformers serve`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from servers import free_port

Answer = tuple[int, dict[str, str], bytes]


def completion(text: str | None, finish: str = "stop", sent: int = 100, received: int = 10) -> Answer:
    """What a server says that works."""
    body = {
        "id": "x", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": sent, "completion_tokens": received, "total_tokens": sent + received},
    }  # fmt: skip
    return 200, {}, json.dumps(body).encode()


def refusal(status: int, text: str = "no", **headers: str) -> Answer:
    """An error; the client waits a hundredth of a second before it asks again."""
    body = json.dumps({"error": {"message": text, "type": "t", "param": None, "code": None}}).encode()
    return status, {"retry-after-ms": "10", **headers}, body


class ChatServer:
    """Answers by `behave(body, number)`, which gets each request's JSON and how many there were before it.

    Attributes:
        bodies: of all requests.
        keys: the `Authorization` header of each.
        busiest: the most requests that were under way at a time.
    """

    def __init__(self, behave: Callable[[dict[str, Any], int], Answer]) -> None:
        self.behave = behave
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.busiest = self._busy = 0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with outer._lock:
                    number = len(outer.bodies)
                    outer.bodies.append(body)
                    outer.keys.append(self.headers["authorization"])
                    outer._busy += 1
                    outer.busiest = max(outer.busiest, outer._busy)
                try:
                    status, headers, content = outer.behave(body, number)
                finally:
                    with outer._lock:
                        outer._busy -= 1
                with contextlib.suppress(OSError):  # a client that has given up
                    self.send_response(status)
                    for name, value in {"content-type": "application/json", **headers}.items():
                        self.send_header(name, value)
                    self.send_header("content-length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler

    def __enter__(self) -> ChatServer:
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def transformers_serve(model: Path, log: Path) -> Iterator[str]:
    """`transformers serve` of a model folder on the CPU; yields the address of its API."""
    port = free_port()
    words = ["serve", str(model), "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
    program = "from transformers.cli.transformers import main; main()"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", program, *words], stdout=stream, stderr=stream, start_new_session=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 180
        while not _answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, "the server doesn't come up"
            time.sleep(0.3)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as reply:
            return reply.status == 200
    except (urllib.error.URLError, OSError):
        return False
