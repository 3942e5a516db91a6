"""Rows that others keep, hosts that hang, servers that are full: bounded, and tried again where that helps."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import psycopg
import pytest

from amelia_flask.database import reading
from amelia_flask.errors import DatabaseUnavailable
from amelia_flask.postgres import PostgresEngine
from amelia_flask.writer import SOON_SECONDS
from tests.load import create_workflows, event
from tests.postgres.clusters import MOST_SESSIONS, ROLE, Cluster
from tests.postgres.conftest import Serve
from tests.postgres.hosts import ANSWER_SECONDS, check_gapless, check_refused
from tests.postgres.test_away import AT_ONCE_SECONDS, RECOVERED_SECONDS, timed, works
from tests.postgres.wire import detour
from tests.serving import Server, until

HOLD_SECONDS = 6.0
IDLE_SECONDS = 10.0  # what a session may hang in a transaction
DEADLOCK = "SET deadlock_timeout = '60s'"  # of two sessions in a deadlock the other one is ended


@contextmanager
def held(cluster: Cluster, database: str, sql: str, *values: str) -> Iterator[Any]:
    """Rows that another session has locked, until its transaction ends."""
    with cluster.session(database) as session:
        session.execute(DEADLOCK)
        session.execute("BEGIN")
        session.execute(sql, values or None)
        yield session
        session.execute("ROLLBACK")


ROW = "SELECT FROM workflows WHERE id = %s FOR UPDATE"
POSITION = "SELECT FROM event_position FOR UPDATE"


@pytest.mark.parametrize("sql", [ROW, POSITION], ids=["workflow", "position"])
def test_a_row_that_another_session_keeps_is_waited_for_with_an_end(
    serve: Serve, cluster: Cluster, database: str, sql: str
) -> None:
    server = serve()
    workflow = create_workflows(server, 1)[0]
    path = f"/api/workflows/{workflow}/events"
    values = [workflow] if sql == ROW else []
    with ThreadPoolExecutor(64) as pool:
        with held(cluster, database, sql, *values):
            began = time.monotonic()
            writes = [pool.submit(timed, server, "POST", path, event()) for _ in range(40)]
            reads = []
            while time.monotonic() - began < HOLD_SECONDS:
                reads.append(timed(server, "GET", path))
        told = [write.result() for write in writes]
    until(lambda: works(server, path), RECOVERED_SECONDS)
    assert {one.reply.status for one in reads} == {200}
    assert max(one.seconds for one in reads) < SOON_SECONDS + 1  # for as long all threads may wait to write
    assert max(one.seconds for one in told) < ANSWER_SECONDS
    refused = [one.reply for one in told if one.reply.status != 201]
    assert len(refused) > len(told) / 2
    for reply in refused:
        check_refused(reply)
    check_gapless(cluster, database)


def test_a_wait_of_a_second_or_two_is_nobodys_business(serve: Serve, cluster: Cluster, database: str) -> None:
    server = serve()
    path = f"/api/workflows/{create_workflows(server, 1)[0]}/events"
    with ThreadPoolExecutor(32) as pool:
        with held(cluster, database, POSITION):
            writes = [pool.submit(timed, server, "POST", path, event()) for _ in range(24)]
            until(lambda: waiting(cluster, database) > 0)
            time.sleep(1.5)  # what is tested is this time
        assert {write.result().reply.status for write in writes} == {201}


def waiting(cluster: Cluster, database: str) -> int:
    """How many sessions wait for a lock."""
    sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND wait_event_type = 'Lock'"
    return int(cluster.run(sql, database)[0][0])


@pytest.mark.parametrize("kind", ["append", "move"])
def test_who_is_ended_for_a_deadlock_tries_again(serve: Serve, cluster: Cluster, database: str, kind: str) -> None:
    server = serve()
    workflow = create_workflows(server, 1)[0]
    calls: dict[str, tuple[str, Any]] = {"append": ("events", event()), "move": ("start", {})}
    name, body = calls[kind]
    before = cluster.log.read_text().count("deadlock detected")
    with ThreadPoolExecutor(1) as pool, held(cluster, database, POSITION) as session:
        write = pool.submit(server.request, "POST", f"/api/workflows/{workflow}/{name}", body)
        until(lambda: waiting(cluster, database) > 0)  # it has the workflow, and waits for the position
        session.execute(ROW, (workflow,))  # which it gets, because the other one is ended
        session.execute("COMMIT")
        assert write.result().status in {200, 201}, write.result()
    assert cluster.log.read_text().count("deadlock detected") == before + 1
    check_gapless(cluster, database)


@pytest.mark.parametrize(("failures", "statuses"), [(2, {201}), (1000, {503})])
def test_a_failure_to_serialize_is_tried_again_some_times(
    serve: Serve, cluster: Cluster, database: str, failures: int, statuses: set[int]
) -> None:
    server = serve(workers=1)
    path = f"/api/workflows/{create_workflows(server, 1)[0]}/events"
    cluster.run(
        f"""
        CREATE SEQUENCE attempts;
        GRANT USAGE ON SEQUENCE attempts TO PUBLIC;
        CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF nextval('attempts') <= {failures} THEN RAISE EXCEPTION 'not now' USING ERRCODE = '40001'; END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER fail BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION fail()
        """,
        database=database,
    )
    replies = [server.request("POST", path, event())]
    assert {reply.status for reply in replies} == statuses
    attempts = cluster.run("SELECT last_value FROM attempts", database=database)[0][0]
    assert attempts == min(failures + 1, 5)
    cluster.run("DROP TRIGGER fail ON events", database=database)
    assert server.request("POST", path, event()).status == 201
    check_gapless(cluster, database)


def test_a_host_that_hangs_with_the_newest_position_holds_the_others_up_for_ten_seconds(
    serve: Serve, cluster: Cluster, database: str
) -> None:
    with detour(cluster.port) as way, ThreadPoolExecutor(4) as pool:
        stopped = serve(database_url=cluster.url(database, way.port, "?sslmode=disable&gssencmode=disable"))
        other = serve()
        mine, theirs = (f"/api/workflows/{one}/events" for one in create_workflows(other, 2))
        body = event()
        way.cut = "hold"
        write = pool.submit(stopped.request, "POST", mine, body)
        way.wait_until_cut()
        suspended(stopped, signal.SIGSTOP)
        began = time.monotonic()
        told = [timed(other, "POST", theirs, event())]
        while told[-1].reply.status != 201:
            check_refused(told[-1].reply)
            assert time.monotonic() - began < IDLE_SECONDS + 5
            told.append(timed(other, "POST", theirs, event()))
        assert time.monotonic() - began > IDLE_SECONDS - 2
        way.release.set()
        suspended(stopped, signal.SIGCONT)
        check_refused(write.result())
        assert write.result().json["details"] == {"outcome_unknown": True}
        until(lambda: works(stopped, mine), 5)
        assert stopped.request("POST", mine, body).status == 201
        assert stopped.stop() == 0
    check_gapless(cluster, database)


def suspended(server: Server, what: signal.Signals) -> None:
    """Every process of a server, stopped or continued."""
    assert server.process is not None
    os.killpg(server.process.pid, what)


def test_a_server_without_a_free_session_refuses_and_heals(serve: Serve, cluster: Cluster, database: str) -> None:
    server = serve()
    path = f"/api/workflows/{create_workflows(server, 1)[0]}/events"
    assert works(server, path)
    with ExitStack() as others:
        take_all_sessions(cluster, others)
        for method, body in (("GET", None), ("POST", event())) * 4:
            one = timed(server, method, path, body)
            check_refused(one.reply)
            assert one.seconds < AT_ONCE_SECONDS
    until(lambda: works(server, path), RECOVERED_SECONDS)
    check_gapless(cluster, database)


def take_all_sessions(cluster: Cluster, others: ExitStack) -> None:
    """As many as there may be, those of the service too."""
    first = others.enter_context(cluster.session())
    taken = 1
    while taken < MOST_SESSIONS:
        try:
            others.enter_context(closing(psycopg.connect(cluster.url_of_admin())))
            taken += 1
        except psycopg.OperationalError:
            first.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", (ROLE,))


def test_readers_wait_for_a_free_connection_with_an_end(
    cluster: Cluster, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amelia_flask.postgres.database.POOL_WAIT_SECONDS", 0.2)
    db = PostgresEngine(cluster.url(database)).open_readers(1)
    began, enough = threading.Event(), threading.Event()

    def keep() -> None:
        with reading(db):
            began.set()
            enough.wait()

    with ThreadPoolExecutor(1) as pool:
        keeping: Future[None] = pool.submit(keep)
        began.wait()
        with pytest.raises(DatabaseUnavailable), reading(db):
            pass
        enough.set()
        keeping.result()
    with reading(db):
        pass
    db.close_all()
