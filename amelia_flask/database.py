"""Opens the database: SQLite with its pragmas set and read back, pooled for readers, single for the writer.

Nothing is opened when a database object is made, only when it is first used; so a process may make one, fork,
and leave each child with connections of its own.
"""

import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import peewee
from peewee import sqlite3 as engine  # pysqlite3 where it is installed
from playhouse.pool import MaxConnectionsExceeded, PooledSqliteDatabase

from amelia_flask.errors import DatabaseUnavailable, SchemaError

BUSY_TIMEOUT_MS = 5000
POOL_WAIT_SECONDS = 5
# No read of the service takes longer than a few milliseconds; one that does is ended, for the sake of the others.
READ_SECONDS = 5.0
STEPS_BETWEEN_LOOKS = 10_000

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

File = tuple[int, int] | None  # device and inode, None where there is none
Row = Any  # a tuple in the order of the query's columns

# What a database that is locked, full, away or broken may raise, and of these what tells of a statement at fault.
FAULTS = (peewee.PeeweeException, engine.Error, OSError)
MISTAKES = (
    *(peewee.IntegrityError, peewee.DataError, peewee.ProgrammingError),
    *(engine.IntegrityError, engine.DataError, engine.ProgrammingError),
)


class Files(NamedTuple):
    """What a database consists of while it is in use: itself, its log, and what its users share."""

    database: File
    log: File
    shared: File


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

    def _is_closed(self, conn: Any) -> bool:
        if not super()._is_closed(conn) and conn.files.database == _file(self._name):
            return False
        conn.close()
        return True


# Those of this process that are open. While one is, SQLite takes none of the files away.
_connections: "weakref.WeakSet[_Connection]" = weakref.WeakSet()
_registering = threading.Lock()


def files_of(path: str) -> Files:
    """What is there now. As little as can be: every group of writes begins with it."""
    return Files(_file(path), _file(path + "-wal"), _file(path + "-shm"))


def displaced(opened: Files, found: Files) -> str | None:
    """What another program has done to files that are in use, where they do not belong together any more.

    A database that was replaced together with its log is none of these cases.
    """
    if found == opened or None in opened:
        return None
    if found.database == opened.database:
        return "The log of the database was taken away or replaced by another program: restart the service."
    if found.log == opened.log:
        return (
            "The database was moved or replaced by another program, but not its log: stop the service to mend that."
        )
    return None


def _file(path: str) -> File:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def open_readers(path: Path, connections: int) -> SqliteExtDatabase:
    """A pool of at most `connections` that can read and nothing else."""
    return SqliteExtDatabase(path, READER_PRAGMAS, connections)


def open_writer(path: Path) -> SqliteExtDatabase:
    """One connection that may write, for the writer and for schema set-up."""
    return SqliteExtDatabase(path, WRITER_PRAGMAS, 1)


def check_place(path: Path) -> None:
    """Raises SchemaError, with a sentence, where there can be no database at `path`; makes its folder, if need be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        problem = _problem_of_place(path)
    except OSError as error:
        problem = f"the folder {path.parent} cannot be made or entered ({error.strerror})"
    if problem:
        raise SchemaError(f"The database {path} cannot be set up: {problem}.")


def _problem_of_place(path: Path) -> str | None:
    if path.is_dir():
        return "it is a folder"
    if path.exists() and not path.is_file():
        return "it is no regular file"
    for needed in (path.parent, path):
        if needed.exists() and not os.access(needed, os.R_OK | os.W_OK):
            return f"{needed} cannot be written by this user (uid {os.geteuid()})"
    return None


def create_file(path: Path) -> None:
    """Make the database file, readable by its owner alone; an existing one is narrowed to that.

    An existing one is never opened here: closing a plain file descriptor would drop SQLite's locks.
    """
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        path.chmod(0o600)


@contextmanager
def peeking(path: Path) -> Iterator[engine.Connection]:
    """Lend a connection that changes nothing of the file, whoever it belongs to."""
    connection = engine.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_TIMEOUT_MS / 1000)
    try:
        yield connection
    finally:
        connection.close()


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


@contextmanager
def reading(db: SqliteExtDatabase) -> Iterator[SqliteExtDatabase]:
    """Lend this thread a connection for one short read, all of which sees the same moment.

    Raises DatabaseUnavailable when there is none, and when the read takes longer than READ_SECONDS. A connection on
    which anything failed is thrown away rather than lent again.
    """
    try:
        db.connect()
        try:
            connection = db.connection()
            connection.deadline = time.monotonic() + READ_SECONDS
            connection.execute("BEGIN")
            try:
                yield db
            finally:
                connection.execute("COMMIT")
        except FAULTS:
            db.manual_close()
            raise
        finally:
            if not db.is_closed():
                db.close()
    except (*FAULTS, MaxConnectionsExceeded) as error:
        raise DatabaseUnavailable from error


class _Name(str):
    """Stands in a compiled query where a value will be given by this name."""


def param(name: str) -> Any:
    """A value of a prepared query, to be given by `name` at each run."""
    return peewee.Value(_Name(name), converter=False)


class Prepared:
    """A query made from the models and compiled once; what is left to do at each run is the database's work.

    It goes straight to the engine's connection and raises what that raises, not Peewee's twins of it.
    """

    def __init__(self, build: Callable[[], Any]) -> None:
        self._build = build
        self._compiled: dict[type, tuple[str, list[Any]]] = {}

    def run(self, db: Any, /, **values: Any) -> list[Row]:
        """All rows of the result, or of RETURNING. `values` names every `param` of the query."""
        rows: list[Row] = self._execute(db, values).fetchall()
        return rows

    def run_within(self, db: Any, most: int, size: Callable[[Row], int], **values: Any) -> tuple[list[Row], bool]:
        """The first rows whose sizes add up to `most` at most, but one at least; and whether that left others out."""
        rows: list[Row] = []
        taken = 0
        for row in self._execute(db, values):
            taken += size(row)
            if taken > most and rows:
                return rows, True
            rows.append(row)
        return rows, False

    def run_many(self, db: Any, rows: list[Row]) -> None:
        """Run once for each row; a row holds the values of the `param`s in the order in which they appear."""
        sql, _ = self._compiled.get(type(db)) or self._compile(db)
        db.connection().executemany(sql, rows)

    def _execute(self, db: Any, values: dict[str, Any]) -> Any:
        sql, params = self._compiled.get(type(db)) or self._compile(db)
        given = [values[value] if isinstance(value, _Name) else value for value in params]
        return db.connection().execute(sql, given)

    def _compile(self, db: Any) -> tuple[str, list[Any]]:
        sql, params = db.get_sql_context().sql(self._build()).query()
        return self._compiled.setdefault(type(db), (sql, list(params)))
