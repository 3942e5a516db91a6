"""Another program that holds the database's write lock, for a moment and for long."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import pytest

from amelia_flask.client import Client
from tests import programs
from tests.load import Call, Clients, check_record, create_workflows, event, mixed
from tests.serving import Reply, Server, serving, until

HOLD = """
from peewee import sqlite3
connection = sqlite3.connect(path, isolation_level=None, timeout=30)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
input()
connection.execute("ROLLBACK")
"""
WRITES = 60
ANSWER_SECONDS = 12.0
READ_SECONDS = 6.0


@contextmanager
def held(database: Path) -> Iterator[None]:
    """The write lock, by another program."""
    program = programs.start(HOLD, database)
    programs.wait_for_line(program, "held")
    try:
        yield
    finally:
        programs.finish(program, "\n")


class Timed(NamedTuple):
    """An answer, and the seconds until it came."""

    reply: Reply
    seconds: float


def timed(server: Server, method: str, path: str, body: object = None) -> Timed:
    began = time.monotonic()
    reply = server.request(method, path, body)
    return Timed(reply, time.monotonic() - began)


def test_two_seconds_are_waited_for(tmp_path: Path) -> None:
    enough = threading.Event()
    with serving(tmp_path / "amelia.db", workers=2) as server:
        workflows = create_workflows(server, 4)
        calls: list[Iterator[Call]] = [
            takewhile(lambda _: not enough.is_set(), mixed(workflows, n)) for n in range(24)
        ]
        clients = Clients(server, calls).start()
        clients.wait_for(100)
        with held(server.file):
            time.sleep(2)  # what is tested is this time
        clients.wait_for(len(clients.acknowledged) + 100)
        enough.set()
        clients.join()
        assert set(clients.statuses) == {201}
        assert server.stop() == 0
    check_record(server.database)


@pytest.mark.parametrize("threads", [16, 4])
def test_ten_seconds_are_refused_in_time_and_stored_once(tmp_path: Path, threads: int) -> None:
    with (
        serving(tmp_path / "amelia.db", workers=2, threads=threads) as server,
        ThreadPoolExecutor(WRITES + 8) as pool,
    ):
        workflow = create_workflows(server, 1)[0]
        path = f"/api/workflows/{workflow}/events"
        with held(server.file):
            bodies = [event(agent="plain") for _ in range(WRITES)]
            writes = [pool.submit(timed, server, "POST", path, body) for body in bodies]
            patient = [pool.submit(append_with_client, server, workflow) for _ in range(4)]
            reads = read_for(server, path, 10.0)
        check_in_time([write.result() for write in writes])
        assert max(read.seconds for read in reads) < READ_SECONDS
        assert {read.reply.status for read in reads} == {200}
        until(lambda: server.request("POST", path, event(agent="after")).status == 201, 5)
        check_all_stored_once(server, workflow, patient)
        assert server.request("GET", "/api/health").json["status"] == "healthy"
        assert server.stop() == 0
    replies = {body["id"]: write.result().reply for body, write in zip(bodies, writes, strict=True)}
    stored = {name for (name,) in server.database.rows("SELECT id FROM events WHERE agent = 'plain'")}
    assert {name for name, reply in replies.items() if reply.status == 201} <= stored
    assert stored <= {name for name, reply in replies.items() if may_be_stored(reply)}, "refused, and stored later"
    check_record(server.database)


def read_for(server: Server, path: str, seconds: float) -> list[Timed]:
    """What readers see meanwhile."""
    deadline = time.monotonic() + seconds
    reads = []
    while time.monotonic() < deadline:
        reads += [timed(server, "GET", path), timed(server, "GET", "/api/health/live")]
    return reads


def check_in_time(writes: list[Timed]) -> None:
    """Those that came in time to wait for the end of the lock are stored, all others are refused, and none hangs."""
    refused = [write.reply for write in writes if write.reply.status != 201]
    assert len(refused) > WRITES / 2
    assert {(reply.status, reply.json["code"]) for reply in refused} == {(503, "DATABASE_UNAVAILABLE")}
    assert all(int(reply.headers["Retry-After"]) > 0 for reply in refused)
    assert max(write.seconds for write in writes) < ANSWER_SECONDS


def may_be_stored(reply: Reply) -> bool:
    return reply.status == 201 or bool(reply.json["details"].get("outcome_unknown"))


def append_with_client(server: Server, workflow: str) -> list[str]:
    """Ids of events that the client library appended, with all the attempts that it took."""
    names = [str(uuid4()) for _ in range(5)]
    with Client(server.url, attempts=100) as client:
        for name in names:
            one = {"id": name, "agent": "patient", "event_type": "note", "message": "m"}
            client.append(workflow, one)  # type: ignore[arg-type]  # texts alone
    return names


def check_all_stored_once(server: Server, workflow: str, patient: "list[Future[list[str]]]") -> None:
    sent = sorted(name for one in patient for name in one.result(30))
    found = server.request("GET", f"/api/workflows/{workflow}/events?agent=patient&limit=1000").json["events"]
    assert sorted(one["id"] for one in found) == sent
    assert len(sent) == 20


def test_a_process_that_hangs_with_the_lock_holds_up_no_reader(tmp_path: Path) -> None:
    with serving(tmp_path / "amelia.db", workers=1) as server:
        path = f"/api/workflows/{create_workflows(server, 1)[0]}/events"
        stop = threading.Event()
        with held(server.file):
            writers = [threading.Thread(target=write_until, args=(server, path, stop)) for _ in range(40)]
            for writer in writers:
                writer.start()
            reads = read_for(server, path, 8.0)
            stop.set()
        for writer in writers:
            writer.join()
        # Once it is known that nothing is committed, writes are refused at once, and reads are as quick as ever.
        late = reads[len(reads) // 2 :]
        assert len(reads) > 50, len(reads)
        assert max(read.seconds for read in late) < 3
        until(lambda: server.request("POST", path, event()).status == 201, 5)


def write_until(server: Server, path: str, stop: threading.Event) -> None:
    while not stop.is_set():
        server.request("POST", path, event())
        time.sleep(0.05)  # a caller that is told to come again later does not come at once
