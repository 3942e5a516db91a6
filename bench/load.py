"""A load generator: many connections in one thread, each with one request on its way at a time.

It is written for a machine that it shares with what it measures: answers are counted and timed, not decoded.
"""

import selectors
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

HEAD_END = b"\r\n\r\n"
# No answer for so long means that the service hangs, which is not a figure.
STALLED_SECONDS = 60.0


@dataclass
class Result:
    """What a load met: seconds it took, answers by status, and the milliseconds that each answer took."""

    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    bytes_received: int = 0

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.latencies) / self.seconds

    def percentile(self, share: float) -> float:
        """The milliseconds within which this share of the answers came."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    @property
    def failures(self) -> int:
        """Answers other than 2xx."""
        return sum(count for status, count in self.statuses.items() if status // 100 != 2)


class _Connection:
    """One connection with the answer that it waits for."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), STALLED_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = b""
        self._missing = 0

    def send(self, request: bytes) -> None:
        self._received = b""
        self._missing = 0
        self.started = time.perf_counter()
        self.socket.sendall(request)

    def receive(self) -> bool:
        """Take what has come; tell whether the answer is whole."""
        more = self.socket.recv(262_144)
        if not more:
            raise ConnectionError("The service closed a connection in the middle of a load.")
        if self._missing:
            self._missing -= len(more)
            return self._missing == 0
        self._received += more
        head, end, content = self._received.partition(HEAD_END)
        if not end:
            return False
        self._missing = _length(head) - len(content)
        return self._missing == 0

    @property
    def status(self) -> int:
        return int(self._received[9:12])


def _length(head: bytes) -> int:
    _, _, rest = head.lower().partition(b"content-length:")
    return int(rest.split(b"\r\n", 1)[0]) if rest else 0


def get(path: str) -> bytes:
    """The bytes of a GET."""
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def post(path: str, content: bytes, media_type: str = "application/json") -> bytes:
    """The bytes of a POST."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {media_type}\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def drive(
    port: int, connections: int, requests: Iterator[bytes], seconds: float, tick: Callable[[], None] | None = None
) -> Result:
    """Send `requests` over so many connections for so long. `tick` is called about once a second.

    Raises ConnectionError where the service hangs up, TimeoutError where it does not answer.
    """
    result = Result()
    selector = selectors.DefaultSelector()
    opened = [_Connection(port) for _ in range(connections)]
    try:
        for each in opened:
            selector.register(each.socket, selectors.EVENT_READ, each)
        started = time.perf_counter()
        _run(selector, opened, requests, started + seconds, result, tick)
        result.seconds = time.perf_counter() - started
    finally:
        selector.close()
        for each in opened:
            each.socket.close()
    return result


def _run(
    selector: selectors.BaseSelector,
    opened: list[_Connection],
    requests: Iterator[bytes],
    deadline: float,
    result: Result,
    tick: Callable[[], None] | None,
) -> None:
    for each in opened:
        each.send(next(requests))
    busy, next_tick = len(opened), time.perf_counter() + 1
    while busy:
        ready = selector.select(STALLED_SECONDS)
        if not ready:
            raise TimeoutError("The service did not answer.")
        for key, _ in ready:
            connection: _Connection = key.data
            if not connection.receive():
                continue
            now = time.perf_counter()
            result.latencies.append((now - connection.started) * 1000)
            result.statuses[connection.status] += 1
            if now < deadline:
                connection.send(next(requests))
            else:
                busy -= 1
        if tick is not None and time.perf_counter() >= next_tick:
            tick()
            next_tick += 1
