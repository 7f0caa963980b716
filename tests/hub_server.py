"""A hub of one's own for tests: repositories are folders, and it breaks when it is told to.

It speaks what `huggingface_hub` asks: who a revision is, which files there are, and the files, whole or from a byte on.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILE = re.compile(r"^/(datasets/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)$")
API = re.compile(r"^/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?$")


class HubServer:
    """Serves `folders` (by `owner/name`) at `uri`.

    Attributes:
        fault: what befalls requests for files whose name ends in `broken`: `cut` (the connection ends in the middle),
            `hangs` (nothing more comes), or a status such as 503; `None`: nothing.
        sent: bytes of files that were sent, by name.
    """

    def __init__(self, folders: dict[str, Path], broken: str = ".safetensors") -> None:
        self.folders, self.broken = folders, broken
        self.fault: str | int | None = None
        self.sent: dict[str, int] = {}
        self.requests: list[str] = []
        self.closing = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            hub = outer

            def do_GET(self) -> None:
                answer(self, self.hub, body=True)

            def do_HEAD(self) -> None:
                answer(self, self.hub, body=False)

            def do_POST(self) -> None:
                self.asked = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                answer(self, self.hub, body=True)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()


def answer(request: Any, hub: HubServer, body: bool) -> None:
    path = unquote(urlsplit(request.path).path)
    hub.requests.append(f"{request.command} {path}")
    found = FILE.match(path)
    if found:
        file = hub.folders.get(found[2], Path("/nowhere")) / found[3]
        send_file(request, hub, file, body) if file.is_file() else send(
            request, 404, b"", body, not_found(found[3])
        )
        return
    found = API.match(path)
    if found is None or found[2] not in hub.folders:
        send(request, 404, b"{}", body)
        return
    folder = hub.folders[found[2]]
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    if found[3] == "tree":
        below = [name for name in names if name.startswith(found[5] or "")]
        told: Any = [entry(folder / name, name) for name in below]
        told += [
            {"type": "directory", "path": d, "oid": COMMIT, "size": 0}
            for d in sorted({str(Path(n).parent) for n in below} - {"."})
        ]
    elif found[3] == "paths-info":
        asked = re.findall(r"paths=([^&]*)", request.asked.decode()) or json.loads(request.asked)["paths"]
        told = [entry(folder / unquote(n), unquote(n)) for n in asked if (folder / unquote(n)).is_file()]
    else:
        told = {"id": found[2], "sha": COMMIT, "private": False, "gated": False, "disabled": False, "downloads": 0,
                "likes": 0, "tags": [], "siblings": [{"rfilename": name} for name in names]}  # fmt: skip
    send(request, 200, json.dumps(told).encode(), body, {"Content-Type": "application/json"})


def entry(file: Path, name: str) -> dict[str, Any]:
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return {"type": "file", "path": name, "size": file.stat().st_size, "oid": digest[:40]}


def not_found(name: str) -> dict[str, str]:
    return {"X-Error-Code": "EntryNotFound", "X-Error-Message": f"{name} not found", "X-Repo-Commit": COMMIT}


def send(
    request: Any, status: int, content: bytes, body: bool, headers: dict[str, str] | None = None
) -> None:
    request.send_response(status)
    for name, value in (headers or {}).items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    if body:
        request.wfile.write(content)


def send_file(request: Any, hub: HubServer, file: Path, body: bool) -> None:
    content = file.read_bytes()
    fault = hub.fault if body and file.name.endswith(hub.broken) else None
    if isinstance(fault, int):
        send(request, fault, b"out of order", body)
        return
    asked = re.match(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
    first = int(asked[1]) if asked else 0
    last = int(asked[2]) + 1 if asked and asked[2] else len(content)
    part = content[first:last]
    request.send_response(206 if asked else 200)
    request.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
    request.send_header("X-Repo-Commit", COMMIT)
    request.send_header("Accept-Ranges", "bytes")
    if asked:
        request.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
    request.send_header("Content-Length", str(len(part)))
    request.end_headers()
    if not body:
        return
    half = part[: max(1, len(part) // 2)] if fault else part
    request.wfile.write(half)
    request.wfile.flush()
    hub.sent[file.name] = hub.sent.get(file.name, 0) + len(half)
    if fault == "hangs":
        hub.closing.wait(120)
    if fault:
        request.close_connection = True
        request.connection.close()
