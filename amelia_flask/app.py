"""The application: wiring only."""

from collections.abc import Callable
from typing import Any

from flask import Flask, Request
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.routing import MapAdapter

from amelia_flask import (
    events,
    metrics,
    models,
    moves,
    report,
    rollups,
    schema,
    summaries,
    timeline,
    usage,
    workflows,
)
from amelia_flask.health import Vitals
from amelia_flask.ledger import Ledger
from amelia_flask.settings import Settings, from_environment
from amelia_flask.tokens import Keyring
from amelia_flask.web import docs, errors
from amelia_flask.web import events as events_web
from amelia_flask.web import health as health_web
from amelia_flask.web import metrics as metrics_web
from amelia_flask.web import usage as usage_web
from amelia_flask.web import workflows as workflows_web
from amelia_flask.web.access import Access
from amelia_flask.web.gate import Gate
from amelia_flask.web.operations import WorkflowId

RESOURCES = (
    health_web.resource,
    workflows_web.resource,
    events_web.resource,
    usage_web.resource,
    docs.resource,
    metrics_web.resource,
)


class _PlainFlask(Flask):
    """Flask without what every request would pay for and none needs."""

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Called by Flask, at every call of a view or a hook, to ask whether that is a coroutine: none is."""
        return func

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        """Called by Flask to find a request's rule. No rule depends on the host, which is the gate's business."""
        if request is None:
            return super().create_url_adapter(None)
        return MapAdapter(self.url_map, "", request.root_path, "", request.scheme, request.path, request.method)


def create_app(settings: Settings | None = None) -> Flask:
    """The application with these settings, by default those of the environment.

    It opens nothing until it is used, so it may be made before a fork. The database must have been set up
    (`schema.set_up`). Raises SettingsError.
    """
    settings = settings or from_environment()
    app = _PlainFlask("amelia_flask", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
    app.url_map.converters["uuid"] = WorkflowId
    app.url_map.merge_slashes = False  # a redirect would lose the body of a POST
    app.extensions["ledger"] = Ledger(settings)
    app.extensions["vitals"] = Vitals()
    errors.register(app)
    app.before_request(Gate(settings, Keyring(app.extensions["ledger"])).check)
    if hops := settings.proxy_hops:
        app.wsgi_app = ProxyFix(app.wsgi_app, hops, hops, hops, x_prefix=hops)  # type: ignore[method-assign]  # as below
    app.wsgi_app = Access(app.wsgi_app)  # type: ignore[method-assign]  # the way that Flask names for it
    for resource in RESOURCES:
        app.register_blueprint(resource)
    metrics.requests.know((rule.rule, method) for rule in app.url_map.iter_rules() for method in rule.methods or ())
    app.shell_context_processor(lambda: _shell_names(app.extensions["ledger"]))
    return app


def _shell_names(ledger: Ledger) -> dict[str, Any]:
    """What `flask shell` has at hand: the models on a connection that can only read, and the domain."""
    schema.set_up(ledger.engine)
    models.database.initialize(ledger.readers)
    ledger.readers.connect(reuse_if_open=True)
    domain = (workflows, summaries, moves, events, timeline, usage, rollups, report)
    names: dict[str, Any] = {module.__name__.rpartition(".")[2]: module for module in domain}
    names |= {model.__name__: model for model in models.TABLES}
    return names | {"database": ledger.readers, "ledger": ledger, "models": models}
