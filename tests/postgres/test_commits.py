"""A connection that breaks at a COMMIT: the outcome is open, and the same ids settle it."""

from collections.abc import Iterator
from typing import Literal
from uuid import uuid4

import pytest

from tests.load import create_workflows, event
from tests.postgres.clusters import Cluster
from tests.postgres.conftest import Serve
from tests.postgres.hosts import check_gapless, check_refused
from tests.postgres.wire import Detour, detour
from tests.serving import Server

PLAIN = "?sslmode=disable&gssencmode=disable"  # or nobody could tell where a COMMIT is


@pytest.fixture
def way(cluster: Cluster) -> Iterator[Detour]:
    with detour(cluster.port) as way:
        yield way


@pytest.fixture
def server(serve: Serve, cluster: Cluster, database: str, way: Detour) -> Server:
    return serve(database_url=cluster.url(database, way.port, PLAIN), workers=1)


def append_cut_off(
    server: Server, cluster: Cluster, database: str, way: Detour, path: str, cut: Literal["before", "after"]
) -> None:
    body = event()
    way.cut = cut
    reply = server.request("POST", path, body)
    check_refused(reply)
    assert reply.json["details"] == {"outcome_unknown": True}
    assert way.cut is None
    stored = cluster.run("SELECT count(*) FROM events WHERE id = %s", body["id"], database=database)
    assert stored == [(0 if cut == "before" else 1,)]
    assert server.request("POST", path, body).status == (201 if cut == "before" else 200)


def test_an_append_whose_commit_is_cut_off_is_settled_by_its_id(
    server: Server, cluster: Cluster, database: str, way: Detour
) -> None:
    path = f"/api/workflows/{create_workflows(server, 1)[0]}/events"
    for turns in (0, 12):  # statements that were often used on a connection have been prepared
        for _ in range(turns):
            assert server.request("POST", path, event()).status == 201
        append_cut_off(server, cluster, database, way, path, "before")
        for _ in range(turns):
            assert server.request("POST", path, event()).status == 201
        append_cut_off(server, cluster, database, way, path, "after")
    assert check_gapless(cluster, database) == 1 + 2 * 12 + 4


def test_a_creation_whose_commit_is_cut_off_is_settled_by_its_id(
    server: Server, cluster: Cluster, database: str, way: Detour
) -> None:
    for cut, status in (("before", 201), ("after", 200)):
        body = {"id": str(uuid4()), "issue_id": "CUT-1", "worktree_path": f"/cut/{cut}"}
        way.cut = cut  # type: ignore[assignment]  # a checker takes it for any text
        reply = server.request("POST", "/api/workflows", body)
        check_refused(reply)
        assert reply.json["details"] == {"outcome_unknown": True}
        assert server.request("POST", "/api/workflows", body).status == status
    assert check_gapless(cluster, database) == 2
