"""`prune`, `backup`, `restore`, `check`: how a record is kept."""

import os
from contextlib import closing
from pathlib import Path

import click

from amelia_flask import audit, clock, retention, schema
from amelia_flask import backup as backups
from amelia_flask.cli.common import existing_engine, reports_errors
from amelia_flask.engines import engine_of
from amelia_flask.ledger import Ledger
from amelia_flask.progress import progress
from amelia_flask.settings import from_environment
from amelia_flask.sqlite import SqliteEngine
from amelia_flask.transfer import backups as copied
from amelia_flask.transfer import copying

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

    The copy is verified and readable by its owner alone. It is a database file, whichever engine keeps the record.
    """
    settings = from_environment()
    engine = existing_engine(settings)
    os.nice(NICE)
    if settings.database_url is None:
        with progress("Copying", settings.database_path.stat().st_size) as step:
            backups.back_up(settings.database_path, file, step)
    else:
        with progress("Copying", copying.length(engine), copying.ROWS) as step:
            copied.back_up(engine, file, step)
    click.echo(f"{file}: {file.stat().st_size} bytes, verified")


@click.command()
@click.argument("file", type=_there)
@click.option("--yes", is_flag=True, help="Replace the database that is there; it is kept beside.")
@reports_errors
def restore(file: Path, yes: bool) -> None:
    """Put the backup FILE in the place of the database. No service may be running on it.

    On PostgreSQL the database must be empty, with --yes too.
    """
    settings = from_environment()
    engine = engine_of(settings)
    kept = None
    if settings.database_url is None:
        with progress("Copying", file.stat().st_size) as step:
            kept = backups.restore(settings.database_path, file, step, replace=yes)
    else:
        with progress("Copying", copied.length(file), copying.ROWS) as step:
            copied.restore(engine, file, step)
    click.echo(f"{engine}: restored from {file}")
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
    engine = SqliteEngine(file) if file else existing_engine(from_environment())
    os.nice(NICE)
    found = 0
    with progress("Checking", len(audit.CHECKS), audit.CHECKS_MADE) as step:
        for finding in audit.check(engine, step):
            click.echo(finding)
            found += 1
    if found:
        raise click.ClickException(f"{engine}: {found} findings.")
    click.echo(f"{engine}: sound")
