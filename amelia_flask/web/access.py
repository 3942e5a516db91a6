"""What every request gets: an id, a line in the log, and the headers that keep browsers careful."""

import logging
import re
import secrets
import time

from flask import Flask, Response, g, request

log = logging.getLogger("amelia_flask.access")

POLICY = "default-src 'none'; frame-ancestors 'none'"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-store",
}
REQUEST_ID = "X-Request-ID"

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_LONGEST_PATH = 500


def register(app: Flask) -> None:
    """Attach to every request of the application."""
    app.before_request(_begin)
    app.after_request(_finish)


def _begin() -> None:
    g.started = time.perf_counter()
    given = request.headers.get(REQUEST_ID, "")
    g.request_id = given if len(given) <= 64 and _ID.fullmatch(given) else secrets.token_hex(8)


def _finish(response: Response) -> Response:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers[REQUEST_ID] = g.request_id
    milliseconds = (time.perf_counter() - g.started) * 1000
    log.info("%s %s %d %.1f ms %s", request.method, _path(), response.status_code, milliseconds, g.request_id)
    return response


def _path() -> str:
    """The path without its query, with everything escaped that could forge or garble a line of the log."""
    return ascii(request.path[:_LONGEST_PATH])[1:-1]
