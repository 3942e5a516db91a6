"""SQLite: one database file, in WAL mode."""

from amelia_flask.sqlite.database import SqliteExtDatabase, engine_is_mended, engine_version
from amelia_flask.sqlite.engine import SqliteEngine

__all__ = ["SqliteEngine", "SqliteExtDatabase", "engine_is_mended", "engine_version"]
