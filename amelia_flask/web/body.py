"""Request bodies: read whole within the limit, checked for their media type, decoded once."""

import contextlib
import io
import sys
from typing import Any, Generic, TypeVar
from urllib.parse import parse_qsl

import msgspec
from flask import current_app, request
from gunicorn.http.errors import ChunkMissingTerminator, InvalidChunkExtension, InvalidChunkSize, NoMoreData
from msgspec import UNSET, UnsetType
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge

from amelia_flask import strictjson
from amelia_flask.errors import (
    BadRequest,
    MalformedJson,
    PayloadTooLarge,
    UnsupportedMediaType,
    ValidationError,
    invalid,
)

JSON = "application/json"
NDJSON = "application/x-ndjson"
CHUNK = 65_536
# So much at most is asked for at once: where there is no memory for a body, the server's own buffer must not break,
# through which the rest of it has to go before its sender reads the answer.
STEP = 1_048_576
MOST_DROPPED = 64 * 1024 * 1024
BROKEN = (InvalidChunkSize, InvalidChunkExtension, ChunkMissingTerminator, NoMoreData, ClientDisconnected, OSError)

T = TypeVar("T")


class Body(Generic[T]):
    """A JSON body of one type. No body at all stands for an empty object, an empty one only where `optional`."""

    media_types: tuple[str, ...] = (JSON,)

    def __init__(self, one: type[T], *, optional: bool = False) -> None:
        self.one = one
        self.optional = optional
        self._decoder = msgspec.json.Decoder(one)

    def receive(self) -> Any:
        """The request's body as its type. Raises what `strictjson.decode` and `read` raise."""
        media_type = check_media_type(self.media_types)
        raw = read()
        if not raw.strip() and not self.optional and "Content-Type" in request.headers:
            raise MalformedJson("The body is empty; this call needs one.")
        return self._decode(raw if raw.strip() else b"{}", media_type)

    def _decode(self, raw: bytes, _media_type: str) -> Any:
        return strictjson.decode(raw, self._decoder)


class Records(Body[T]):
    """One record, `{member: [records]}`, or NDJSON: a list of records whichever way it came."""

    media_types = (JSON, NDJSON)

    def __init__(self, one: type[T], batch: type[Any], member: str, max_lines: int) -> None:
        super().__init__(one)
        self.batch = batch
        self.max_lines = max_lines
        self._member = member
        self._batch_decoder = msgspec.json.Decoder(batch)
        self._probe = msgspec.json.Decoder(dict[str, msgspec.Raw])

    def _decode(self, raw: bytes, media_type: str) -> list[T]:
        if media_type == NDJSON:
            return strictjson.decode_lines(raw, self._decoder, self.max_lines)
        if self._is_batch(raw):
            records: list[T] = getattr(strictjson.decode(raw, self._batch_decoder), self._member)
            return records
        return [strictjson.decode(raw, self._decoder)]

    def _is_batch(self, raw: bytes) -> bool:
        if f'"{self._member}"'.encode() not in raw:
            return False
        try:
            return self._member in self._probe.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False  # the decoder of one record will say what is wrong


def check_media_type(accepted: tuple[str, ...]) -> str:
    """The body's media type, the first accepted one where there is neither type nor body.

    A page of another origin can send text/plain and forms without asking; so they are refused even where no
    body is needed. Raises UnsupportedMediaType.
    """
    environ = request.environ
    given: str | None = environ.get("CONTENT_TYPE")
    if given in accepted and "HTTP_CONTENT_ENCODING" not in environ:
        return given
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("The body must be sent without a Content-Encoding.")
    if "Content-Type" not in request.headers:
        if _has_body():
            raise UnsupportedMediaType
        return accepted[0]
    charset = request.mimetype_params.get("charset", "utf-8").lower()
    if request.mimetype not in accepted or charset not in {"utf-8", "utf8"}:
        raise UnsupportedMediaType(f"The body must be sent as {' or '.join(accepted)} in UTF-8.")
    return request.mimetype


def read() -> bytes:
    """The whole body. Raises PayloadTooLarge, and BadRequest for one that is cut off or badly chunked."""
    limit, length = current_app.config["MAX_CONTENT_LENGTH"], request.content_length
    if length is not None and length > limit:
        raise _too_large(limit)
    try:
        raw = _take(limit + 1 if length is None else length)
    except BROKEN:
        raise _cut_off() from None
    if len(raw) > limit:
        raise _too_large(limit)
    if length is not None and len(raw) < length:
        raise _cut_off()
    request.environ["wsgi.input"] = io.BytesIO()  # nothing of it is left
    return raw


def drop_rest() -> None:
    """Take in what is left of the body: a client that is still sending gets to read its answer only after that."""
    # The framework's own limit would refuse to read a body that is too large.
    request.max_content_length = sys.maxsize
    dropped = 0
    with contextlib.suppress(*BROKEN, RequestEntityTooLarge):
        while dropped < MOST_DROPPED and (chunk := request.stream.read(CHUNK)):
            dropped += len(chunk)


def _take(most: int) -> bytes:
    """What comes of the body, up to `most` bytes, straight from the server: its stream ends where the body does.

    A body without a length is read only from a server that says so of it (`wsgi.input_terminated`).
    """
    environ = request.environ
    if "CONTENT_LENGTH" not in environ and not environ.get("wsgi.input_terminated"):
        return b""
    parts, left, stream = [], most, environ["wsgi.input"]
    while left > 0 and (part := stream.read(min(left, STEP))):
        parts.append(part)
        left -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _cut_off() -> BadRequest:
    return BadRequest("The body ended early or its chunks are malformed.")


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The body is larger than {limit} bytes.", limit=limit)


def _has_body() -> bool:
    return bool(request.content_length) or "Transfer-Encoding" in request.headers


def decode_query(query: type[T]) -> T:
    """The query string as a struct. Raises a ValidationError that names the parameter."""
    given: dict[str, str] = {}
    for name, value in _parameters():
        if name in given:
            raise _bad_parameter(name, "Expected this parameter once", [given[name], value])
        if "\0" in name + value:
            raise _bad_parameter(name, "Expected no NUL", None)
        given[name] = value
    try:
        return msgspec.convert(given, query, strict=False)
    except msgspec.ValidationError as error:
        raise strictjson.explain(error, given, ["query"]) from None


def given(value: T | UnsetType) -> T | None:
    """A parameter of a query, None where it was not given."""
    return None if value is UNSET else value


def _parameters() -> list[tuple[str, str]]:
    """The query's pairs. Flask's own reading would put U+FFFD in place of what is not UTF-8."""
    try:
        return parse_qsl(request.query_string.decode(), keep_blank_values=True, errors="strict")
    except UnicodeDecodeError:
        raise invalid(["query"], "Expected UTF-8") from None


def _bad_parameter(name: str, message: str, given: Any) -> ValidationError:
    return invalid(["query", name[:100]], message, given)
