"""`import`: what agents left on disk."""

from contextlib import closing
from pathlib import Path

import click

from amelia_flask import schema
from amelia_flask.cli.common import reports_errors
from amelia_flask.engines import engine_of
from amelia_flask.intake.transcripts import Format, files_of, store, survey
from amelia_flask.ledger import Ledger
from amelia_flask.progress import progress
from amelia_flask.settings import from_environment
from amelia_flask.transfer import reading
from amelia_flask.transfer.lines import Malformed


@click.group("import")
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


@import_.command("ndjson")
@click.argument(
    "paths",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    metavar="PATH…",
)
@reports_errors
def import_ndjson(paths: tuple[Path, ...]) -> None:
    """Take in what `amelia-flask export` wrote: files, or standard input for `-`.

    Ids, sequences and times stay as they are; positions do where they are above all that this database has given. A
    workflow that exists with other content is left out and named, and so is an active one whose worktree another
    holds. An import that was cut off goes on when it is repeated.
    """
    settings = from_environment()
    schema.set_up(engine_of(settings))
    with closing(Ledger(settings)) as ledger:
        refused = [sentence for path in paths for sentence in _import_lines(ledger, path)]
    if refused:
        raise click.ClickException(f"{len(refused)} refused, all else is there.")


def _import_lines(ledger: Ledger, path: Path) -> list[str]:
    is_input = str(path) == "-"
    length = 0 if is_input else path.stat().st_size
    with click.open_file(str(path), "rb") as lines, progress(f"Reading {path}", length) as step:
        try:
            taken = reading.take_in(ledger, lines, step)
        except Malformed as error:
            raise click.ClickException(f"{path}: {error.message}") from None
    for sentence in taken.refused:
        click.echo(sentence, err=True)
    click.echo(
        f"{path}: {taken.workflows} workflows new, {taken.known_workflows} known, {taken.pruned_workflows} pruned"
    )
    click.echo(f"{path}: {taken.events} events and {taken.usage_records} usage records new")
    return taken.refused


def _import_transcripts(form: Format, files: list[Path]) -> None:
    settings = from_environment()
    schema.set_up(engine_of(settings))
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
