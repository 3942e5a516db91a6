"""A clock that steps back by hours, under one process and under the whole service: no order depends on it."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.load import check_record, create_workflows, event
from tests.serving import Server, until

HOUR = 3600
STEPS = (0, -3 * HOUR, 2 * HOUR, -400 * 24 * HOUR, HOUR, -24 * HOUR)
SEEN_SECONDS = 5.0

# The clock of the standard library runs wrong in this program, by as many seconds as a file says, the first argument.
# (What puts another clock below Python, libfaketime, breaks its sleep; msgspec takes no datetime but the true one.)
SHIFTED = """
import datetime, sys, time
from pathlib import Path
file, true_ns, true_datetime = Path(sys.argv.pop(1)), time.time_ns, datetime.datetime
time.time = lambda: time.time_ns() / 1e9
time.time_ns = lambda: true_ns() + int(file.read_text()) * 10**9
class Shifted(true_datetime):
    @classmethod
    def now(cls, tz=None):
        return true_datetime.now(tz) + datetime.timedelta(seconds=int(file.read_text()))
datetime.datetime = Shifted
import amelia_flask.clock
datetime.datetime = true_datetime
"""
SERVE = "from amelia_flask.cli import main\nmain()"
IDS = """
from amelia_flask import clock
names, days = [], set()
for offset in sys.argv[1:]:
    file.write_text(offset)
    names += [clock.new_id() for _ in range(1000)]
    days.add(str(clock.now())[:10])
print(names == sorted(set(names)), len(days) > 1)
"""


class Clock:
    """The time that the service sees: it can be set while the service runs."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "clock"
        self.set(0)

    def set(self, offset: int) -> None:
        new = self.file.with_suffix(".new")
        new.write_text(str(offset))
        new.rename(self.file)


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path)


@pytest.fixture
def server(tmp_path: Path, clock: Clock) -> Iterator[Server]:
    server = Server(tmp_path / "amelia.db", workers=2)
    server.command = [sys.executable, "-c", SHIFTED + SERVE, str(clock.file), "serve"]
    try:
        yield server.start()
        assert server.stop() == 0, server.log.read_text()
        check_record(server.database)
    finally:
        if server.process is not None and server.process.poll() is None:
            server.kill()


def get(server: Server, path: str) -> Any:
    reply = server.request("GET", path)
    assert reply.status == 200, reply
    return reply.json


def test_no_order_depends_on_the_clock(server: Server, clock: Clock) -> None:
    created: list[str] = []
    told: list[tuple[int, int]] = []
    shared = create_workflows(server, 1)[0]
    for offset in STEPS:
        clock.set(offset)
        created += create_workflows(server, 7)
        told += append(server, shared, 7)
    assert told == sorted(told), "both numbers of an event rise, whatever the time is"
    check_events(server, shared, told)
    check_list(server, {shared, *created})
    times = [row["created_at"] for row in get(server, "/api/workflows?limit=100")["workflows"]]
    assert times[0][:10] != times[-1][:10], "the clock really stepped"
    check_moves(server, created)


def append(server: Server, workflow: str, count: int) -> list[tuple[int, int]]:
    """Sequences and positions of new events."""
    replies = [server.request("POST", f"/api/workflows/{workflow}/events", event()) for _ in range(count)]
    assert {reply.status for reply in replies} == {201}
    return [(place["sequence"], place["position"]) for reply in replies for place in reply.json["events"]]


def check_events(server: Server, workflow: str, told: list[tuple[int, int]]) -> None:
    """Pages reach every event once, in the order in which they were committed."""
    found: list[tuple[int, int]] = []
    after = 1  # behind the event of the creation
    while page := get(server, f"/api/workflows/{workflow}/events?after={after}&limit=5")["events"]:
        found += [(one["sequence"], one["position"]) for one in page]
        after = page[-1]["sequence"]
    assert found == told
    positions: list[int] = []
    while page := get(server, f"/api/events?after={positions[-1] if positions else 0}&limit=9")["events"]:
        positions += [one["position"] for one in page]
    assert positions == list(range(1, len(positions) + 1))


def check_list(server: Server, workflows: set[str]) -> None:
    """The list is one order, and its cursor reaches every workflow once."""
    found: list[tuple[str, str]] = []
    cursor = ""
    while True:
        page = get(server, f"/api/workflows?limit=4{cursor}")
        assert page["total"] == len(workflows)
        found += [(row["created_at"], row["id"]) for row in page["workflows"]]
        if not page["has_more"]:
            break
        cursor = f"&cursor={page['cursor']}"
    assert found == sorted(found, reverse=True)
    assert {name for _, name in found} == workflows
    assert len(found) == len(workflows)


def check_moves(server: Server, workflows: list[str]) -> None:
    """A workflow that ends before it began has lasted for no time, never for less."""
    for workflow in workflows[::7]:
        for move in ("start", "complete"):
            assert server.request("POST", f"/api/workflows/{workflow}/{move}").status == 200
        assert get(server, f"/api/workflows/{workflow}")["total_duration_ms"] >= 0
    summary = get(server, "/api/usage?preset=all")["summary"]
    assert summary["total_duration_ms"] >= 0


def test_ids_rise_within_a_process_whatever_the_clock_does(clock: Clock) -> None:
    command = [sys.executable, "-c", SHIFTED + IDS, str(clock.file), *map(str, STEPS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["True", "True"]


def test_time_limits_do_not_follow_the_clock(server: Server, clock: Clock) -> None:
    workflow = create_workflows(server, 1)[0]
    began = time.monotonic()
    clock.set(-3 * HOUR)
    assert get(server, f"/api/workflows/{workflow}/events?after=1&wait=1")["events"] == []
    clock.set(3 * HOUR)
    assert get(server, f"/api/workflows/{workflow}/events?after=1&wait=1")["events"] == []
    assert 2 <= time.monotonic() - began < 2 + SEEN_SECONDS
    until(lambda: get(server, "/api/health")["status"] == "healthy")
