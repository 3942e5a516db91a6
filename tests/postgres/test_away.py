"""PostgreSQL that is restarted, away, or silent: refused in time, nothing lost, and the service goes on by itself."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest

from amelia_flask.postgres.connection import BEGIN_SECONDS
from tests.load import Clients, create_workflows, event, in_parallel
from tests.postgres.clusters import PASSWORD, Cluster
from tests.postgres.conftest import Serve
from tests.postgres.hosts import ANSWER_SECONDS, check_acknowledged, check_gapless, check_refused, everything
from tests.postgres.wire import detour
from tests.serving import ROOT, Reply, Server, free_port, until

THREADS = 16
AWAY_SECONDS = 4.0
AT_ONCE_SECONDS = 2.0
RECOVERED_SECONDS = 2.0


class Timed(NamedTuple):
    """An answer, and the seconds until it came."""

    reply: Reply
    seconds: float


def timed(server: Server, method: str, path: str, body: object = None) -> Timed:
    began = time.monotonic()
    return Timed(server.request(method, path, body), time.monotonic() - began)


def reads_and_writes(server: Server, path: str, count: int) -> list[Timed]:
    """What so many callers at the same time are told, of whom half read and half write."""
    return in_parallel(count, lambda n: timed(server, "POST", path, event()) if n % 2 else timed(server, "GET", path))


def works(server: Server, path: str) -> bool:
    """Whether every process, as far as can be told from outside, reads and writes."""
    bodies = [body for _ in range(4) for body in (None, event())]
    return all(server.request("POST" if body else "GET", path, body).status < 300 for body in bodies)


def test_after_a_restart_while_idle_the_next_calls_succeed(serve: Serve, cluster: Cluster, database: str) -> None:
    server = serve(workers=1)  # another one might begin to connect just while there is nobody
    path = f"/api/workflows/{create_workflows(server, 1)[0]}/events"
    assert {one.reply.status for one in reads_and_writes(server, path, THREADS)} == {200, 201}
    cluster.restart()
    assert {one.reply.status for one in reads_and_writes(server, path, THREADS)} == {200, 201}
    cluster.stop("immediate")
    cluster.start()
    assert {one.reply.status for one in reads_and_writes(server, path, THREADS)} == {200, 201}
    check_gapless(cluster, database)


@pytest.mark.parametrize("disturb", ["restart", "terminate"])
def test_under_load_nothing_acknowledged_is_lost(serve: Serve, cluster: Cluster, database: str, disturb: str) -> None:
    servers = [serve(), serve()]
    shared = create_workflows(servers[0], 4)
    enough = threading.Event()
    clients = [Clients(one, [everything(shared, n, enough) for n in range(12)]).start() for one in servers]
    for _ in range(2):
        for each in clients:
            each.wait_for(len(each.acknowledged) + 100)
        if disturb == "restart":
            cluster.restart()
        else:
            assert cluster.end_sessions(database) > 0
    for each in clients:
        each.wait_for(len(each.acknowledged) + 100)
    enough.set()
    for each in clients:
        each.join()
        # What is refused is repeated by nobody here, so that what would follow it is refused too.
        assert set(each.statuses) <= {200, 201, 404, 422, 503}, each.statuses
        check_acknowledged(cluster, database, each)
    check_gapless(cluster, database)
    assert not any("Traceback" in server.log.read_text() for server in servers)


def test_while_it_is_away_all_is_refused_at_once_and_then_goes_on(
    serve: Serve, cluster: Cluster, database: str
) -> None:
    server = serve(threads=THREADS)
    path = f"/api/workflows/{create_workflows(server, 1)[0]}/events"
    assert works(server, path)
    cluster.stop()
    check_unhealthy(server)
    deadline = time.monotonic() + AWAY_SECONDS
    while time.monotonic() < deadline:
        told = reads_and_writes(server, path, 2 * THREADS)
        for one in told:
            check_refused(one.reply)
        assert max(one.seconds for one in told) < AT_ONCE_SECONDS
    cluster.start()
    until(lambda: works(server, path), RECOVERED_SECONDS)
    check_gapless(cluster, database)


def check_unhealthy(server: Server) -> None:
    """What the probes and the state of the service say while the database cannot be used at all."""
    assert server.request("GET", "/api/health/live").status == 200
    ready = server.request("GET", "/api/health/ready")
    check_refused(ready)
    assert ready.json["code"] == "NOT_READY"
    health = server.request("GET", "/api/health").json
    assert (health["status"], health["active_workflows"]) == ("degraded", None)
    found = health["database"]
    assert (found["status"], found["mode"]) == ("unhealthy", "postgresql")
    assert PASSWORD not in str(health)
    assert "127.0.0.1" not in str(health)


def test_a_server_that_never_answers_keeps_nobody_waiting_without_an_end(
    serve: Serve, cluster: Cluster, database: str
) -> None:
    with detour(cluster.port) as way, ThreadPoolExecutor(4) as pool:
        server = serve(database_url=cluster.url(database, way.port), threads=THREADS)
        path = f"/api/workflows/{create_workflows(server, 1)[0]}/events"
        assert works(server, path)
        way.fall_silent()
        probes = [pool.submit(timed, server, "GET", f"/api/health{probe}") for probe in ("/ready", "", "/live")]
        told = reads_and_writes(server, path, 4 * THREADS)
        for one in told:
            check_refused(one.reply)
        assert max(one.seconds for one in told) < ANSWER_SECONDS
        statuses = [probe.result().reply.status for probe in probes]
        assert statuses == [503, 200, 200]
        assert max(probe.result().seconds for probe in probes) < ANSWER_SECONDS
        assert probes[2].result().seconds < AT_ONCE_SECONDS
        way.speak()
        until(lambda: works(server, path), RECOVERED_SECONDS)
    check_gapless(cluster, database)


def test_connections_that_have_become_silent_are_replaced(serve: Serve, cluster: Cluster, database: str) -> None:
    with detour(cluster.port) as way:
        server = serve(database_url=cluster.url(database, way.port), threads=THREADS)
        path = f"/api/workflows/{create_workflows(server, 1)[0]}/events"
        assert {one.reply.status for one in reads_and_writes(server, path, THREADS)} == {200, 201}
        way.abandon()
        told = reads_and_writes(server, path, THREADS)
        assert {one.reply.status for one in told} == {200, 201}
        assert max(one.seconds for one in told) < BEGIN_SECONDS + RECOVERED_SECONDS
    check_gapless(cluster, database)


def command(name: str, url: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "", "AMELIA_DATABASE_URL": url, "AMELIA_PORT": str(free_port())}
    program = [sys.executable, "-m", "amelia_flask", name]
    return subprocess.run(
        program, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False
    )


@pytest.mark.parametrize("name", ["serve", "init-db"])
@pytest.mark.parametrize("kind", ["away", "silent"])
def test_a_start_in_vain_ends_with_a_sentence(cluster: Cluster, name: str, kind: str) -> None:
    with detour(cluster.port) as way:
        way.fall_silent()
        done = command(name, cluster.url("postgres", way.port if kind == "silent" else free_port()))
    assert (done.returncode, done.stdout) == (1, "")
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith("Error: The database postgresql://amelia@127.0.0.1:")
    assert "cannot be reached" in sentence
    assert "s3cret" not in sentence
