"""The description of the API: valid, complete, and true of what the service does."""

import re
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
import schemathesis
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openapi_spec_validator import OpenAPIV31SpecValidator
from schemathesis.specs.openapi.checks import positive_data_acceptance

from amelia_flask import create_app, errors, schema
from amelia_flask.errors import AmeliaError
from amelia_flask.settings import from_environment
from amelia_flask.sqlite import SqliteEngine

# What a schema cannot say (a taken worktree, a period in order) is refused though its shape is right.
BEYOND_SCHEMAS = [positive_data_acceptance]


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flask]:
    """An application that all generated requests go to."""
    path = tmp_path_factory.mktemp("openapi") / "amelia.db"
    schema.set_up(SqliteEngine(path))
    app = create_app(from_environment({"AMELIA_DATABASE_PATH": str(path)}))
    yield app
    app.extensions["ledger"].close()


@pytest.fixture(scope="module")
def api(described: Flask) -> Any:
    return schemathesis.openapi.from_wsgi("/api/openapi.json", described)


def document(client: FlaskClient) -> Any:
    return client.get("/api/openapi.json").json


def operations(description: Any) -> list[tuple[str, str, Any]]:
    return [
        (path, method.upper(), operation)
        for path, methods in description["paths"].items()
        for method, operation in methods.items()
    ]


# Nothing is opened by making an application, so this one only tells what there is.
OPERATIONS = [
    (path, method) for path, method, _ in operations(document(create_app(from_environment({})).test_client()))
]
ABOUT_A_WORKFLOW = [(path, method) for path, method in OPERATIONS if "{workflow_id}" in path and method != "DELETE"]
often = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
@often
@given(data=st.data())
def test_every_answer_to_anything_is_as_described(api: Any, path: str, method: str, data: st.DataObject) -> None:
    case = hurried(data.draw(api[path][method].as_strategy()))
    case.call_and_validate(excluded_checks=BEYOND_SCHEMAS)


@pytest.mark.parametrize(("path", "method"), ABOUT_A_WORKFLOW)
@often
@given(data=st.data())
def test_every_answer_about_a_workflow_that_is_there_is_as_described(
    api: Any, described: Flask, path: str, method: str, data: st.DataObject
) -> None:
    case = hurried(data.draw(api[path][method].as_strategy()))
    case.path_parameters["workflow_id"] = existing(described.test_client())
    response = case.call()
    assert response.status_code != 404
    case.validate_response(response, excluded_checks=BEYOND_SCHEMAS)


def hurried(case: Any) -> Any:
    """The same request, but for the seconds for which its answer may be held back."""
    if isinstance(case.query.get("wait"), int | float):
        case.query["wait"] = 0
    return case


def existing(client: FlaskClient) -> str:
    """A workflow that is in progress."""
    active = client.get("/api/workflows?status=in_progress").get_json()["workflows"]
    if active:
        return str(active[0]["id"])
    made = client.post("/api/workflows", json={"issue_id": "A-1", "worktree_path": f"/{uuid4()}"}).get_json()
    client.post(f"/api/workflows/{made['id']}/start")
    return str(made["id"])


def test_the_document_is_valid_openapi(client: FlaskClient) -> None:
    OpenAPIV31SpecValidator(document(client)).validate()


def test_every_route_is_described_and_no_other(app: Flask, client: FlaskClient) -> None:
    routes = {
        (re.sub(r"<(?:uuid:)?(\w+)>", r"{\1}", rule.rule), method)
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert {(path, method) for path, method, _ in operations(document(client))} == routes


def test_every_operation_says_what_it_does_and_how_it_fails(client: FlaskClient) -> None:
    described = operations(document(client))
    assert len({operation["operationId"] for _, _, operation in described}) == len(described)
    for path, method, operation in described:
        assert operation["summary"].endswith("."), path
        assert {"403", "421", "500"} <= operation["responses"].keys(), path
        if method in {"POST", "PATCH", "DELETE"}:
            assert {"401", "415", "503"} <= operation["responses"].keys(), path
        if "requestBody" in operation:
            assert {"400", "413", "422"} <= operation["responses"].keys(), path


def test_every_error_code_is_described_where_it_may_come(client: FlaskClient) -> None:
    said = {
        code
        for _, _, operation in operations(document(client))
        for status, answer in operation["responses"].items()
        if int(status) >= 400
        for code in re.findall(r"`([A-Z_]{4,})`", answer["description"])
    }
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, AmeliaError)}
    # Refused before there is an operation that could be described; NOT_READY has an answer of its own.
    before_any = {"METHOD_NOT_ALLOWED", "URI_TOO_LONG", "HEADERS_TOO_LARGE", "NOT_READY"}
    assert said == {kind.code for kind in kinds} - before_any
