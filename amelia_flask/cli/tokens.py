"""`token`: who may read and who may write."""

from collections.abc import Callable
from contextlib import closing
from typing import Any

import click

from amelia_flask import schema, tokens
from amelia_flask.cli.common import reports_errors
from amelia_flask.engines import engine_of
from amelia_flask.ledger import Ledger
from amelia_flask.models import SCOPES
from amelia_flask.settings import from_environment

COLUMNS = ("NAME", "SCOPE", "CREATED", "LAST USED")


@click.group("token")
def token() -> None:
    """Make, list and revoke access tokens; in force within a second, also in a service that runs."""


@token.command()
@click.argument("name")
@click.option("--scope", type=click.Choice(SCOPES), required=True, help="read: GET alone; write: everything.")
@reports_errors
def create(name: str, scope: tokens.Scope) -> None:
    """Make a token and print it, this once: only its SHA-256 is kept."""
    click.echo(_write(tokens.create, name, scope))
    click.echo("Keep it now: it is not shown again.", err=True)


@token.command("list")
@reports_errors
def list_() -> None:
    """List the tokens by name: scope, when made, when last used (to the minute)."""
    with closing(_ledger()) as ledger:
        rows = [_shown(one) for one in ledger.read(tokens.stored)]
    widths = [max(map(len, column)) for column in zip(COLUMNS, *rows, strict=True)]
    for row in (COLUMNS, *rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@token.command()
@click.argument("name")
@reports_errors
def revoke(name: str) -> None:
    """Take a token out of force."""
    _write(tokens.revoke, name)
    click.echo(f"{name} is revoked")


def _shown(one: tokens.Token) -> tuple[str, ...]:
    return one.name, one.scope, one.created_at, one.last_used_at or "never"


def _write(change: Callable[..., Any], *arguments: Any) -> Any:
    with closing(_ledger()) as ledger:
        return ledger.write_to((), change, *arguments)


def _ledger() -> Ledger:
    settings = from_environment()
    schema.set_up(engine_of(settings))
    return Ledger(settings)
