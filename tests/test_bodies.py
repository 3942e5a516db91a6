"""Bodies: their media type, their length, and how they may come."""

import contextlib
import http.client
import json
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from amelia_flask import create_app, schema
from amelia_flask.settings import from_environment
from amelia_flask.sqlite import SqliteEngine
from tests.answers import EVENT, USAGE, check_refusal, check_refused, exchange, new_workflow
from tests.calls import database_of
from tests.serving import Server, serving

JSON = "application/json"
NDJSON = "application/x-ndjson"
LIMIT = 2048

OTHERS = [
    "text/plain",
    "text/plain;charset=utf-8",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
]
OTHERS += [
    "text/json",
    "application/json5",
    "application/problem+json",
    "application/jsonp",
    "application",
    "json",
    "*/*",
]
OTHERS += [
    "application/json; charset=latin-1",
    "application/json; charset=utf-16",
    "application/octet-stream",
    "",
    ";",
]
OTHERS += ["application/ json", "text/plain, application/json", "application/json, text/plain", "text/html"]
OURS = ["application/json", "APPLICATION/JSON", "application/json; charset=utf-8", 'application/json;charset="UTF-8"']
OURS += ["application/json; charset=utf8", "application/json; profile=x", " application/json "]


@pytest.fixture
def workflow(client: FlaskClient) -> str:
    """The address of a new workflow."""
    return f"/api/workflows/{new_workflow(client)}"


def writes(workflow: str) -> list[tuple[str, str, bytes]]:
    """Every kind of write, with a body that would be taken."""
    created = json.dumps({"issue_id": "A-2", "worktree_path": "/w2"}).encode()
    return [
        ("POST", "/api/workflows", created),
        ("POST", f"{workflow}/events", json.dumps(EVENT).encode()),
        ("POST", f"{workflow}/token-usage", json.dumps(USAGE).encode()),
        ("PATCH", workflow, b'{"state":{}}'),
        ("POST", f"{workflow}/start", b"{}"),
        ("POST", f"{workflow}/block", b"{}"),
        ("POST", f"{workflow}/reject", b'{"feedback":"no"}'),
        ("DELETE", workflow, b"{}"),
    ]


@pytest.mark.parametrize("media_type", OTHERS)
def test_other_media_types_are_refused_with_and_without_a_body(
    client: FlaskClient, workflow: str, media_type: str
) -> None:
    before = database_of(client).dump()
    for method, url, body in writes(workflow):
        for sent in (body, b""):
            response = client.open(url, method=method, data=sent, headers={"Content-Type": media_type})
            check_refused(response, 415, "UNSUPPORTED_MEDIA_TYPE")
    assert database_of(client).dump() == before


@pytest.mark.parametrize("media_type", OURS)
def test_json_is_taken_however_its_name_is_written(client: FlaskClient, workflow: str, media_type: str) -> None:
    for method, url, body in writes(workflow):
        response = client.open(url, method=method, data=body, headers={"Content-Type": media_type})
        assert response.status_code < 300, response.text


def test_lines_are_taken_only_where_records_are(client: FlaskClient, workflow: str) -> None:
    for method, url, body in writes(workflow):
        response = client.open(url, method=method, data=body, content_type=NDJSON)
        takes_lines = url.endswith(("/events", "/token-usage"))
        assert response.status_code == (201 if takes_lines else 415), url


def test_a_body_without_a_type_is_refused(client: FlaskClient, workflow: str) -> None:
    for method, url, body in writes(workflow):
        check_refused(client.open(url, method=method, data=body), 415, "UNSUPPORTED_MEDIA_TYPE")


def test_no_body_and_no_type_stand_for_an_empty_object(client: FlaskClient, workflow: str) -> None:
    assert client.post(f"{workflow}/start").status_code == 200
    assert client.post(f"{workflow}/block").status_code == 200
    for part in ("/reject", "/events", "/token-usage"):
        check_refused(client.post(workflow + part), 422, "VALIDATION_ERROR")
    check_refused(client.post("/api/workflows"), 422, "VALIDATION_ERROR")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "identity, gzip", "GZIP", "utf-8"])
def test_encoded_bodies_are_refused(client: FlaskClient, workflow: str, encoding: str) -> None:
    for method, url, body in writes(workflow):
        headers = {"Content-Type": JSON, "Content-Encoding": encoding}
        check_refused(client.open(url, method=method, data=body, headers=headers), 415, "UNSUPPORTED_MEDIA_TYPE")


def test_identity_is_no_encoding(client: FlaskClient) -> None:
    assert client.post("/api/workflows", json={"issue_id": "A", "worktree_path": "/i"}).status_code == 201
    headers = {"Content-Encoding": "Identity"}
    body = {"issue_id": "A", "worktree_path": "/j"}
    assert client.post("/api/workflows", json=body, headers=headers).status_code == 201


def creation_of(size: int, worktree: str) -> bytes:
    """A body of so many bytes that creates a workflow."""
    body = json.dumps({"issue_id": "A", "worktree_path": worktree}).encode()
    return body + b" " * (size - len(body))


def test_a_body_may_be_as_long_as_the_limit_and_no_longer(tmp_path: Path) -> None:
    schema.set_up(SqliteEngine(tmp_path / "amelia.db"))
    settings = {"AMELIA_DATABASE_PATH": str(tmp_path / "amelia.db"), "AMELIA_MAX_BODY_BYTES": str(LIMIT)}
    app = create_app(from_environment(settings))
    client = app.test_client()
    allowed = client.post("/api/workflows", data=creation_of(LIMIT, "/a"), content_type=JSON)
    assert allowed.status_code == 201
    for media_type, url in ((JSON, "/api/workflows"), (NDJSON, f"/api/workflows/{allowed.get_json()['id']}/events")):
        refused = client.post(url, data=creation_of(LIMIT + 1, "/b"), content_type=media_type)
        assert check_refused(refused, 413, "PAYLOAD_TOO_LARGE")["details"] == {"limit": LIMIT}
    app.extensions["ledger"].close()


def chunked(*chunks: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    """A request that creates a workflow, its body in these chunks."""
    head = b"POST /api/workflows HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    parts = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + parts + end


def stored(server: Server) -> int:
    """How many workflows there are."""
    total: int = server.request("GET", "/api/workflows?limit=1").json["total"]
    return total


def test_a_chunked_body_is_read_whole_within_the_limit_and_refused_beyond_it(tmp_path: Path) -> None:
    with serving(tmp_path / "amelia.db", workers=1, max_body_bytes=LIMIT) as server:
        whole = creation_of(LIMIT, "/chunked")
        assert exchange(server.port, chunked(*(whole[at : at + 100] for at in range(0, LIMIT, 100)))).status == 201
        beyond = creation_of(LIMIT + 1, "/beyond")
        for request in (chunked(beyond), chunked(beyond[:LIMIT], beyond[LIMIT:]), chunked(beyond, beyond * 50)):
            reply = exchange(server.port, request)
            assert reply.status == 413
            check_refusal(reply.json, "PAYLOAD_TOO_LARGE")
        assert stored(server) == 1


@pytest.mark.parametrize(
    "request_bytes",
    [
        chunked(b"{}", end=b""),
        chunked(b'{"issue_id":"A","worktree_path":"/cut"}', end=b"5\r\n{"),
        chunked(b'{"issue_id":"A","worktree_path":"/cut"}', end=b"zz\r\n\r\n"),
        chunked(b'{"issue_id":"A","worktree_path":"/cut"}', end=b"-1\r\n\r\n"),
        chunked(b'{"issue_id":"A","worktree_path":"/cut"}', end=b"0x0\r\n\r\n"),
        chunked(b'{"issue_id":"A","worktree_path":"/cut"}', end=b"ffffffffffffffffffff\r\n\r\n"),
        chunked(end=b"2\r\n{}0\r\n\r\n"),
        chunked(end=b"\r\n{}\r\n0\r\n\r\n"),
        b"POST /api/workflows HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b'Content-Length: 99\r\n\r\n{"issue_id":"A","worktree_path":"/cut"}',
    ],
    ids=range(9),
)
def test_a_body_that_is_cut_off_or_badly_chunked_stores_nothing(server: Server, request_bytes: bytes) -> None:
    before = stored(server)
    reply = exchange(server.port, request_bytes)
    assert reply.status == 400, reply
    check_refusal(reply.json, "BAD_REQUEST")
    assert stored(server) == before


@pytest.mark.parametrize(
    ("url", "headers", "status"),
    [
        ("/api/workflows", {"Content-Type": JSON}, 413),
        ("/api/workflows", {"Content-Type": "text/plain"}, 415),
        ("/api/workflows", {"Content-Type": JSON, "Host": "evil.example"}, 421),
        ("/no/such/path", {"Content-Type": JSON}, 404),
        ("/api/health/live", {"Content-Type": JSON}, 405),
    ],
)
@pytest.mark.parametrize("encode_chunked", [False, True])
def test_who_is_refused_while_still_sending_gets_to_read_the_answer(
    server: Server, url: str, headers: dict[str, str], status: int, encode_chunked: bool
) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    body = [b" " * 1024 * 1024] * 9
    length = {"Transfer-Encoding": "chunked"} if encode_chunked else {"Content-Length": str(9 * 1024 * 1024)}
    with contextlib.closing(connection):
        connection.request("POST", url, body, headers | length, encode_chunked=encode_chunked)
        response = connection.getresponse()
        assert response.status == status
        check_refusal(json.loads(response.read()))
        connection.request("GET", "/api/health/live", headers={"Host": "localhost"})
        assert connection.getresponse().status == 200


def test_a_refused_body_is_not_taken_for_the_next_request(server: Server) -> None:
    smuggled = b"GET /api/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)) as connection:
        for headers in ({"Host": "evil.example"}, {"Content-Type": "text/plain"}, {"Content-Encoding": "gzip"}):
            connection.request("POST", "/api/workflows", smuggled, headers)
            check_refusal(json.loads(connection.getresponse().read()))
        connection.request("GET", "/no/such/path")
        assert connection.getresponse().status == 404
