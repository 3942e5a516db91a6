"""The ledger of events: appended in order, found by id. Read in pages: `timeline.py`."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta, Struct
from peewee import SQL

from amelia_flask import clock, stages
from amelia_flask.database import Prepared, Row, at_most, by_id, param
from amelia_flask.errors import AmeliaError, IdReused, NotFound
from amelia_flask.fields import (
    Id,
    JsonObject,
    Moment,
    Timestamp,
    check_moment,
    check_object,
    no_object,
    object_from_text,
    object_to_text,
)
from amelia_flask.models import Event, EventPosition, Workflow
from amelia_flask.redaction import may_hold_secret, redact, same_json, same_text

MAX_BATCH = 1000
MAX_LINES = 10_000
SERVICE = "system"  # the agent of the events that the service itself writes

# These tell of moves and creation; only the service writes them, so that replaying them gives the status.
SERVICE_TYPES = frozenset(
    {
        "workflow_created",
        "workflow_started",
        "approval_required",
        "approval_granted",
        "approval_rejected",
        "workflow_completed",
        "workflow_failed",
        "workflow_cancelled",
    }
)

Level = Literal["debug", "info", "warning", "error"]
Agent = Annotated[str, Meta(min_length=1, max_length=100)]
EventType = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_.]{0,63}$(?!\n)", max_length=64)]
Message = Annotated[str, Meta(max_length=65_536)]


class NewEvent(Struct, forbid_unknown_fields=True, kw_only=True):
    """An event as an agent sends it. Without `timestamp` the time of arrival is taken."""

    agent: Agent
    event_type: EventType
    message: Message
    level: Level = "info"
    data: JsonObject = msgspec.field(default_factory=no_object)
    correlation_id: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    timestamp: Moment | None = None
    id: Id | None = None

    def __post_init__(self) -> None:
        if self.event_type in SERVICE_TYPES:
            raise ValueError(f"`event_type`: Events of type {self.event_type} are written by the service alone")
        self.data = check_object("data", self.data)
        check_moment("timestamp", self.timestamp)


class Appended(Struct):
    """Where an event stands: `sequence` within its workflow, `position` over all."""

    id: str
    sequence: int
    position: int


class AppendedEvents(Struct):
    """The events in the order sent; `duplicates` counts those that had been stored before."""

    events: list[Appended]
    duplicates: int


class StoredEvent(Struct):
    """An event as it is read."""

    id: str
    workflow_id: str
    sequence: int
    position: int
    timestamp: Timestamp
    agent: str
    event_type: str
    level: Level
    message: str
    data: JsonObject
    correlation_id: str | None


class NewRow(NamedTuple):
    """An event about to be stored: what `NewEvent` says, complete and as the columns hold it."""

    id: str
    timestamp: str
    agent: str
    event_type: str
    level: str
    message: str
    data_json: str | None
    correlation_id: str | None


class SameIds(Exception):
    """Two appends that are carried out at once hold the same new id."""


class Arrived(NamedTuple):
    """An event as it was sent, and as it will be stored."""

    event: NewEvent
    row: NewRow


Append = tuple[str, Sequence[Arrived]]  # the id of the workflow, and what is to be stored there
Places = dict[str, Appended]  # by the id of the event


class _Plan(Struct):
    """What an append comes to: the rows that are new, and where the others stand; or why it is refused."""

    workflow_id: str
    new: Sequence[Arrived]
    fresh: dict[str, NewRow]
    known: Places
    refused: AmeliaError | None = None

    def outcome(self, stored: Places) -> AppendedEvents | AmeliaError:
        if self.refused is not None:
            return self.refused
        if any(row_id not in stored for row_id in self.fresh):
            return NotFound()
        places = [self.known.get(row.id) or stored[row.id] for _, row in self.new]
        return AppendedEvents(places, len(self.new) - len(self.fresh))


COLUMNS = (
    Event.id,
    Event.workflow,
    Event.sequence,
    Event.position,
    Event.timestamp,
    Event.agent,
    Event.event_type,
    Event.level,
    Event.message,
    Event.data_json,
    Event.correlation_id,
)

_stored = by_id(*COLUMNS)
_take_sequences = Prepared(
    lambda: (
        Workflow.update(updated_at=param("now"), last_sequence=Workflow.last_sequence + param("count"))
        .where(Workflow.id == param("workflow"))
        .returning(Workflow.id, Workflow.last_sequence)
    ),
    """
    UPDATE workflows SET last_sequence = last_sequence + taken.count, updated_at = taken.moment
    FROM unnest(%s::timestamptz[], %s::bigint[], %s::text[]) AS taken (moment, count, id)
    WHERE workflows.id = taken.id RETURNING workflows.id, workflows.last_sequence
    """,
)
take_positions = Prepared(
    lambda: (
        EventPosition.update(value=EventPosition.value + param("count"))
        .where(EventPosition.id == SQL("1"))
        .returning(EventPosition.value)
    ),
    # With the commit it wakes those that wait for events, on every host.
    """
    UPDATE event_position SET value = value + taken.count FROM unnest(%s::bigint[]) AS taken (count)
    WHERE id = 1 RETURNING value, pg_notify('amelia_flask_events', '')
    """,
)
_insert = Prepared(lambda: Event.insert_many([tuple(param(column.name) for column in COLUMNS)], fields=list(COLUMNS)))
_this_workflow = Workflow.id == param("workflow")
_oldest = (
    Event.select(Event.sequence)
    .where(Event.workflow == param("workflow"))
    .where(Event.sequence <= Workflow.select(Workflow.last_sequence - param("count")).where(_this_workflow))
    .order_by(Event.sequence)
    .limit(at_most("count"))
)
_remove = Prepared(
    lambda: (
        Event.delete()
        .where((Event.workflow == param("workflow")) & Event.sequence.in_(_oldest))
        .returning(Event.workflow)
    )
)
_workflow_exists = Prepared(lambda: Workflow.select(Workflow.id).where(Workflow.id == param("workflow")))


def arrived(new: Sequence[NewEvent], redacts: bool = True) -> list[Arrived]:
    """The events as they will be stored, with ids and times, without secrets. Done before the transaction."""
    now = clock.to_text(clock.now())
    return [_arrived(event, now, redacts) for event in new]


def append(tx: Any, workflow_id: str, new: Sequence[Arrived]) -> AppendedEvents:
    """Store the events at the end of the workflow's timeline, all or none.

    An event whose id is stored already with the same content is not stored again and answers with where it
    stands. Raises NotFound, and IdReused for an id that is taken by other content.
    """
    (outcome,) = append_all(tx, [(workflow_id, new)])
    if isinstance(outcome, AmeliaError):
        raise outcome
    return outcome


def append_all(tx: Any, appends: list[Append]) -> list[AppendedEvents | AmeliaError]:
    """Carry out several appends at once; the outcome of each, or what `append` would raise.

    Raises SameIds where two of them hold the same id: one of them must be carried out after the other.
    """
    ids = [(event.id,) for _, new in appends for event, _ in new if event.id is not None]
    stored = {row[0]: from_row(row) for row in _stored.run_all(tx, ids)}
    plans = [_plan(tx, workflow_id, new, stored) for workflow_id, new in appends]
    _refuse_same_ids(plans)
    stored_places = _store(tx, [(plan.workflow_id, list(plan.fresh.values())) for plan in plans if plan.fresh])
    return [plan.outcome(stored_places) for plan in plans]


def append_own(
    tx: Any,
    workflow_id: str,
    event_type: str,
    message: str,
    data: dict[str, Any] | None,
    event_id: str | None,
    now: str,
) -> StoredEvent:
    """Store an event of the service itself, whose id must be new, in the transaction of what it tells of."""
    text = msgspec.json.encode(data).decode() if data else None
    row = NewRow(event_id or clock.new_id(), now, SERVICE, event_type, "info", message, text, None)
    if not _store(tx, [(workflow_id, [row])]):
        raise NotFound
    return get(tx, row.id)


def remove_oldest(tx: Any, workflow_id: str, count: int) -> bool:
    """Remove so many events of a workflow, the oldest first; keep as many of the newest. Whether there were more."""
    return bool(_remove.run(tx, workflow=workflow_id, count=count))


def find(db: Any, event_id: str) -> StoredEvent | None:
    """The event with this id, of whichever workflow."""
    rows = _stored.run(db, id=event_id)
    return from_row(rows[0]) if rows else None


def get(db: Any, event_id: str) -> StoredEvent:
    """The event with this id. Raises NotFound."""
    event = find(db, event_id)
    if event is None:
        raise NotFound
    return event


def _arrived(event: NewEvent, now: str, redacts: bool) -> Arrived:
    row = _row(event, now)
    if redacts and may_hold_secret(f"{row.message}\n{row.data_json}"):
        row = _row(redact(event), now)
    return Arrived(event, row)


def _row(event: NewEvent, now: str) -> NewRow:
    return NewRow(
        event.id or clock.new_id(),
        now if event.timestamp is None else clock.to_text(event.timestamp),
        event.agent,
        event.event_type,
        event.level,
        event.message,
        object_to_text(event.data),
        event.correlation_id,
    )


def _plan(tx: Any, workflow_id: str, new: Sequence[Arrived], stored: dict[str, StoredEvent]) -> _Plan:
    plan = _Plan(workflow_id, new, {}, {})
    try:
        for event, row in new:
            place = _twin(tx, workflow_id, event, row, plan.fresh, stored) if event.id is not None else None
            if place is not None:
                plan.known[row.id] = place
            else:
                plan.fresh.setdefault(row.id, row)
    except (IdReused, NotFound) as refused:
        return _Plan(workflow_id, new, {}, {}, refused)
    return plan


def _refuse_same_ids(plans: list[_Plan]) -> None:
    if len({row_id for plan in plans for row_id in plan.fresh}) < sum(len(plan.fresh) for plan in plans):
        raise SameIds


def _twin(
    tx: Any,
    workflow_id: str,
    event: NewEvent,
    row: NewRow,
    fresh: dict[str, NewRow],
    stored: dict[str, StoredEvent],
) -> Appended | None:
    """Where an event with this id and content stands already, None where there is none or it is in this batch."""
    earlier = fresh.get(row.id)
    if earlier is not None:
        if not _same(row, earlier, event.timestamp is not None):
            raise IdReused(id=row.id)
        return None
    found = stored.get(row.id)
    if found is None:
        return None
    kept = NewRow(
        found.id,
        found.timestamp,
        found.agent,
        found.event_type,
        found.level,
        found.message,
        object_to_text(found.data),
        found.correlation_id,
    )
    if found.workflow_id != workflow_id:
        refuse_unknown(tx, workflow_id)
        raise IdReused(id=row.id)
    if not _same(row, kept, event.timestamp is not None):
        raise IdReused(id=row.id)
    return Appended(found.id, found.sequence, found.position)


def refuse_unknown(db: Any, workflow_id: str) -> None:
    """Raises NotFound where there is no such workflow."""
    if not _workflow_exists.run(db, workflow=workflow_id):
        raise NotFound


def _same(row: NewRow, kept: NewRow, has_timestamp: bool) -> bool:
    """Whether two events say the same. A time of arrival says nothing; the order of members neither."""
    moment = row.timestamp if has_timestamp else kept.timestamp
    rest = row._replace(timestamp=moment, message=kept.message, data_json=kept.data_json)
    return rest == kept and same_text(row.message, kept.message) and same_json(row.data_json, kept.data_json)


def _store(tx: Any, appends: list[tuple[str, list[NewRow]]]) -> Places:
    """Give the rows their numbers and insert them; where they stand, without those of workflows that there are not.

    The position is taken last: its row is everybody's.
    """
    counts: dict[str, int] = {}
    for workflow_id, rows in appends:
        counts[workflow_id] = counts.get(workflow_id, 0) + len(rows)
    now = clock.to_text(clock.now())
    taken = _take_sequences.run_all(tx, [(now, count, workflow_id) for workflow_id, count in counts.items()])
    sequences = {workflow_id: last - counts[workflow_id] for workflow_id, last in taken}
    numbered = []
    for workflow_id, rows in appends:
        if workflow_id in sequences:
            numbered += [(workflow_id, sequences[workflow_id] + n, row) for n, row in enumerate(rows, 1)]
            sequences[workflow_id] += len(rows)
    return _insert_all(tx, numbered) if numbered else {}


def _insert_all(tx: Any, numbered: list[tuple[str, int, NewRow]]) -> Places:
    position = take_positions.run_all(tx, [(len(numbered),)])[0][0] - len(numbered)
    _insert.run_many(
        tx,
        [
            (row.id, workflow_id, sequence, position + n, *row[1:])
            for n, (workflow_id, sequence, row) in enumerate(numbered, 1)
        ],
    )
    for workflow_id, sequence, row in numbered:
        if row.event_type in stages.TYPES:
            stages.note(tx, workflow_id, row.event_type, row.data_json, sequence)
    return {row.id: Appended(row.id, sequence, position + n) for n, (_, sequence, row) in enumerate(numbered, 1)}


def from_row(row: Row) -> StoredEvent:
    *head, data_json, correlation_id = row
    return StoredEvent(*head, object_from_text(data_json), correlation_id)  # type: ignore[call-arg]  # a checker cannot count columns
