"""Whole tables as rows in the order of a key, the same on every engine; and one brought to what another is."""

from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from typing import Any

import peewee

from amelia_flask.database import FAULTS, Engine, Prepared, Row, param
from amelia_flask.errors import AmeliaError
from amelia_flask.models import TABLES, Event

# What is written at once. A row can have a third of a megabyte.
MOST_ROWS = 1000
MOST_BYTES = 4 * 1024 * 1024

Rows = Generator[Row, None, None]
Pair = tuple[Row | None, Row | None]


class CopyRefused(AmeliaError):
    """The copy cannot be made."""


@contextmanager
def writing_to(target: Engine) -> Iterator[None]:
    """Say which database it is that cannot be written. Raises CopyRefused."""
    try:
        yield
    except FAULTS as error:
        raise CopyRefused(f"{target} cannot be written: {first_line(error)}.") from error


def first_line(error: BaseException) -> str:
    """What went wrong, without what some engines add about the statement."""
    return str(error).strip().partition("\n")[0].rstrip(".")


class WholeTable:
    """A table, read and written by rows in which the key comes first."""

    def __init__(self, model: Any, keys: tuple[Any, ...]) -> None:
        self.name: str = model._meta.table_name
        self.keys = len(keys)
        others = sorted(set(model._meta.sorted_fields) - set(keys), key=lambda field: str(field.column_name))
        columns = [*keys, *others]
        self._names = [field.column_name for field in columns]
        self._all = model.select(*columns).order_by(*keys)
        self._count = Prepared(lambda: model.select(peewee.fn.COUNT(peewee.SQL("*"))))
        self._insert = model.insert_many([[param(field.column_name) for field in columns]], fields=columns)
        is_this = [field == param(field.column_name) for field in keys]
        # Where there are only keys no row can change.
        values = {field: param(field.column_name) for field in others or keys}
        self._update = Prepared(lambda: model.update(values).where(*is_this))
        self._delete = Prepared(lambda: model.delete().where(*is_this))

    def rows(self, db: Any) -> Rows:
        """All of them, in the order of the key: never are all in memory. To be closed before the connection is."""
        return db.rows_of(self._all)  # type: ignore[no-any-return]  # a database has no types

    def count(self, db: Any) -> int:
        """How many there are."""
        return int(self._count.run(db)[0][0])

    def named(self, row: Row) -> dict[str, Any]:
        """The values of a row by the names of their columns."""
        return dict(zip(self._names, row, strict=True))

    def insert(self, db: Any, rows: list[Row]) -> None:
        """Store new rows."""
        db.load(self._insert, rows)

    def update(self, db: Any, row: Row) -> None:
        """Have the row with this key say this."""
        self._update.run(db, **self.named(row))

    def delete(self, db: Any, row: Row) -> None:
        """Take the row with this key, and what belongs to it."""
        self._delete.run(db, **dict(zip(self._names, row[: self.keys], strict=False)))


def differences(table: WholeTable, wanted: Rows, found: Rows) -> Generator[Pair, None, None]:
    """Where the rows of two tables differ: each that is wanted and the one with its key that was found, or None.

    Both are closed when it ends.
    """
    with closing(wanted), closing(found):
        yield from _differences(table.keys, wanted, found)


def _differences(keys: int, wanted: Rows, found: Rows) -> Iterator[Pair]:
    there = next(found, None)
    for row in wanted:
        while there is not None and there[:keys] < row[:keys]:
            yield None, there
            there = next(found, None)
        if there is None or there[:keys] != row[:keys]:
            yield row, None
            continue
        if there != row:
            yield row, there
        there = next(found, None)
    while there is not None:
        yield None, there
        there = next(found, None)


class Changes:
    """What is to be done to a table, gathered and done in transactions that are not large."""

    def __init__(self, target: Engine, db: Any, table: WholeTable) -> None:
        self._target = target
        self._db = db
        self._table = table
        self._forget()

    def _forget(self) -> None:
        self._new: list[Row] = []
        self._changed: list[Row] = []
        self._gone: list[Row] = []
        self._size = 0

    def add(self, wanted: Row | None, found: Row | None) -> None:
        """Have `found` become `wanted`, of which either may be missing."""
        if wanted is None:
            self._gone.append(found)
        elif found is None:
            self._new.append(wanted)
        else:
            self._changed.append(wanted)
        self._size += sum(len(value) for value in wanted or () if isinstance(value, str))
        if len(self._new) + len(self._changed) + len(self._gone) >= MOST_ROWS or self._size >= MOST_BYTES:
            self.carry_out()

    def carry_out(self) -> None:
        """Do what was gathered. What goes does so first: what comes may be in its place. Raises CopyRefused."""
        with writing_to(self._target), self._db.atomic():
            for row in self._gone:
                self._table.delete(self._db, row)
            for row in self._changed:
                self._table.update(self._db, row)
            if self._new:
                self._table.insert(self._db, self._new)
        self._forget()


def _whole(model: Any) -> WholeTable:
    """Events go by position: what is new comes last, on every engine, and nothing is searched for."""
    return WholeTable(model, (Event.position,) if model is Event else tuple(model._meta.get_primary_keys()))


WHOLE_TABLES = tuple(map(_whole, TABLES))
WORKFLOWS, EVENTS, TOKEN_USAGE = WHOLE_TABLES[:3]
