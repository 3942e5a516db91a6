"""Connections to a database file: pragmas set and read back, readers pooled, files remembered.

Nothing is opened when a database object is made, only when it is first used; so a process may make one, fork,
and leave each child with connections of its own.
"""

import math
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from peewee import sqlite3 as engine  # pysqlite3 where it is installed
from playhouse.pool import PooledSqliteDatabase

from amelia_flask.database import BUSY_TIMEOUT_MS, POOL_WAIT_SECONDS, READ_SECONDS, Row
from amelia_flask.errors import DatabaseUnavailable, SchemaError
from amelia_flask.sqlite.files import Files, displaced, files_of, identity

STEPS_BETWEEN_LOOKS = 10_000
STEPS_BETWEEN_SIGNS = 100_000

# Pragma, what it is set to, what reading it back must give.
PRAGMAS: tuple[tuple[str, str | int, str | int], ...] = (
    ("busy_timeout", BUSY_TIMEOUT_MS, BUSY_TIMEOUT_MS),
    ("journal_mode", "wal", "wal"),
    ("foreign_keys", 1, 1),
    ("synchronous", "full", 2),
    ("journal_size_limit", 64 * 1024 * 1024, 64 * 1024 * 1024),
    ("temp_store", "memory", 2),
)
READER_PRAGMAS = (*PRAGMAS, ("cache_size", -2000, -2000), ("query_only", 1, 1))
WRITER_PRAGMAS = (*PRAGMAS, ("cache_size", -16000, -16000), ("wal_autocheckpoint", 8000, 8000))


class _Connection(engine.Connection):
    """A connection that remembers which files it opened, and until when it may work on the read it was lent for."""

    files = Files(None, None, None)
    deadline = math.inf

    def close(self) -> None:
        """Let go of the files."""
        with _registering:
            _connections.discard(self)
        super().close()

    def is_late(self) -> bool:
        """Called by SQLite now and then while a statement runs, which ends there if this is true."""
        return time.monotonic() > self.deadline


class SqliteExtDatabase(PooledSqliteDatabase):
    """Pooled SQLite in WAL mode whose connections are refused unless every pragma took.

    It opens an existing file only: a file that vanished under a running service is an error, never a new and
    empty record. A connection to a file that was moved away is not lent again: what it wrote would be lost.
    """

    def __init__(self, path: Path, pragmas: tuple[tuple[str, str | int, str | int], ...], connections: int) -> None:
        self.path = path
        self._name = str(path)
        self._expected = pragmas
        super().__init__(
            f"{path.absolute().as_uri()}?mode=rw",
            uri=True,
            max_connections=connections,
            timeout=POOL_WAIT_SECONDS,
            lock_type="IMMEDIATE",
            check_same_thread=False,
            autoconnect=False,
            factory=self._open,
            field_types={"UTC_TIMESTAMP": "TEXT"},
        )

    def _add_conn_hooks(self, conn: Any) -> None:
        super()._add_conn_hooks(conn)
        for name, value, expected in self._expected:
            conn.execute(f"PRAGMA {name} = {value}")
            found = conn.execute(f"PRAGMA {name}").fetchone()[0]
            if found != expected:
                raise SchemaError(f"The database does not take {name}={value} (it stays {found}).")
        conn.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()  # makes the log, where there was none
        conn.files = files_of(self._name)
        with _registering:
            _connections.add(conn)
        conn.set_progress_handler(conn.is_late, STEPS_BETWEEN_LOOKS)

    def _open(self, *args: Any, **kwargs: Any) -> _Connection:
        """Called by the engine. Opening what does not belong together, and closing it again, would already mix it."""
        found = files_of(self._name)
        with _registering:
            problems = [problem for other in _connections if (problem := displaced(other.files, found))]
        if problems:
            raise DatabaseUnavailable(problems[0])
        return _Connection(*args, **kwargs)

    @property
    def files(self) -> Files:
        """What this thread's connection opened."""
        opened: Files = self.connection().files
        return opened

    def begin_read(self) -> None:
        """Begin a read of one moment on this thread's connection, which ends after READ_SECONDS."""
        connection = self.connection()
        connection.deadline = time.monotonic() + READ_SECONDS
        connection.execute("BEGIN")

    def take_time(self) -> None:
        """Let the read that has begun take as long as it takes."""
        self.connection().deadline = math.inf

    def checkpoint(self) -> None:
        """Move pages of the log into the database, without holding a lock on either."""
        self.execute_sql("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def show_work(self, sign: Callable[[], None]) -> None:
        """Call `sign` now and then while this thread's connection works."""
        self.connection().set_progress_handler(sign, STEPS_BETWEEN_SIGNS)

    def rows_of(self, query: Any) -> Iterator[Row]:
        """The rows of a query of Peewee's, one at a time: never are all of them in memory."""
        sql, values = self.get_sql_context().sql(query).query()
        with closing(self.connection().cursor()) as cursor:
            yield from cursor.execute(sql, values)

    def compile_many(self, query: Any) -> str:
        """What `insert_many` takes, of an insertion that Peewee was told of."""
        sql: str = self.get_sql_context().sql(query).query()[0]
        return sql

    def insert_many(self, sql: str, rows: Collection[Row]) -> None:
        """Insert all rows."""
        self.connection().executemany(sql, rows)

    def load(self, query: Any, rows: Collection[Row]) -> None:
        """Insert many rows by an insertion that Peewee was told of."""
        self.insert_many(self.compile_many(query), rows)

    def analyze(self) -> None:
        """Nothing: no query depends on what the engine could learn."""

    def run_all(self, sql: str, _at_once: str, rows: Collection[Row]) -> list[Row]:
        """What running `sql` with each of the rows gives."""
        execute = self.connection().execute
        return [found for row in rows for found in execute(sql, row).fetchall()]

    def _is_closed(self, conn: Any) -> bool:
        if not super()._is_closed(conn) and conn.files.database == identity(self._name):
            return False
        conn.close()
        return True


# Those of this process that are open. While one is, SQLite takes none of the files away.
_connections: "weakref.WeakSet[_Connection]" = weakref.WeakSet()
_registering = threading.Lock()


def open_readers(path: Path, connections: int) -> SqliteExtDatabase:
    """A pool of at most `connections` that can read and nothing else."""
    return SqliteExtDatabase(path, READER_PRAGMAS, connections)


def open_writer(path: Path) -> SqliteExtDatabase:
    """One connection that may write."""
    return SqliteExtDatabase(path, WRITER_PRAGMAS, 1)


def engine_version() -> str:
    """The version of the SQLite library in use."""
    return str(engine.sqlite_version)


def engine_is_mended(version: str | None = None) -> bool:
    """Whether this SQLite is free of the WAL-reset bug: 3.44.6, 3.50.7, or 3.51.3 and later.

    On others two connections that write and checkpoint at one moment can lose committed rows
    (https://sqlite.org/wal.html, "the WAL-reset bug").
    """
    parts = tuple(int(part) for part in (version or engine_version()).split("."))
    return parts >= (3, 51, 3) or (3, 50, 7) <= parts < (3, 51) or (3, 44, 6) <= parts < (3, 45)
