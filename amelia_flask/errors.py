"""The kinds of failure a caller can meet.

Each class carries the HTTP status and the code that callers see; its docstring is the default message. The
domain raises these and knows nothing of HTTP beyond the number.
"""

from typing import Any, ClassVar


class AmeliaError(Exception):
    """The request could not be carried out."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "INTERNAL_ERROR"
    retry_after: ClassVar[int | None] = None  # seconds

    def __init__(self, message: str = "", *, detail: Any = None, **details: Any) -> None:
        self.message = message or " ".join((type(self).__doc__ or "").split())
        self.details = details
        self.detail: Any = self.message if detail is None else detail
        super().__init__(self.message)


class InternalError(AmeliaError):
    """The server failed to carry out the request; the cause stands in its log."""


class MalformedJson(AmeliaError):
    """The body is not well-formed JSON."""

    status = 400
    code = "MALFORMED_JSON"


class BadRequest(AmeliaError):
    """The request is not well-formed HTTP."""

    status = 400
    code = "BAD_REQUEST"


class InvalidCursor(AmeliaError):
    """The cursor is not one that this service gave out."""

    status = 400
    code = "INVALID_CURSOR"


class InvalidPeriod(AmeliaError):
    """The period is neither a known preset nor a pair of dates in order."""

    status = 400
    code = "INVALID_PERIOD"


class Unauthorized(AmeliaError):
    """A valid token is needed: send it as `Authorization: Bearer …`."""

    status = 401
    code = "UNAUTHORIZED"


class Forbidden(AmeliaError):
    """This caller may not do that."""

    status = 403
    code = "FORBIDDEN"


class NotFound(AmeliaError):
    """There is nothing at this address."""

    status = 404
    code = "NOT_FOUND"


class MethodNotAllowed(AmeliaError):
    """This address does not take that method."""

    status = 405
    code = "METHOD_NOT_ALLOWED"


class WorkflowConflict(AmeliaError):
    """Another active workflow holds this worktree."""

    status = 409
    code = "WORKFLOW_CONFLICT"


class IdReused(AmeliaError):
    """This id is already taken by a record with other content."""

    status = 409
    code = "ID_REUSED"


class PreconditionFailed(AmeliaError):
    """The workflow has changed since the version named in If-Match."""

    status = 412
    code = "PRECONDITION_FAILED"


class PayloadTooLarge(AmeliaError):
    """The body is larger than this service accepts."""

    status = 413
    code = "PAYLOAD_TOO_LARGE"


class UriTooLong(AmeliaError):
    """The request's address is longer than this service reads."""

    status = 414
    code = "URI_TOO_LONG"


class UnsupportedMediaType(AmeliaError):
    """The body must be sent as application/json, or application/x-ndjson where lines are taken."""

    status = 415
    code = "UNSUPPORTED_MEDIA_TYPE"


class MisdirectedRequest(AmeliaError):
    """This service does not answer for that host name."""

    status = 421
    code = "MISDIRECTED_REQUEST"


class ValidationError(AmeliaError):
    """The request holds a value that is not allowed."""

    status = 422
    code = "VALIDATION_ERROR"


class InvalidState(AmeliaError):
    """The workflow's status does not allow this."""

    status = 422
    code = "INVALID_STATE"


class HeadersTooLarge(AmeliaError):
    """The request's headers are larger than this service reads."""

    status = 431
    code = "HEADERS_TOO_LARGE"


class ConcurrencyLimit(AmeliaError):
    """As many workflows are active as this service allows."""

    status = 429
    code = "CONCURRENCY_LIMIT"
    retry_after = 30


class DatabaseUnavailable(AmeliaError):
    """The database cannot be reached or written just now; try again with the same ids."""

    status = 503
    code = "DATABASE_UNAVAILABLE"
    retry_after = 1


class NotReady(AmeliaError):
    """The service is not ready to take requests."""

    status = 503
    code = "NOT_READY"
    retry_after = 1


class TooManyStreams(AmeliaError):
    """As many readers are waiting for events as this service allows."""

    status = 503
    code = "TOO_MANY_STREAMS"
    retry_after = 5


def invalid(loc: list[str | int], msg: str, given: Any = None, kind: str = "value_error") -> ValidationError:
    """A ValidationError for one member; `loc` leads to it from the request's part ("body", "query", …)."""
    name = ".".join(str(part) for part in loc[1:]) or str(loc[0])
    return ValidationError(f"{name}: {msg}", detail=[{"type": kind, "loc": loc, "msg": msg, "input": given}])


class SettingsError(AmeliaError):
    """A setting is unknown or malformed."""


class SchemaError(AmeliaError):
    """The database cannot be used by this version."""


class FileRefused(AmeliaError):
    """A file is not what a command needs."""
