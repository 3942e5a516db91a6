"""The command line: one command a function, a module a theme; errors are one sentence on standard error."""

import click

from amelia_flask import __version__
from amelia_flask.cli.copy import copy
from amelia_flask.cli.demo import demo
from amelia_flask.cli.imports import import_
from amelia_flask.cli.reprice import reprice
from amelia_flask.cli.serve import init_db, serve
from amelia_flask.cli.tokens import token
from amelia_flask.cli.transfer import export
from amelia_flask.cli.upkeep import backup, check, prune, restore


@click.group()
@click.version_option(__version__, package_name="amelia-flask")
def main() -> None:
    """The record-keeper for fleets of coding agents. Settings are AMELIA_* environment variables."""


for _command in (serve, init_db, demo, import_, export, prune, backup, restore, check, copy, token, reprice):
    main.add_command(_command)
