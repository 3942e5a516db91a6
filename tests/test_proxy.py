"""Behind a proxy: what it says of the caller is believed where the operator says so, and the documented ones work."""

import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urljoin

import pytest
from flask.testing import FlaskClient

from amelia_flask import create_app, schema
from amelia_flask.settings import from_environment
from amelia_flask.sqlite import SqliteEngine
from tests.answers import EVENT, exchange
from tests.serving import Reply, Server, free_port, serving, until

PAGE = (Path(__file__).parent.parent / "docs" / "proxy.md").read_text()
NAME = "amelia.example.com"
TOKEN = "a-token-of-some-length"
WORKFLOW = {"issue_id": "P-1", "worktree_path": "/p"}
FORWARDED = {
    "X-Forwarded-Host": NAME,
    "X-Forwarded-Proto": "https",
    "X-Forwarded-For": "10.1.2.3",
    "X-Forwarded-Prefix": "/amelia",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a database."""
    schema.set_up(SqliteEngine(tmp_path / "amelia.db"))
    return tmp_path


def behind(folder: Path, hops: int) -> FlaskClient:
    """The application behind so many proxies."""
    settings = {"DATABASE_PATH": str(folder / "amelia.db"), "ALLOWED_HOSTS": NAME, "PROXY_HOPS": str(hops)}
    return create_app(from_environment({f"AMELIA_{name}": text for name, text in settings.items()})).test_client()


def made(client: FlaskClient, **headers: str) -> str:
    """The address of a new workflow."""
    response = client.post("/api/workflows", json=WORKFLOW, headers=headers)
    client.application.extensions["ledger"].close()
    assert response.status_code == 201
    return response.headers["Location"]


@pytest.mark.parametrize(
    ("hops", "prefix", "root"),
    [
        (0, "/amelia", ""),
        (1, "/amelia", "/amelia"),
        (1, "/amelia/", "/amelia"),
        (1, "", ""),
        (1, "/forged,/amelia", "/amelia"),
        (2, "/outer,/inner", "/outer"),
        (2, "/amelia", ""),
    ],
)
def test_the_path_before_ours_is_believed_of_as_many_proxies_as_there_are(
    folder: Path, hops: int, prefix: str, root: str
) -> None:
    headers = {"X-Forwarded-Prefix": prefix}
    assert made(behind(folder, hops), **headers).startswith(f"{root}/api/workflows/")
    document = behind(folder, hops).get("/api/openapi.json", headers=headers).get_json()
    assert document["servers"] == [{"url": root or "/"}]


@pytest.mark.parametrize(
    ("hops", "forwarded", "status"),
    [
        (0, "evil.example", 200),
        (1, NAME, 200),
        (1, f"{NAME}:8443", 200),
        (1, "evil.example", 421),
        (1, f"{NAME}, evil.example", 421),
        (1, f"evil.example, {NAME}", 200),
        (2, f"evil.example, {NAME}, localhost", 200),
        (2, "evil.example, localhost", 421),
    ],
)
def test_the_host_that_a_proxy_was_asked_for_has_to_be_ours(
    folder: Path, hops: int, forwarded: str, status: int
) -> None:
    response = behind(folder, hops).get("/api/health/live", headers={"X-Forwarded-Host": forwarded})
    assert response.status_code == status


def test_without_hops_a_forwarded_name_opens_nothing(folder: Path) -> None:
    headers = {"Host": "evil.example"} | FORWARDED
    assert behind(folder, 0).get("/api/health/live", headers=headers).status_code == 421
    assert behind(folder, 1).get("/api/health/live", headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/api/workflows", "/api/health/live/x", "/api/health"])
def test_a_forwarded_path_opens_nothing_that_needs_a_token(folder: Path, path: str) -> None:
    settings = {"DATABASE_PATH": str(folder / "amelia.db"), "API_TOKEN": TOKEN, "PROXY_HOPS": "1"}
    client = create_app(from_environment({f"AMELIA_{name}": text for name, text in settings.items()})).test_client()
    for prefix in ("/api/health/live", path):
        assert client.get(path, headers={"X-Forwarded-Prefix": prefix}).status_code == 401


def test_the_page_below_a_path_finds_its_files_and_the_calls(folder: Path) -> None:
    client = behind(folder, 1)
    page = client.get("/api/docs", headers=FORWARDED).get_data(as_text=True)
    names = re.findall(r'(?:href|src)="([^"]+)"', page)
    assert len(names) >= 4
    for name in names:
        path = urljoin("/amelia/api/docs", name)
        assert path.startswith("/amelia/")
        with client.get(path.removeprefix("/amelia"), headers=FORWARDED) as response:
            assert response.status_code == 200


@pytest.mark.parametrize("header", [*(f"{name}: {text}" for name, text in FORWARDED.items()), "SCRIPT_NAME: /api"])
def test_the_server_believes_no_header_of_a_proxy_by_itself(server: Server, header: str) -> None:
    body = json.dumps(WORKFLOW | {"worktree_path": f"/{header.partition(':')[0]}"})
    head = f"POST /api/workflows HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{header}\r\n"
    reply = exchange(server.port, f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    assert reply.status == 201
    assert reply.headers["Location"].startswith("/api/workflows/")


@pytest.mark.parametrize(("require", "warned"), [("off", True), ("on", False)])
def test_a_service_behind_a_proxy_that_lets_everybody_in_says_so(tmp_path: Path, require: str, warned: bool) -> None:
    token = {"api_token": TOKEN} if require == "on" else {}
    with serving(tmp_path / "amelia.db", None, proxy_hops=1, workers=1, require_token=require, **token) as server:
        assert server.log.read_text().count("whoever reaches the proxy may read and write everything") == warned


class Front(NamedTuple):
    """A proxy with TLS in front of a server."""

    port: int
    trust: ssl.SSLContext
    server: Server

    def connect(self) -> http.client.HTTPConnection:
        """A connection as a caller has it that looks the name up and finds this machine."""
        raw = socket.create_connection(("127.0.0.1", self.port), 30)
        connection = http.client.HTTPConnection(NAME)
        connection.sock = self.trust.wrap_socket(raw, server_hostname=NAME)
        return connection

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        """One request by a caller who has the token."""
        raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        given = {"Content-Type": "application/json"} if raw is not None else {}
        given |= {"Authorization": f"Bearer {TOKEN}"} | {
            name.replace("_", "-"): text for name, text in headers.items()
        }
        with contextlib.closing(self.connect()) as connection:
            connection.request(method, path, raw, given)
            response = connection.getresponse()
            return Reply(response.status, response.headers, response.read())


def documented(language: str, **replaced: str) -> str:
    """The page's configuration with what depends on the machine put in its place."""
    found = re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    text = found[1]
    for old, new in replaced.items():
        marker = MARKERS[old]
        assert marker in text, marker
        text = text.replace(marker, new)
    return text


# What the page's configurations hold that is another on the machine of a test.
MARKERS = {
    "service": "127.0.0.1:8420",
    "listen": "listen 443 ssl;",
    "certificate": "/etc/ssl/certs/amelia.example.com.pem",
    "key": "/etc/ssl/private/amelia.example.com.key",
    "site": "amelia.example.com {",
}


def nginx(folder: Path, port: int, service: int) -> list[str]:
    """Write nginx's configuration; give its command."""
    text = documented(
        "nginx",
        service=f"127.0.0.1:{service}",
        listen=f"listen 127.0.0.1:{port} ssl;",
        certificate=f"{folder}/cert.pem",
        key=f"{folder}/key.pem",
    )
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    own = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds) + "access_log off;\n"
    user = "user root;\n" if os.geteuid() == 0 else ""  # whoever it is, who runs the test owns the folder
    main = f"{user}daemon off;\npid {folder}/nginx.pid;\nerror_log {folder}/nginx.log;\nevents {{}}\n"
    (folder / "nginx.conf").write_text(f"{main}http {{\n{own}{text}}}\n")
    return ["nginx", "-p", str(folder), "-e", f"{folder}/nginx.log", "-c", f"{folder}/nginx.conf"]


def caddy(folder: Path, port: int, service: int) -> list[str]:
    """Write Caddy's configuration; give its command."""
    site = f"https://{NAME}:{port} {{\n    tls {folder}/cert.pem {folder}/key.pem"
    text = documented("caddy", service=f"127.0.0.1:{service}", site=site)
    own = f"{{\n    admin off\n    auto_https disable_redirects\n    storage file_system {folder}/caddy\n}}\n"
    (folder / "Caddyfile").write_text(own + text)
    return ["caddy", "run", "--adapter", "caddyfile", "--config", f"{folder}/Caddyfile"]


COMMANDS = {"nginx": nginx, "caddy": caddy}


def make_certificate(folder: Path) -> None:
    """A key, and a certificate for NAME that vouches for itself."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}"]
    command += ["-keyout", f"{folder}/key.pem", "-out", f"{folder}/cert.pem"]
    subprocess.run(command, check=True, capture_output=True)


def is_reachable(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@pytest.fixture(scope="module", params=["nginx", "caddy"])
def front(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """A real proxy with the configuration of the page, in front of a real server."""
    missing = [name for name in (request.param, "openssl") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{missing[0]} is not installed: the example for {request.param} in docs/proxy.md is NOT tested")
    folder = tmp_path_factory.mktemp(request.param)
    make_certificate(folder)
    settings = {"proxy_hops": 1, "allowed_hosts": NAME, "require_token": "on", "api_token": TOKEN}
    with serving(folder / "amelia.db", None, **settings) as server, (folder / "output").open("wb") as output:
        port = free_port()
        command = COMMANDS[request.param](folder, port, server.port)
        process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            until(lambda: process.poll() is not None or is_reachable(port))
            assert process.poll() is None, (folder / "output").read_text()
            yield Front(port, ssl.create_default_context(cafile=folder / "cert.pem"), server)
        finally:
            process.terminate()
            process.wait(10)


def test_a_documented_proxy_serves_below_its_path(front: Front) -> None:
    assert front.request("GET", "/amelia/api/health/live", Authorization="").status == 200
    assert front.request("GET", "/amelia/api/workflows", Authorization="").status == 401
    made = front.request("POST", "/amelia/api/workflows", {"issue_id": "P-2", "worktree_path": "/below"})
    assert made.status == 201
    assert made.headers["Location"] == f"/amelia/api/workflows/{made.json['id']}"
    assert front.request("GET", made.headers["Location"]).json["id"] == made.json["id"]
    assert front.request("GET", "/amelia/api/openapi.json").json["servers"] == [{"url": "/amelia"}]
    assert front.request("GET", "/amelia/api/docs/docs.js").status == 200


def test_a_documented_proxy_replaces_what_a_caller_says_of_himself(front: Front) -> None:
    forged = {name: "/forged" if name.endswith("Prefix") else "evil.example" for name in FORWARDED}
    body = {"issue_id": "P-3", "worktree_path": "/forged"}
    made = front.request("POST", "/amelia/api/workflows", body, **forged)
    assert made.status == 201
    assert made.headers["Location"].startswith("/amelia/api/workflows/")


def test_a_documented_proxy_passes_on_pages_of_this_site_and_no_others(front: Front) -> None:
    assert front.request("GET", "/amelia/api/health/live", Origin=f"https://{NAME}:{front.port}").status == 200
    assert front.request("GET", "/amelia/api/health/live", Origin="https://evil.example").status == 403


def test_a_documented_proxy_hands_an_event_to_a_reader_that_waits(front: Front) -> None:
    made = front.request("POST", "/amelia/api/workflows", {"issue_id": "P-4", "worktree_path": "/waits"}).json
    events = f"/amelia/api/workflows/{made['id']}/events"
    replies: list[Reply] = []
    started = time.monotonic()
    reader = threading.Thread(target=lambda: replies.append(front.request("GET", f"{events}?after=1&wait=30")))
    reader.start()
    health = "/amelia/api/health"
    until(lambda: front.request("GET", health).json["websocket_connections"] == 1)
    front.request("POST", events, EVENT)
    reader.join(20)
    assert [event["sequence"] for event in replies[0].json["events"]] == [2]
    assert time.monotonic() - started < 20


def test_a_documented_proxy_passes_on_the_largest_body_and_nothing_larger(front: Front) -> None:
    limit = 8 * 1024 * 1024
    assert front.request("POST", "/amelia/api/workflows", b" " * limit).status == 400
    assert front.request("POST", "/amelia/api/workflows", b" " * (limit + 1)).status == 413


@pytest.mark.parametrize("front", ["nginx"], indirect=True)
def test_nginx_turns_away_who_comes_too_fast(front: Front) -> None:
    with contextlib.closing(front.connect()) as connection:
        for _ in range(20_000):
            connection.request("GET", "/amelia/api/health/live")
            response = connection.getresponse()
            response.read()
            if response.status != 200:
                break
    assert response.status == 429
