"""A detour between the service and PostgreSQL that can fall silent, or break a connection at its COMMIT."""

import contextlib
import socket
import socketserver
import threading
from collections.abc import Iterator
from typing import Literal

from tests.serving import until

CHUNK = 65536
PARSE = b"P"
BIND = b"B"
QUERY = b"Q"


class Detour(socketserver.ThreadingTCPServer):
    """Forwards all connections, as long as `is_silent` is not set.

    `cut` says that the next transaction that has inserted anything is cut off at its COMMIT: before it arrives, or
    before its outcome comes back; or it is kept back there until `release` is set. Then it is None again.
    """

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = port
        self.cut: Literal["before", "after", "hold"] | None = None
        self.release = threading.Event()
        self.speaks = threading.Event()
        self.speaks.set()
        self._abandoned: list[threading.Event] = []

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.server_address[1])

    def fall_silent(self) -> None:
        """Take whatever comes, new connections too, and answer nothing."""
        self.speaks.clear()

    def abandon(self) -> None:
        """Forward what comes on new connections alone, and say nothing to the others: a firewall forgot them."""
        self._abandoned.append(self.speaks)
        self.speaks.clear()
        self.speaks = threading.Event()
        self.speaks.set()

    def speak(self) -> None:
        """Forward again, also what came meanwhile."""
        for speaks in (*self._abandoned, self.speaks):
            speaks.set()

    def wait_until_cut(self) -> None:
        """Until a connection was cut."""
        until(lambda: self.cut is None)


class _Handler(socketserver.BaseRequestHandler):
    server: Detour

    def handle(self) -> None:
        self._speaks = self.server.speaks
        self._speaks.wait()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.server.target)) as there:
            here = self.request
            back = threading.Thread(target=self._pump, args=(there, here, _Outcomes()), daemon=True)
            back.start()
            self._pump(here, there, _Statements())
            back.join()

    def _pump(self, source: socket.socket, target: socket.socket, messages: "_Messages") -> None:
        """Until an end closes, or it is to be cut here."""
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK):
                self._speaks.wait()
                messages.take(data)
                if messages.is_commit and self._is_cut(messages.place):
                    break
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _is_cut(self, place: str) -> bool:
        cut = self.server.cut
        if cut == place:
            self.server.cut = None
            return True
        if cut == "hold" and place == "before":
            self.server.cut = None
            self.server.release.wait()
        return False


class _Messages:
    """What one side says, as far as it has come; `is_commit` tells of the last piece of it."""

    place: Literal["before", "after"]

    def __init__(self) -> None:
        self.is_commit = False
        self._has_inserted = False
        self._rest = b""

    def take(self, data: bytes) -> None:
        """What came."""
        self.is_commit = False
        self._rest += data
        while len(self._rest) >= 5 and len(self._rest) > (size := int.from_bytes(self._rest[1:5])):
            self._look_at(self._rest[:1], self._rest[5 : size + 1])
            self._rest = self._rest[size + 1 :]

    def _look_at(self, kind: bytes, content: bytes) -> None:
        raise NotImplementedError

    def _note(self, statement: bytes) -> None:
        self._has_inserted |= statement.lstrip().startswith(b"INSERT")
        self.is_commit |= self._has_inserted and statement.startswith(b"COMMIT")
        self._has_inserted &= not statement.startswith((b"COMMIT", b"ROLLBACK"))


class _Statements(_Messages):
    """What the service says: statements, some of which have a name and are told once."""

    place = "before"

    def __init__(self) -> None:
        super().__init__()
        self._is_started = False
        self._named: dict[bytes, bytes] = {}

    def take(self, data: bytes) -> None:
        """What came; the first message alone has no letter before its length."""
        if not self._is_started:
            self._is_started = True
            data = b"-" + data
        super().take(data)

    def _look_at(self, kind: bytes, content: bytes) -> None:
        first, _, rest = content.partition(b"\0")
        if kind == QUERY:
            self._note(first)
        elif kind == PARSE:
            self._named[first] = rest.partition(b"\0")[0]
        elif kind == BIND:
            self._note(self._named.get(rest.partition(b"\0")[0], b""))


class _Outcomes(_Messages):
    """What the server says: what was done, as a word."""

    place = "after"

    def _look_at(self, kind: bytes, content: bytes) -> None:
        if kind == b"C":
            self._note(content)


def detour(port: int) -> contextlib.AbstractContextManager[Detour]:
    """A way to the server at `port`."""
    return serving_detour(Detour(port))


@contextlib.contextmanager
def serving_detour(way: Detour) -> Iterator[Detour]:
    """A way that can be gone."""
    with way:
        thread = threading.Thread(target=way.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield way
        way.speak()
        way.shutdown()
        thread.join()
