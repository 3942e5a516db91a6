"""Every answer of 4xx and 5xx in one shape, whoever raised it."""

import logging
from typing import Any

import msgspec
from flask import Flask, Response
from werkzeug.exceptions import HTTPException

from amelia_flask.errors import (
    AmeliaError,
    BadRequest,
    InternalError,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    UnsupportedMediaType,
)
from amelia_flask.web.body import drop_rest
from amelia_flask.web.operations import Answer, respond

log = logging.getLogger(__name__)

# The framework's own refusals, as ours.
_KINDS: dict[int, type[AmeliaError]] = {
    kind.status: kind for kind in (BadRequest, NotFound, MethodNotAllowed, PayloadTooLarge, UnsupportedMediaType)
}


class Error(msgspec.Struct):
    """An answer of 4xx or 5xx. `detail` lists the problems of a VALIDATION_ERROR; else it is mostly the sentence."""

    error: str
    code: str
    details: dict[str, Any]
    detail: Any


def register(app: Flask) -> None:
    """Send every failure of the application through this module."""
    app.register_error_handler(AmeliaError, answer)
    app.register_error_handler(HTTPException, _from_framework)
    app.register_error_handler(Exception, _from_fault)


def answer(error: AmeliaError) -> Response:
    """The error as a response, which a client that is still sending gets to read."""
    drop_rest()
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    return respond(Answer(body(error), error.status, headers))


def body(error: AmeliaError) -> Error:
    """The error as callers read it."""
    return Error(error.message, error.code, error.details, error.detail)


def _from_framework(error: HTTPException) -> Response:
    kind = _KINDS.get(error.code or 500)
    if kind is None:
        return _from_fault(error) if (error.code or 500) >= 500 else answer(BadRequest())
    response = answer(kind())
    response.headers.extend(
        (name, value) for name, value in error.get_headers() if name in {"Allow", "Retry-After", "WWW-Authenticate"}
    )
    return response


def _from_fault(error: Exception) -> Response:
    log.error("a request failed", exc_info=error)
    return answer(InternalError())
