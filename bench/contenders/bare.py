"""A bare Flask application, the least that a request can cost: it echoes a body, or says hello."""

from pathlib import Path

from flask import Flask, Response, request


def prepare(_database: Path) -> None:
    """It keeps nothing."""


def create_app() -> Flask:
    """Hello, under the probe's path too, and echo."""
    app = Flask("bare", static_folder=None)

    @app.get("/api/health/ready")
    @app.get("/hello")
    def hello() -> Response:
        return Response(b'{"status":"alive"}', mimetype="application/json")

    @app.post("/echo")
    def echo() -> Response:
        return Response(request.get_data(), mimetype="application/json")

    return app
