"""`serve` and `init-db`: the database made ready, and the service on it."""

import signal
import sys

import click

from amelia_flask import schema
from amelia_flask.cli.common import reports_errors
from amelia_flask.engines import engine_of
from amelia_flask.settings import Settings, from_environment


@click.command()
@reports_errors
def serve() -> None:
    """Set up the database and serve until stopped."""
    signal.signal(signal.SIGTERM, lambda _signal, _frame: sys.exit(0))  # until gunicorn has handlers of its own
    from amelia_flask.server import serve as serve_until_stopped

    settings = from_environment()
    serve_until_stopped(settings, lambda: _announce(settings))


@click.command("init-db")
@reports_errors
def init_db() -> None:
    """Make the database, or bring it up to date; doing it twice is harmless."""
    engine = engine_of(from_environment())
    applied = schema.set_up(engine)
    done = f"applied {', '.join(applied)}" if applied else "is up to date"
    click.echo(f"{engine}: {done}")


def _announce(settings: Settings) -> None:
    address = f"http://{'127.0.0.1' if settings.host == 'localhost' else settings.host}:{settings.port}"
    click.echo(f"Database   {engine_of(settings)}")
    click.echo(f"Health     {address}/api/health")
    click.echo(f"API        {address}/api/docs")
    sys.stdout.flush()
