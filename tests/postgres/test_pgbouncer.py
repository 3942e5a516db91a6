"""PgBouncer between the service and PostgreSQL, each session of the one being a session of the other."""

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.load import Clients, create_workflows
from tests.postgres.clusters import PASSWORD, ROLE, USER, Cluster
from tests.postgres.conftest import Serve
from tests.postgres.hosts import Follower, check_acknowledged, check_gapless, everything
from tests.postgres.test_away import RECOVERED_SECONDS, works
from tests.serving import free_port, until

PROGRAM = shutil.which("pgbouncer")
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="pgbouncer is not installed: it is NOT tested with")

CONFIGURATION = """
[databases]
* = host=127.0.0.1 port={target}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir = {folder}
auth_type = scram-sha-256
auth_file = {folder}/users
pool_mode = session
default_pool_size = 50
max_client_conn = 200
server_login_retry = 1
"""


@contextmanager
def bouncing(folder: Path, cluster: Cluster, port: int) -> Iterator[None]:
    """PgBouncer, as long as it is wanted."""
    (folder / "users").write_text(f'"{ROLE}" "{PASSWORD}"\n')
    (folder / "pgbouncer.ini").write_text(CONFIGURATION.format(target=cluster.port, port=port, folder=folder))
    with (folder / "pgbouncer.log").open("ab") as log:
        command = [str(PROGRAM), str(folder / "pgbouncer.ini")]
        program = subprocess.Popen(command, stdout=log, stderr=log, user=USER, env=os.environ)
    try:
        yield
    finally:
        program.kill()
        program.wait()


@pytest.fixture
def folder(place_for_clusters: Path) -> Path:
    """One that PgBouncer's user can read."""
    folder = place_for_clusters / "pgbouncer"
    folder.mkdir()
    return folder


def test_with_its_pool_of_sessions_everything_works(
    serve: Serve, cluster: Cluster, database: str, folder: Path
) -> None:
    port = free_port()
    with bouncing(folder, cluster, port):
        servers = [serve(database_url=cluster.url(database, port), threads=8) for _ in range(2)]
        shared = create_workflows(servers[0], 4)
        followers = [Follower(server) for server in servers]
        enough = threading.Event()
        clients = [Clients(server, [everything(shared, n, enough) for n in range(8)]).start() for server in servers]
        for each in clients:
            each.wait_for(300)
        enough.set()
        for each in clients:
            each.join()
            assert set(each.statuses) == {200, 201}
            check_acknowledged(cluster, database, each)
        seen = [follower.stop() for follower in followers]
        assert seen == [list(range(1, check_gapless(cluster, database) + 1))] * 2
        cluster.restart()
        path = f"/api/workflows/{shared[0]}/events"
        until(lambda: all(works(server, path) for server in servers), 2 * RECOVERED_SECONDS)
    with bouncing(folder, cluster, port):
        until(lambda: all(works(server, path) for server in servers), RECOVERED_SECONDS)
    check_gapless(cluster, database)
