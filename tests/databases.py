"""A record of its own for a test, on either engine, and what any other program finds in it.

What a test is given by the fixture `database` is set up already, what it is given by `empty_database` is not.
"""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any, Self

from peewee import sqlite3  # the engine that the service itself uses

from amelia_flask import schema
from amelia_flask.database import Engine
from amelia_flask.ledger import Ledger
from amelia_flask.settings import from_environment
from amelia_flask.sqlite import SqliteEngine

ENGINES = ("sqlite", "postgresql")

Row = tuple[Any, ...]


class Database(ABC):
    """A database, looked at and changed past the service, through connections of the driver alone.

    The same values come back from each engine: moments as the text that SQLite keeps, whole numbers for sums.
    `settings` are what names it to the service; `folder` is a place for files beside it.
    """

    engine: Engine
    settings: Mapping[str, str]
    folder: Path

    @abstractmethod
    def connected(self) -> AbstractContextManager[Any]:
        """Lend a connection of the driver, in autocommit; foreign keys are not looked at."""

    @abstractmethod
    def blocked(self) -> AbstractContextManager[None]:
        """While another program keeps everybody from writing."""

    @abstractmethod
    def columns(self) -> dict[str, list[str]]:
        """The names of the columns of each table, in their order."""

    def rows(self, sql: str, *values: Any) -> list[Row]:
        """What a query with `?` for values gives."""
        with self.connected() as connection:
            return self._run(connection, sql, *values)

    def execute(self, *statements: str) -> None:
        """What any other program does."""
        with self.connected() as connection:
            for statement in statements:
                self._run(connection, statement)

    def dump(self) -> dict[str, list[Row]]:
        """Every row of every table: what must be the same before and after a change that was refused."""
        with self.connected() as connection:
            return {
                table: sorted(self._run(connection, f"SELECT {', '.join(names)} FROM {table}"), key=repr)
                for table, names in self.columns().items()
            }

    def add_events(self, workflow_id: str, count: int) -> None:
        """So many events at the end of a workflow's timeline, faster than they could be appended."""
        self.execute(
            f"""INSERT INTO events (workflow_id, sequence, id, position, timestamp, agent, event_type, message)
            WITH RECURSIVE numbers (n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM numbers WHERE n < {count})
            SELECT w.id, last_sequence + n, w.id || n, value + n, updated_at, 'dev', 'note', '{"0" * 190}' || n
            FROM numbers, event_position, workflows AS w WHERE w.id = '{workflow_id}'
            """,
            f"UPDATE workflows SET last_sequence = last_sequence + {count} WHERE id = '{workflow_id}'",
            f"UPDATE event_position SET value = value + {count}",
        )

    def set_up(self) -> Self:
        """The same, once it is of this version."""
        schema.set_up(self.engine)
        return self

    def ledger(self, **settings: object) -> Ledger:
        """A ledger on this database with these settings, which the caller closes."""
        return Ledger(from_environment({**self.settings, **named(settings)}))

    @abstractmethod
    def _run(self, connection: Any, sql: str, *values: Any) -> list[Row]: ...


class Sqlite(Database):
    """A file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = path.parent
        self.engine = SqliteEngine(path)
        self.settings = {"AMELIA_DATABASE_PATH": str(path)}

    def connected(self) -> AbstractContextManager[Any]:
        """Lend a new connection of the driver, in autocommit; foreign keys are not looked at."""
        return closing(sqlite3.connect(self.path, isolation_level=None))

    @contextmanager
    def blocked(self) -> Iterator[None]:
        """While another program keeps everybody from writing."""
        with self.connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield

    def columns(self) -> dict[str, list[str]]:
        """The names of the columns of each table, in their order."""
        tables = self.rows(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name"
        )
        names = "SELECT name FROM pragma_table_info(?) ORDER BY cid"
        return {table: [name for (name,) in self.rows(names, table)] for (table,) in tables}

    def _run(self, connection: Any, sql: str, *values: Any) -> list[Row]:
        found: list[Row] = connection.execute(sql, values).fetchall()
        return found


class Databases(ABC):
    """Where databases of one engine come from."""

    @abstractmethod
    def lend(
        self, folder: Path, is_empty: bool = False, like: Database | None = None
    ) -> AbstractContextManager[Database]:
        """A new database, with `folder` for its files, which is taken away afterwards.

        It is set up, unless it shall be empty; or it is a copy of another one that nobody is using.
        """


class Files(Databases):
    """Database files: copies of one that was set up."""

    def __init__(self, folder: Path) -> None:
        self._template = folder / "template.db"
        schema.set_up(SqliteEngine(self._template))

    @contextmanager
    def lend(self, folder: Path, is_empty: bool = False, like: Database | None = None) -> Iterator[Sqlite]:
        """A new file in `folder`, or the place for one."""
        folder.mkdir(exist_ok=True)
        path = folder / "amelia.db"
        if not is_empty:
            shutil.copy(like.path if isinstance(like, Sqlite) else self._template, path)
        yield Sqlite(path)


def named(settings: Mapping[str, object]) -> dict[str, str]:
    """Settings as the environment has them."""
    return {f"AMELIA_{name.upper()}": str(value) for name, value in settings.items()}


def database_of(ledger: Ledger) -> Database:
    """The database behind a ledger."""
    if ledger.settings.database_url is None:
        return Sqlite(ledger.settings.database_path)
    from tests.cluster import Postgres

    return Postgres(ledger.settings.database_url, ledger.settings.database_path.parent)
