"""Who may enter: host, origin and token, on every path, before anything else is looked at."""

from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import EnvironBuilder, TestResponse
from werkzeug.wrappers import Response

from amelia_flask import create_app
from amelia_flask.settings import from_environment
from tests.answers import check_refusal, check_refused, exchange
from tests.serving import Server

TOKEN = "a-token-of-some-length"
PROBES = ["/api/health/live", "/api/health/ready"]
PATHS = [*PROBES, "/api/health", "/api/workflows", "/api/openapi.json", "/api/docs", "/metrics", "/no/such/path"]


def gated(folder: Path, **settings: str) -> FlaskClient:
    """An application with these settings. Its database was never set up: nothing here depends on one."""
    named = {f"AMELIA_{name.upper()}": text for name, text in settings.items()}
    return create_app(from_environment({"AMELIA_DATABASE_PATH": str(folder / "amelia.db")} | named)).test_client()


def status(client: FlaskClient, path: str = "/api/health/live", method: str = "GET", **headers: str) -> int:
    """The status for a request with these headers."""
    response = client.open(
        path, method=method, headers={name.replace("_", "-"): text for name, text in headers.items()}
    )
    return response.status_code


LOOPBACK = ["localhost", "localhost:8420", "LOCALHOST", "LocalHost:1", "localhost.", "localhost.:8420", "127.0.0.1"]
LOOPBACK += ["127.0.0.1:8420", "127.0.0.1:65535", "[::1]", "[::1]:8420"]
FOREIGN = ["evil.example", "evil.example:8420", "localhost.evil.example", "evil-localhost", "xlocalhost", "127.0.0.2"]
FOREIGN += [
    "127.0.0.1.evil.example",
    "10.0.0.1",
    "0.0.0.0",
    "[::2]",
    "[::1",
    "::1",
    "::1:8420",
    "localhost:",
    "",
    " ",
]
FOREIGN += [
    "localhost..",
    "localhost:8420:1",
    "localhost:x",
    "localhost:-1",
    "localhost:123456",
    "localhost,localhost",
]
FOREIGN += ["user@localhost", "localhost@evil.example", "localhost/", "localhost?", "localhost#", "http://localhost"]
FOREIGN += [
    "localhost evil.example",
    "loc%61lhost",
    "localhost\t",
    "[localhost]",
    "[::1].",
    "[::ffff:7f00:1]",
    "2130706433",
]
FOREIGN += ["lôcalhost", "ⅼocalhost".encode().decode("latin-1"), "localhost" + "." * 300, "a" * 100_000, ".", ":8420"]


@pytest.mark.parametrize("host", LOOPBACK)
def test_loopback_names_are_answered_for(tmp_path: Path, host: str) -> None:
    assert status(gated(tmp_path), Host=host) == 200


@pytest.mark.parametrize("host", FOREIGN, ids=lambda host: ascii(host[:40]))
def test_other_names_are_misdirected(tmp_path: Path, host: str) -> None:
    response = gated(tmp_path).get("/api/health/live", headers={"Host": host})
    check_refused(response, 421, "MISDIRECTED_REQUEST")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "POST", "PATCH", "DELETE", "OPTIONS", "HEAD"])
def test_the_host_is_checked_on_every_path(tmp_path: Path, path: str, method: str) -> None:
    client = gated(tmp_path)
    assert status(client, path, method, Host="evil.example") == 421
    assert status(client, path, method, Host="localhost") != 421


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("amelia.example", 200),
        ("AMELIA.example:80", 200),
        ("amelia.example.", 200),
        ("x.amelia.example", 421),
        ("a.internal", 200),
        ("A.B.Internal:8420", 200),
        ("internal", 421),
        ("evilinternal", 421),
        ("a.internal.evil", 421),
        (".internal", 421),
        ("c.internal.", 200),
        ("ported.example", 200),
        ("ported.example:1", 200),
        ("dotted.example", 200),
        ("dotted.example.", 200),
        ("[fe80::1]:8420", 200),
        ("[fe80::2]", 421),
        ("localhost", 200),
        ("10.0.0.1", 421),
    ],
)
def test_allowed_hosts_are_names_and_suffixes(tmp_path: Path, host: str, expected: int) -> None:
    client = gated(
        tmp_path, allowed_hosts="Amelia.Example, .internal., ported.example:8420, dotted.example., [FE80::1]:1"
    )
    assert status(client, Host=host) == expected
    assert status(client, Host="localhost", Origin=f"http://{host}") == (200 if expected == 200 else 403)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("10.0.0.1:8420", 200), ("[fe80::1]", 200), ("127.0.0.2", 200), ("10.0.0.256", 421), ("evil.example", 421)],
)
def test_on_other_addresses_any_address_is_a_name(tmp_path: Path, host: str, expected: int) -> None:
    client = gated(tmp_path, host="0.0.0.0", api_token=TOKEN)
    assert status(client, Host=host) == expected


def test_on_other_addresses_the_name_of_the_machine_is_one(tmp_path: Path) -> None:
    name = Path("/proc/sys/kernel/hostname").read_text().strip()
    assert status(gated(tmp_path, host="0.0.0.0", api_token=TOKEN), Host=f"{name.upper()}:8420") == 200
    assert status(gated(tmp_path), Host=name) == (200 if name == "localhost" else 421)


@pytest.mark.parametrize(("protocol", "expected"), [("HTTP/1.1", 421), ("HTTP/1.0", 200)])
def test_a_host_may_be_missing_only_where_the_protocol_knows_none(
    tmp_path: Path, protocol: str, expected: int
) -> None:
    environ = EnvironBuilder("/api/health/live").get_environ() | {"SERVER_PROTOCOL": protocol}
    del environ["HTTP_HOST"]
    assert Response.from_app(gated(tmp_path).application.wsgi_app, environ).status_code == expected


ORIGINS = [
    *[
        (origin, 200)
        for origin in ("http://localhost", "http://localhost:3000", "https://127.0.0.1:1", "HTTP://[::1]:5")
    ],
    *[(f"http://{host}", 403) for host in FOREIGN if host.strip() and "\t" not in host],
    *[
        (origin, 403)
        for origin in ("null", "NULL", "", "localhost", "http://", "://localhost", "file://", "file://localhost")
    ],
    *[
        (origin, 403)
        for origin in ("ftp://localhost", "chrome-extension://localhost", "http:localhost", "http:///localhost")
    ],
    *[
        (origin, 403)
        for origin in ("http://localhost/", "http://localhost, http://evil.example", "http://localhost http://evil")
    ],
]


@pytest.mark.parametrize(("origin", "expected"), ORIGINS, ids=lambda value: ascii(value)[:40])
def test_pages_of_other_origins_are_refused(tmp_path: Path, origin: str, expected: int) -> None:
    response = gated(tmp_path).get("/api/health/live", headers={"Origin": origin})
    assert response.status_code == expected
    if expected == 403:
        check_refusal(response.get_json(), "FORBIDDEN")
    assert_no_cors(response)


@pytest.mark.parametrize("origin", ["null", "https://evil.example"])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "POST", "PATCH", "DELETE", "OPTIONS"])
def test_the_origin_is_checked_on_every_path(tmp_path: Path, path: str, method: str, origin: str) -> None:
    preflight = {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x"}
    response = gated(tmp_path).open(path, method=method, headers=preflight)
    check_refused(response, 403, "FORBIDDEN")
    assert_no_cors(response)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("origin", ["http://localhost:3000", None])
def test_no_answer_shares_itself_with_other_origins(tmp_path: Path, path: str, origin: str | None) -> None:
    for method in ("GET", "POST", "OPTIONS", "HEAD"):
        assert_no_cors(gated(tmp_path).open(path, method=method, headers={"Origin": origin} if origin else {}))


def assert_no_cors(response: TestResponse) -> None:
    assert not [name for name, _ in response.headers if name.lower().startswith("access-control-")]


LINK = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}


@pytest.mark.parametrize(
    ("headers", "get", "post"),
    [
        ({}, 200, 405),
        ({"Sec-Fetch-Site": "same-origin"}, 200, 405),
        ({"Sec-Fetch-Site": "same-site"}, 200, 405),
        ({"Sec-Fetch-Site": "none"}, 200, 405),
        ({"Sec-Fetch-Site": "cross-site"}, 403, 403),
        ({"Sec-Fetch-Site": "Cross-Site"}, 403, 403),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost"}, 403, 403),
        (LINK, 200, 403),
        (LINK | {"Sec-Fetch-Dest": "iframe"}, 403, 403),
        (LINK | {"Sec-Fetch-Dest": "image"}, 403, 403),
        (LINK | {"Sec-Fetch-Mode": "no-cors"}, 403, 403),
        (LINK | {"Origin": "null"}, 403, 403),
    ],
)
def test_requests_from_other_sites_are_refused_but_links_may_be_followed(
    tmp_path: Path, headers: dict[str, str], get: int, post: int
) -> None:
    client = gated(tmp_path)
    assert client.get("/api/health/live", headers=headers).status_code == get
    assert client.post("/api/health/live", headers=headers).status_code == post


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN.upper()}",
        TOKEN,
        f"Basic {TOKEN}",
        f"Bearer{TOKEN}",
        f"Bearer x {TOKEN}",
        "Bearer \xff",
        f"Bearer {TOKEN}, Bearer {TOKEN}",
    ],
)
def test_without_the_token_everything_but_the_probes_is_closed(tmp_path: Path, given: str | None) -> None:
    client = gated(tmp_path, api_token=TOKEN)
    headers = {} if given is None else {"Authorization": given}
    for path in PATHS:
        response = client.get(path, headers=headers)
        assert (response.status_code != 401) == (path in PROBES), path
        if path not in PROBES:
            check_refusal(response.get_json(), "UNAUTHORIZED")
            assert response.headers["WWW-Authenticate"] == "Bearer"
            assert TOKEN not in response.text


@pytest.mark.parametrize("given", [f"Bearer {TOKEN}", f"bearer {TOKEN}", f"BEARER  {TOKEN} "])
def test_the_token_opens_everything(tmp_path: Path, given: str) -> None:
    client = gated(tmp_path, api_token=TOKEN)
    assert status(client, "/api/openapi.json", Authorization=given) == 200
    assert status(client, "/no/such/path", Authorization=given) == 404


@pytest.mark.parametrize(
    "path", ["/api/health/live/", "/api/health/live%2f", "/api//health/live", "/api/health/livex"]
)
def test_only_the_probes_themselves_are_open(tmp_path: Path, path: str) -> None:
    assert status(gated(tmp_path, api_token=TOKEN), path) == 401


def test_a_token_does_not_open_the_gate_to_other_hosts_and_pages(tmp_path: Path) -> None:
    client = gated(tmp_path, api_token=TOKEN)
    token = f"Bearer {TOKEN}"
    assert status(client, "/api/openapi.json", Authorization=token, Host="evil.example") == 421
    assert status(client, "/api/openapi.json", Authorization=token, Origin="http://evil.example") == 403


def test_on_loopback_no_token_is_asked_for(app: Flask) -> None:
    assert status(app.test_client(), "/api/workflows") == 200
    assert status(app.test_client(), "/api/workflows", Authorization="Bearer wrong") == 200


@pytest.mark.parametrize("settings", [{"host": "0.0.0.0"}, {"host": "amelia.example"}, {"require_token": "on"}])
def test_a_token_is_asked_for_where_there_is_none_yet(tmp_path: Path, settings: dict[str, str]) -> None:
    client = gated(tmp_path, **settings)
    for path in PATHS:
        for given in ("", f"Bearer {TOKEN}"):
            assert (status(client, path, Authorization=given) == 401) == (path not in PROBES), path


def test_the_order_is_host_then_page_then_token(tmp_path: Path) -> None:
    client = gated(tmp_path, api_token=TOKEN)
    assert status(client, "/api/workflows", Host="evil.example", Origin="http://evil.example") == 421
    assert status(client, "/api/workflows", Origin="http://evil.example") == 403
    assert status(client, "/api/workflows") == 401


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("GET /api/health/live HTTP/1.1\r\nHost: localhost", 200),
        ("GET /api/health/live HTTP/1.1\r\nHost: 127.0.0.1:1", 200),
        ("GET /api/health/live HTTP/1.1\r\nhost: [::1]:8420", 200),
        ("GET /api/health/live HTTP/1.0", 200),
        ("GET /api/health/live HTTP/1.0\r\nHost: evil.example", 421),
        ("GET /api/health/live HTTP/1.1\r\nHost: evil.example", 421),
        ("GET /api/health/live HTTP/1.1\r\nHost: localhost\r\nHost: evil.example", 400),
        ("GET /api/health/live HTTP/1.1\r\nHost: evil.example\r\nX-Forwarded-Host: localhost", 421),
        ("GET /api/health/live HTTP/1.1\r\nHost: localhost\r\nOrigin: null", 403),
        ("POST /nowhere HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 0", 421),
    ],
)
def test_the_server_itself_passes_the_gate_what_was_sent(server: Server, head: str, expected: int) -> None:
    reply = exchange(server.port, head.encode() + b"\r\n\r\n")
    assert reply.status == expected
    if expected != 200:
        check_refusal(reply.json)


def test_a_request_without_a_host_is_refused_by_the_server(server: Server) -> None:
    reply = exchange(server.port, b"GET /api/health/live HTTP/1.1\r\n\r\n")
    assert reply.status in {400, 421}
    check_refusal(reply.json)
