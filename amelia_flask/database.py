"""What the service asks of a database, whichever engine keeps it: prepared queries, short reads, one door for writes.

The engines are in `sqlite/` and `postgres/`; `engines.py` says which one the settings name.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import peewee
from peewee import psycopg  # None where it is not installed
from peewee import sqlite3 as sqlite  # pysqlite3 where it is installed
from playhouse.pool import MaxConnectionsExceeded

from amelia_flask.errors import DatabaseUnavailable

BUSY_TIMEOUT_MS = 5000
POOL_WAIT_SECONDS = 5
# No read of the service takes longer than a few milliseconds; one that does is ended, for the sake of the others.
READ_SECONDS = 5.0

Row = Any  # a tuple in the order of the query's columns

_DRIVERS = [sqlite, psycopg] if psycopg else [sqlite]
# What a database that is locked, full, away or broken may raise, and of these what tells of a statement at fault.
FAULTS = (peewee.PeeweeException, OSError, *(driver.Error for driver in _DRIVERS))
MISTAKES = tuple(
    getattr(module, name)
    for module in (peewee, *_DRIVERS)
    for name in ("IntegrityError", "DataError", "ProgrammingError")
)

# What a lock between processes is for. `writer` is held around each transaction that writes on SQLite, whose own lock
# is not fair: a process that commits back to back can starve another for seconds; on every engine it is held around
# changes of the schema. `serving` is shared by the processes of a server from its start to its end, and held alone by
# what replaces the database; `retention` by the one that prunes.
WRITER = "writer"
SERVING = "serving"
RETENTION = "retention"


class Lock(ABC):
    """A lock between processes, which falls to the next when its holder dies."""

    @abstractmethod
    def held(self, seconds: float | None = None) -> AbstractContextManager[None]:
        """Hold the lock, however long it takes to get it.

        With `seconds` it raises DatabaseUnavailable when it was not to be had within them.
        """

    @abstractmethod
    def keep(self) -> None:
        """Hold the lock alone until `close`. Raises DatabaseUnavailable while somebody else holds it."""

    @abstractmethod
    def close(self) -> None:
        """Let go of it."""


class Door(ABC):
    """The one connection through which a process writes, and what its engine wants done around a transaction."""

    db: Any

    @abstractmethod
    def exclusive(self) -> AbstractContextManager[None]:
        """Keep the other processes of this machine from writing, where that is not the engine's own work."""

    @abstractmethod
    def open(self) -> None:
        """Have a connection that is fit to write on. Raises what the engine raises, and DatabaseUnavailable."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the connection, whatever state it is in."""

    def finish(self) -> None:
        """Let go of everything."""
        self.close()

    @abstractmethod
    def begin(self, workflows: Collection[str] | None, is_mixed: bool) -> None:
        """Begin a transaction that changes these workflows, None for any; `is_mixed` if it does not only append."""

    @property
    @abstractmethod
    def is_open(self) -> bool:
        """Whether there is a transaction."""

    @property
    @abstractmethod
    def is_sound(self) -> bool:
        """Whether there is a transaction in which another statement may follow."""

    @property
    @abstractmethod
    def written(self) -> int:
        """A number that is another one after something was written."""

    @property
    @abstractmethod
    def is_lost(self) -> bool:
        """Whether the connection broke, so that nobody can tell how a COMMIT ended."""

    def is_rivalry(self, _error: BaseException) -> bool:
        """Whether the transaction failed only because of others at the same time, so that it is tried again."""
        return False

    def problem(self) -> str | None:
        """What another program has done to the database, which then is written no more."""
        return None

    def look_after(self) -> None:  # noqa: B027 - there may be nothing to look after
        """Called now and then while nothing is written."""


class Listener(ABC):
    """Hears of events that any process stores, on whichever host, while it lives."""

    @property
    @abstractmethod
    def hears(self) -> bool:
        """Whether nothing is missed at the moment."""

    @abstractmethod
    def stop(self) -> None:
        """Hear no more."""


class Engine(ABC):
    """Where the record is kept. Making one opens nothing; as text it is what people are told of it."""

    mode: Literal["wal", "postgresql"]

    @abstractmethod
    def open_readers(self, connections: int) -> Any:
        """A pool of at most `connections` that can read and nothing else."""

    @abstractmethod
    def open_writer(self) -> Any:
        """One connection that may write, for set-up and upkeep."""

    @abstractmethod
    def open_door(self) -> Door:
        """The way in for a writer."""

    def listen(self, _wake: Callable[[], None]) -> Listener | None:
        """Call `wake` after each commit that stores events; None where the engine tells nobody of commits."""
        return None

    @abstractmethod
    def peeking(self) -> AbstractContextManager[Any]:
        """Lend the driver's own connection that changes nothing, whoever the database belongs to."""

    @abstractmethod
    def lock(self, purpose: str) -> Lock:
        """A lock between all processes that use this database."""

    @abstractmethod
    def check_place(self) -> None:
        """Raises SchemaError, with a sentence, where there can be no database."""

    @abstractmethod
    def exists(self) -> bool:
        """Whether there is a database, empty or not."""

    @abstractmethod
    def create(self) -> None:
        """Make an empty database where there is none; one that is there is not opened to others any further."""

    @abstractmethod
    def names(self, connection: Any) -> set[str]:
        """The names of the tables and indexes that are there."""

    @abstractmethod
    def identity(self, connection: Any) -> str:
        """The same text for the same database, by whatever name it is called."""

    @abstractmethod
    def columns(self, connection: Any, table: str) -> set[str]:
        """The names of a table's columns; none where there is no such table."""

    @abstractmethod
    def stream(self, connection: Any, sql: str) -> Iterator[Row]:
        """The rows that a query gives on a connection that was lent to peek: never are all of them in memory."""

    @abstractmethod
    def damages(self, connection: Any) -> Iterator[str]:
        """What the engine itself finds wrong with its storage, a sentence for each."""

    @abstractmethod
    def version(self) -> str:
        """The engine and its version, as far as it is known."""

    def is_mended(self) -> bool:
        """Whether several processes may write at once without harm."""
        return True

    def begin_serving(self) -> None:  # noqa: B027 - where nothing can replace a database, there is nothing to do
        """Keep away what would replace the database, until this process and its children have ended.

        Raises SchemaError while that is being done.
        """


@contextmanager
def reading(db: Any) -> Iterator[Any]:
    """Lend this thread a connection for one short read, all of which sees the same moment.

    Raises DatabaseUnavailable when there is none, and when the read takes longer than READ_SECONDS. A connection on
    which anything failed is thrown away rather than lent again.
    """
    try:
        db.connect()
        try:
            db.begin_read()
            try:
                yield db
            finally:
                db.connection().execute("COMMIT")
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


def at_most(name: str) -> Any:
    """The LIMIT of a prepared query, to be given by `name` at each run.

    It is an expression, because SQLite plans a query anew each time that a bare parameter of a LIMIT is given.
    """
    return param(name) + peewee.SQL("0")


class Prepared:
    """A query made from the models and compiled once; what is left to do at each run is the database's work.

    It goes straight to the engine's connection and raises what that raises, not Peewee's twins of it.
    """

    def __init__(self, build: Callable[[], Any], at_once: str = "") -> None:
        """`at_once`: what `run_all` says to PostgreSQL, with an array of the values of each `param`."""
        self._build = build
        self._at_once = at_once
        self._compiled: dict[type, tuple[str, list[Any]]] = {}
        self._many: dict[type, str] = {}

    def run(self, db: Any, /, **values: Any) -> list[Row]:
        """All rows of the result, or of RETURNING. `values` names every `param` of the query."""
        cursor = self._execute(db, values)
        rows: list[Row] = cursor.fetchall() if cursor.description else []
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

    def run_many(self, db: Any, rows: Collection[Row]) -> None:
        """Insert all rows; a row holds the values of the `param`s in the order in which they appear."""
        sql = self._many.get(type(db)) or self._many.setdefault(type(db), db.compile_many(self._build()))
        db.insert_many(sql, rows)

    def run_all(self, db: Any, rows: Collection[Row]) -> list[Row]:
        """All rows of all results of running once for each row, in any order."""
        if not rows:
            return []
        sql, _ = self._compiled.get(type(db)) or self._compile(db)
        found: list[Row] = db.run_all(sql, self._at_once, rows)
        return found

    def _execute(self, db: Any, values: dict[str, Any]) -> Any:
        sql, params = self._compiled.get(type(db)) or self._compile(db)
        given = [values[value] if isinstance(value, _Name) else value for value in params]
        return db.connection().execute(sql, given)

    def _compile(self, db: Any) -> tuple[str, list[Any]]:
        sql, params = db.get_sql_context().sql(self._build()).query()
        return self._compiled.setdefault(type(db), (sql, list(params)))


def by_id(*columns: Any) -> Prepared:
    """These columns of the row with an `id`; `run_all` finds those of many ids, each in a tuple of its own."""
    model = columns[0].model
    names = ", ".join(column.column_name for column in columns)
    return Prepared(
        lambda: model.select(*columns).where(model.id == param("id")),
        f"SELECT {names} FROM {model._meta.table_name} WHERE id = ANY(%s::text[])",  # noqa: S608 - names of the models
    )
