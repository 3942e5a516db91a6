"""Which engine keeps the record: PostgreSQL where the settings have a URL, otherwise SQLite."""

from importlib.util import find_spec

from amelia_flask.database import Engine
from amelia_flask.errors import SettingsError
from amelia_flask.settings import Settings
from amelia_flask.sqlite import SqliteEngine


def engine_of(settings: Settings) -> Engine:
    """The engine that the settings name; nothing is opened. Raises SettingsError where its driver is missing."""
    if settings.database_url is None:
        return SqliteEngine(settings.database_path)
    if find_spec("psycopg") is None:
        raise SettingsError("AMELIA_DATABASE_URL needs a driver: pip install 'amelia-flask[postgres]'.")
    from amelia_flask.postgres import PostgresEngine

    return PostgresEngine(settings.database_url, settings.database_password_file)
