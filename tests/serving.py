"""A real server in a process of its own, and plain HTTP to talk to it."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.databases import Database, Sqlite, named

ROOT = Path(__file__).parent.parent
START_SECONDS = 30.0
STOP_SECONDS = 15.0


class Reply(NamedTuple):
    """What came back."""

    status: int
    headers: http.client.HTTPMessage
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.raw)


class Server:
    """`amelia-flask serve` on a database of its own; a path is that of a file."""

    def __init__(self, database: Database | Path, port: int | None = None, **settings: object) -> None:
        self.database = Sqlite(database) if isinstance(database, Path) else database
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        given = {"port": self.port, "log_level": "warning"} | settings
        clean = {name: value for name, value in os.environ.items() if not name.startswith("AMELIA_")}
        self.environment = clean | dict(self.database.settings) | named(given)
        self.log = self.database.folder / f"server-{self.port}.log"
        self.command = [sys.executable, "-m", "amelia_flask", "serve"]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def file(self) -> Path:
        """Its database, where that is a file."""
        assert isinstance(self.database, Sqlite)
        return self.database.path

    def start(self) -> "Server":
        """Start it and wait until it is ready."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, cwd=ROOT, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        self.wait_until_ready()
        return self

    def wait_until_ready(self) -> None:
        """Until it takes requests."""
        assert self.process is not None
        deadline = time.monotonic() + START_SECONDS
        while not self._is_ready():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)  # between two probes; what is waited for is readiness

    def stop(self) -> int:
        """Ask it to stop and give its exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_SECONDS)

    def kill(self) -> None:
        """Kill every process of it at once, as a crash of the machine would."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(STOP_SECONDS)

    def request(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None, timeout: float = 30
    ) -> Reply:
        """One request; anything but bytes is sent as JSON."""
        raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        named = {"Content-Type": "application/json"} if raw is not None else {}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        with contextlib.closing(connection):
            connection.request(method, path, raw, named | dict(headers or {}))
            response = connection.getresponse()
            return Reply(response.status, response.headers, response.read())

    def _is_ready(self) -> bool:
        try:
            return self.request("GET", "/api/health/ready", timeout=5).status == 200
        except OSError:
            return False


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait for a condition that another process will bring about."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)  # between two looks at the condition


@contextlib.contextmanager
def serving(database: Database | Path, port: int | None = None, **settings: object) -> Iterator[Server]:
    """A server that is killed afterwards, unless it has stopped by then."""
    server = Server(database, port, **settings)
    try:
        yield server.start()
    finally:
        if server.process is not None and server.process.poll() is None:
            server.kill()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
