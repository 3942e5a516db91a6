"""A process that gets no more memory: whoever asks gets an answer, and the service goes on."""

import json
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

import psutil
import pytest

from tests import programs
from tests.databases import Database
from tests.load import check_record, create_workflows, event
from tests.serving import Server, serving, until
from tests.writers import stored

LARGE = 50 * 2**20


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "amelia.db", workers=1, threads=4, max_body_bytes=2 * LARGE) as running:
        yield running
        assert running.stop() == 0, running.log.read_text()
        check_record(running.database)


def limit_memory(server: Server, spare: int | None) -> None:
    """Let each process have so much more address space than it has, or as much as it likes."""
    assert server.process is not None
    for process in psutil.Process(server.process.pid).children():
        most = resource.RLIM_INFINITY if spare is None else process.memory_info().vms + spare
        process.rlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


@pytest.mark.parametrize("spare", [8, 60, 100, 200])
def test_a_body_for_which_there_is_no_memory_is_answered_and_others_are_served(server: Server, spare: int) -> None:
    path = f"/api/workflows/{create_workflows(server, 1)[0]}/events"
    raw = json.dumps(event()).encode() + b" " * LARGE
    limit_memory(server, spare * 2**20)
    with ThreadPoolExecutor(6) as pool:
        large = [pool.submit(send, server, path, raw) for _ in range(12)]
        small = [send(server, path, json.dumps(event()).encode()) for _ in range(20)]
    statuses = {one.result() for one in large}
    assert statuses <= {200, 201, 500, 503}, statuses
    assert set(small) <= {201, 500, 503}, small
    assert spare > 8 or statuses == {500}, "there really is too little"
    limit_memory(server, None)
    until(lambda: send(server, path, raw) in {200, 201}, 10)
    assert send(server, path, json.dumps(event()).encode()) == 201
    assert server.request("GET", "/api/health").json["status"] == "healthy"


def send(server: Server, path: str, raw: bytes) -> int:
    """The status of the answer, 0 where there was none."""
    with suppress(OSError, HTTPException):
        return server.request("POST", path, raw).status
    return 0


HUNGRY = """
from amelia_flask.errors import AmeliaError
from amelia_flask.groups import Change
from amelia_flask.writer import Writer
from amelia_flask.sqlite import SqliteEngine

def add(name, hungry=False):
    def change(tx):
        tx.execute_sql("INSERT INTO health_check VALUES (?, ?)", (name, "now"))
        if hungry:
            import resource
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + 10_000_000, resource.RLIM_INFINITY))
            try:
                return len(bytearray(1_000_000_000))
            finally:
                resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    writer.run(Change(change))

writer = Writer(SqliteEngine(path))
add("before")
refused = 0
for n in range(5):
    try:
        add(f"hungry {n}", hungry=True)
    except AmeliaError as error:
        refused += error.status in {500, 503}
    add(f"after {n}")
print(refused)
writer.stop()
"""


@pytest.mark.engines("sqlite")
def test_a_change_that_finds_no_memory_fails_alone(database: Database, path: Path) -> None:
    assert programs.run(HUNGRY, path).split() == ["5"]
    assert stored(database) == ["after 0", "after 1", "after 2", "after 3", "after 4", "before"]
    assert database.rows("PRAGMA integrity_check") == [("ok",)]
