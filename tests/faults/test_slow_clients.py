"""Clients that are slow, silent or hostile: each is bounded in time, and others are served meanwhile."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from itertools import cycle
from pathlib import Path

import psutil
import pytest

from tests.load import create_workflows, event
from tests.serving import Server, serving, until

THREADS = 8
SLOW = 24
# With so many slow clients a process of so many threads serves others within this time: where they wait for its
# threads, a stalled client has a second, one that drips five.
SERVED_SECONDS = 5.0 * SLOW / THREADS + 5
QUICK_SECONDS = 3.0
LEAVE_SECONDS = 10.0
CLOSED_SECONDS = 45.0
HEAD = b"POST /api/workflows HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def connect(server: Server, receive_buffer: int = 0) -> socket.socket:
    client = socket.socket()
    if receive_buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    client.settimeout(CLOSED_SECONDS)
    client.connect(("127.0.0.1", server.port))
    return client


def half_a_head(client: socket.socket) -> None:
    client.sendall(HEAD[:40])


def half_a_body(client: socket.socket) -> None:
    client.sendall(HEAD + b'Content-Length: 1000\r\n\r\n{"issue_id":')


def a_broken_chunk(client: socket.socket) -> None:
    client.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\nffff\r\n{")


def half_a_pipelined_request(client: socket.socket) -> None:
    client.sendall(b"GET /api/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n" + HEAD[:40])


def no_byte(_client: socket.socket) -> None:
    """Connected, and silent."""


def a_large_answer_that_is_not_read(client: socket.socket) -> None:
    client.sendall(b"GET /api/events?limit=1000 HTTP/1.1\r\nHost: localhost\r\n\r\n")


Behaviour = Callable[[socket.socket], None]
WITHOUT_THREAD = (no_byte, half_a_head)
WITH_THREAD = (half_a_body, a_broken_chunk, half_a_pipelined_request)
WITHOUT_READING = (a_large_answer_that_is_not_read,)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One process with a record whose first page is some megabytes."""
    with serving(tmp_path_factory.mktemp("slow") / "amelia.db", workers=1, threads=THREADS) as running:
        workflow = create_workflows(running, 1)[0]
        for _ in range(5):
            batch = {"events": [event(message="m" * 60_000) for _ in range(40)]}
            assert running.request("POST", f"/api/workflows/{workflow}/events", batch).status == 201
        yield running
        assert running.stop() == 0, running.log.read_text()
        assert "Traceback" not in running.log.read_text()


@contextmanager
def many(server: Server, *behave: Behaviour, count: int = SLOW) -> Iterator[list[socket.socket]]:
    """So many clients that behave like this, in turn."""
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(server, 4096)) for _ in range(count)]
        for client, do in zip(clients, cycle(behave), strict=False):
            do(client)
        yield clients


def check_served(server: Server, seconds: float) -> None:
    """A probe and a write of somebody else are answered in time."""
    began = time.monotonic()
    assert server.request("GET", "/api/health/live", timeout=60).status == 200
    assert time.monotonic() - began < seconds
    began = time.monotonic()
    create_workflows(server, 1)
    assert time.monotonic() - began < seconds


@pytest.mark.parametrize(
    ("behave", "seconds"),
    [(WITHOUT_THREAD, QUICK_SECONDS), (WITH_THREAD, SERVED_SECONDS), (WITHOUT_READING, SERVED_SECONDS)],
)
def test_others_are_served_and_every_slow_client_is_left_in_the_end(
    server: Server, behave: tuple[Behaviour, ...], seconds: float
) -> None:
    with many(server, *behave):
        check_served(server, seconds)
        until(lambda: open_connections(server) == 0, CLOSED_SECONDS)
    check_served(server, QUICK_SECONDS)


def open_connections(server: Server) -> int:
    """Connections that the service holds open."""
    assert server.process is not None
    process = psutil.Process(server.process.pid).children()[0]
    return len([one for one in process.net_connections("tcp") if one.status == "ESTABLISHED"])


def drip(client: socket.socket, data: bytes, stopped: threading.Event) -> None:
    """One byte after the other, until nobody takes them any more."""
    with suppress(OSError):
        for byte in data:
            client.sendall(bytes([byte]))
            if stopped.wait(0.3):
                return


def sip(client: socket.socket, _data: bytes, stopped: threading.Event) -> None:
    """Take an answer in small pieces, for as long as it is given."""
    with suppress(OSError):
        while client.recv(64) and not stopped.wait(0.1):
            pass


@pytest.mark.parametrize(
    ("begin", "do", "data", "seconds"),
    [
        (no_byte, drip, HEAD * 1000, QUICK_SECONDS),
        (half_a_body, drip, b" " * 900, SERVED_SECONDS),
        (a_large_answer_that_is_not_read, sip, b"", SERVED_SECONDS),
    ],
)
def test_those_who_send_or_take_byte_by_byte_are_bounded_in_all(
    server: Server, begin: Behaviour, do: Callable[..., None], data: bytes, seconds: float
) -> None:
    stopped = threading.Event()
    with many(server, begin) as clients:
        threads = [threading.Thread(target=do, args=(client, data, stopped)) for client in clients]
        for thread in threads:
            thread.start()
        try:
            check_served(server, seconds)
            until(lambda: open_connections(server) == 0, CLOSED_SECONDS)
        finally:
            stopped.set()
            for thread in threads:
                thread.join()
    check_served(server, QUICK_SECONDS)


@pytest.mark.parametrize(
    ("request_", "statuses"),
    [
        (b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", {414}),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", {431}),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: x\r\n" * 5000 + b"\r\n", {431}),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 5_000_000, {431}),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n", {400}),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}xx0\r\n\r\n", {400}),
        (HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}", {400}),
        (HEAD + b"Content-Length: -1\r\n\r\n", {400}),
    ],
)
def test_what_is_too_large_or_broken_is_refused(server: Server, request_: bytes, statuses: set[int]) -> None:
    with connect(server) as client:
        with suppress(ConnectionError):  # it may be refused before all of it is sent
            client.sendall(request_)
        answer = b""
        with suppress(ConnectionError):
            while more := client.recv(65536):
                answer += more
        assert answer == b"" or int(answer.split()[1]) in statuses
    check_served(server, QUICK_SECONDS)


def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    paths = [b"/api/health/live", b"/api/nothing", b"/api/health/ready"] * 10
    with connect(server) as client:
        client.sendall(b"".join(b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\n\r\n" for path in paths))
        answers = b""
        while answers.count(b"HTTP/1.1 ") < len(paths) or not answers.endswith(b"}"):
            more = client.recv(65536)
            assert more, answers
            answers += more
    assert [part[:3] for part in answers.split(b"HTTP/1.1 ")[1:]] == [b"200", b"404", b"200"] * 10


def test_clients_that_stay_after_their_last_answer_delay_nobody(server: Server) -> None:
    def goodbye(client: socket.socket) -> None:
        client.sendall(b"GET /api/health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 200")

    with many(server, goodbye, count=12):
        check_served(server, QUICK_SECONDS)
        until(lambda: open_connections(server) == 0, CLOSED_SECONDS)


@pytest.mark.parametrize(("files", "connections"), [(20_000, 3000), (300, 1000)])
def test_thousands_of_idle_connections_leave_room_for_others(tmp_path: Path, files: int, connections: int) -> None:
    server = Server(tmp_path / "amelia.db", workers=2, threads=THREADS)
    server.command = ["sh", "-c", f'ulimit -n {files} && exec "$@"', "sh", *server.command]
    try:
        server.start()
        with many(server, no_byte, count=connections):
            check_served(server, QUICK_SECONDS)
            with many(server, half_a_head, count=connections // 2):
                check_served(server, QUICK_SECONDS)
        assert server.stop() == 0
        assert "Traceback" not in server.log.read_text()
    finally:
        if server.process is not None and server.process.poll() is None:
            server.kill()


def test_readers_that_wait_leave_threads_for_others_and_more_of_them_are_refused(server: Server) -> None:
    workflow = create_workflows(server, 1)[0]
    path = f"/api/workflows/{workflow}/events"
    with ThreadPoolExecutor(20) as pool:
        readers = [pool.submit(server.request, "GET", f"{path}?after=1&wait=30") for _ in range(20)]
        until(lambda: sum(reader.done() for reader in readers) == 20 - THREADS // 2)
        assert server.request("GET", "/api/health").json["websocket_connections"] == THREADS // 2
        check_served(server, QUICK_SECONDS)
        refused = [reader.result() for reader in readers if reader.done()]
        assert {(reply.status, reply.json["code"]) for reply in refused} == {(503, "TOO_MANY_STREAMS")}
        assert all(int(reply.headers["Retry-After"]) > 0 for reply in refused)
        assert server.request("POST", path, event()).status == 201
        answers = [reader.result() for reader in readers if reader.result() not in refused]
    assert [len(reply.json["events"]) for reply in answers] == [1] * (THREADS // 2)


def test_slow_clients_do_not_hold_up_the_end(tmp_path: Path) -> None:
    stopped = threading.Event()
    with serving(tmp_path / "amelia.db", workers=2, threads=THREADS) as server:
        with many(server, half_a_head, half_a_body, half_a_body) as clients:
            threads = [threading.Thread(target=drip, args=(one, b" " * 900, stopped)) for one in clients[2::3]]
            for thread in threads:
                thread.start()
            began = time.monotonic()
            assert server.stop() == 0
            assert time.monotonic() - began < LEAVE_SECONDS
            stopped.set()
            for thread in threads:
                thread.join()
        assert "Traceback" not in server.log.read_text()
