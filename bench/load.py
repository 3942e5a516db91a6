"""A load generator: many connections in one thread, each with one request on its way at a time.

It shares its machine with what it measures: answers are counted, timed and checked for their status, not decoded.
"""

import selectors
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

HEAD_END = b"\r\n\r\n"
# No answer for so long means that the service hangs, which is not a figure.
STALLED_SECONDS = 60.0
RECEIVED_AT_ONCE = 262_144

Script = Iterator[bytes]  # the requests of a connection, one after the other


class LoadError(Exception):
    """What was measured did not do its work."""


@dataclass
class Result:
    """What a load met: how many answers came within the time, and the milliseconds that each of all took."""

    seconds: float = 0.0
    answers: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    # What an answer stands for: a batch of a hundred events counts a hundred.
    each: int = 1
    # The share of a core that the generator itself took.
    own_share: float = 0.0

    @property
    def rate(self) -> float:
        """How many a second: answers, or what they stand for."""
        return self.answers * self.each / self.seconds

    @property
    def p50(self) -> float:
        """Half of the answers took at most so many milliseconds."""
        return self._percentile(0.5)

    @property
    def p99(self) -> float:
        """All but one of a hundred answers took at most so many milliseconds."""
        return self._percentile(0.99)

    def _percentile(self, share: float) -> float:
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class _Connection:
    """One connection with its script and the answer that it waits for."""

    def __init__(self, port: int, script: Script) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), STALLED_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._script = script
        self._received = b""
        self._missing = 0

    def send(self) -> None:
        request = next(self._script)
        self._received = b""
        self._missing = 0
        self.started = time.perf_counter()
        self.socket.sendall(request)

    def receive(self) -> bool:
        """Take what has come; tell whether the answer is whole."""
        more = self.socket.recv(RECEIVED_AT_ONCE)
        if not more:
            raise LoadError("A connection was closed in the middle of a load.")
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


def drive(
    port: int | Sequence[int],
    scripts: Sequence[Script],
    seconds: float,
    *,
    each: int = 1,
    most: int | None = None,
    tick: Callable[[], None] | None = None,
) -> Result:
    """Play each script over a connection of its own until the time is over or `most` requests have been sent.

    Of several ports each is given as many connections.
    Answers that come after the time are waited for, but not counted in the rate.
    Connections may share a script. `tick` is called about once a second. Raises LoadError for an answer other than
    2xx, for a connection that is closed, and where no answer comes.
    """
    ports = [port] if isinstance(port, int) else port
    opened = [_Connection(ports[n % len(ports)], script) for n, script in enumerate(scripts)]
    try:
        with selectors.DefaultSelector() as selector:
            for connection in opened:
                selector.register(connection.socket, selectors.EVENT_READ, connection)
            result = _run(selector, opened, seconds, most, tick)
    finally:
        for connection in opened:
            connection.socket.close()
    result.each = each
    failed = {status: count for status, count in result.statuses.items() if status // 100 != 2}
    if failed:
        raise LoadError(f"There were answers other than 2xx: {failed}.")
    return result


def _run(
    selector: selectors.BaseSelector,
    opened: list[_Connection],
    seconds: float,
    most: int | None,
    tick: Callable[[], None] | None,
) -> Result:
    result = Result()
    started, own_started = time.perf_counter(), time.process_time()
    deadline, next_tick = started + seconds, started + 1
    for connection in opened:
        connection.send()
    busy = sent = len(opened)
    while busy:
        for connection in _ready(selector):
            if not connection.receive():
                continue
            now = time.perf_counter()
            result.latencies.append((now - connection.started) * 1000)
            result.statuses[connection.status] += 1
            # However short the time and slow the answers, one for each connection counts.
            in_time = now < deadline or result.answers < len(opened)
            if in_time:
                result.answers += 1
                result.seconds = now - started
            if in_time and sent != most:
                connection.send()
                sent += 1
            else:
                busy -= 1
        if tick is not None and time.perf_counter() >= next_tick:
            tick()
            next_tick += 1
    result.own_share = (time.process_time() - own_started) / (time.perf_counter() - started)
    return result


def _ready(selector: selectors.BaseSelector) -> list[_Connection]:
    """The connections on which something has come."""
    ready = selector.select(STALLED_SECONDS)
    if not ready:
        raise LoadError(f"No answer came for {STALLED_SECONDS:.0f} seconds.")
    return [key.data for key, _ in ready]
