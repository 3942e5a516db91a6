"""Workflows over HTTP on the test client, and what must hold for every call that is refused."""

from typing import Any
from uuid import uuid4

from flask.testing import FlaskClient

from amelia_flask.ledger import Ledger
from tests import databases
from tests.answers import check_refused
from tests.databases import Database

WORKFLOWS = "/api/workflows"
# The moves that lead a new workflow to a status, each with what it has to say.
WAYS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "pending": [],
    "in_progress": [("start", {})],
    "blocked": [("start", {}), ("block", {})],
    "completed": [("start", {}), ("complete", {})],
    "failed": [("start", {}), ("fail", {"reason": "It broke"})],
    "cancelled": [("cancel", {})],
}


def url(workflow: str, *rest: str) -> str:
    """The address of a workflow, or of something below it."""
    return "/".join((WORKFLOWS, workflow, *rest))


def ledger_of(client: FlaskClient) -> Ledger:
    """The ledger behind the client."""
    ledger: Ledger = client.application.extensions["ledger"]
    return ledger


def database_of(client: FlaskClient) -> Database:
    """The database behind the client."""
    return databases.database_of(ledger_of(client))


def new(**members: Any) -> dict[str, Any]:
    """The body that creates a workflow, in a worktree of its own unless `members` name one."""
    return {"issue_id": "ISSUE-1", "worktree_path": f"/worktrees/{uuid4()}"} | members


def create(client: FlaskClient, status: str = "pending", **members: Any) -> str:
    """The id of a new workflow that was brought to `status`."""
    response = client.post(WORKFLOWS, json=new(**members))
    assert response.status_code == 201, response.text
    workflow: str = response.get_json()["id"]
    for name, said in WAYS[status]:
        assert client.post(url(workflow, name), json=said).status_code == 200
    return workflow


def read(client: FlaskClient, workflow: str) -> Any:
    """The workflow as it is now, but for how long it has run."""
    response = client.get(url(workflow))
    assert response.status_code == 200, response.text
    return without_duration(response.get_json())


def without_duration(workflow: dict[str, Any]) -> dict[str, Any]:
    """What does not change while time passes."""
    return {name: value for name, value in workflow.items() if name != "total_duration_ms"}


def append(client: FlaskClient, workflow: str, event_type: str = "note", **members: Any) -> Any:
    """Append an event; give where it stands."""
    event = {"agent": "dev", "event_type": event_type, "message": "m"} | members
    response = client.post(url(workflow, "events"), json=event)
    assert response.status_code == 201, response.text
    return response.get_json()["events"][0]


def refused(client: FlaskClient, status: int, code: str, method: str, path: str, **request: Any) -> Any:
    """The answer to a call that is refused and changes not a byte of the record."""
    before = database_of(client).dump()
    answer = check_refused(client.open(path, method=method, **request), status, code)
    assert database_of(client).dump() == before
    return answer


def invalid(client: FlaskClient, loc: list[Any], method: str, path: str, **request: Any) -> None:
    """The call is refused for a value that is not allowed, which stands at `loc`."""
    problems = refused(client, 422, "VALIDATION_ERROR", method, path, **request)["detail"]
    assert [problem["loc"] for problem in problems] == [loc]
