"""Operations: what an endpoint takes and gives, declared once for decoding, encoding and the OpenAPI document."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import msgspec
from flask import Blueprint, Response, current_app
from werkzeug.routing import BaseConverter

from amelia_flask.errors import AmeliaError
from amelia_flask.ledger import Ledger
from amelia_flask.web.body import JSON, Body, check_media_type, decode_query

View = TypeVar("View", bound=Callable[..., Any])
Errors = tuple[type[AmeliaError], ...]

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class Answer:
    """What a view gives where a 200 with a body does not say it all."""

    value: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Operation:
    """One method of one address; `answers` holds the body's type for each status of success.

    In place of a type stands the media type, as text, where the view gives a response of its own.
    """

    name: str
    method: str
    rule: str
    view: Callable[..., Any]
    answers: Mapping[int, Any]
    query: type[Any] | None
    body: Body[Any] | None
    errors: Errors
    headers: tuple[str, ...]

    def handle(self, **path: Any) -> Response:
        """Decode the request, call the view, encode what it gives."""
        given = dict(path)
        if self.query is not None:
            given["query"] = decode_query(self.query)
        if self.body is not None:
            given["body"] = self.body.receive()
        elif self.method != "GET":
            check_media_type((JSON,))
        return respond(self.view(**given))


class WorkflowId(BaseConverter):
    """The id of a workflow in a path: a UUID as text, in the one spelling that is stored."""

    regex = "[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}"

    def to_python(self, value: str) -> str:
        """Called by the framework."""
        return value.lower()


class Resource(Blueprint):
    """A blueprint that knows its operations."""

    def __init__(self, name: str, import_name: str) -> None:
        super().__init__(name, import_name)
        self.operations: list[Operation] = []

    def operation(
        self,
        method: str,
        rule: str,
        answers: Mapping[int, Any],
        *,
        query: type[Any] | None = None,
        body: Body[Any] | None = None,
        errors: Errors = (),
        headers: tuple[str, ...] = (),
        name: str | None = None,
    ) -> Callable[[View], View]:
        """Declare a view: it is called with the parts of the path, and `query` and `body` where they are declared.

        `errors` are the kinds that this operation raises beyond those that any may; `headers` are request
        headers that it reads.
        """

        def declare(view: View) -> View:
            endpoint = name or view.__name__
            operation = Operation(endpoint, method, rule, view, answers, query, body, errors, headers)
            self.operations.append(operation)
            self.add_url_rule(rule, endpoint, operation.handle, methods=[method], provide_automatic_options=False)
            return view

        return declare


def ledger() -> Ledger:
    """The ledger of the application that handles this request."""
    return cast(Ledger, current_app.extensions["ledger"])


def respond(given: Any) -> Response:
    """What a view gave as a response."""
    if isinstance(given, Response):
        return given
    answer = given if isinstance(given, Answer) else Answer(given)
    body = b"" if answer.value is None else _encode(answer.value)
    response = Response(body, answer.status, content_type=JSON)
    if answer.value is None:
        del response.headers["Content-Type"]
    response.headers.update(answer.headers)
    return response
