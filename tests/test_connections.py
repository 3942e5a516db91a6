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
    with serving(tmp_path / "amelia.db", workers=2) as server, contextlib.ExitStack() as stack:
        assert server.process is not None
        parent = psutil.Process(server.process.pid)
        until(lambda: sum(child.num_threads() > 1 for child in parent.children()) == 2)
        children = parent.children()
        for _ in range(CONNECTIONS):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))

        def held() -> list[int]:
            kinds = [child.net_connections("tcp") for child in children]
            return [sum(connection.status == "ESTABLISHED" for connection in kind) for kind in kinds]

        until(lambda: sum(held()) >= CONNECTIONS)
        assert min(held()) >= CONNECTIONS / 5, held()
