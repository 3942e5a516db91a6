"""Every refusal and every fault in one shape, and the headers of every answer."""

import logging
import re

import pytest
from flask import Flask
from flask.testing import FlaskClient

from amelia_flask import create_app, errors
from amelia_flask.errors import AmeliaError
from amelia_flask.settings import from_environment
from tests.answers import EVENT, USAGE, check_refusal, check_refused, exchange, new_workflow
from tests.databases import Database
from tests.serving import Server

UNKNOWN = "01900000-0000-7000-8000-000000000000"
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "HEAD", "BREW"]
KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, AmeliaError)]

# What a call takes, where it needs more than nothing.
BODIES = {"events": EVENT, "token-usage": USAGE, "reject": {"feedback": "no"}, "fail": {"reason": "no"}}

POLICY = "default-src 'none'; frame-ancestors 'none'"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
PAGE_HEADERS = {
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Content-Security-Policy": POLICY,
}


def rules() -> dict[str, set[str]]:
    """Every address of the service with the methods that it takes."""
    taken: dict[str, set[str]] = {}
    for rule in create_app(from_environment({})).url_map.iter_rules():
        path = rule.rule.replace("<uuid:workflow_id>", UNKNOWN).replace("<name>", "docs.js")
        taken.setdefault(path, set()).update(rule.methods or set())
    return taken


RULES = rules()


NOWHERE = [
    "/",
    "/api",
    "/api/",
    "/api/workflows/",
    "/api//workflows",
    "/API/workflows",
    "/api/workflow",
    "/.git/config",
]
NOWHERE += [
    "/api/workflows/not-a-uuid",
    "/api/workflows/active/",
    "/api/workflows/%00",
    "/api/workflows/..",
    "/%ff%fe",
]
NOWHERE += [
    "/api/workflows/1/events",
    f"/api/workflows/{UNKNOWN}/nothing",
    f"/api/workflows/{UNKNOWN[:-1]}",
    "/\\",
    "/é",
]
NOWHERE += ["/api/docs/../openapi.py", "/api/docs/..%2fdocs.py", "/api/docs/%2e%2e/docs.py", "/api/docs/index.html"]
NOWHERE += ["/api/docs/docs.js/", "/api/docs/docs.js.map", "/static/docs.js", "/a" * 1000, "/api/openapi.yaml"]


@pytest.mark.parametrize("path", NOWHERE, ids=lambda path: ascii(path[:40]))
def test_what_is_not_there_is_not_found(client: FlaskClient, path: str) -> None:
    check_refused(client.get(path), 404, "NOT_FOUND")


@pytest.mark.parametrize("path", [path for path in RULES if UNKNOWN in path])
def test_an_unknown_workflow_is_not_found(client: FlaskClient, path: str) -> None:
    body = BODIES.get(path.rpartition("/")[2], {})
    for method in RULES[path] - {"HEAD"}:
        response = client.open(path, method=method, json=body if method in {"POST", "PATCH"} else None)
        check_refused(response, 404, "NOT_FOUND")


@pytest.mark.parametrize("path", RULES)
def test_a_method_that_an_address_does_not_take_is_refused_and_the_others_named(
    client: FlaskClient, path: str
) -> None:
    for method in set(METHODS) - RULES[path]:
        response = client.open(path, method=method)
        assert response.status_code == 405, method
        assert {name.strip() for name in response.headers["Allow"].split(",")} == RULES[path]
        if method != "HEAD":
            check_refusal(response.get_json(), "METHOD_NOT_ALLOWED")


def test_a_fault_is_told_without_its_inner_text(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    del app.extensions["vitals"]
    with caplog.at_level(logging.ERROR):
        response = app.test_client().get("/api/health")
    answer = check_refused(response, 500, "INTERNAL_ERROR")
    assert answer["details"] == {}
    assert "vitals" not in response.text
    assert "KeyError" not in response.text
    assert "KeyError: 'vitals'" in caplog.text, "the log tells the cause"


def test_a_fault_inside_a_write_is_told_without_its_inner_text(app: Flask, database: Database) -> None:
    workflow = new_workflow(app.test_client())
    database.execute("UPDATE workflows SET state_json = '{not JSON'")  # the service itself never writes that
    response = app.test_client().patch(f"/api/workflows/{workflow}", json={"state": {"a": 1}})
    check_refused(response, 500, "INTERNAL_ERROR")
    assert "not JSON" not in response.text
    assert new_workflow(app.test_client(), "/other"), "the writer goes on"


def test_a_request_that_is_not_http_is_refused_in_the_same_shape(server: Server) -> None:
    for request, status, code in (
        (b"nonsense\r\n\r\n", 400, "BAD_REQUEST"),
        (b"GET /\r\n\r\n", 400, "BAD_REQUEST"),
        (b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n", 400, "BAD_REQUEST"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nbad header\r\n\r\n", 400, "BAD_REQUEST"),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414, "URI_TOO_LONG"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 9000 + b"\r\n\r\n", 431, "HEADERS_TOO_LARGE"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: a\r\n" * 200 + b"\r\n", 431, "HEADERS_TOO_LARGE"),
    ):
        reply = exchange(server.port, request)
        assert reply.status == status, request[:40]
        assert reply.headers["Content-Type"] == "application/json"
        assert HEADERS.items() <= dict(reply.headers).items()
        assert re.fullmatch("[0-9a-f]{16}", reply.headers["X-Request-ID"])
        check_refusal(reply.json, code)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_of_failure_has_a_status_a_code_and_a_sentence(kind: type[AmeliaError]) -> None:
    error = kind()
    assert 400 <= error.status < 600
    assert re.fullmatch("[A-Z_]+", error.code)
    assert error.message == error.detail
    assert re.fullmatch(r"[A-Z].*[.…]", error.message)
    assert (error.retry_after is not None) == (error.status in {429, 503})


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/api/health/live", {}, 200),
        ("/api/workflows", {}, 200),
        ("/api/openapi.json", {}, 200),
        ("/no/such/path", {}, 404),
        ("/api/workflows?limit=x", {}, 422),
        ("/api/workflows?cursor=x", {}, 400),
        ("/api/health/live", {"Host": "evil.example"}, 421),
        ("/api/health/live", {"Origin": "null"}, 403),
        ("/api/docs/docs.js", {"Range": "bytes=999999-"}, 400),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_every_answer_has_the_headers_that_keep_browsers_careful(
    client: FlaskClient, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    response = client.open(path, method=method, headers=headers)
    assert response.status_code == status
    assert response.content_type == "application/json"
    assert HEADERS.items() <= dict(response.headers).items()
    assert not PAGE_HEADERS.keys() & dict(response.headers).keys()
    assert response.headers["X-Request-ID"]
    response.close()


@pytest.mark.parametrize("path", ["/api/docs", "/api/docs/docs.js", "/api/docs/swagger-ui.css", "/metrics"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_what_is_not_json_has_those_for_pages_too(client: FlaskClient, method: str, path: str) -> None:
    response = client.open(path, method=method)
    assert response.status_code == 200
    own = {"/api/docs": {"Content-Security-Policy"}, "/metrics": set()}.get(path, {"Cache-Control"})
    for name, value in (HEADERS | PAGE_HEADERS).items():
        assert name in own or response.headers[name] == value, name
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "script-src 'self'" in policy or policy == POLICY
    assert response.headers["X-Request-ID"]
    response.close()


def test_refusals_of_post_and_faults_have_these_headers_too(app: Flask) -> None:
    del app.extensions["vitals"]
    client = app.test_client()
    answers = [client.get("/api/health"), client.post("/api/health"), client.post("/api/workflows", data=b"{")]
    assert [answer.status_code for answer in answers] == [500, 405, 415]
    for answer in answers:
        assert HEADERS.items() <= dict(answer.headers).items()
