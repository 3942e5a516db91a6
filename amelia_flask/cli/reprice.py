"""`reprice`: costs that can be known by now."""

from contextlib import closing

import click

from amelia_flask import repricing, schema
from amelia_flask.cli.common import reports_errors
from amelia_flask.engines import engine_of
from amelia_flask.ledger import Ledger
from amelia_flask.pricing import to_dollars
from amelia_flask.progress import Unit, progress
from amelia_flask.settings import from_environment

RECORDS = Unit("records", 1)


@click.command()
@click.option("--dry-run", is_flag=True, help="Say what would change, and change nothing.")
@reports_errors
def reprice(dry_run: bool) -> None:
    """Price usage records that had no price when they came and can have one by now.

    A newer release of genai-prices knows more models. Each record takes the price of its day; reports and totals
    follow. Costs that were reported or computed stay as they are.
    """
    settings = from_environment()
    schema.set_up(engine_of(settings))
    with closing(Ledger(settings)) as ledger, progress("Pricing", repricing.count(ledger), RECORDS) as step:
        done = repricing.reprice(ledger, step, dry_run)
    for model, records in sorted(done.priced.items()):
        verb = "would cost" if dry_run else "cost"
        click.echo(f"{model}: {records.count} records {verb} {to_dollars(records.cost_nano):.9f} dollars")
    for model, records in sorted(done.unpriced.items()):
        click.echo(f"{model}: {records.count} records have no price still")
    if not done.priced:
        click.echo("No price has changed.")
