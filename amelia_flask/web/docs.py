"""The description of this API, for programs and for people."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import flask_swagger_ui
import msgspec
from flask import Response, current_app, request, send_from_directory

from amelia_flask.errors import NotFound
from amelia_flask.web.openapi import document
from amelia_flask.web.operations import Answer, Resource

resource = Resource("docs", __name__)

SWAGGER_UI = Path(flask_swagger_ui.__file__).parent / "dist"
OWN_FILES = Path(__file__).parent / "static"
# The files of the page: a closed list, so that nothing else of these folders can be asked for.
FILES = {
    "swagger-ui.css": SWAGGER_UI,
    "swagger-ui-bundle.js": SWAGGER_UI,
    "favicon-32x32.png": SWAGGER_UI,
    "docs.js": OWN_FILES,
}
# Swagger UI sets styles of elements from its script and draws its icons from data: addresses.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>amelia-flask: the API</title>
<link rel="icon" href="docs/favicon-32x32.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<noscript>This page needs JavaScript; <a href="openapi.json">openapi.json</a> says the same.</noscript>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/docs.js"></script>
</body>
</html>
"""


@resource.operation("GET", "/api/openapi.json", {200: dict[str, Any]})
def openapi() -> Answer:
    """Describe every operation, body, answer and error of this service."""
    return Answer(_document())


@resource.operation("GET", "/api/docs", {200: "text/html"})
def page() -> Response:
    """The page on which people read the description."""
    response = Response(PAGE, mimetype="text/html")
    response.headers["Content-Security-Policy"] = POLICY
    return response


@resource.operation("GET", "/api/docs/<name>", {200: "*/*"}, errors=(NotFound,))
def file(name: str) -> Response:
    """One of the page's files."""
    if name not in FILES:
        raise NotFound
    response = send_from_directory(FILES[name], name)
    response.headers["Cache-Control"] = "public, max-age=3600"
    return response


def _document() -> msgspec.Raw:
    resources = tuple(one for one in current_app.blueprints.values() if isinstance(one, Resource))
    return _encoded(resources, request.script_root or "/")


@lru_cache(maxsize=4)
def _encoded(resources: tuple[Resource, ...], root: str) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(document(resources, root)))
