"""Events and usage over HTTP, sent in each of the forms that are taken.

A test module takes the fixtures by an assignment: `api = tests.api.api`.
"""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from amelia_flask import create_app
from amelia_flask.ledger import Ledger
from amelia_flask.settings import from_environment
from tests import calls, ledgers
from tests.answers import check_refused
from tests.databases import Database, Databases

INVALID = (422, "VALIDATION_ERROR")
MALFORMED = (400, "MALFORMED_JSON")
MISSING = (404, "NOT_FOUND")
REUSED = (409, "ID_REUSED")
NOBODY = "00000000-0000-7000-8000-000000000000"  # an id that no workflow has


class Api:
    """HTTP without a socket to an application on a database of its own. Threads may share it."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.app = create_app(from_environment(database.settings))
        self.ledger: Ledger = self.app.extensions["ledger"]

    def close(self) -> None:
        """Let go of the database."""
        self.ledger.close()

    def create(self, now: Any = None, **members: Any) -> str:
        """The id of a new workflow, which was created at `now`."""
        return ledgers.create(self.ledger, now, **members)

    def get(self, address: str, **query: Any) -> Any:
        """The JSON of an answer of 200."""
        response = self.app.test_client().get(address, query_string=query)
        assert response.status_code == 200, response.text
        return response.json

    def accepted(self, address: str, body: Any, status: int = 201) -> Any:
        """The JSON of the answer to a body that is taken."""
        response = self.app.test_client().post(address, **sent(body))
        assert response.status_code == status, response.text
        return response.json

    def refused(self, address: str, body: Any, refusal: tuple[int, str]) -> Any:
        """The JSON of the answer to a body that is refused, which has changed nothing in the database."""
        return calls.refused(self.app.test_client(), *refusal, "POST", address, **sent(body))

    def bad_query(self, address: str, query: str, refusal: tuple[int, str] = INVALID) -> None:
        """The query is refused; where it holds a value that is not allowed, the answer names the parameter."""
        answer = check_refused(self.app.test_client().get(f"{address}?{query}"), *refusal)
        if refusal == INVALID:
            assert answer["detail"][0]["loc"] == ["query", query.partition("=")[0]]


def sent(body: Any) -> dict[str, Any]:
    """A request with this body: a list as lines of NDJSON, anything else as JSON; bytes are taken as they are."""
    if isinstance(body, list):
        return {"data": b"\n".join(encoded(line) for line in body), "content_type": "application/x-ndjson"}
    return {"data": encoded(body), "content_type": "application/json"}


def encoded(value: Any) -> bytes:
    """The value as JSON, bytes as they are."""
    return value if isinstance(value, bytes) else msgspec.json.encode(value)


@pytest.fixture(scope="module")
def api(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """One application for all tests of a module that need no database of their own."""
    with databases.lend(tmp_path_factory.mktemp("api")) as database:
        api = Api(database)
        yield api
        api.close()


@pytest.fixture
def fresh(database: Database) -> Iterator[Api]:
    """An application on a new database."""
    api = Api(database)
    yield api
    api.close()
