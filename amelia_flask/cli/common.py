"""What every command does with the failures that we know."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from amelia_flask.database import Engine
from amelia_flask.engines import engine_of
from amelia_flask.errors import AmeliaError, FileRefused
from amelia_flask.settings import Settings


def reports_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turn the failures that we know into one sentence and exit status 1."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except AmeliaError as error:
            raise click.ClickException(error.message) from None
        except FileExistsError as error:
            raise click.ClickException(f"There is a file {error.filename} already.") from None
        except OSError as error:
            raise click.ClickException(f"{error.filename or 'A file'} cannot be read: {error.strerror}.") from None

    return run


def existing_engine(settings: Settings) -> Engine:
    """The engine that the settings name. Raises FileRefused or SchemaError where there is no database."""
    engine = engine_of(settings)
    if settings.database_url is not None:
        engine.check_place()
    elif not engine.exists():
        raise FileRefused(f"There is no database at {engine}.")
    return engine
