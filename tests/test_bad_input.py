"""Hundreds of bad requests to one real server: each refused in the one shape, quickly, and nothing stored."""

import http.client
import time
from collections.abc import Iterator
from urllib.parse import quote

import pytest

from tests.answers import check_refusal, exchange
from tests.bad_requests import JSON, RAW, TABLE, Bad
from tests.serving import Server, serving

SLOWEST_SECONDS = 0.5


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server to which nobody else writes, so that its whole record can be compared."""
    with serving(tmp_path_factory.mktemp("bad") / "amelia.db", workers=1) as running:
        yield running
        assert running.stop() == 0
        assert "Traceback" not in running.log.read_text()


@pytest.fixture(scope="module")
def workflow(server: Server) -> str:
    """A workflow that is there, pending."""
    created = server.request("POST", "/api/workflows", {"issue_id": "A-1", "worktree_path": "/there"})
    assert created.status == 201
    return str(created.json["id"])


def as_sent(bad: Bad, workflow: str) -> bytes:
    """The request's bytes."""
    path = quote(bad.path.replace("{id}", workflow), safe="/%?&=;[]+.~")
    headers = {"Host": "localhost"} | dict(bad.headers)
    if bad.body is not None and "Transfer-Encoding" not in headers:
        headers["Content-Length"] = str(len(bad.body))
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{bad.method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + (bad.body or b"")


def complaint(server: Server, request: bytes) -> str | None:
    """What is wrong with the answer to a bad request."""
    started = time.perf_counter()
    try:
        reply = exchange(server.port, request)
        seconds = time.perf_counter() - started
        assert 400 <= reply.status < 500, reply.raw[:200]
        assert reply.headers["Content-Type"] == JSON
        check_refusal(reply.json)
    except (AssertionError, OSError, ValueError, http.client.HTTPException) as error:
        return repr(error)
    return f"took {seconds:.2f} s" if seconds > SLOWEST_SECONDS else None


def test_every_bad_request_is_refused_quickly_and_changes_nothing(server: Server, workflow: str) -> None:
    requests = RAW | {bad.name: as_sent(bad, workflow) for bad in TABLE}
    assert len(requests) == len(RAW) + len(TABLE), "a name stands for two"
    assert len(requests) >= 300
    before = server.database.dump()
    complaints = {name: said for name, request in requests.items() if (said := complaint(server, request))}
    # What a busy machine held up once is quick the second time; what is slow by itself is not.
    for name in [name for name, said in complaints.items() if said.startswith("took")]:
        complaints[name] = complaint(server, requests[name]) or "quick"
    assert [(name, said) for name, said in complaints.items() if said != "quick"] == []
    assert server.database.dump() == before
