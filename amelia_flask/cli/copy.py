"""`copy`: the whole record in another database."""

import os

import click

from amelia_flask.cli.common import existing_engine, reports_errors
from amelia_flask.engines import engine_at
from amelia_flask.progress import progress
from amelia_flask.settings import from_environment
from amelia_flask.transfer import copying

# A service that runs goes first.
NICE = 10


@click.command()
@click.option(
    "--to",
    "url",
    required=True,
    metavar="URL",
    help="postgresql://…, sqlite:///absolute/path, or a path.",
)
@reports_errors
def copy(url: str) -> None:
    """Make another database the same as the one that the settings name, and compare the two.

    The target must be empty, or an earlier copy that nobody has written to: then only what has changed is brought
    over, and a copy that was cut off goes on. A service that runs on the source goes on too; but only when nothing
    was written meanwhile are both the same in the end, and only then is the target ready for a service. Give no
    password here, where others see it: AMELIA_DATABASE_PASSWORD_FILE, PGPASSFILE and PGPASSWORD are for that.
    """
    settings = from_environment()
    source, target = existing_engine(settings), engine_at(url, settings)
    os.nice(NICE)
    with progress("Copying", copying.length(source), copying.ROWS) as step:
        found = copying.copy(source, target, step)
    show(found)
    if found.different:
        raise click.ClickException(
            f"{source} was written to while it was copied, and differs from {target} in "
            f"{', '.join(found.different)}: repeat the copy while no service runs."
        )
    click.echo(f"{target}: the same as {source}, table by table")


def show(found: copying.Comparison) -> None:
    """The tables of both databases with their rows and the beginning of their checksums."""
    width = max(map(len, found.source.tables))
    click.echo(f"{'TABLE'.ljust(width)}  {'ROWS'.rjust(12)}  SHA-256")
    for name, mine in found.source.tables.items():
        theirs = found.target.tables[name]
        click.echo(f"{name.ljust(width)}  {mine.rows:12}  {mine.digest[:16]}", nl=mine == theirs)
        if mine != theirs:
            click.echo(f"  differs: {theirs.rows} rows, {theirs.digest[:16]}")
    summaries = [contents.usage.summary for contents in found]
    for summary in summaries if found.source.usage != found.target.usage else summaries[:1]:
        click.echo(
            f"Usage over all time: {summary.total_tokens} tokens, {summary.total_cost_usd:.9f} dollars, "
            f"{summary.total_workflows} workflows"
        )
