"""The command line: one command a function; errors are one sentence on standard error."""

import sys
from collections.abc import Callable
from contextlib import closing
from functools import wraps
from pathlib import Path
from typing import Any

import click

from amelia_flask import __version__, schema
from amelia_flask.errors import AmeliaError
from amelia_flask.intake.transcripts import Format, files_of, store, survey
from amelia_flask.ledger import Ledger
from amelia_flask.progress import progress
from amelia_flask.settings import Settings, from_environment


def reports_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turn the failures that we know into one sentence and exit status 1."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except AmeliaError as error:
            raise click.ClickException(error.message) from None
        except OSError as error:
            raise click.ClickException(f"{error.filename or 'A file'} cannot be read: {error.strerror}.") from None

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


@main.group("import")
def import_() -> None:
    """Take in what agents left on disk. Taking the same in again changes nothing."""


@import_.command("claude-code")
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path), metavar="PATH…")
@reports_errors
def import_claude_code(paths: tuple[Path, ...]) -> None:
    """Take in Claude Code transcripts: files, or folders with *.jsonl below them.

    Each session in each worktree becomes a workflow with its events, token usage and cost. Lines that cannot be
    read are left out, counted and named.
    """
    from amelia_flask.intake import claude_code

    _import_transcripts(Format(claude_code.SOURCE, claude_code.parse), files_of(paths, ".jsonl"))


def _import_transcripts(form: Format, files: list[Path]) -> None:
    settings = from_environment()
    schema.set_up(settings.database_path)
    length = sum(file.stat().st_size for file in files)
    with progress(f"Reading {len(files)} files", length) as step:
        found = survey(form, files, step)
    for line in found.malformed:
        click.echo(line, err=True)
    with closing(Ledger(settings)) as ledger, progress(f"Storing {len(found.sessions)} sessions", length) as step:
        stored = store(ledger, found, step)
    click.echo(f"{found.lines} lines, {len(found.malformed)} malformed, {found.skipped} of other kinds")
    click.echo(f"{len(stored.workflows)} workflows")
    click.echo(f"{stored.new_events} events new, {stored.known_events} known")
    click.echo(f"{stored.new_records} usage records new, {stored.grown_records} grown")


def _announce(settings: Settings) -> None:
    address = f"http://{'127.0.0.1' if settings.host == 'localhost' else settings.host}:{settings.port}"
    click.echo(f"Database   {settings.database_path}")
    click.echo(f"Health     {address}/api/health")
    click.echo(f"API        {address}/api/docs")
    sys.stdout.flush()
