"""PostgreSQL: connections that are told what they may rely on, times and sums as the domain has them, advisory locks.

Group after group is committed by each process, and what keeps them apart over all hosts is the server's: the rows of
the workflows, then the row with the newest position. Every transaction takes them in this order, and the workflows in
that of their ids, so that no two wait for one another; holding the position's row until the commit makes the order of
positions that of commits.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from itertools import count, cycle
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import psycopg
from peewee import Psycopg3Adapter
from playhouse.pool import PooledPostgresqlDatabase
from psycopg import errors
from psycopg.adapt import Loader
from psycopg.pq import TransactionStatus
from psycopg.types.numeric import Int8Dumper

from amelia_flask.database import (
    BUSY_TIMEOUT_MS,
    FAULTS,
    POOL_WAIT_SECONDS,
    READ_SECONDS,
    Door,
    Engine,
    Listener,
    Lock,
    Row,
)
from amelia_flask.errors import DatabaseUnavailable, SchemaError, SettingsError

log = logging.getLogger(__name__)

CONNECT_SECONDS = 3
# After an attempt in vain nobody else tries for as long: each would hold a thread for CONNECT_SECONDS.
PAUSE_SECONDS = 0.5
LISTEN_SECONDS = 0.5  # between two looks whether to go on
OLDEST_SERVER = 140000

# What a session is told: the same text of a time everywhere, no wait without an end, and no acknowledgement before
# the commit is on disk, whatever the server's defaults are. A host that vanished is noticed within half a minute; one
# that hangs in the middle of a transaction loses it, and with it the rows that it kept from all others.
SESSION = f"""
    SET timezone = 'UTC'; SET datestyle = 'ISO'; SET client_encoding = 'UTF8'; SET standard_conforming_strings = on;
    SET default_transaction_isolation = 'read committed';
    SET lock_timeout = {BUSY_TIMEOUT_MS}; SET idle_in_transaction_session_timeout = 10000;
    SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3;
    SET tcp_user_timeout = 20000;
    SELECT set_config('synchronous_commit', 'on', false)
    WHERE current_setting('synchronous_commit') NOT IN ('on', 'remote_apply')
"""
# How long this side waits for an answer, where the server or the network has fallen silent: a little longer than the
# server works on one. A COMMIT that waits for a standby is not ended by the server at all.
READER_PATIENCE = READ_SECONDS + 1
WRITER_PATIENCE = 2 * BUSY_TIMEOUT_MS / 1000 + 1
READER = f"SET default_transaction_read_only = on; SET statement_timeout = {round(READ_SECONDS * 1000)}"
WRITER = f"SET statement_timeout = {2 * BUSY_TIMEOUT_MS}"
# A large record is migrated, copied and counted by statements that take as long as they take.
UPKEEP = "SET idle_in_transaction_session_timeout = 0"
PEEKER = f"{READER}; {UPKEEP}; SET statement_timeout = 0; SET default_transaction_isolation = 'repeatable read'"
# Of a result that is read while it is made; a row can be a third of a megabyte.
ROWS_AT_ONCE = 200
_cursors = count()

FIELD_TYPES = {"TEXT": 'TEXT COLLATE "C"', "UTC_TIMESTAMP": "TIMESTAMPTZ"}
ARRAY_TYPES = {"TEXT": "text", "UTC_TIMESTAMP": "timestamptz", "DOUBLE": "double precision"}  # all others: bigint

_lock_workflows = "SELECT 1 FROM workflows WHERE id = ANY(%s::text[]) ORDER BY id FOR NO KEY UPDATE"
# Of all others who write nobody holds a row then, or waits for another.
_lock_all_workflows = "LOCK TABLE workflows IN EXCLUSIVE MODE"
_lock_position = "SELECT 1 FROM event_position FOR NO KEY UPDATE"


class _TimeLoader(Loader):
    """A timestamptz as the text that `clock.to_text` makes of it."""

    def load(self, data: Any) -> str:
        """From `2026-01-31 12:00:00.5+00`: the server leaves noughts at the end out."""
        text = str(data, "ascii")
        time_of_day = text[11:-3]
        fraction = time_of_day.ljust(15, "0") if len(time_of_day) > 8 else f"{time_of_day}.000000"
        return f"{text[:10]}T{fraction}Z"


class _SumLoader(Loader):
    """A numeric as a whole number: in queries of ours it is the sum of such."""

    def load(self, data: Any) -> int:
        """From its digits."""
        return int(bytes(data))


class _Connection(psycopg.Connection[Any]):
    """A connection that is given up when an answer does not come within `patience` seconds."""

    patience: float | None = CONNECT_SECONDS  # as long as it is introduced

    def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
        """Called by psycopg for each statement. Raises OperationalError."""
        if self.patience is None:
            return super().wait(gen, *args, **kwargs)
        try:
            return super().wait(_bounded(gen, time.monotonic() + self.patience), *args, **kwargs)
        except _Silence:
            self.close()
            raise psycopg.OperationalError("The server does not answer.") from None


class _Silence(Exception):
    """No answer came in time."""


def _bounded(gen: Any, deadline: float) -> Any:
    """The generator of psycopg's, which is told ten times a second that nothing has come, until the deadline."""
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if not ready and time.monotonic() > deadline:
                raise _Silence
            wanted = gen.send(ready)
    except StopIteration as end:
        return end.value


class _Adapter(Psycopg3Adapter):  # Peewee's way to another class of connections
    def connect(self, _db: Any, **params: Any) -> _Connection:
        return _Connection.connect(**params)


class _Cursor(psycopg.Cursor[Any]):
    """A cursor whose connection counts what may have written."""

    def execute(self, query: Any, *args: Any, **kwargs: Any) -> "_Cursor":
        """Run a statement."""
        if not query.startswith("SELECT"):
            self.connection.written += 1  # type: ignore[attr-defined]  # set where connections are made
        return super().execute(query, *args, **kwargs)


class _Server:
    """How to connect, and what answered the last time."""

    def __init__(self, conninfo: dict[str, str]) -> None:
        self.conninfo = conninfo
        self.version = "PostgreSQL"


class PostgresDatabase(PooledPostgresqlDatabase):
    """Pooled PostgreSQL. A connection that broke is not lent again, nor is one that was idle when another broke."""

    psycopg3_adapter = _Adapter

    def __init__(self, server: "_Server", session: str, connections: int, patience: float | None = None) -> None:
        """`patience`: how many seconds an answer is waited for, where that has an end."""
        self._server = server
        self._session = session
        self._patience = patience
        self._pause_until = 0.0
        super().__init__(
            "postgresql://",
            max_connections=connections,
            timeout=POOL_WAIT_SECONDS,
            autoconnect=False,
            prefer_psycopg3=True,
            field_types=FIELD_TYPES,
            cursor_factory=_Cursor,
            **server.conninfo,
        )

    def _connect(self) -> Any:
        """Called by the pool, one thread at a time."""
        if time.monotonic() < self._pause_until:
            raise DatabaseUnavailable
        try:
            conn = super()._connect()
            if not hasattr(conn, "written"):
                self._introduce(conn)
        except psycopg.Error:
            self._pause_until = time.monotonic() + PAUSE_SECONDS
            raise
        return conn

    def _introduce(self, conn: Any) -> None:
        """Tell a new connection what it is for."""
        conn.written = 0
        conn.adapters.register_loader("timestamptz", _TimeLoader)
        conn.adapters.register_loader("numeric", _SumLoader)
        conn.adapters.register_dumper(int, Int8Dumper)  # one statement to prepare, however large a number is
        try:
            conn.execute(f"{SESSION}; {self._session}")
            self._server.version = _version(conn)
            conn.patience = self._patience
        except psycopg.Error:
            self._close(conn, close_conn=True)
            raise

    def _is_closed(self, conn: Any) -> bool:
        return bool(conn.closed)

    def _can_reuse(self, conn: Any) -> bool:
        return not conn.closed and conn.info.transaction_status == TransactionStatus.IDLE

    def begin_read(self) -> None:
        """Begin a read of one moment on this thread's connection, which ends after READ_SECONDS.

        Where the connection turns out to have broken since it was used last, a new one takes its place.
        """
        begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
        try:
            self.connection().execute(begin)
        except psycopg.OperationalError:
            self.renew()
            self.connection().execute(begin)
        self.connection().patience = self._patience  # it may have been lent to one that took its time

    def renew(self) -> None:
        """Give this thread a new connection for one that broke; what is idle has probably broken too."""
        self.manual_close()
        self.close_idle()
        self.connect()

    def take_time(self) -> None:
        """Let the read that has begun take as long as it takes."""
        self.connection().patience = None
        self.connection().execute("SET LOCAL statement_timeout = 0")
        self.connection().execute("SET LOCAL idle_in_transaction_session_timeout = 0")

    def checkpoint(self) -> None:
        """Nothing: the server does it by itself."""

    def show_work(self, _sign: Any) -> None:
        """Nothing: the server tells nothing while it works."""

    def rows_of(self, query: Any) -> Iterator[Row]:
        """The rows of a query of Peewee's, some at a time: never are all of them in memory."""
        sql, values = self.get_sql_context().sql(query).query()
        yield from _streamed(self.connection(), sql, values)

    def compile_many(self, query: Any) -> str:
        """What `insert_many` takes, of an insertion that Peewee was told of: columns are sent as arrays."""
        arrays = ", ".join(f"%s::{_array_type(field)}[]" for field in query._columns)
        return f"INSERT INTO {_place(query)} SELECT * FROM unnest({arrays})"  # noqa: S608 - names of the models

    def insert_many(self, sql: str, rows: Collection[Row]) -> None:
        """Insert all rows."""
        self.connection().execute(sql, [list(column) for column in zip(*rows, strict=True)])

    def load(self, query: Any, rows: Collection[Row]) -> None:
        """Insert many rows by an insertion that Peewee was told of: faster than `insert_many` is for many."""
        with self.connection().cursor() as cursor, cursor.copy(f"COPY {_place(query)} FROM STDIN") as stream:
            for row in rows:
                stream.write_row(row)

    def run_all(self, _sql: str, at_once: str, rows: Collection[Row]) -> list[Row]:
        """What running a statement with each of the rows gives; `at_once` is that statement for arrays."""
        values = [list(column) for column in zip(*rows, strict=True)]
        found: list[Row] = self.connection().execute(at_once, values).fetchall()
        return found


def _streamed(connection: Any, sql: str, values: Any) -> Iterator[Row]:
    """The rows of a result while it is made, in a transaction."""
    with connection.cursor(name=f"rows_{next(_cursors)}") as cursor:
        cursor.execute(sql, values)
        while rows := cursor.fetchmany(ROWS_AT_ONCE):
            yield from rows


def _place(query: Any) -> str:
    """The table and the columns of an insertion."""
    columns = ", ".join(f'"{field.column_name}"' for field in query._columns)
    table = query.table._meta.table_name if hasattr(query.table, "_meta") else query.table.__name__
    return f'"{table}" ({columns})'


def _array_type(field: Any) -> str:
    return ARRAY_TYPES.get(getattr(field, "rel_field", field).field_type, "bigint")


class PostgresEngine(Engine):
    """A database on a server, named by a URL."""

    mode: Literal["postgresql"] = "postgresql"

    def __init__(self, url: str, password_file: Path | None = None) -> None:
        """Raises SettingsError for a malformed URL, and for a file of a password that cannot be read."""
        conninfo = _conninfo(url, password_file)
        self._server = _Server(conninfo)
        self._shown = _shown(conninfo)

    def __str__(self) -> str:
        return self._shown

    def open_readers(self, connections: int) -> PostgresDatabase:
        """A pool of at most `connections` that can read and nothing else."""
        return PostgresDatabase(self._server, READER, connections, READER_PATIENCE)

    def open_writer(self) -> PostgresDatabase:
        """One connection that may write, for set-up and upkeep."""
        return PostgresDatabase(self._server, UPKEEP, 1)

    def open_door(self) -> "PostgresDoor":
        """The way in for a writer."""
        return PostgresDoor(PostgresDatabase(self._server, WRITER, 1, WRITER_PATIENCE))

    def listen(self, wake: Callable[[], None]) -> "PostgresListener":
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

    def lock(self, purpose: str) -> "AdvisoryLock":
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
        return _streamed(connection, sql, None)

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


class PostgresDoor(Door):
    """The connection that writes."""

    def __init__(self, db: PostgresDatabase) -> None:
        self.db = db

    def exclusive(self) -> AbstractContextManager[None]:
        """Nothing: the server keeps the processes of all hosts apart."""
        return nullcontext()

    def open(self) -> None:
        """Have a connection."""
        if self.db.is_closed():
            self.db.connect()
        elif self.db.connection().closed:
            self.db.renew()

    def close(self) -> None:
        """Let go of the connection, whatever state it is in."""
        if not self.db.is_closed():
            with suppress(*FAULTS):
                self.db.manual_close()

    def begin(self, workflows: Collection[str] | None, is_mixed: bool) -> None:
        """Begin a transaction, and wait for those that change the same workflows.

        What is mixed waits for the row of the newest position too, before it waits for anything else.
        """
        try:
            self.db.connection().execute("BEGIN")
        except psycopg.OperationalError:  # it broke since the last group, and nothing has begun
            self.db.renew()
            self.db.connection().execute("BEGIN")
        if workflows is None:
            self.db.connection().execute(_lock_all_workflows)
        elif workflows:
            self.db.connection().execute(_lock_workflows, (list(workflows),))
        if is_mixed:
            self.db.connection().execute(_lock_position)

    @property
    def _status(self) -> TransactionStatus:
        return self.db.connection().info.transaction_status  # type: ignore[no-any-return]  # Peewee has no types

    @property
    def is_open(self) -> bool:
        """Whether there is a transaction, sound or not."""
        return self._status in (TransactionStatus.INTRANS, TransactionStatus.INERROR)

    @property
    def is_sound(self) -> bool:
        """Whether there is a transaction in which another statement may follow."""
        return self._status == TransactionStatus.INTRANS

    @property
    def written(self) -> int:
        """How many statements this connection was given that may have written."""
        return int(self.db.connection().written)

    @property
    def is_lost(self) -> bool:
        """Whether the connection broke."""
        return self.db.is_closed() or bool(self.db.connection().closed)

    def is_rivalry(self, error: BaseException) -> bool:
        """Whether the server ended the transaction for the sake of another one."""
        return isinstance(error, errors.SerializationFailure | errors.DeadlockDetected) and not self.is_lost


class PostgresListener(Listener):
    """A thread with a connection of its own, to which the server tells of every commit that stored events."""

    def __init__(self, db: PostgresDatabase, wake: Callable[[], None]) -> None:
        self._db = db
        self._wake = wake
        self._stopped = threading.Event()
        self._hears = False
        self._thread = threading.Thread(target=self._work, name="listener", daemon=True)
        self._thread.start()

    @property
    def hears(self) -> bool:
        """Whether the connection stands."""
        return self._hears

    def stop(self) -> None:
        """Hear no more; takes LISTEN_SECONDS at most."""
        self._stopped.set()
        self._thread.join(2 * LISTEN_SECONDS)

    def _work(self) -> None:
        while not self._stopped.is_set():
            with suppress(*FAULTS, DatabaseUnavailable):
                self._listen()
            self._hears = False
            self._db.close_all()
            self._stopped.wait(PAUSE_SECONDS)

    def _listen(self) -> None:
        self._db.connect()
        connection = self._db.connection()
        connection.execute("LISTEN amelia_flask_events")
        self._hears = True
        self._wake()  # what was stored before is not told of
        while not self._stopped.is_set():
            for _ in connection.notifies(timeout=LISTEN_SECONDS, stop_after=1):
                self._wake()


class AdvisoryLock(Lock):
    """The server's lock for a purpose, in this database and schema; it ends with the session that holds it."""

    def __init__(self, db: PostgresDatabase, purpose: str) -> None:
        self._db = db
        self._purpose = purpose

    @contextmanager
    def held(self, seconds: float | None = None) -> Iterator[None]:
        """Hold the lock, however long it takes to get it.

        With `seconds` it raises DatabaseUnavailable when it was not to be had within them.
        """
        try:
            self._execute(f"SET lock_timeout = {round((seconds or 0) * 1000)}")
            self._ask("pg_advisory_lock")
        except errors.LockNotAvailable:
            raise DatabaseUnavailable from None
        try:
            yield
        finally:
            self.close()

    def keep(self) -> None:
        """Hold the lock alone until `close`. Raises DatabaseUnavailable while somebody else holds it."""
        try:
            is_ours = self._ask("pg_try_advisory_lock")
        except FAULTS as error:
            raise DatabaseUnavailable from error
        if not is_ours:
            raise DatabaseUnavailable

    def close(self) -> None:
        """Let go of it."""
        self._db.close_all()

    def _ask(self, function: str) -> Any:
        sql = f"SELECT {function}(hashtextextended('amelia-flask:' || current_schema() || ':' || %s, 0))"
        return self._execute(sql, (self._purpose,)).fetchone()[0]

    def _execute(self, sql: str, values: tuple[str, ...] | None = None) -> Any:
        self._db.connect(reuse_if_open=True)
        return self._db.connection().execute(sql, values)


def _conninfo(url: str, password_file: Path | None) -> dict[str, str]:
    given = _parsed(url)
    if password_file is not None:
        given["password"] = _read_password(password_file)
    defaults = {"connect_timeout": str(CONNECT_SECONDS), "application_name": "amelia-flask"}
    keepalives = {"keepalives_idle": "10", "keepalives_interval": "5", "keepalives_count": "3"}
    return defaults | keepalives | {"tcp_user_timeout": "20000"} | given


def _parsed(url: str) -> dict[str, str]:
    """What a URL says; of a malformed one nothing is told, because any part of it may be one of a password."""
    try:
        given = {name: str(value) for name, value in psycopg.conninfo.conninfo_to_dict(url).items()}
    except psycopg.Error:
        given = {"port": "unknown"}
    is_number = all(port.isdigit() for port in given.get("port", "").split(",") if port)
    if not is_number or "@" in url.partition("://")[2].partition("?")[0].partition("/")[2]:
        raise SettingsError(
            "AMELIA_DATABASE_URL is malformed: write postgresql://user:password@host:5432/database?parameter=value, "
            "and in a name or password %40 for @, %2F for /, %3A for :, %3F for ? and %25 for %."
        )
    return given


def _read_password(file: Path) -> str:
    try:
        return file.read_text().strip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise SettingsError(f"AMELIA_DATABASE_PASSWORD_FILE {file} cannot be read: {reason}.") from None


def _shown(given: dict[str, str]) -> str:
    """A URL with what people may know."""
    hosts, ports = given.get("host", "").split(","), given.get("port", "").split(",")
    places = ",".join(f"{_quoted(host)}{port and ':'}{port}" for host, port in zip(hosts, cycle(ports), strict=False))
    user = f"{quote(given['user'])}@" if "user" in given else ""
    return f"postgresql://{user}{places}/{quote(given.get('dbname', ''))}"


def _quoted(host: str) -> str:
    return f"[{host}]" if ":" in host else quote(host, safe="")


def _version(connection: Any) -> str:
    number = connection.info.server_version
    return f"PostgreSQL {number // 10000}.{number % 10000}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".") + "."
