"""What every request gets: an id, a line in the log, and the headers that keep browsers careful."""

import logging
import random
import re
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from amelia_flask import logs, metrics

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

log = logging.getLogger("amelia_flask.access")

POLICY = "default-src 'none'; frame-ancestors 'none'"
# Of every answer.
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
# Beside these of what is not JSON: of that a browser makes no page, and each header costs a microsecond.
PAGE_HEADERS = HEADERS | {
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Content-Security-Policy": POLICY,
}
REQUEST_ID = "X-Request-ID"

# What succeeded is many lines a second, and no news.
_LEVELS = {"4": logging.INFO, "5": logging.WARNING}
_JSON = ("Content-Type", "application/json")
_PAIRS = tuple(HEADERS.items())
_PAGE_PAIRS = tuple(PAGE_HEADERS.items())
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_LONGEST_PATH = 500


class Access:
    """Wraps an application as a server calls it, which costs every request far less than the framework's hooks."""

    def __init__(self, application: "WSGIApplication") -> None:
        self._application = application

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Called by the server for each request."""
        started = time.perf_counter()
        request_id = _request_id(environ.get("HTTP_X_REQUEST_ID", ""))
        logs.request_id.set(request_id)

        def start(status: str, headers: list[tuple[str, str]], *fault: Any) -> Callable[[bytes], object]:
            headers += _PAIRS if _JSON in headers else _missing(headers)
            headers.append((REQUEST_ID, request_id))
            seconds = time.perf_counter() - started
            metrics.requests.count(_route(environ), environ["REQUEST_METHOD"], status[:3], seconds)
            _write_line(environ, status[:3], seconds * 1000, request_id)
            return start_response(status, headers, *fault)

        return self._application(environ, start)


def _missing(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """What an answer that is not JSON has not set for itself."""
    own = {name for name, _ in headers}
    return [pair for pair in _PAGE_PAIRS if pair[0] not in own]


def new_request_id() -> str:
    """An id for a request that brought none."""
    return f"{random.getrandbits(64):016x}"


def _request_id(given: str) -> str:
    """The caller's, unless it is odd or missing."""
    return given if 0 < len(given) <= 64 and _ID.fullmatch(given) else new_request_id()


def _route(environ: "WSGIEnvironment") -> str:
    """The rule that the framework found for the address, never the address itself; empty where it found none."""
    rule = environ["werkzeug.request"].url_rule
    return "" if rule is None else str(rule.rule)


def _write_line(environ: "WSGIEnvironment", status: str, milliseconds: float, request_id: str) -> None:
    level = _LEVELS.get(status[0], logging.DEBUG)
    if log.isEnabledFor(level):
        method, path = environ["REQUEST_METHOD"], _escaped(environ["PATH_INFO"])
        members = {"method": method, "path": path, "status": int(status), "milliseconds": round(milliseconds, 1)}
        said = (method, path, status, milliseconds, request_id)
        log.log(level, "%s %s %s %.1f ms %s", *said, extra={"members": members})


def _escaped(path: str) -> str:
    """The path without its query, with everything escaped that could forge or garble a line of the log."""
    text = path.encode("latin-1").decode(errors="replace")
    return ascii(text[:_LONGEST_PATH])[1:-1]
