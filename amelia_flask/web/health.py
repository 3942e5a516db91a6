"""Probes and the state of the service."""

from typing import cast

from flask import current_app

from amelia_flask import health
from amelia_flask.errors import NotReady
from amelia_flask.web.errors import Error
from amelia_flask.web.operations import Answer, Resource, ledger

resource = Resource("health", __name__)


class Unready(Error):
    """Why the service is not ready, beside the members of every error."""

    status: str
    reason: str


@resource.operation("GET", "/api/health/live", {200: health.Alive})
def live() -> health.Alive:
    """Tell that the process answers; nothing else is touched."""
    return health.Alive()


@resource.operation("GET", "/api/health/ready", {200: health.Ready, 503: Unready})
def ready() -> health.Ready | Answer:
    """Tell whether requests can be served: the writer runs, the database is there with this version's schema."""
    try:
        return health.check_readiness(ledger())
    except NotReady as error:
        said = Unready(error.message, error.code, error.details, error.detail, "not_ready", error.message)
        return Answer(said, error.status, {"Retry-After": str(error.retry_after)})


@resource.operation("GET", "/api/health", {200: health.Health})
def state() -> health.Health:
    """Write, read back and delete a row, and give the figures of the process that answers."""
    return health.check(ledger(), cast(health.Vitals, current_app.extensions["vitals"]))
