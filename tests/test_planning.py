"""Queries are planned once: what is left to do at each run is the work itself."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from peewee import sqlite3 as engine

from tests.api import Api
from tests.test_query_plans import HOLDER, filled


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """An application on a database with a little of everything."""
    with filled(tmp_path_factory.mktemp("planned") / "amelia.db", 200) as api:
        yield api


@pytest.mark.parametrize(
    "address",
    [
        "/api/health/ready",
        "/api/workflows",
        "/api/workflows?limit=5&status=completed&host=host-3",
        "/api/workflows/active",
        f"/api/workflows/{HOLDER}",
        f"/api/workflows/{HOLDER}/events?after=1",
        f"/api/workflows/{HOLDER}/token-usage?after=1",
        "/api/events?order=desc",
        "/api/usage",
    ],
)
def test_a_connection_plans_a_query_once(api: Api, address: str) -> None:
    client, planned = api.app.test_client(), []

    def note(*step: Any) -> int:
        planned.append(step)
        return int(engine.SQLITE_OK)

    def watch(callback: Callable[..., int] | None) -> None:
        api.ledger.read(lambda db: db.connection().set_authorizer(callback))  # which lets go of every plan, too

    watch(note)
    try:
        assert client.get(address).status_code == 200
        assert planned
        planned.clear()
        assert client.get(address).status_code == 200
    finally:
        watch(None)
    assert not planned
