"""`prune`, `backup`, `restore`, `check`: how a record is kept."""

import os
from contextlib import closing
from pathlib import Path

import click

from amelia_flask import audit, clock, retention, schema
from amelia_flask import backup as backups
from amelia_flask.cli.common import reports_errors
from amelia_flask.engines import engine_of
from amelia_flask.errors import FileRefused
from amelia_flask.ledger import Ledger
from amelia_flask.progress import progress
from amelia_flask.settings import from_environment
from amelia_flask.sqlite import SqliteEngine

# A service that runs goes first.
NICE = 10

_new = click.Path(dir_okay=False, path_type=Path)
_there = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.option("--dry-run", is_flag=True, help="Say what would be taken, and take nothing.")
@reports_errors
def prune(dry_run: bool) -> None:
    """Take what is beyond AMELIA_LOG_RETENTION_DAYS and AMELIA_LOG_RETENTION_MAX_EVENTS.

    Finished workflows go with their events and usage records, of every workflow its oldest events. Reports on past
    days stay as they are. A service does this by itself every hour.
    """
    settings = from_environment()
    schema.set_up(engine_of(settings))
    with closing(Ledger(settings)) as ledger:
        if dry_run:
            click.echo(f"would take {retention.survey(ledger, clock.now())}")
        else:
            click.echo(f"took {_prune(ledger)}")


def _prune(ledger: Ledger) -> retention.Pruned:
    now = clock.now()
    with progress("Pruning", retention.survey(ledger, now).rows, retention.ROWS) as step:
        return retention.prune(ledger, now, step=step)


@click.command()
@click.argument("file", type=_new)
@reports_errors
def backup(file: Path) -> None:
    """Copy the database, as it is now, to the new file FILE; a service that runs goes on meanwhile.

    The copy is verified and readable by its owner alone.
    """
    database = from_environment().database_path
    os.nice(NICE)
    with progress("Copying", _size(database)) as step:
        backups.back_up(database, file, step)
    click.echo(f"{file}: {file.stat().st_size} bytes, verified")


@click.command()
@click.argument("file", type=_there)
@click.option("--yes", is_flag=True, help="Replace the database that is there; it is kept beside.")
@reports_errors
def restore(file: Path, yes: bool) -> None:
    """Put the backup FILE in the place of the database. No service may be running on it."""
    database = from_environment().database_path
    with progress("Copying", file.stat().st_size) as step:
        kept = backups.restore(database, file, step, replace=yes)
    click.echo(f"{database}: restored from {file}")
    if kept is not None:
        click.echo(f"{kept}: what was there before")


@click.command()
@click.argument("file", type=_there, required=False)
@reports_errors
def check(file: Path | None) -> None:
    """Check the database, or the backup FILE: that it is whole, and that its invariants hold.

    Nothing is changed, and a service that runs goes on. One line says what is wrong for each finding; then the exit
    status is 1.
    """
    engine = SqliteEngine(file) if file else engine_of(from_environment())
    if not engine.exists():
        raise FileRefused(f"There is no database at {engine}.")
    os.nice(NICE)
    found = 0
    with progress("Checking", len(audit.CHECKS), audit.CHECKS_MADE) as step:
        for finding in audit.check(engine, step):
            click.echo(finding)
            found += 1
    if found:
        raise click.ClickException(f"{engine}: {found} findings.")
    click.echo(f"{engine}: sound")


def _size(database: Path) -> int:
    if not database.is_file():
        raise FileRefused(f"There is no database at {database}.")
    return database.stat().st_size
