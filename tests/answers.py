"""What every refusal looks like, and requests that an ordinary client would not send."""

import http.client
import re
import socket
from typing import Any

from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tests.serving import Reply

EVENT = {"agent": "dev", "event_type": "note", "message": "m"}
USAGE = {"agent": "dev", "model": "no-such-model", "input_tokens": 1, "output_tokens": 1}


def check_refusal(answer: Any, code: str | None = None) -> None:
    """The one shape of errors, with this code where one is given."""
    beside = {"status", "reason"} if code == "NOT_READY" else set()
    assert answer.keys() == {"error", "code", "details", "detail"} | beside, answer
    assert isinstance(answer["error"], str)
    assert answer["error"]
    assert isinstance(answer["details"], dict)
    assert re.fullmatch("[A-Z_]+", answer["code"])
    assert code in {None, answer["code"]}, answer
    if answer["code"] == "VALIDATION_ERROR":
        assert answer["detail"]
        assert all(problem.keys() == {"type", "loc", "msg", "input"} for problem in answer["detail"])
    elif answer["code"] == "WORKFLOW_CONFLICT":
        assert answer["detail"].keys() == {"message", "active_workflow"}
    else:
        assert answer["detail"] == answer["error"]


def check_refused(response: TestResponse, status: int, code: str) -> Any:
    """The answer of a refusal with this status and code."""
    assert (response.status_code, response.mimetype) == (status, "application/json"), response.text
    check_refusal(response.json, code)
    return response.json


def new_workflow(client: FlaskClient, worktree: str = "/worktree") -> str:
    """The id of a workflow that has just been created."""
    created = client.post("/api/workflows", json={"issue_id": "A-1", "worktree_path": worktree})
    assert created.status_code == 201
    return str(created.get_json()["id"])


def exchange(port: int, request: bytes, seconds: float = 10) -> Reply:
    """Send these bytes and nothing after them; what came back. Raises OSError or HTTPException without an answer."""
    with socket.create_connection(("127.0.0.1", port), seconds) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        response = http.client.HTTPResponse(connection, method=request.split(b" ", 1)[0].decode("latin-1"))
        response.begin()
        return Reply(response.status, response.headers, response.read())
