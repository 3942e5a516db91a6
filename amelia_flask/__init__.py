"""A dependable record of what coding agents did: workflows, events in order, token usage and cost."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flask import Flask

    from amelia_flask.settings import Settings

__version__ = "0.1.0"


def create_app(settings: "Settings | None" = None) -> "Flask":
    """The application with these settings, by default those of the environment; `flask --app amelia_flask` calls it.

    The import waits until it is needed, so that `amelia_flask.client` works without Flask.
    """
    from amelia_flask.app import create_app

    return create_app(settings)
