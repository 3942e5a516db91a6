"""A proxy between a client and the service that loses what it is told to lose."""

import contextlib
import http.client
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

from tests.serving import Server

# Each request meets the next fault: "lost" is forwarded and its answer thrown away; "cut" never reaches the service;
# a number is answered in the place of the service; None, and whatever comes after the last fault, goes through.
Fault = Literal["lost", "cut"] | int | None


class Proxy(ThreadingHTTPServer):
    """Forwards to the service; `seen` holds every request that came, as method, path, headers and body."""

    daemon_threads = True

    def __init__(self, target: Server, faults: list[Fault]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = target
        self.faults = iter(faults)
        self.seen: list[tuple[str, str, dict[str, str], Any]] = []
        self.retry_after = "0"
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def _pass_on(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.seen.append((self.command, self.path, dict(self.headers), json.loads(raw) if raw else None))
        fault = next(self.server.faults, None)
        if isinstance(fault, int):
            self._answer(fault, {"Retry-After": self.server.retry_after}, b"<html>not the service's own</html>")
        elif fault == "cut":
            self.close_connection = True
        else:
            status, headers, content = self._forward(raw)
            if fault is None:
                self._answer(status, headers, content)
            self.close_connection = fault == "lost"

    do_GET = do_POST = do_PATCH = do_DELETE = _pass_on  # noqa: N815  # the names that http.server calls

    def _forward(self, raw: bytes) -> tuple[int, dict[str, str], bytes]:
        kept = {name: value for name, value in self.headers.items() if name in {"Content-Type", "If-Match", "Host"}}
        connection = http.client.HTTPConnection("127.0.0.1", self.server.target.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(self.command, self.path, raw or None, kept)
            response = connection.getresponse()
            names = ("Content-Type", "ETag", "Retry-After")
            return response.status, {n: response.headers[n] for n in names if n in response.headers}, response.read()

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def proxying(target: Server, *faults: Fault) -> Iterator[Proxy]:
    """A proxy that meets these requests with these faults."""
    with Proxy(target, list(faults)) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield proxy
        proxy.shutdown()
        thread.join()
