"""A reverse proxy that breaks what passes through it: slow, silent, wrong, or cut off in the middle."""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

HTML = b"<!DOCTYPE html><html><body><h1>Please log in</h1></body></html>"
FAULTS = ("slow", "silent", "500", "503", "429", "html", "reset", "answer lost", "cut")


class FaultyProxy:
    """In front of a server, on a port of its own.

    Attributes:
        fault: what it does to every request from now on: one of FAULTS, or "" to pass it on.
        delay: seconds that a slow answer takes.
        only: the fault befalls only requests whose method and path contain this.
        seen: how many requests met which fault.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream, self.fault, self.delay, self.only = urlsplit(upstream), "", 1.0, ""
        self.seen: Counter[str] = Counter()
        self.closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.proxy = self  # type: ignore[attr-defined]
        self.uri = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def faulty_proxy(upstream: str) -> Iterator[FaultyProxy]:
    proxy = FaultyProxy(upstream)
    try:
        yield proxy
    finally:
        proxy.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"  # one request a connection: a fault meets each of them anew

    def log_message(self, *_: Any) -> None:
        pass

    def _handle(self) -> None:
        proxy: FaultyProxy = self.server.proxy  # type: ignore[attr-defined]
        fault = proxy.fault if proxy.only in f"{self.command} {self.path}" else ""
        proxy.seen[fault] += 1
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if fault == "silent":
            proxy.closing.wait(600)
            self._reset()
        elif fault in ("500", "503", "429"):
            self._answer(int(fault), [("Content-Type", "text/html")], b"<html>out of order</html>")
        elif fault == "html":
            self._answer(200, [("Content-Type", "text/html")], HTML)
        elif fault == "reset":
            self._reset()
        else:
            if fault == "slow":
                time.sleep(proxy.delay)
            status, headers, reply = self._forward(proxy, body)
            if fault == "answer lost":
                self._reset()
            else:
                self._answer(status, headers, reply, cut=fault == "cut")

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _handle  # noqa: N815

    def _forward(self, proxy: FaultyProxy, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        link = http.client.HTTPConnection(proxy.upstream.hostname or "", proxy.upstream.port, timeout=120)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("connection", "host")}
        try:
            link.request(self.command, self.path, body or None, headers)
            reply = link.getresponse()
            return reply.status, reply.getheaders(), reply.read()
        except OSError:
            return 502, [], b""
        finally:
            link.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, cut: bool = False) -> None:
        with contextlib.suppress(OSError):  # the client has given up
            self.send_response(status)
            length = next((v for k, v in headers if k.lower() == "content-length"), str(len(body)))
            for name, value in headers:
                if name.lower() not in (
                    "content-length",
                    "transfer-encoding",
                    "connection",
                    "date",
                    "server",
                ):
                    self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if cut else body)
            if cut:
                self.wfile.flush()
                self._reset()

    def _reset(self) -> None:
        """Ends the connection by a reset."""
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
