"""Probes, and a state of the service that is measured."""

import os
import re
from pathlib import Path
from typing import Any

import psutil
import pytest
from flask import Flask
from flask.testing import FlaskClient

from amelia_flask import __version__, create_app
from amelia_flask.settings import from_environment
from amelia_flask.sqlite import engine_version
from tests.answers import check_refusal, check_refused, new_workflow
from tests.databases import Database, Sqlite
from tests.serving import serving

TYPES = {
    "status": str,
    "version": str,
    "uptime_seconds": float,
    "active_workflows": int,
    "websocket_connections": int,
    "memory_mb": float,
    "cpu_percent": float,
    "database": dict,
}


def state(client: FlaskClient) -> Any:
    """What the service says of itself, always with 200."""
    response = client.get("/api/health")
    assert response.status_code == 200
    return response.get_json()


def database_state(client: FlaskClient) -> tuple[str, str, str | None]:
    """Of the service, of its database, and why."""
    said = state(client)
    assert (said["database"]["error"] is None) == (said["database"]["status"] == "healthy")
    return said["status"], said["database"]["status"], said["database"]["error"]


HEALTHY = ("healthy", "healthy", None)


def test_the_state_has_every_figure(client: FlaskClient, database: Database) -> None:
    is_sqlite = isinstance(database, Sqlite)
    said = state(client)
    assert said.keys() == TYPES.keys()
    assert {name: type(value) for name, value in said.items()} == TYPES
    assert said["version"] == __version__
    assert re.fullmatch(r"SQLite [\d.]+|PostgreSQL( [\d.]+)?", said["database"]["engine"])
    assert said["database"] == {
        "status": "healthy",
        "mode": "wal" if is_sqlite else "postgresql",
        "error": None,
        "engine": f"SQLite {engine_version()}" if is_sqlite else said["database"]["engine"],
        "engine_is_mended": said["database"]["engine_is_mended"],
        "writer": {"waiting": 0, "commits": said["database"]["writer"]["commits"], "failure": None},
    }


def test_every_figure_is_measured(client: FlaskClient) -> None:
    first = state(client)
    created = [new_workflow(client, f"/w{number}") for number in range(3)]
    client.post(f"/api/workflows/{created[0]}/cancel")
    second = state(client)
    assert second["uptime_seconds"] > first["uptime_seconds"] > 0
    assert second["active_workflows"] - first["active_workflows"] == 2
    assert second["database"]["writer"]["commits"] > first["database"]["writer"]["commits"]
    resident = psutil.Process(os.getpid()).memory_info().rss / 2**20
    assert second["memory_mb"] == pytest.approx(resident, rel=0.2)


def test_work_shows_in_the_load(client: FlaskClient) -> None:
    state(client)
    begun = os.times()
    while os.times().user - begun.user < 0.1:
        pass
    assert state(client)["cpu_percent"] > 0


def test_a_check_leaves_nothing_behind_and_takes_away_what_another_left(app: Flask, database: Database) -> None:
    for name, moment in (("old", "2020-01-01T00:00:00.000000Z"), ("new", "2999-01-01T00:00:00.000000Z")):
        database.execute(f"INSERT INTO health_check (id, checked_at) VALUES ('{name}', '{moment}')")
    before = database.dump()
    assert database_state(app.test_client()) == HEALTHY
    assert database.rows("SELECT id FROM health_check") == [("new",)]
    assert {**database.dump(), "health_check": []} == {**before, "health_check": []}


@pytest.mark.engines("sqlite")
def test_a_database_that_was_moved_away_is_unhealthy_until_it_is_back(client: FlaskClient, tmp_path: Path) -> None:
    new_workflow(client)
    assert database_state(client) == HEALTHY
    path = tmp_path / "amelia.db"
    path.rename(tmp_path / "away.db")
    assert database_state(client)[:2] == ("degraded", "unhealthy")
    assert state(client)["active_workflows"] is None
    not_ready(client, "The database")
    assert not path.exists(), "no empty record takes its place"
    (tmp_path / "away.db").rename(path)
    assert database_state(client) == HEALTHY
    assert state(client)["active_workflows"] == 1
    assert client.get("/api/health/ready").status_code == 200


def test_a_database_that_another_program_locks_is_degraded_until_it_lets_go(
    client: FlaskClient, database: Database
) -> None:
    new_workflow(client)
    with database.blocked():
        assert database_state(client)[:2] == ("degraded", "degraded")
        assert client.get("/api/health/live").status_code == 200
        assert client.get("/api/workflows").get_json()["total"] == 1, "reading goes on"
    assert database_state(client) == HEALTHY


@pytest.mark.engines("sqlite")
def test_a_database_that_cannot_be_written_is_degraded_until_it_can(client: FlaskClient, tmp_path: Path) -> None:
    new_workflow(client)
    path, closed, kept = tmp_path / "amelia.db", tmp_path / "closed.db", tmp_path / "kept.db"
    make_closed(path, closed)
    swap(path, kept, closed)
    assert database_state(client)[:2] == ("degraded", "degraded")
    assert state(client)["active_workflows"] == 1, "reading goes on"
    refused = client.post("/api/workflows", json={"issue_id": "A", "worktree_path": "/b"})
    check_refused(refused, 503, "DATABASE_UNAVAILABLE")
    swap(path, closed, kept)
    assert database_state(client) == HEALTHY


def make_closed(path: Path, copy: Path) -> None:
    """Make a copy that can only be read: its header says that a later format alone may write it."""
    Sqlite(path).execute(f"VACUUM INTO '{copy}'")
    with copy.open("r+b") as file:
        file.seek(18)
        file.write(b"\x03\x02")


def swap(path: Path, away: Path, into: Path) -> None:
    """Move the database at `path` away, with what belongs to it, and another one into its place."""
    for source, target in ((path, away), (into, path)):
        for part in ("", "-wal", "-shm"):
            if source.with_name(source.name + part).exists():
                source.with_name(source.name + part).rename(target.with_name(target.name + part))


def not_ready(client: FlaskClient, reason: str) -> None:
    """It is said twice: for probes, and in the shape of every error."""
    response = client.get("/api/health/ready")
    answer = check_refused(response, 503, "NOT_READY")
    assert answer["status"] == "not_ready"
    assert answer["reason"] == answer["error"]
    assert answer["reason"].startswith(reason), answer
    assert int(response.headers["Retry-After"]) > 0


def test_readiness_is_one_member(client: FlaskClient) -> None:
    response = client.get("/api/health/ready")
    assert (response.status_code, response.get_json()) == (200, {"status": "ready"})


@pytest.mark.parametrize(
    ("statement", "back", "reason"),
    [
        (
            "DELETE FROM schema_version",
            "INSERT INTO schema_version SELECT * FROM kept",
            "The schema",
        ),
        (
            "UPDATE schema_version SET name = '9999_later' WHERE id = 1",
            "UPDATE schema_version SET name = (SELECT name FROM kept WHERE id = 1) WHERE id = 1",
            "The schema",
        ),
        (
            "ALTER TABLE schema_version RENAME TO elsewhere",
            "ALTER TABLE elsewhere RENAME TO schema_version",
            "The database",
        ),
    ],
)
def test_another_schema_is_not_ready(
    client: FlaskClient, database: Database, statement: str, back: str, reason: str
) -> None:
    database.execute("CREATE TABLE kept AS SELECT * FROM schema_version", statement)
    not_ready(client, reason)
    database.execute(back)
    assert client.get("/api/health/ready").status_code == 200


def test_a_service_that_shuts_down_is_not_ready_but_alive(app: Flask) -> None:
    client = app.test_client()
    app.extensions["ledger"].stopping = True
    not_ready(client, "The service is shutting down")
    app.extensions["ledger"].close()
    not_ready(client, "The service is shutting down")
    assert client.get("/api/health/live").status_code == 200
    check_refused(
        client.post("/api/workflows", json={"issue_id": "A", "worktree_path": "/a"}), 503, "DATABASE_UNAVAILABLE"
    )


def test_being_alive_takes_no_database(tmp_path: Path) -> None:
    app = create_app(from_environment({"AMELIA_DATABASE_PATH": str(tmp_path / "none" / "amelia.db")}))
    client = app.test_client()
    opened = os.listdir("/proc/self/fd")
    response = client.get("/api/health/live")
    assert (response.status_code, response.get_json()) == (200, {"status": "alive"})
    assert os.listdir("/proc/self/fd") == opened
    assert not list(tmp_path.iterdir())
    not_ready(client, "The database")
    assert state(client)["database"]["status"] == "unhealthy"
    assert not list(tmp_path.iterdir()), "asking how it is makes no database"


def test_a_real_server_heals_by_itself(tmp_path: Path) -> None:
    with serving(tmp_path / "amelia.db", workers=2) as server:
        server.file.rename(tmp_path / "away.db")
        for _ in range(4):
            reply = server.request("GET", "/api/health/ready")
            assert (reply.status, reply.json["status"]) == (503, "not_ready")
            check_refusal(reply.json, "NOT_READY")
            assert server.request("GET", "/api/health/live").status == 200
        (tmp_path / "away.db").rename(server.file)
        server.wait_until_ready()
        assert server.request("GET", "/api/health").json["status"] == "healthy"
