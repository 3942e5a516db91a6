"""A database file as an engine."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from peewee import sqlite3 as engine  # pysqlite3 where it is installed

from amelia_flask.database import BUSY_TIMEOUT_MS, SERVING, Engine, Row
from amelia_flask.errors import DatabaseUnavailable, SchemaError
from amelia_flask.lock import FileLock
from amelia_flask.sqlite.database import (
    SqliteExtDatabase,
    engine_is_mended,
    engine_version,
    open_readers,
    open_writer,
)
from amelia_flask.sqlite.door import SqliteDoor
from amelia_flask.sqlite.files import check_place, create_file


class SqliteEngine(Engine):
    """A database file."""

    mode: Literal["wal"] = "wal"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._serving = FileLock(path, SERVING)

    def __str__(self) -> str:
        return str(self.path)

    def open_readers(self, connections: int) -> SqliteExtDatabase:
        """A pool of at most `connections` that can read and nothing else."""
        return open_readers(self.path, connections)

    def open_writer(self) -> SqliteExtDatabase:
        """One connection that may write, for set-up and upkeep."""
        return open_writer(self.path)

    def open_door(self) -> SqliteDoor:
        """The way in for a writer."""
        return SqliteDoor(self.path)

    @contextmanager
    def peeking(self) -> Iterator[engine.Connection]:
        """Lend a connection that changes nothing of the file, whoever it belongs to."""
        uri = f"{self.path.absolute().as_uri()}?mode=ro"
        connection = engine.connect(uri, uri=True, timeout=BUSY_TIMEOUT_MS / 1000)
        try:
            yield connection
        finally:
            connection.close()

    def lock(self, purpose: str) -> FileLock:
        """A lock between all processes of this machine that use this database."""
        return FileLock(self.path, purpose)

    def check_place(self) -> None:
        """Raises SchemaError, with a sentence, where there can be no database; makes its folder, if need be."""
        check_place(self.path)

    def exists(self) -> bool:
        """Whether there is a file."""
        return self.path.exists()

    def create(self) -> None:
        """Make the file, readable by its owner alone; an existing one is narrowed to that."""
        create_file(self.path)

    def names(self, connection: Any) -> set[str]:
        """The names of the tables and indexes that are there."""
        return {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}

    def identity(self, connection: Any) -> str:  # noqa: ARG002 - the file says it
        """The device and the number of the file."""
        found = self.path.stat()
        return f"file {found.st_dev}:{found.st_ino}"

    def columns(self, connection: Any, table: str) -> set[str]:
        """The names of a table's columns; none where there is no such table."""
        return {name for (name,) in connection.execute("SELECT name FROM pragma_table_info(?)", (table,))}

    def stream(self, connection: Any, sql: str) -> Iterator[Row]:
        """The rows that a query gives: never are all of them in memory."""
        yield from connection.execute(sql)

    def damages(self, connection: Any) -> Iterator[str]:
        """What the engine finds wrong with the file."""
        for (problem,) in connection.execute("PRAGMA integrity_check"):
            if problem != "ok":
                yield problem

    def version(self) -> str:
        """The engine and its version."""
        return f"SQLite {engine_version()}"

    def is_mended(self) -> bool:
        """Whether several processes may write at once without harm."""
        return engine_is_mended()

    def begin_serving(self) -> None:
        """Keep away what would replace the file, until this process and its children have ended.

        Beside other servers; alone on an engine that bears no second process. Raises SchemaError.
        """
        try:
            self._serving.share() if engine_is_mended() else self._serving.keep()
        except DatabaseUnavailable:
            raise SchemaError(self._why_not_held()) from None
        except OSError as error:
            raise SchemaError(f"The file {error.filename} cannot be opened: {error.strerror}.") from None

    def _why_not_held(self) -> str:
        if engine_is_mended():
            return f"The database {self} is in use by what needs it alone: a restore, or a server on an old SQLite."
        problem = f"SQLite {engine_version()} can lose rows with more than one process"
        return f"The database {self} is in use by another server or a restore, and {problem}."
