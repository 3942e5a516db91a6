"""`export`: the record, or a part of it, as lines of JSON."""

import shutil
import sys
import tempfile
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO
from uuid import UUID

import click

from amelia_flask import schema
from amelia_flask.cli.common import existing_engine, reports_errors
from amelia_flask.files import new_file
from amelia_flask.ledger import Ledger
from amelia_flask.progress import Unit, progress
from amelia_flask.settings import from_environment
from amelia_flask.transfer import writing

EVENTS = Unit("events", 1)


def _moment(text: str) -> datetime:
    """A day, which begins at midnight in UTC, or a time with its offset from UTC."""
    try:
        moment = datetime.fromisoformat(text)
        is_day = len(text) == len("2026-01-31")
        return (moment.replace(tzinfo=UTC) if is_day else _aware(moment)).astimezone(UTC)
    except (ValueError, OverflowError):
        example = "2026-01-31T12:00:00Z"
        raise click.BadParameter(f"{text} is neither a day nor a time with an offset, such as {example}.") from None


def _aware(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise ValueError
    return moment


@click.command()
@click.option(
    "--workflow", "ids", multiple=True, type=click.UUID, metavar="ID", help="Only this one; may be repeated."
)
@click.option("--since", type=_moment, metavar="T", help="Only workflows created at T or later.")
@click.option("--until", type=_moment, metavar="T", help="Only workflows created before T.")
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path))
@reports_errors
def export(ids: tuple[UUID, ...], since: datetime | None, until: datetime | None, file: Path) -> None:
    """Write workflows with all that belongs to them to the new file FILE, or to standard output for `-`.

    The lines are JSON, for `amelia-flask import ndjson` or any other program; all of them are of one moment, and a
    service that runs goes on meanwhile. T is a day or a time with an offset. Only an export of the whole record has
    the sums that pruned workflows have left.
    """
    wanted = writing.Selection(tuple(str(one) for one in ids), since, until)
    if str(file) == "-":
        # What reads from here may be slow, and the database is not to wait for it.
        with tempfile.TemporaryFile() as lines:
            _export(wanted, lines)
            lines.seek(0)
            shutil.copyfileobj(lines, sys.stdout.buffer)
        sys.stdout.flush()
        return
    with new_file(file) as path, path.open("wb") as lines:
        _export(wanted, lines)
    click.echo(f"{file}: {file.stat().st_size} bytes")


def _export(wanted: writing.Selection, lines: BinaryIO) -> None:
    settings = from_environment()
    schema.set_up(existing_engine(settings))
    with closing(Ledger(settings)) as ledger, progress("Exporting", writing.newest_position(ledger), EVENTS) as step:
        lines.writelines(writing.export(ledger, wanted, step))
    lines.flush()
