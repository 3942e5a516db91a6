"""Figures for a monitoring system."""

from flask import Response

from amelia_flask import metrics
from amelia_flask.web.operations import Resource, ledger

resource = Resource("metrics", __name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@resource.operation("GET", "/metrics", {200: "text/plain"})
def read() -> Response:
    """Give the figures of all processes and of the record in Prometheus' text format."""
    return Response(metrics.text(ledger()), content_type=CONTENT_TYPE)
