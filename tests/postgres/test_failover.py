"""A standby that takes the place of its primary, that is not there, or that cannot be written."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import pytest

from tests.load import Clients, create_workflows, event
from tests.postgres.clusters import PASSWORD, ROLE, Cluster, cluster_in
from tests.postgres.hosts import ANSWER_SECONDS, check_acknowledged, check_gapless, check_refused, everything
from tests.postgres.test_away import AT_ONCE_SECONDS, RECOVERED_SECONDS, timed, works
from tests.postgres.wire import detour
from tests.serving import serving, until

CLIENTS = 16


class Pair(NamedTuple):
    """A primary and the standby that streams from it, and a database on them."""

    primary: Cluster
    standby: Cluster
    database: str

    @property
    def url(self) -> str:
        """Whichever can be written."""
        hosts = f"127.0.0.1:{self.primary.port},127.0.0.1:{self.standby.port}"
        secret = quote(PASSWORD, safe="")
        return f"postgresql://{ROLE}:{secret}@{hosts}/{self.database}?target_session_attrs=read-write"

    def make_synchronous(self) -> None:
        """From now on no commit is acknowledged that the standby does not have."""
        self.primary.run("ALTER SYSTEM SET synchronous_standby_names = '*'")
        self.primary.run("SELECT pg_reload_conf()")
        until(lambda: self.primary.run("SELECT sync_state FROM pg_stat_replication") == [("sync",)])


@pytest.fixture
def pair(place_for_clusters: Path, tmp_path: Path) -> Iterator[Pair]:
    folder = place_for_clusters / tmp_path.name
    with cluster_in(folder.with_suffix(".a")) as primary:
        database = primary.new_database()
        with cluster_in(folder.with_suffix(".b"), standby_of=primary) as standby:
            until(lambda: primary.run("SELECT state FROM pg_stat_replication") == [("streaming",)])
            yield Pair(primary, standby, database)


def test_a_standby_that_is_promoted_has_all_that_was_acknowledged(tmp_path: Path, pair: Pair) -> None:
    pair.make_synchronous()
    with serving(tmp_path / "none.db", None, database_url=pair.url, workers=2) as server:
        shared = create_workflows(server, 4)
        enough = threading.Event()
        clients = Clients(server, [everything(shared, n, enough) for n in range(CLIENTS)])
        clients.start()
        clients.wait_for(400)
        pair.primary.kill()
        before = len(clients.acknowledged)
        pair.standby.promote()
        began = time.monotonic()
        clients.wait_for(before + 1)
        assert time.monotonic() - began < RECOVERED_SECONDS
        clients.wait_for(before + 400)
        enough.set()
        clients.join()
        # What is refused is repeated by nobody here, so that what would follow it is refused too.
        assert set(clients.statuses) <= {200, 201, 404, 422, 503}, clients.statuses
        assert server.stop() == 0
        assert "Traceback" not in server.log.read_text()
    check_acknowledged(pair.standby, pair.database, clients)
    check_gapless(pair.standby, pair.database)


def test_without_its_synchronous_standby_no_write_is_acknowledged(tmp_path: Path, pair: Pair) -> None:
    pair.make_synchronous()
    with serving(tmp_path / "none.db", None, database_url=pair.url, workers=2) as server:
        path = f"/api/workflows/{create_workflows(server, 1)[0]}/events"
        assert works(server, path)
        pair.standby.stop()
        bodies = [event() for _ in range(12)]
        with ThreadPoolExecutor(12) as pool:
            writes = [pool.submit(timed, server, "POST", path, body) for body in bodies]
            until(lambda: writes[0].done() or timed(server, "GET", path).seconds > AT_ONCE_SECONDS)
            assert server.request("GET", path).status == 200
            told = [write.result() for write in writes]
        for one in told:
            check_refused(one.reply)
            assert one.seconds < ANSWER_SECONDS
        assert any(one.reply.json["details"].get("outcome_unknown") for one in told)
        pair.standby.start()
        until(lambda: works(server, path), 12)
        assert {server.request("POST", path, body).status for body in bodies} <= {200, 201}
        assert server.stop() == 0
    check_gapless(pair.primary, pair.database)


def test_a_standby_that_is_not_promoted_is_read_and_not_written(tmp_path: Path, pair: Pair) -> None:
    with detour(pair.primary.port) as way:
        url = pair.primary.url(pair.database, way.port)
        with serving(tmp_path / "none.db", None, database_url=url, workers=2) as server:
            path = f"/api/workflows/{create_workflows(server, 1)[0]}/events"
            assert works(server, path)
            until(lambda: caught_up(pair))
            way.target = pair.standby.port
            pair.primary.stop("immediate")
            for _ in range(4):
                assert len(server.request("GET", path).json["events"]) == 5
                check_refused(server.request("POST", path, event()))
                assert server.request("GET", "/api/health/ready").status == 200
                health = server.request("GET", "/api/health").json
                assert (health["status"], health["active_workflows"]) == ("degraded", 1)
                assert health["database"]["status"] == "degraded"
            waited = timed(server, "GET", f"{path}?after=5&wait=1")
            assert (waited.reply.status, waited.reply.json["events"]) == (200, [])
            pair.standby.promote()
            until(lambda: works(server, path), RECOVERED_SECONDS)
            assert server.stop() == 0
    check_gapless(pair.standby, pair.database)


def caught_up(pair: Pair) -> bool:
    """Whether the standby shows all that the primary has."""
    sql = "SELECT count(*) FROM pg_stat_replication WHERE replay_lsn = pg_current_wal_lsn()"
    return pair.primary.run(sql) == [(1,)]
