"""A bare Flask application, the least that a request can cost: it echoes a body, or says hello."""

from flask import Flask, Response, request


def create_app() -> Flask:
    """Two routes and nothing else."""
    app = Flask("bare", static_folder=None)

    @app.post("/echo")
    def echo() -> Response:
        return Response(request.get_data(), mimetype="application/json")

    @app.get("/hello")
    def hello() -> Response:
        return Response(b'{"status":"alive"}', mimetype="application/json")

    return app
