"""What many tests stand on: an application on a database file of its own, and a real server."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient

from amelia_flask import create_app, schema
from amelia_flask.settings import from_environment
from tests.serving import Server, serving


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AMELIA_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One real server for all tests that only add to its record."""
    with serving(tmp_path_factory.mktemp("server") / "amelia.db") as running:
        yield running
        assert running.stop() == 0, running.log.read_text()


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    """An application on a new database."""
    path = tmp_path / "amelia.db"
    schema.set_up(path)
    app = create_app(from_environment({"AMELIA_DATABASE_PATH": str(path)}))
    app.testing = True
    yield app
    app.extensions["ledger"].close()


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    """HTTP to `app` without a socket."""
    return app.test_client()
