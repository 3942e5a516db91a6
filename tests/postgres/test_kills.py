"""Kills at random moments: of a whole host, and of PostgreSQL. What was acknowledged stays, and the others go on."""

import os
import random
import time
from contextlib import closing
from typing import cast

import pytest

from tests.faults.callers import Crowd
from tests.postgres.clusters import Cluster
from tests.postgres.conftest import Serve
from tests.postgres.hosts import Spread, check_kept, check_settled
from tests.serving import Server, until

ROUNDS = int(os.environ.get("FAULTS_ROUNDS", "4"))
CALLERS = 12
RECOVERED_SECONDS = 5.0
# The seed of one run is printed by it; given again, moments and requests are the same.
SEED = os.environ.get("FAULTS_SEED") or str(random.SystemRandom().randrange(10**9))


def kill_host(server: Server, moment: float) -> None:
    time.sleep(moment)  # what is tested is this moment
    server.kill()


def crash_database(cluster: Cluster, moment: float, is_violent: bool) -> None:
    time.sleep(moment)  # what is tested is this moment
    if is_violent:
        cluster.kill()
    else:
        cluster.stop("immediate")
    cluster.start()


def test_kills_of_hosts_and_of_the_database_lose_nothing(
    serve: Serve, cluster: Cluster, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with capsys.disabled():
        print(f"\nFAULTS_SEED={SEED}", end=" ", flush=True)
    chance = random.Random(SEED)
    servers = [serve(), serve()]
    processes = [server.process for server in servers]
    everywhere = cast(Server, Spread(*servers))
    with closing(Crowd(everywhere, CALLERS, SEED)) as crowd:
        for number in range(ROUNDS):
            moment = chance.uniform(0.05, 0.8)
            if number % 2:
                crowd.work(lambda: kill_host(servers[1], moment))  # noqa: B023  # called in this round
            else:
                crowd.work(lambda: crash_database(cluster, moment, number % 4 == 2))  # noqa: B023  # called in this round
            check_kept(cluster, database, crowd.known)
            if number % 2:
                processes[1] = servers[1].start().process
            until(lambda: all(is_healthy(server) for server in servers), RECOVERED_SECONDS)
            crowd.settle()
            check_settled(cluster, database, crowd.known)
        assert set(crowd.known.statuses) <= {200, 201, 204, 404, 409, 503}, crowd.known.statuses
        assert crowd.known.statuses[201] > 20 * ROUNDS
    assert [server.process for server in servers] == processes, "those that were not killed recover by themselves"
    assert [server.stop() for server in servers] == [0, 0]
    for server in servers:
        assert "Traceback" not in server.log.read_text()


def is_healthy(server: Server) -> bool:
    """As every process of it says: two in a row are mostly not the same."""
    return all(server.request("GET", "/api/health").json["status"] == "healthy" for _ in range(4))
