"""TLS between the service and PostgreSQL, as the URL asks for it.

The server of these tests was built without it, so what stands in front of it speaks TLS in its place.
"""

import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.load import create_workflows
from tests.postgres.clusters import Cluster
from tests.postgres.conftest import Serve
from tests.postgres.test_urls import run, tells_no_password
from tests.postgres.wire import Detour, serving_detour

OPENSSL = shutil.which("openssl")
pytestmark = pytest.mark.skipif(OPENSSL is None, reason="openssl is not installed: TLS is NOT tested")


class TlsDetour(Detour):
    """Forwards what comes over TLS."""

    def __init__(self, port: int, certificate: Path) -> None:
        super().__init__(port)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, certificate.with_suffix(".key"))

    def get_request(self) -> tuple[Any, Any]:
        """Called for each connection, whose first message asks for TLS."""
        plain, address = super().get_request()
        plain.recv(8, socket.MSG_WAITALL)
        plain.sendall(b"S")
        return self._context.wrap_socket(plain, server_side=True), address


def certificate(file: Path) -> Path:
    """A certificate for localhost, which vouches for itself."""
    key = file.with_suffix(".key")
    what = [
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=DNS:localhost",
    ]
    subprocess.run(
        [str(OPENSSL), "req", "-x509", *what, "-keyout", key, "-out", file], check=True, capture_output=True
    )
    return file


@pytest.fixture
def trusted(tmp_path: Path) -> Path:
    return certificate(tmp_path / "trusted.crt")


@pytest.fixture
def way(cluster: Cluster, trusted: Path) -> Iterator[Detour]:
    with serving_detour(TlsDetour(cluster.port, trusted)) as way:
        yield way


def url(cluster: Cluster, database: str, way: Detour, root: Path) -> str:
    options = f"?sslmode=verify-full&sslrootcert={root}"
    return cluster.url(database, way.port, options).replace("127.0.0.1", "localhost")


def test_a_server_whose_certificate_is_trusted_is_used(
    serve: Serve, cluster: Cluster, database: str, way: Detour, trusted: Path
) -> None:
    server = serve(database_url=url(cluster, database, way, trusted))
    create_workflows(server, 3)
    assert server.request("GET", "/api/health").json["status"] == "healthy"
    assert server.stop() == 0


def test_another_one_is_refused(cluster: Cluster, database: str, way: Detour, tmp_path: Path) -> None:
    status, said = run(
        "init-db", AMELIA_DATABASE_URL=url(cluster, database, way, certificate(tmp_path / "other.crt"))
    )
    assert (status, len(said.splitlines())) == (1, 1)
    assert "certificate verify failed" in said
    assert tells_no_password(said)


def test_a_server_without_tls_is_refused_where_it_is_required(cluster: Cluster, database: str) -> None:
    status, said = run("init-db", AMELIA_DATABASE_URL=cluster.url(database, options="?sslmode=require"))
    assert (status, len(said.splitlines())) == (1, 1)
    assert "does not support SSL" in said
