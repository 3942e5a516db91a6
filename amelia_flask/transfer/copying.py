"""A database made the copy of another, whichever engines keep them: row by row, in bounded memory.

Unlike an export it moves everything there is as it is, what is half pruned and who has access included, so that both
are the same table by table in the end. What is there already is compared and stays; so a copy that was cut off goes
on when it is repeated, and one that is repeated after the source has changed brings over what has changed.

While it is made a copy does not have what must hold of a record. It is marked from before the first change until it
is known to be whole, and no version of the service opens a database that is marked.
"""

import hashlib
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

import msgspec

from amelia_flask import clock, report, schema
from amelia_flask.database import SERVING, WRITER, Engine, Prepared, Row, param, reading
from amelia_flask.errors import DatabaseUnavailable
from amelia_flask.models import ACTIVE, EventPosition, PrunedWorkflow, Status, Workflow
from amelia_flask.progress import Step, Unit
from amelia_flask.transfer.tables import (
    EVENTS,
    TOKEN_USAGE,
    WHOLE_TABLES,
    WORKFLOWS,
    Changes,
    CopyRefused,
    Pair,
    Rows,
    WholeTable,
    differences,
    first_line,
    writing_to,
)

ROWS = Unit("rows", 1)
# Every row is read for the copy, and once from each database for the comparison.
READ_TIMES = 3
LOCK_SECONDS = 5.0
# What tells whether somebody has written to a copy, and what is there in a new database already.
_TELLING = (EVENTS, TOKEN_USAGE, WORKFLOWS)
_NEVER_EMPTY = ("event_position", "health_check")

_position = Prepared(lambda: EventPosition.select(EventPosition.value))
_created_at = Prepared(
    lambda: Workflow.select(Workflow.created_at).where(
        (Workflow.id == param("id")) & Workflow.id.not_in(PrunedWorkflow.select(PrunedWorkflow.id))
    )
)
_active = Workflow.status.in_([str(status) for status in ACTIVE])
_release_worktrees = Prepared(lambda: Workflow.update(status=str(Status.CANCELLED)).where(_active))
Found = TypeVar("Found")
_encoder = msgspec.msgpack.Encoder()


class Content(NamedTuple):
    """What a table holds: how many rows, and the SHA-256 of all of them in the order of their key."""

    rows: int
    digest: str


class Contents(NamedTuple):
    """What a database holds at one moment: its tables by name, and the usage report over all time."""

    tables: dict[str, Content]
    usage: report.UsageReport


class Comparison(NamedTuple):
    """What two databases hold."""

    source: Contents
    target: Contents

    @property
    def different(self) -> list[str]:
        """The names of the tables that are not the same in both, and `the usage report` where that is not."""
        names = [name for name, content in self.source.tables.items() if content != self.target.tables[name]]
        return names if self.source.usage == self.target.usage else [*names, "the usage report"]


def length(source: Engine) -> int:
    """How many steps a copy of this database takes: rows that are read. Raises SchemaError."""
    schema.refuse_earlier(source)
    with _looking_at(source) as db:
        return READ_TIMES * sum(table.count(db) for table in WHOLE_TABLES)


def copy(source: Engine, target: Engine, step: Step, must_be_new: bool = False, is_still: bool = False) -> Comparison:
    """Make `target` what `source` is, and compare them; `step` is given the rows as they are read.

    Where they differ in the end the source was written to meanwhile: the target stays marked until another copy finds
    them the same. With `is_still` the target is compared with the moment of which it is a copy. The target may be
    empty, an unfinished copy of this record, or unless it `must_be_new` a finished one that nobody has written to.
    Raises CopyRefused for any other, and then nothing is changed; SchemaError, and DatabaseUnavailable.
    """
    schema.refuse_earlier(source)
    now = clock.now()
    with _alone(source, target):
        with _looking_at(source) as db:
            history = schema.history(db)
            with _looking_at(target) as there:
                if not _is_part(db, there, history, must_be_new, step):
                    raise CopyRefused(_not_empty(target, must_be_new))
            with _writer(target) as writer:
                _set_history(target, writer, history | {schema.UNFINISHED_COPY: min(history.values())})
                _Copying(db, target, writer, step).carry_out()
            mine = _contents(db, step, now) if is_still else None
        if mine is None:
            with _looking_at(source) as db:
                mine = _contents(db, step, now)
        with _looking_at(target) as there:
            comparison = Comparison(mine, _contents(there, step, now))
        if not comparison.different:
            with _writer(target) as writer:
                with writing_to(target):
                    writer.analyze()
                _set_history(target, writer, history)
    return comparison


@contextmanager
def _looking_at(engine: Engine) -> Iterator[Any]:
    """Lend a connection for a read of one moment that takes as long as it takes."""
    db = engine.open_readers(1)
    try:
        with reading(db):
            db.take_time()
            yield db
    except DatabaseUnavailable as error:
        raise CopyRefused(f"{engine} cannot be read: {first_line(error.__cause__ or error)}") from error
    finally:
        db.close_all()


@contextmanager
def _alone(source: Engine, target: Engine) -> Iterator[None]:
    """Set the target up where it is new, and keep all others from writing to it.

    Raises CopyRefused where it is in use, or the source itself.
    """
    target.check_place()
    if target.exists() and _peek(source, source.identity) == _peek(target, target.identity):
        raise CopyRefused(f"{target} is the database itself.")
    with ExitStack() as stack:
        serving, writing = (stack.enter_context(closing(target.lock(purpose))) for purpose in (SERVING, WRITER))
        try:
            serving.keep()
            _set_up_where_new(target)
            stack.enter_context(writing.held(LOCK_SECONDS))
        except DatabaseUnavailable:
            raise CopyRefused(f"A server or another program is using {target}: stop it first.") from None
        yield


def _set_up_where_new(target: Engine) -> None:
    if not target.exists() or not _peek(target, target.names):
        schema.set_up(target)
    elif not schema.is_unfinished_copy(target):
        schema.refuse_earlier(target)


def _peek(engine: Engine, look: Callable[[Any], Found]) -> Found:
    with engine.peeking() as connection:
        return look(connection)


@contextmanager
def _writer(target: Engine) -> Iterator[Any]:
    db = target.open_writer()
    try:
        with writing_to(target):
            db.connect()
        yield db
    finally:
        db.close_all()


def _set_history(target: Engine, writer: Any, history: dict[str, str]) -> None:
    with writing_to(target), writer.atomic():
        schema.set_history(writer, history)


def _is_part(source: Any, target: Any, history: dict[str, str], must_be_new: bool, step: Step) -> bool:
    """Whether the target holds nothing that is not of this record."""
    found = schema.history(target)
    if found.pop(schema.UNFINISHED_COPY, None):
        return found == history
    return _is_empty(target) or (not must_be_new and found == history and not _has_gone_on(source, target, step))


def _not_empty(target: Engine, must_be_new: bool) -> str:
    if must_be_new:
        return f"{target} is not empty: make an empty database for the backup; the record that is there stays there."
    return f"{target} holds another record, or was written to since it was copied: only an empty one can be filled."


def _is_empty(db: Any) -> bool:
    return _newest(db) == 0 and not any(table.count(db) for table in WHOLE_TABLES if table.name not in _NEVER_EMPTY)


def _newest(db: Any) -> int:
    return int(_position.run(db)[0][0])


def _has_gone_on(source: Any, target: Any, step: Step) -> bool:
    """Whether the target, a copy of this record once, has been written to since by others than a copy.

    No position is given twice, so an event of a copy is the source's, where that has not taken it; a version never
    falls, and usage goes with its workflow alone.
    """
    if _newest(target) > _newest(source):
        return True
    return any(_differs_by_newer(table, source, target, step) for table in _TELLING)


def _differs_by_newer(table: WholeTable, source: Any, target: Any, step: Step) -> bool:
    wanted = _counted(table.rows(source), lambda _rows: step(0))  # it is seen to go on
    with closing(differences(table, wanted, table.rows(target))) as pairs:
        return any(found and _is_newer(table, wanted, found, source, target) for wanted, found in pairs)


def _is_newer(table: WholeTable, wanted: Row | None, found: Row, source: Any, target: Any) -> bool:
    there = table.named(found)
    if table is EVENTS:
        return wanted is not None
    if table is TOKEN_USAGE:
        born = [_created_at.run(db, id=there["workflow_id"]) for db in (source, target)]
        return wanted is None and bool(born[0]) and born[0] == born[1]
    here = table.named(wanted) if wanted else there
    return bool(here["created_at"] == there["created_at"] and here["version"] < there["version"])


class _Copying:
    """The work of a copy, between the moment of the source and the target."""

    def __init__(self, source: Any, target: Engine, writer: Any, step: Step) -> None:
        self._source = source
        self._target = target
        self._writer = writer
        self._step = step

    def carry_out(self) -> None:
        self._take_what_is_gone()
        for table in WHOLE_TABLES:
            self._bring_over(table)

    def _take_what_is_gone(self) -> None:
        """Take workflows that are no longer there, or by their ids others, and let none hold a worktree.

        So what is stored afterwards meets nothing that is unlike it.
        """
        changes = self._changes(WORKFLOWS)
        with closing(self._differences(WORKFLOWS, WORKFLOWS.rows(self._source))) as pairs:
            for wanted, found in pairs:
                if found and (wanted is None or _birth(wanted) != _birth(found)):
                    changes.add(None, found)
        changes.carry_out()
        with writing_to(self._target), self._writer.atomic():
            _release_worktrees.run(self._writer)

    def _bring_over(self, table: WholeTable) -> None:
        changes = self._changes(table)
        with closing(self._differences(table, _counted(table.rows(self._source), self._step))) as pairs:
            for wanted, found in pairs:
                changes.add(wanted, found)
        changes.carry_out()

    def _changes(self, table: WholeTable) -> Changes:
        return Changes(self._target, self._writer, table)

    def _differences(self, table: WholeTable, wanted: Rows) -> Generator[Pair, None, None]:
        return differences(table, wanted, _as_found(self._target, table))


def _as_found(target: Engine, table: WholeTable) -> Rows:
    """The rows of a table; the read ends with the last of them, so that the log can shrink."""
    with _looking_at(target) as db, closing(table.rows(db)) as rows:
        yield from rows


def _birth(workflow: Row) -> Any:
    return WORKFLOWS.named(workflow)["created_at"]


def _counted(rows: Rows, step: Step) -> Rows:
    with closing(rows):
        for row in rows:
            step(1)
            yield row


def _contents(db: Any, step: Step, now: datetime) -> Contents:
    tables = {}
    for table in WHOLE_TABLES:
        with closing(_counted(table.rows(db), step)) as rows:
            tables[table.name] = _content(rows)
    history = schema.history(db)
    history.pop(schema.UNFINISHED_COPY, None)
    tables["schema_version"] = _content(iter(history.items()))
    return Contents(tables, report.report(db, report.period("all", None, None, now), now))


def _content(rows: Iterator[Row]) -> Content:
    count, digest = 0, hashlib.sha256()
    for row in rows:
        digest.update(_encoder.encode(row))
        count += 1
    return Content(count, digest.hexdigest())
