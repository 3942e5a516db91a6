"""Two servers on one PostgreSQL: one order of events, one winner of a race, whoever writes through whichever."""

import os
import statistics
import threading
import time
from uuid import uuid4

import pytest

from tests.load import create_workflows, in_parallel
from tests.postgres.clusters import Cluster
from tests.postgres.conftest import Serve
from tests.postgres.hosts import Follower, TimedClients, check_acknowledged, check_gapless, everything

CLIENTS = 32
RACES = 10
RIVALS = 8
SECONDS = float(os.environ.get("FAULTS_SECONDS", "6"))


def test_readers_follow_what_two_hosts_write_without_gap_or_repeat(
    serve: Serve, cluster: Cluster, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    servers = [serve(), serve()]
    shared = create_workflows(servers[0], 6)
    began = cluster.log.stat().st_size
    followers = [Follower(server) for server in servers]
    enough = threading.Event()
    halves = [
        TimedClients(server, [everything(shared, n, enough) for n in range(CLIENTS // 2)]) for server in servers
    ]
    for half in halves:
        half.start()
    time.sleep(SECONDS)  # what is tested is this time
    enough.set()
    for half in halves:
        half.join()
    seen = [follower.stop() for follower in followers]
    assert [follower.unexpected for follower in followers] == [[], []]
    count = check_gapless(cluster, database)
    assert seen == [list(range(1, count + 1))] * 2
    for half in halves:
        assert set(half.statuses) == {200, 201}
        check_acknowledged(cluster, database, half)
    said = cluster.log.read_bytes()[began:]
    assert (said.count(b"deadlock detected"), said.count(b"could not serialize")) == (0, 0)
    with capsys.disabled():
        print(f"\n{figures(count, halves)}", end=" ", flush=True)


def figures(count: int, halves: list[TimedClients]) -> str:
    """What was measured."""
    seconds = [one for half in halves for one in half.seconds]
    hundredths = statistics.quantiles(seconds, n=100)
    rates = f"{count} events, {count / SECONDS:.0f}/s, {len(seconds) / SECONDS:.0f} calls/s"
    return f"{rates}, p50 {hundredths[49] * 1000:.0f} ms, p99 {hundredths[98] * 1000:.0f} ms"


def test_of_parallel_creations_for_a_worktree_one_wins_and_the_others_are_told_which(serve: Serve) -> None:
    servers = [serve(), serve()]
    for _ in range(RACES):
        body = {"issue_id": "RACE-1", "worktree_path": f"/race/{uuid4()}"}
        replies = in_parallel(RIVALS, lambda n: servers[n % 2].request("POST", "/api/workflows", body))  # noqa: B023  # called in this round
        won = [reply.json["id"] for reply in replies if reply.status == 201]
        lost = [reply for reply in replies if reply.status == 409]
        assert (len(won), len(lost)) == (1, RIVALS - 1), replies
        assert {reply.json["code"] for reply in lost} == {"WORKFLOW_CONFLICT"}
        assert {reply.json["details"]["workflow_id"] for reply in lost} == set(won)
