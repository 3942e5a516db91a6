"""`demo`: something to look at."""

from contextlib import closing

import click

from amelia_flask import clock, schema
from amelia_flask import demo as example
from amelia_flask.cli.common import reports_errors
from amelia_flask.engines import engine_of
from amelia_flask.ledger import Ledger
from amelia_flask.settings import from_environment


@click.command()
@reports_errors
def demo() -> None:
    """Fill an empty database with an example: workflows in every status over the last weeks, one waits for you.

    A database that holds anything already is refused.
    """
    settings = from_environment()
    engine = engine_of(settings)
    schema.set_up(engine)
    with closing(Ledger(settings)) as ledger:
        made = example.fill(ledger, clock.now())
    click.echo(f"{engine}: {made.workflows} workflows, {made.events} events,", nl=False)
    click.echo(f" {made.usage_records} usage records")
    click.echo(f"Workflow {made.waiting} waits for a human")
