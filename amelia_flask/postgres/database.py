"""Pooled connections to a server, and what each of them is told it may rely on."""

import time
from collections.abc import Collection, Iterator
from itertools import count
from typing import Any

import psycopg
from playhouse.pool import PooledPostgresqlDatabase
from psycopg.pq import TransactionStatus

from amelia_flask.database import BUSY_TIMEOUT_MS, POOL_WAIT_SECONDS, READ_SECONDS, Row
from amelia_flask.errors import DatabaseUnavailable
from amelia_flask.postgres.connection import BEGIN_SECONDS, Adapter, Cursor, introduce

# After an attempt in vain nobody else tries for as long: each would hold a thread for CONNECT_SECONDS.
PAUSE_SECONDS = 0.5

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


class Server:
    """How to connect, and what answered the last time."""

    def __init__(self, conninfo: dict[str, str]) -> None:
        self.conninfo = conninfo
        self.version = "PostgreSQL"


class PostgresDatabase(PooledPostgresqlDatabase):
    """Pooled PostgreSQL. A connection that broke is not lent again, nor is one that was idle when another broke."""

    psycopg3_adapter = Adapter

    def __init__(self, server: Server, session: str, connections: int, patience: float | None = None) -> None:
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
            cursor_factory=Cursor,
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
        try:
            introduce(conn, f"{SESSION}; {self._session}", self._patience)
            self._server.version = _version(conn)
        except psycopg.Error:
            self._close(conn, close_conn=True)
            raise

    def _is_closed(self, conn: Any) -> bool:
        return bool(conn.closed)

    def _can_reuse(self, conn: Any) -> bool:
        return not conn.closed and conn.info.transaction_status == TransactionStatus.IDLE

    def begin_read(self) -> None:
        """Begin a read of one moment on this thread's connection, which ends after READ_SECONDS."""
        self.begin_anew("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")

    def begin_anew(self, begin: str) -> None:
        """Begin a transaction on this thread's connection.

        Where that turns out to have broken since it was used last, with or without a word, a new one takes its place.
        """
        try:
            self._begin(begin)
        except psycopg.OperationalError:
            self.renew()
            self._begin(begin)

    def _begin(self, begin: str) -> None:
        connection = self.connection()
        connection.patience = BEGIN_SECONDS
        connection.execute(begin)
        connection.patience = self._patience

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
        yield from streamed(self.connection(), sql, values)

    def compile_many(self, query: Any) -> str:
        """What `insert_many` takes, of an insertion that Peewee was told of: columns are sent as arrays."""
        arrays = ", ".join(f"%s::{_array_type(field)}[]" for field in query._columns)
        return f"INSERT INTO {_place(query)} SELECT * FROM unnest({arrays})"  # noqa: S608 - names of the models

    def insert_many(self, sql: str, rows: Collection[Row]) -> None:
        """Insert all rows."""
        self.connection().execute(sql, [list(column) for column in zip(*rows, strict=True)])

    def load(self, query: Any, rows: Collection[Row]) -> None:
        """Insert many rows by an insertion that Peewee was told of: faster than `insert_many` is for many."""
        self.connection().written += 1
        with self.connection().cursor() as cursor, cursor.copy(f"COPY {_place(query)} FROM STDIN") as stream:
            for row in rows:
                stream.write_row(row)

    def analyze(self) -> None:
        """Have the server look at what was loaded, by which it plans queries; by itself it does so a minute later."""
        self.connection().execute("ANALYZE")

    def run_all(self, _sql: str, at_once: str, rows: Collection[Row]) -> list[Row]:
        """What running a statement with each of the rows gives; `at_once` is that statement for arrays."""
        values = [list(column) for column in zip(*rows, strict=True)]
        found: list[Row] = self.connection().execute(at_once, values).fetchall()
        return found


def streamed(connection: Any, sql: str, values: Any) -> Iterator[Row]:
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


def _version(connection: Any) -> str:
    number = connection.info.server_version
    return f"PostgreSQL {number // 10000}.{number % 10000}"
