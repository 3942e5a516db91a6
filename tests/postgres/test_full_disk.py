"""A disk of PostgreSQL on which there is no room left: writes are refused, reads go on, and it heals."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.load import Clients, create_workflows, event, mixed
from tests.postgres.clusters import ROLE, USER, Cluster
from tests.postgres.conftest import Serve
from tests.postgres.hosts import check_acknowledged, check_gapless, check_refused
from tests.postgres.test_away import RECOVERED_SECONDS, works
from tests.serving import until

ROOM = 24 * 2**20
REFUSALS = 20


@pytest.fixture
def disk(place_for_clusters: Path) -> Iterator[Path]:
    """A small one, where this machine lets us make one."""
    folder = place_for_clusters / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", folder], check=False, capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("no small disk can be made here: a full disk of PostgreSQL is NOT tested")
    try:
        if USER is not None:
            shutil.chown(folder, USER, USER)
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture
def database(cluster: Cluster, disk: Path) -> Iterator[str]:
    """One on that disk, with nothing else."""
    cluster.run(f"CREATE TABLESPACE small OWNER {ROLE} LOCATION '{disk}'")
    cluster.run(f"CREATE DATABASE on_small OWNER {ROLE} TABLESPACE small")
    yield "on_small"
    cluster.run("DROP DATABASE on_small WITH (FORCE)")
    cluster.run("DROP TABLESPACE small")


def fill(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_a_full_disk_refuses_writes_and_heals(serve: Serve, cluster: Cluster, database: str, disk: Path) -> None:
    server = serve()
    workflows = create_workflows(server, 4)
    path = f"/api/workflows/{workflows[0]}/events"
    clients = Clients(server, [mixed(workflows, n) for n in range(8)]).start()
    clients.wait_for(50)
    fill(disk / "ballast")
    until(lambda: clients.statuses[503] > REFUSALS)
    assert server.request("GET", path).status == 200
    assert server.request("GET", "/api/health/live").status == 200
    check_refused(server.request("POST", path, {"events": [event(message="m" * 60_000) for _ in range(20)]}))
    os.unlink(disk / "ballast")
    until(lambda: works(server, path), RECOVERED_SECONDS)
    clients.wait_for(len(clients.acknowledged) + 50)
    assert server.stop() == 0
    clients.join()
    assert set(clients.statuses) == {201, 503}
    check_acknowledged(cluster, database, clients)
    check_gapless(cluster, database)
