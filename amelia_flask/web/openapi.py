"""The OpenAPI 3.1 document, made from the declared operations."""

import re
from collections.abc import Iterable
from itertools import groupby
from typing import Any

import msgspec

from amelia_flask import __version__
from amelia_flask.errors import (
    AmeliaError,
    BadRequest,
    DatabaseUnavailable,
    Forbidden,
    InternalError,
    MalformedJson,
    MisdirectedRequest,
    PayloadTooLarge,
    Unauthorized,
    UnsupportedMediaType,
    ValidationError,
)
from amelia_flask.web.body import JSON, NDJSON, Body, Records
from amelia_flask.web.errors import Error
from amelia_flask.web.gate import OPEN_PATHS
from amelia_flask.web.operations import Operation, Resource

REFERENCE = "#/components/schemas/{name}"
DESCRIPTION = (
    "A dependable record of what coding agents did: workflows, events in order, token usage and cost. "
    "A 2xx to a write means that it is committed and synced to disk."
)

_OF_ANY: tuple[type[AmeliaError], ...] = (Forbidden, MisdirectedRequest, InternalError)
_OF_WRITES: tuple[type[AmeliaError], ...] = (UnsupportedMediaType,)
_OF_BODIES: tuple[type[AmeliaError], ...] = (BadRequest, MalformedJson, PayloadTooLarge, ValidationError)
_PARAMETER = re.compile(r"<(?:uuid:)?(\w+)>")


def document(resources: Iterable[Resource], root: str = "/") -> dict[str, Any]:
    """The whole document as JSON values; `root` is the path below which the service is reached."""
    resources = list(resources)
    schemas = _Schemas(operation for resource in resources for operation in resource.operations)
    paths: dict[str, dict[str, Any]] = {}
    for resource in resources:
        for operation in resource.operations:
            path = _PARAMETER.sub(r"{\1}", operation.rule)
            paths.setdefault(path, {})[operation.method.lower()] = _describe(operation, resource.name, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "amelia-flask", "version": __version__, "description": DESCRIPTION},
        "servers": [{"url": root}],
        "tags": [{"name": resource.name, "description": _module_doc(resource)} for resource in resources],
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        # On loopback without a token set, none is asked for.
        "security": [{"token": []}, {}],
    }


class _Schemas:
    """The schema of every type that a body, a query or an answer has."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        types: dict[Any, None] = {Error: None}
        for operation in operations:
            types |= dict.fromkeys(_types(operation))
        schemas, self.components = msgspec.json.schema_components(list(types), ref_template=REFERENCE)
        self._by_type = dict(zip(types, schemas, strict=True))

    def of(self, kind: Any) -> dict[str, Any]:
        """The schema of a type: mostly a reference to its component."""
        schema: dict[str, Any] = self._by_type[kind]
        return schema


def _types(operation: Operation) -> Iterable[Any]:
    yield from (kind for kind in operation.answers.values() if not _is_plain(kind))
    if operation.body is not None:
        yield operation.body.one
    if isinstance(operation.body, Records):
        yield operation.body.batch


def _describe(operation: Operation, tag: str, schemas: _Schemas) -> dict[str, Any]:
    text = " ".join((operation.view.__doc__ or "").split())
    described: dict[str, Any] = {
        "operationId": f"{tag}_{operation.name}",
        "tags": [tag],
        "summary": text,
        "parameters": _parameters(operation),
        "responses": _answers(operation, schemas) | _refusals(operation, schemas),
    }
    if operation.body is not None:
        described["requestBody"] = _body(operation.body, schemas)
    if operation.rule in OPEN_PATHS:
        described["security"] = []
    return described


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": _path_schema(operation, name)}
        for name in _PARAMETER.findall(operation.rule)
    ]
    if operation.query is not None:
        parameters += _query_parameters(operation.query)
    for name in operation.headers:
        parameters.append({"name": name, "in": "header", "required": False, "schema": {"type": "string"}})
    return parameters


def _query_parameters(query: type[Any]) -> list[dict[str, Any]]:
    _, components = msgspec.json.schema_components([query], ref_template=REFERENCE)
    schema = components[query.__name__]
    return [
        {"name": name, "in": "query", "required": name in schema["required"], "schema": member}
        for name, member in schema["properties"].items()
    ]


def _path_schema(operation: Operation, name: str) -> dict[str, Any]:
    return {"type": "string"} | ({"format": "uuid"} if f"<uuid:{name}>" in operation.rule else {})


def _body(body: Body[Any], schemas: _Schemas) -> dict[str, Any]:
    if not isinstance(body, Records):
        return {"required": not body.optional, "content": {JSON: {"schema": schemas.of(body.one)}}}
    lines = {"type": "string", "description": f"One record a line, 1 to {body.max_lines} lines."}
    either = {"oneOf": [schemas.of(body.one), schemas.of(body.batch)]}
    return {"required": True, "content": {JSON: {"schema": either}, NDJSON: {"schema": lines}}}


def _answers(operation: Operation, schemas: _Schemas) -> dict[str, Any]:
    answers: dict[str, Any] = {}
    for status, kind in operation.answers.items():
        described: dict[str, Any] = {"description": "Done." if _is_plain(kind) else _doc(kind)}
        if isinstance(kind, str):
            described["content"] = {kind: {"schema": {"type": "string"}}}
        elif kind is not None:
            described["content"] = {JSON: {"schema": schemas.of(kind)}}
        answers[str(status)] = described
    return answers


def _is_plain(kind: Any) -> bool:
    """Whether an answer has no type of ours: no body at all, or one named by its media type."""
    return kind is None or isinstance(kind, str)


def _refusals(operation: Operation, schemas: _Schemas) -> dict[str, Any]:
    kinds = sorted(_kinds(operation), key=lambda kind: (kind.status, kind.code))
    refusals = {}
    for status, same_status in groupby(kinds, key=lambda kind: kind.status):
        if status not in operation.answers:
            refusals[str(status)] = _refusal(list(same_status), schemas)
    return refusals


def _kinds(operation: Operation) -> set[type[AmeliaError]]:
    kinds = {*operation.errors, *_OF_ANY}
    if operation.rule not in OPEN_PATHS:
        kinds |= {Unauthorized, DatabaseUnavailable}
    if operation.method != "GET":
        kinds.update(_OF_WRITES)
    if operation.body is not None:
        kinds.update(_OF_BODIES)
    if operation.query is not None:
        kinds.add(ValidationError)
    return kinds


def _refusal(kinds: list[type[AmeliaError]], schemas: _Schemas) -> dict[str, Any]:
    described: dict[str, Any] = {
        "description": " ".join(f"`{kind.code}`: {' '.join((kind.__doc__ or '').split())}" for kind in kinds),
        "content": {
            JSON: {
                "schema": {
                    "allOf": [schemas.of(Error), {"properties": {"code": {"enum": [kind.code for kind in kinds]}}}]
                }
            }
        },
    }
    headers = {}
    if any(kind.retry_after for kind in kinds):
        headers["Retry-After"] = {"schema": {"type": "integer"}, "description": "Seconds."}
    if Unauthorized in kinds:
        headers["WWW-Authenticate"] = {"schema": {"type": "string"}}
    return described | ({"headers": headers} if headers else {})


def _doc(kind: Any) -> str:
    return " ".join((kind.__doc__ or kind.__name__).split())


def _module_doc(resource: Resource) -> str:
    operation = resource.operations[0]
    module = __import__(operation.view.__module__, fromlist=["__doc__"])
    return (module.__doc__ or "").strip()
