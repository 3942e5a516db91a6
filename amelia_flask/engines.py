"""Which engine keeps the record: PostgreSQL where the settings have a URL, otherwise SQLite."""

from importlib.util import find_spec
from pathlib import Path

from amelia_flask.database import Engine
from amelia_flask.errors import SettingsError
from amelia_flask.settings import Settings
from amelia_flask.sqlite import SqliteEngine


def engine_of(settings: Settings) -> Engine:
    """The engine that the settings name; nothing is opened. Raises SettingsError where its driver is missing."""
    if settings.database_url is None:
        return SqliteEngine(settings.database_path)
    return _postgres(settings.database_url, settings.database_password_file)


def engine_at(url: str, settings: Settings) -> Engine:
    """The engine of another database: `postgresql://…`, `sqlite:///absolute/path`, or the path of a file.

    The file of a password that the settings name is for a server, whichever of the two databases is on one. Raises
    SettingsError.
    """
    if url.startswith(("postgresql://", "postgres://")):
        return _postgres(url, None if settings.database_url else settings.database_password_file)
    if url.startswith("sqlite://"):
        return SqliteEngine(Path("/", url.removeprefix("sqlite://").lstrip("/")))
    if "://" in url or not url:
        raise SettingsError(f"{url} is neither postgresql://… nor sqlite:///absolute/path.")
    return SqliteEngine(Path(url).expanduser())


def _postgres(url: str, password_file: Path | None) -> Engine:
    if find_spec("psycopg") is None:
        raise SettingsError("AMELIA_DATABASE_URL needs a driver: pip install 'amelia-flask[postgres]'.")
    from amelia_flask.postgres import PostgresEngine

    return PostgresEngine(url, password_file)
