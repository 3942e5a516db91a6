"""A line in the log for every request, and an id that leads to it."""

import logging
import re
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient

from tests.answers import exchange
from tests.serving import serving

LINE = re.compile(r"(\S+) (\S+) (\d{3}) (\d+\.\d) ms (\S+)")


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What is logged of requests."""
    caplog.set_level(logging.DEBUG, "amelia_flask.access")
    return caplog


def logged(lines: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in lines.records if record.name == "amelia_flask.access"]


@pytest.mark.parametrize(
    "given", ["a", "0", "x" * 64, "01900000-0000-7000-8000-000000000000", "a.b_c-d", "00-4bf92f3577b34da6-01"]
)
def test_an_id_that_a_caller_gives_is_taken_over(
    client: FlaskClient, lines: pytest.LogCaptureFixture, given: str
) -> None:
    for path in ("/api/health/live", "/no/such/path"):
        assert client.get(path, headers={"X-Request-ID": given}).headers["X-Request-ID"] == given
    assert [line.rpartition(" ")[2] for line in logged(lines)] == [given, given]


@pytest.mark.parametrize(
    "given",
    ["", " ", "x" * 65, "a b", "a\tb", "é", "a;b", "<b>", "a,b", "a" * 100_000, '"', "٣", "a\x7f", "a\x1b[31m"],
)
def test_an_id_that_is_odd_is_replaced(client: FlaskClient, lines: pytest.LogCaptureFixture, given: str) -> None:
    headers = {"X-Request-ID": given.encode().decode("latin-1")}
    answered = [client.get("/api/health/live", headers=headers).headers["X-Request-ID"] for _ in range(2)]
    assert all(re.fullmatch("[0-9a-f]{16}", each) for each in answered)
    assert answered[0] != answered[1]
    assert [line.rpartition(" ")[2] for line in logged(lines)] == answered


@pytest.mark.parametrize(
    ("method", "path", "status", "shown"),
    [
        ("GET", "/api/health/live", 200, "/api/health/live"),
        ("GET", "/api/workflows?worktree=/secret&cursor=", 400, "/api/workflows"),
        ("POST", "/api/workflows?token=secret", 415, "/api/workflows"),
        ("GET", "/secret%3Fx", 404, "/secret?x"),
        ("GET", "/a%0aGET%20/forged%20200", 404, r"/a\nGET /forged 200"),
        ("GET", "/a%0d%0ab", 404, r"/a\r\nb"),
        ("GET", "/%1b[31mred%07", 404, r"/\x1b[31mred\x07"),
        ("GET", "/%00", 404, r"/\x00"),
        ("GET", "/%c2%85%e2%80%a8%e2%80%ae", 404, r"/\x85\u2028\u202e"),
        ("GET", "/%ff", 404, r"/\ufffd"),
        ("GET", "/%5cn", 404, r"/\\n"),
        ("GET", "/" + "a" * 5000, 404, "/" + "a" * 499),
    ],
)
def test_a_line_tells_of_a_request_and_nobody_can_forge_one(
    client: FlaskClient, lines: pytest.LogCaptureFixture, method: str, path: str, status: int, shown: str
) -> None:
    response = client.open(path, method=method, data=b"secret" if method == "POST" else None)
    assert response.status_code == status
    (line,) = logged(lines)
    begin, end = f"{method} {shown} {status} ", f" ms {response.headers['X-Request-ID']}"
    assert line.startswith(begin)
    assert line.endswith(end)
    assert float(line[len(begin) : -len(end)]) >= 0
    assert line.isascii()
    assert line.isprintable()


def test_faults_and_closed_gates_have_their_lines_too(app: Flask, lines: pytest.LogCaptureFixture) -> None:
    del app.extensions["vitals"]
    client = app.test_client()
    client.get("/api/health")
    client.get("/api/health", headers={"Host": "evil.example"})
    client.delete("/api/health")
    assert [line.split()[:3] for line in logged(lines)] == [
        ["GET", "/api/health", "500"],
        ["GET", "/api/health", "421"],
        ["DELETE", "/api/health", "405"],
    ]


def test_only_refusals_and_faults_are_news(app: Flask, lines: pytest.LogCaptureFixture) -> None:
    client = app.test_client()
    client.get("/api/health/live")
    client.get("/no/such/path")
    del app.extensions["vitals"]
    client.get("/api/health")
    levels = [record.levelname for record in lines.records if record.name == "amelia_flask.access"]
    assert levels == ["DEBUG", "INFO", "WARNING"]


def test_the_servers_log_holds_no_query_no_body_and_no_token(tmp_path: Path) -> None:
    token = "a-secret-token-of-some-length"
    with serving(tmp_path / "amelia.db", workers=1, log_level="info", api_token=token) as server:
        headers = {"Authorization": f"Bearer {token}", "X-Request-ID": "mine"}
        server.request("POST", "/api/workflows?q=a-secret-query", {"issue_id": "a-secret-body"}, headers)
        forged = b"GET /a%0aforged?a-secret-query HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: \x1b]0;\r\n\r\n"
        assert exchange(server.port, forged).status in {400, 401}
        assert server.request("GET", "/a%0aforged?a-secret-query").status == 401
        server.stop()
    text = server.log.read_text()
    assert "secret" not in text
    assert "\x1b" not in text
    assert not [line for line in text.splitlines() if line.startswith("forged")]
    found = [LINE.search(line) for line in text.splitlines() if "amelia_flask.access: POST" in line]
    assert [match and match.groups()[:3] + match.groups()[4:] for match in found] == [
        ("POST", "/api/workflows", "422", "mine")
    ]
