"""The command line: one command a function; errors are one sentence on standard error."""

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from amelia_flask import __version__, schema
from amelia_flask.errors import AmeliaError
from amelia_flask.settings import Settings, from_environment


def reports_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turn the failures that we know into one sentence and exit status 1."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except AmeliaError as error:
            raise click.ClickException(error.message) from None

    return run


@click.group()
@click.version_option(__version__, package_name="amelia-flask")
def main() -> None:
    """The record-keeper for fleets of coding agents. Settings are AMELIA_* environment variables."""


@main.command()
@reports_errors
def serve() -> None:
    """Set up the database and serve until stopped."""
    from amelia_flask.server import serve as serve_until_stopped

    settings = from_environment()
    serve_until_stopped(settings, lambda: _announce(settings))


@main.command("init-db")
@reports_errors
def init_db() -> None:
    """Make the database, or bring it up to date; doing it twice is harmless."""
    settings = from_environment()
    applied = schema.set_up(settings.database_path)
    done = f"applied {', '.join(applied)}" if applied else "is up to date"
    click.echo(f"{settings.database_path}: {done}")


def _announce(settings: Settings) -> None:
    address = f"http://{'127.0.0.1' if settings.host == 'localhost' else settings.host}:{settings.port}"
    click.echo(f"Database   {settings.database_path}")
    click.echo(f"Health     {address}/api/health")
    click.echo(f"API        {address}/api/docs")
    sys.stdout.flush()
