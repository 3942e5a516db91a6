"""Retention over several hosts: one of them prunes, and another one goes on where that one is killed."""

import sys
from contextlib import closing
from pathlib import Path

from amelia_flask.postgres import PostgresEngine
from tests.load import create_workflows, event
from tests.postgres.clusters import Cluster
from tests.postgres.hosts import check_sound
from tests.serving import Server, serving, until

WORKFLOWS = 8
EVENTS = 3000
KEPT = 10
# The hour of retention in no time.
SOON = """
from amelia_flask import retention
retention.FIRST_SECONDS, retention.AGAIN_SECONDS = 0.1, 0.2
from amelia_flask.cli import main
main()
"""


def host(folder: Path, cluster: Cluster, database: str) -> Server:
    """One that begins to prune as soon as it is started."""
    folder.mkdir()
    url = cluster.url(database)
    server = Server(
        folder / "none.db", None, database_url=url, workers=2, log_retention_max_events=KEPT, log_level="debug"
    )
    server.command = [sys.executable, "-c", SOON, "serve"]
    return server


def fill(folder: Path, cluster: Cluster, database: str) -> None:
    """A record with much that is beyond what will be kept."""
    with serving(folder / "none.db", None, database_url=cluster.url(database)) as server:
        for workflow in create_workflows(server, WORKFLOWS):
            path = f"/api/workflows/{workflow}/events"
            for _ in range(EVENTS // 1000):
                batch = {"events": [event(message="m") for _ in range(1000)]}
                assert server.request("POST", path, batch).status == 201
        assert server.stop() == 0


def test_who_prunes_is_alone_and_another_one_goes_on_when_it_is_killed(
    tmp_path: Path, cluster: Cluster, database: str
) -> None:
    fill(tmp_path, cluster, database)
    first, second = (host(tmp_path / name, cluster, database) for name in ("first", "second"))

    def count() -> int:
        return int(cluster.run("SELECT count(*) FROM events", database=database)[0][0])

    def holders() -> int:
        sql = """
            SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database
            WHERE locktype = 'advisory' AND mode = 'ExclusiveLock' AND granted AND datname = %s
        """
        return int(cluster.run(sql, database)[0][0])

    try:
        first.start()
        before = WORKFLOWS * EVENTS
        until(lambda: count() < before - 1000)
        second.start()
        until(lambda: second.log.read_text().count("another process prunes") >= 2)
        assert holders() == 1, "of four processes"
        left = count()
        assert left > WORKFLOWS * KEPT, "it has not been done yet"
        first.kill()
        until(lambda: count() == WORKFLOWS * KEPT)
        assert second.stop() == 0
        assert "pruned" in second.log.read_text()
    finally:
        for server in (first, second):
            if server.process is not None and server.process.poll() is None:
                server.kill()
    check_sound(cluster, database)


def test_the_lock_is_that_of_a_schema(cluster: Cluster, database: str) -> None:
    """Two records in one database are pruned apart."""
    cluster.run("CREATE SCHEMA team AUTHORIZATION amelia", database=database)
    urls = [cluster.url(database, options=f"?options=-csearch_path%3D{name}") for name in ("public", "team")]
    locks = [PostgresEngine(url).lock("retention") for url in urls]
    with closing(locks[0]), closing(locks[1]):
        for lock in locks:
            lock.keep()
