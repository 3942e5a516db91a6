"""A database on a server as an engine."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from amelia_flask.database import FAULTS, Engine, Row
from amelia_flask.errors import SchemaError
from amelia_flask.postgres.address import conninfo, shown
from amelia_flask.postgres.database import (
    PEEKER,
    READER,
    READER_PATIENCE,
    UPKEEP,
    WRITER,
    WRITER_PATIENCE,
    PostgresDatabase,
    Server,
    streamed,
)
from amelia_flask.postgres.door import PostgresDoor
from amelia_flask.postgres.listener import PostgresListener
from amelia_flask.postgres.lock import SHARE_SERVING, AdvisoryLock

OLDEST_SERVER = 140000


class PostgresEngine(Engine):
    """A database on a server, named by a URL."""

    mode: Literal["postgresql"] = "postgresql"

    def __init__(self, url: str, password_file: Path | None = None) -> None:
        """Raises SettingsError for a malformed URL, and for a file of a password that cannot be read."""
        given = conninfo(url, password_file)
        self._server = Server(given)
        self._shown = shown(given)

    def __str__(self) -> str:
        return self._shown

    def open_readers(self, connections: int) -> PostgresDatabase:
        """A pool of at most `connections` that can read and nothing else."""
        return PostgresDatabase(self._server, READER, connections, READER_PATIENCE)

    def open_writer(self) -> PostgresDatabase:
        """One connection that may write, for set-up and upkeep."""
        return PostgresDatabase(self._server, UPKEEP, 1)

    def open_door(self) -> PostgresDoor:
        """The way in for a writer."""
        return PostgresDoor(PostgresDatabase(self._server, f"{WRITER}; {SHARE_SERVING}", 1, WRITER_PATIENCE))

    def listen(self, wake: Callable[[], None]) -> PostgresListener:
        """Call `wake` after each commit, of whichever host, that stores events."""
        return PostgresListener(PostgresDatabase(self._server, UPKEEP, 1), wake)

    @contextmanager
    def peeking(self) -> Iterator[Any]:
        """Lend a connection that changes nothing, for as long as it takes."""
        db = PostgresDatabase(self._server, PEEKER, 1)
        try:
            with db.connection_context():
                yield db.connection()
        finally:
            db.close_all()

    def lock(self, purpose: str) -> AdvisoryLock:
        """A lock between all processes, of whichever host, that use this database."""
        return AdvisoryLock(PostgresDatabase(self._server, UPKEEP, 1), purpose)

    def check_place(self) -> None:
        """Raises SchemaError, with a sentence, where there is no such database, or one that we cannot use."""
        try:
            with self.peeking() as connection:
                if connection.info.server_version < OLDEST_SERVER:
                    raise SchemaError(f"{self.version()} is too old: the record needs PostgreSQL 14 or later.")
                sql = "SELECT current_setting('server_encoding'), current_schema()"
                encoding, schema = connection.execute(sql).fetchone()
        except FAULTS as error:
            raise SchemaError(f"The database {self} cannot be reached: {_first_line(error)}") from None
        if encoding != "UTF8":
            raise SchemaError(f"The database {self} has the encoding {encoding}; the record needs UTF8.")
        if schema is None:
            raise SchemaError(f"The database {self} has no schema of those that search_path names: create it first.")

    def exists(self) -> bool:
        """Always: the server's administrator makes databases."""
        return True

    def create(self) -> None:
        """Nothing: there is one."""

    def names(self, connection: Any) -> set[str]:
        """The names of the tables and indexes that are there."""
        sql = """
            SELECT relname FROM pg_class WHERE relnamespace = current_schema()::regnamespace
            AND relkind IN ('r', 'p', 'i', 'I')
        """
        return {name for (name,) in connection.execute(sql)}

    def identity(self, connection: Any) -> str:
        """The cluster, the database and the schema."""
        sql = "SELECT system_identifier, current_database(), current_schema() FROM pg_control_system()"
        return " ".join(map(str, connection.execute(sql).fetchone()))

    def columns(self, connection: Any, table: str) -> set[str]:
        """The names of a table's columns; none where there is no such table."""
        sql = """
            SELECT column_name FROM information_schema.columns
            WHERE table_schema = current_schema() AND table_name = %s
        """
        return {name for (name,) in connection.execute(sql, (table,))}

    def stream(self, connection: Any, sql: str) -> Iterator[Row]:
        """The rows that a query gives in a transaction, some at a time: never are all of them in memory."""
        return streamed(connection, sql, None)

    def damages(self, connection: Any) -> Iterator[str]:
        """Indexes that are not whole, and constraints that have not been looked at for all rows."""
        indexes = """
            SELECT relname FROM pg_index JOIN pg_class ON oid = indexrelid
            WHERE NOT indisvalid AND relnamespace = current_schema()::regnamespace ORDER BY 1
        """
        constraints = """
            SELECT conname FROM pg_constraint
            WHERE NOT convalidated AND connamespace = current_schema()::regnamespace ORDER BY 1
        """
        yield from (f"the index {name} is not whole" for (name,) in connection.execute(indexes))
        yield from (f"the constraint {name} may not hold" for (name,) in connection.execute(constraints))

    def version(self) -> str:
        """The engine and its version, without that before the server was asked."""
        return self._server.version


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".") + "."
