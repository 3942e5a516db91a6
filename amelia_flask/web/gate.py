"""The gate that every request passes first: host, origin, token, scope.

A web page of a stranger can reach a service on this machine, by a form, a fetch, or a host name of its own that
it points at 127.0.0.1 (DNS rebinding). The gate refuses these whatever the path, before anything is read.
"""

import ipaddress
import socket
from typing import Any

from flask import request

from amelia_flask.errors import Forbidden, MisdirectedRequest, Unauthorized
from amelia_flask.settings import HOST, Settings
from amelia_flask.tokens import Keyring

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
OPEN_PATHS = frozenset({"/api/health/live", "/api/health/ready"})
READING = frozenset({"GET", "HEAD"})

_LONGEST_HOST = 300

# The request as the server gives it: the framework's own view of it costs more than all that is checked here.
Environ = dict[str, Any]


class Gate:
    """Checks the current request against the settings."""

    def __init__(self, settings: Settings, keyring: Keyring) -> None:
        self._asks_for_token = settings.asks_for_token
        self._keyring = keyring
        self._is_open_to_network = not settings.is_loopback
        names = LOOPBACK | {name for name in settings.allowed_hosts if not name.startswith(".")}
        self._names = names | ({socket.gethostname().lower()} if self._is_open_to_network else set())
        self._suffixes = tuple(name for name in settings.allowed_hosts if name.startswith("."))

    def check(self) -> None:
        """Raises MisdirectedRequest, Forbidden or Unauthorized for a request that may not enter.

        Raises DatabaseUnavailable where it cannot be known whether it may.
        """
        environ = request.environ
        self._check_host(environ)
        self._check_origin(environ)
        self._check_token(environ)

    def _check_host(self, environ: Environ) -> None:
        host = environ.get("HTTP_HOST")
        # HTTP/1.0 knows no Host: probes still speak it, browsers never do.
        if host is None and environ.get("SERVER_PROTOCOL") == "HTTP/1.0":
            return
        if not self._is_ours(host or ""):
            raise MisdirectedRequest

    def _check_origin(self, environ: Environ) -> None:
        origin = environ.get("HTTP_ORIGIN")
        if origin is not None:
            scheme, _, host = origin.partition("://")
            if scheme.lower() not in {"http", "https"} or not self._is_ours(host):
                raise Forbidden("Requests from pages of other origins are refused.")
        if environ.get("HTTP_SEC_FETCH_SITE", "").lower() == "cross-site" and not _is_link(environ):
            raise Forbidden("Requests from pages of other sites are refused.")

    def _check_token(self, environ: Environ) -> None:
        if not self._asks_for_token or environ["PATH_INFO"] in OPEN_PATHS:
            return
        scheme, _, given = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        scope = self._keyring.scope_of(given.strip()) if scheme.lower() == "bearer" else None
        if scope is None:
            raise Unauthorized
        if scope == "read" and environ["REQUEST_METHOD"] not in READING:
            raise Forbidden("This token may read and nothing else.")

    def _is_ours(self, host: str) -> bool:
        if host in self._names:
            return True
        match = HOST.fullmatch(host.lower()) if len(host) <= _LONGEST_HOST else None
        if match is None:
            return False
        name = match[1].removesuffix(".")
        if name in self._names or (self._suffixes and name.endswith(self._suffixes)):
            return True
        return self._is_open_to_network and _is_address(name)


def _is_link(environ: Environ) -> bool:
    """Whether somebody followed a link here: the page that holds it learns nothing of the answer."""
    mode = environ.get("HTTP_SEC_FETCH_MODE", "").lower()
    destination = environ.get("HTTP_SEC_FETCH_DEST", "").lower()
    return environ["REQUEST_METHOD"] in READING and mode == "navigate" and destination == "document"


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
