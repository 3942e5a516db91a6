"""Fifty kills at random moments of everything at once: of the whole service, or of one of its processes."""

import os
import random
import signal
import time
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from amelia_flask import audit
from tests.databases import Database
from tests.faults.callers import Crowd, Known
from tests.serving import Server, serving, until

ROUNDS = 50
CALLERS = 8
# The seed of one run is printed by it; given again, moments and requests are the same.
SEED = os.environ.get("FAULTS_SEED") or str(random.SystemRandom().randrange(10**9))


def processes(server: Server) -> list[psutil.Process]:
    assert server.process is not None
    found: list[psutil.Process] = psutil.Process(server.process.pid).children()
    return found


def kill_all(server: Server, moment: float) -> None:
    time.sleep(moment)  # what is tested is this moment
    server.kill()


def kill_one(server: Server, moment: float, number: int) -> None:
    time.sleep(moment)  # what is tested is this moment
    killed = processes(server)[number % 2]
    os.kill(killed.pid, signal.SIGKILL)
    until(lambda: not killed.is_running() and len(processes(server)) == 2)


def test_fifty_kills_lose_nothing_and_leave_nothing_half_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with capsys.disabled():
        print(f"\nFAULTS_SEED={SEED}", end=" ", flush=True)
    chance = random.Random(SEED)
    with serving(tmp_path / "amelia.db", workers=2) as server, closing(Crowd(server, CALLERS, SEED)) as crowd:
        for number in range(ROUNDS):
            moment = chance.uniform(0.01, 0.4)
            if number % 2:
                crowd.work(lambda: kill_one(server, moment, number // 2))  # noqa: B023  # called in this round
            else:
                crowd.work(lambda: kill_all(server, moment))  # noqa: B023  # called in this round
                server.start()
            check_kept(server.database, crowd.known)
            crowd.settle()
            check_settled(server, crowd.known)
        assert server.request("GET", "/api/health").json["status"] == "healthy"
        assert server.stop() == 0
    check_settled_record(server.database, crowd.known)
    assert server.database.rows("PRAGMA integrity_check") == [("ok",)]
    assert set(crowd.known.statuses) <= {200, 201, 204, 404, 409, 503}, crowd.known.statuses


def check_kept(database: Database, known: Known) -> None:
    """What was answered is there, where its answer said; what was not answered is there whole or not at all."""
    assert known.wrong == []
    stored = {row[0]: row[1:] for row in database.rows("SELECT id, workflow_id, sequence, position FROM events")}
    events = {name: place for name, place in known.events.items() if place[0] not in known.leaving}
    assert events == {name: stored.get(name) for name in events}
    usage = {row[0] for row in database.rows("SELECT id FROM token_usage")}
    assert {name for name, record in known.usage.items() if record[0] not in known.leaving} <= usage
    for workflow, batch in known.batches:
        there = sum(name in stored for name in batch)
        assert there in {0, len(batch)}, (workflow, batch)


def check_settled(server: Server, known: Known) -> None:
    """The record is exactly what the callers were told, and so is what the service reports."""
    check_settled_record(server.database, known)
    summary = server.request("GET", "/api/usage?preset=all").json["summary"]
    assert summary["total_tokens"] == sum(tokens for _, tokens, _ in known.usage.values())
    assert round(summary["total_cost_usd"] * 1000) == sum(cost for _, _, cost in known.usage.values())


def check_settled_record(database: Database, known: Known) -> None:
    """Every record once, none that nobody knows, and the whole sound by every check."""
    assert known.wrong == []
    told = "SELECT id, workflow_id, sequence, position FROM events WHERE event_type != 'workflow_created'"
    assert {row[0]: row[1:] for row in database.rows(told)} == known.events
    usage = "SELECT id, workflow_id, input_tokens + output_tokens, input_tokens FROM token_usage"
    assert {row[0]: row[1:] for row in database.rows(usage)} == known.usage
    statuses = {name: workflow.status for name, workflow in known.workflows.items()}
    assert dict(database.rows("SELECT id, status FROM workflows")) == statuses
    assert list(audit.check(database.engine)) == []
