"""SQLite: pragmas set and read back, readers pooled, the one writer single, files watched that must stay in place.

Nothing is opened when a database object is made, only when it is first used; so a process may make one, fork,
and leave each child with connections of its own.
"""

import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from peewee import sqlite3 as engine  # pysqlite3 where it is installed
from playhouse.pool import PooledSqliteDatabase

from amelia_flask.database import BUSY_TIMEOUT_MS, FAULTS, POOL_WAIT_SECONDS, READ_SECONDS, SERVING, Door, Engine, Row
from amelia_flask.errors import DatabaseUnavailable, SchemaError
from amelia_flask.lock import FileLock

log = logging.getLogger(__name__)

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

File = tuple[int, int] | None  # device and inode, None where there is none


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

    def run_all(self, sql: str, _at_once: str, rows: Collection[Row]) -> list[Row]:
        """What running `sql` with each of the rows gives."""
        execute = self.connection().execute
        return [found for row in rows for found in execute(sql, row).fetchall()]

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
        return SqliteExtDatabase(self.path, READER_PRAGMAS, connections)

    def open_writer(self) -> SqliteExtDatabase:
        """One connection that may write, for set-up and upkeep."""
        return SqliteExtDatabase(self.path, WRITER_PRAGMAS, 1)

    def open_door(self) -> "SqliteDoor":
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


class SqliteDoor(Door):
    """The connection that writes. The files it opened are watched: what is written to others would be lost."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._name = str(path)
        self._lock = FileLock(path)
        self._files: Files | None = None  # that are open
        self.db = self._database()

    def _database(self) -> SqliteExtDatabase:
        return SqliteExtDatabase(self._path, WRITER_PRAGMAS, 1)

    def exclusive(self) -> AbstractContextManager[None]:
        """Wait for the turn of this process."""
        return self._lock.held()

    def open(self) -> None:
        """Have a connection to the file that is in its place now."""
        if self._files and not self.db.is_closed():
            found = files_of(self._name)
            if problem := displaced(self._files, found):
                self._rescue()
                raise DatabaseUnavailable(problem)
            if found.database != self._files.database:
                self.close()
        if self.db.is_closed():
            self.db.connect()
            self._files = self.db.files

    def close(self) -> None:
        """Let go of the connection."""
        self._files = None
        try:
            if not self.db.is_closed():
                self.db.manual_close()
        except FAULTS:
            log.warning("closing the writer's connection failed", exc_info=True)
            self.db = self._database()

    def finish(self) -> None:
        """Let go of the connection and of the file of the lock."""
        self.close()
        self._lock.close()

    def begin(self, workflows: Collection[str] | None, is_mixed: bool) -> None:  # noqa: ARG002 - one lock is for all
        """Begin a transaction."""
        self.db.execute_sql("BEGIN IMMEDIATE")

    @property
    def is_open(self) -> bool:
        """Whether there is a transaction: the engine rolls one back by itself where it cannot go on."""
        return bool(self.db.connection().in_transaction)

    is_sound = is_open

    @property
    def written(self) -> int:
        """How many rows this connection has changed."""
        return int(self.db.connection().total_changes)

    @property
    def is_lost(self) -> bool:
        """Never: a COMMIT that fails has not happened."""
        return False

    def problem(self) -> str | None:
        """What another program has done to files that are in use here, which then are written no more."""
        files = self._files
        return displaced(files, files_of(self._name)) if files else None

    def look_after(self) -> None:
        """See whether the files are in their places, and save what is in the log where they are not."""
        if self.problem():
            with suppress(*FAULTS, DatabaseUnavailable), self._lock.held():
                self._rescue()

    def _rescue(self) -> None:
        """Bring what is in the log into the database, wherever these are now, while this process has them open.

        A log that lies beside another database than its own is emptied, because it would be taken for that one's.
        Raises what the database raises.
        """
        opened, found = self._files, files_of(self._name)
        is_alone = opened is not None and found[1:] == opened[1:]
        result = self.db.execute_sql(f"PRAGMA wal_checkpoint({'TRUNCATE' if is_alone else 'FULL'})").fetchone()
        if result[0]:
            raise DatabaseUnavailable("Another program keeps the log of the database from being saved.")
