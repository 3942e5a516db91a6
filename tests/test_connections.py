"""Connections: shared by the processes, and answers that go out in one piece."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from amelia_flask.connections import SMALL_BODY, ClientSocket
from tests.serving import serving, until

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
CONNECTIONS = 40


@pytest.fixture
def pair() -> Iterator[tuple[ClientSocket, socket.socket]]:
    """The service's end of a connection, and the client's, which never waits."""
    ours, theirs = socket.socketpair()
    with ClientSocket(fileno=ours.detach()) as sock, theirs:
        sock.is_crowded = lambda: False
        theirs.setblocking(False)
        yield sock, theirs


def nothing_came(client: socket.socket) -> bool:
    try:
        client.recv(1)
    except BlockingIOError:
        return True
    return False


def test_a_head_goes_out_with_its_body(pair: tuple[ClientSocket, socket.socket]) -> None:
    ours, theirs = pair
    for _ in range(2):
        ours.sendall(HEAD)
        assert nothing_came(theirs)
        ours.sendall(b"{}")
        assert theirs.recv(1000) == HEAD + b"{}"


def test_a_head_without_a_body_goes_out_in_the_end(pair: tuple[ClientSocket, socket.socket]) -> None:
    ours, theirs = pair
    ours.sendall(HEAD)
    ours.flush()
    ours.flush()
    assert theirs.recv(1000) == HEAD


def test_a_file_and_a_large_body_follow_their_head(pair: tuple[ClientSocket, socket.socket], tmp_path: Path) -> None:
    ours, theirs = pair
    (tmp_path / "file").write_bytes(b"content")
    ours.sendall(HEAD)
    with (tmp_path / "file").open("rb") as file:
        ours.sendfile(file)
    assert theirs.recv(1000) == HEAD + b"content"
    ours.sendall(HEAD)
    ours.sendall(b"x" * (SMALL_BODY + 1))
    assert theirs.recv(SMALL_BODY * 2).startswith(HEAD + b"x")


def test_what_looks_like_a_head_after_a_head_is_sent_in_its_place(pair: tuple[ClientSocket, socket.socket]) -> None:
    ours, theirs = pair
    ours.sendall(HEAD)
    ours.sendall(HEAD)
    ours.sendall(b"{}")
    assert theirs.recv(1000) == HEAD + HEAD + b"{}"


def test_many_connections_at_once_are_shared_by_the_processes(tmp_path: Path) -> None:
    with serving(tmp_path / "amelia.db", workers=2) as server:
        assert server.process is not None
        parent = psutil.Process(server.process.pid)
        until(lambda: all(shares(server.port, parent, 10)))  # by then both of them accept
        assert min(shares(server.port, parent, CONNECTIONS)) >= CONNECTIONS / 5


def shares(port: int, parent: psutil.Process, count: int) -> list[int]:
    """Of so many connections that are opened at once, how many each of the processes takes."""
    with contextlib.ExitStack() as stack:
        ours = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(count)]
        names = {sock.getsockname()[1] for sock in ours}
        until(lambda: sum(taken(parent, names)) == count)
        return [*taken(parent, names), *[0] * (2 - len(parent.children()))]


def taken(parent: psutil.Process, names: set[int]) -> list[int]:
    """How many of the connections from these ports each process holds."""
    return [
        sum(bool(found.raddr) and found.raddr.port in names for found in child.net_connections("tcp"))
        for child in parent.children()
    ]
