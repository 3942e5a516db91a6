"""What one transaction of an import does.

Everything that holds of the record holds after each of these transactions. A workflow whose events have not all come
has the status that those tell of; meanwhile its version is 0, and one that will turn out to have ended stands in a
worktree of its own, so that it keeps nobody from its real one.

Positions are kept where they are above all that were ever given, and otherwise the next ones are taken, in the order
of the old ones: an empty database keeps all of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Literal, NamedTuple

import msgspec

from amelia_flask import events, moves, rollups, workflows
from amelia_flask.database import MISTAKES, Prepared, Row, by_id, param
from amelia_flask.models import ACTIVE, Event, OpenStage, Status, TokenUsage, Workflow
from amelia_flask.pricing import to_dollars
from amelia_flask.summaries import is_active
from amelia_flask.transfer.lines import (
    EVENT_COLUMNS,
    USAGE_COLUMNS,
    WORKFLOW_COLUMNS,
    End,
    EventLine,
    Line,
    Malformed,
    PrunedLine,
    UsageLine,
    WorkflowLine,
)
from amelia_flask.transfer.pruned import take_pruned

_REPLAYED = {"workflow_created": Status.PENDING} | {move.event_type: move.target for move in moves.MOVES.values()}


class _Refused(Exception):
    """A workflow cannot be taken in; the message says why."""


@dataclass
class Taken:
    """What an import did: how much was new, how much was there; `refused` has a sentence for each thing left out."""

    workflows: int = 0
    events: int = 0
    usage_records: int = 0
    known_workflows: int = 0
    pruned_workflows: int = 0
    refused: list[str] = field(default_factory=list)


# "new" is being taken in, "known" was there with the same content, "gone" was refused, pruned or deleted.
_Standing = Literal["new", "known", "gone"]


class Open(NamedTuple):
    """A workflow whose last event has not come, without its state."""

    line: WorkflowLine
    standing: _Standing


_id = Workflow.id == param("id")
_stored = by_id(*WORKFLOW_COLUMNS)
_insert = Prepared(
    lambda: Workflow.insert_many([[param(column.name) for column in WORKFLOW_COLUMNS]], fields=list(WORKFLOW_COLUMNS))
)
_row = Prepared(
    lambda: Workflow.select(Workflow.version, Workflow.last_sequence, Workflow.status, Workflow.usage_count).where(
        _id
    )
)
_holder = Prepared(
    lambda: Workflow.select(Workflow.id).where(
        (Workflow.host == param("host")) & (Workflow.worktree_path == param("worktree_path")) & is_active
    )
)
_advance = Prepared(
    lambda: Workflow.update(
        last_sequence=param("last_sequence"),
        status=param("status"),
        started_at=param("started_at"),
        completed_at=param("completed_at"),
    ).where(_id)
)
_finish = Prepared(
    lambda: Workflow.update(
        worktree_path=param("worktree_path"),
        version=param("version"),
        updated_at=param("updated_at"),
    ).where(_id)
)
_stage = Prepared(
    lambda: OpenStage.insert(workflow=param("workflow"), stage=param("stage"), sequence=param("sequence"))
)
_event = by_id(*EVENT_COLUMNS)
_new_events = Event.insert_many([[param(column.name) for column in EVENT_COLUMNS]], fields=list(EVENT_COLUMNS))
_DERIVED = (TokenUsage.day, TokenUsage.cost_usd)
_record = by_id(*USAGE_COLUMNS)
_new_records = TokenUsage.insert_many(
    [[param(column.name) for column in (*USAGE_COLUMNS, *_DERIVED)]], fields=[*USAGE_COLUMNS, *_DERIVED]
)

_of_workflow, _of_event, _of_record = (
    attrgetter(*(column.column_name for column in columns))
    for columns in (WORKFLOW_COLUMNS, EVENT_COLUMNS, USAGE_COLUMNS)
)
_POSITION = EventLine.__struct_fields__.index("position")
WORKFLOW_NAMES = tuple(column.name for column in WORKFLOW_COLUMNS)
# What a workflow is created with: while it is being taken in, only this can be compared.
_CONSTANT = ("issue_id", "worktree_name", "failure_reason", "state_json", "created_at", "host", "profile", "digest")


Batch = list[tuple[int, Line]]  # lines with their numbers


class Done(NamedTuple):
    """What one transaction did: the workflows that are open after it, and what to count."""

    standing: dict[str, Open]
    taken: Taken


def place(tx: Any, batch: Batch, standing: Mapping[str, Open]) -> Done:
    """Take in some lines; `standing` are the workflows that those before them left open. Raises Malformed."""
    part = _Part(tx, standing)
    try:
        part.look_up([line for _, line in batch])
        for number, line in batch:
            part.take(number, line)
        part.store()
    except MISTAKES as error:
        first, last = batch[0][0], batch[-1][0]
        raise Malformed(f"Lines {first} to {last} contradict one another or what is stored: {error}.") from None
    return Done(part.standing, part.taken)


class _Row:
    """A workflow that is being taken in, as far as it has come."""

    def __init__(self, last_sequence: int, status: str, usage_count: int) -> None:
        self.last_sequence, self.status, self.usage_count = last_sequence, status, usage_count
        self.stored_status = status


class _Part:
    """The work of one transaction. It keeps nothing beyond it, so that the transaction may be tried again."""

    def __init__(self, tx: Any, standing: Mapping[str, Open]) -> None:
        self._tx = tx
        self.standing = dict(standing)
        self.taken = Taken()
        self._rows: dict[str, _Row] = {}
        self._end: int | None = None
        self._events: list[EventLine] = []
        self._records: dict[str, list[UsageLine]] = {}
        self._known: dict[tuple[type, str], Row] = {}  # events and records that are stored, by id

    def look_up(self, lines: list[Line]) -> None:
        """Find what is there already, in one go."""
        for query, kind in ((_event, EventLine), (_record, UsageLine)):
            ids = [(line.id,) for line in lines if isinstance(line, kind)]
            self._known |= {(kind, row[0]): row for row in query.run_all(self._tx, ids)}

    def take(self, number: int, line: Line) -> None:
        match line:
            case WorkflowLine(id=workflow_id):
                self._or_refuse(workflow_id, self._begin, number, line)
            case UsageLine(workflow_id=workflow_id):
                self._or_refuse(workflow_id, self._take_record, number, line)
            case EventLine(workflow_id=workflow_id):
                self._or_refuse(workflow_id, self._take_event, number, line)
            case PrunedLine():
                self.taken.refused += filter(None, [take_pruned(self._tx, line)])
            case End(event_position=position):
                self._end = position

    def store(self) -> None:
        """Write what was gathered: records, then events, then what they make of their workflows."""
        for workflow_id, records in self._records.items():
            rollups.add(self._tx, workflow_id, [(one.key, one.sums) for one in records], len(records))
            self._tx.load(_new_records, [(*_of_record(one), one.key[0], _dollars(one)) for one in records])
            self.taken.usage_records += len(records)
        if self._events:
            self._tx.load(_new_events, self._placed())
            self.taken.events += len(self._events)
        if self._end is not None:
            self._raise_position(self._end)
        for workflow_id, row in list(self._rows.items()):
            self._advance(self.standing[workflow_id].line, row)

    def _or_refuse(self, workflow_id: str, take: Callable[[int, Any], None], number: int, line: Line) -> None:
        try:
            take(number, line)
        except _Refused as error:
            self.taken.refused.append(f"Workflow {workflow_id} is left out: {error}.")
            self._leave_out(workflow_id)

    def _begin(self, number: int, line: WorkflowLine) -> None:
        if line.id in self.standing:
            raise Malformed(f"Line {number}: The workflow {line.id} is there for the second time.")
        self.standing[line.id] = Open(msgspec.structs.replace(line, state_json=None), "gone")
        standing = self._meet(line)
        self.standing[line.id] = self.standing[line.id]._replace(standing=standing)
        if standing == "new":
            self._standing_of(number, line.id)

    def _meet(self, line: WorkflowLine) -> _Standing:
        """What a workflow is beside what is stored."""
        if workflows.was_pruned(self._tx, line.id):
            self.taken.pruned_workflows += 1
            return "gone"
        found = _stored.run(self._tx, id=line.id)
        if not found:
            self._insert(line)
            return "new"
        if found[0] == _of_workflow(line):
            self.taken.known_workflows += 1
            return "known"
        stored = dict(zip(WORKFLOW_NAMES, found[0], strict=True))
        if stored["version"] == 0 and all(stored[name] == getattr(line, name) for name in _CONSTANT):
            return "new"
        raise _Refused("it exists with other content")

    def _insert(self, line: WorkflowLine) -> None:
        path = line.worktree_path
        if line.status in ACTIVE:
            if holder := _holder.run(self._tx, host=line.host, worktree_path=path):
                raise _Refused(f"its worktree {path} is held by the active workflow {holder[0][0]}")
        else:
            path = f"/importing/{line.id}"
        begun: dict[str, Any] = {
            "status": Status.PENDING,
            "started_at": None,
            "completed_at": None,
            "version": 0,
            "usage_count": 0,
        }
        begun |= {"worktree_path": path, "last_sequence": line.first_sequence - 1}
        _insert.run(self._tx, **dict(zip(WORKFLOW_NAMES, _of_workflow(line), strict=True)) | begun)
        rollups.count_workflow(self._tx, line.created_at)

    def _take_record(self, number: int, line: UsageLine) -> None:
        standing = self._standing_of(number, line.workflow_id)
        if standing != "gone":
            found = self._known.get((UsageLine, line.id))
            if found and found != _of_record(line):
                raise _Refused(f"its usage record {line.id} exists with other content")
            if not found and standing == "known":
                raise _Refused("it exists with other usage records")
            if not found:
                self._records.setdefault(line.workflow_id, []).append(line)
                self._rows[line.workflow_id].usage_count += 1
        self._pass(line)

    def _take_event(self, number: int, line: EventLine) -> None:
        standing = self._standing_of(number, line.workflow_id)
        if standing != "gone":
            found = self._known.get((EventLine, line.id))
            if found and _without_position(found) != _without_position(_of_event(line)):
                raise _Refused(f"its event {line.id} exists with other content")
            if not found and standing == "new":
                self._gather(number, line)  # of one that is known, retention has taken it
        self._pass(line)

    def _gather(self, number: int, line: EventLine) -> None:
        row = self._rows[line.workflow_id]
        if line.sequence != row.last_sequence + 1:
            raise Malformed(f"Line {number}: The event before this one is missing from its workflow.")
        row.last_sequence += 1
        row.status = _REPLAYED.get(line.event_type, row.status)
        self._events.append(line)

    def _standing_of(self, number: int, workflow_id: str) -> _Standing:
        """How the workflow of this line stands; of one that is being taken in the row is at hand afterwards."""
        if workflow_id not in self.standing:
            raise Malformed(f"Line {number}: The workflow {workflow_id} must come before what belongs to it.")
        if self.standing[workflow_id].standing == "new" and workflow_id not in self._rows:
            if workflows.was_pruned(self._tx, workflow_id):
                self._set_gone(workflow_id)
                self.taken.pruned_workflows += 1
            elif (row := self._unfinished(workflow_id)) is None:
                raise _Refused("it was changed while it was being taken in")
            else:
                self._rows[workflow_id] = row
        return self.standing[workflow_id].standing

    def _unfinished(self, workflow_id: str) -> _Row | None:
        found = _row.run(self._tx, id=workflow_id)
        return _Row(*found[0][1:]) if found and found[0][0] == 0 else None

    def _set_gone(self, workflow_id: str) -> None:
        self.standing[workflow_id] = self.standing[workflow_id]._replace(standing="gone")

    def _pass(self, line: EventLine | UsageLine) -> None:
        """Let go of a workflow with its last line, where nothing is left to be done about it."""
        workflow, standing = self.standing[line.workflow_id]
        if standing != "new" and _is_last(line, workflow):
            del self.standing[line.workflow_id]

    def _leave_out(self, workflow_id: str) -> None:
        """Take back what was taken in of a workflow, by this transaction and those before it."""
        was_new = self.standing[workflow_id].standing == "new"
        self._set_gone(workflow_id)
        self._rows.pop(workflow_id, None)
        self._records.pop(workflow_id, None)
        self._events = [one for one in self._events if one.workflow_id != workflow_id]
        row = self._unfinished(workflow_id) if was_new else None
        if row is None:
            return
        if row.status in ACTIVE:
            self._move(self.standing[workflow_id].line, row, Status.CANCELLED)
        workflows.delete(self._tx, workflow_id)

    def _placed(self) -> list[Row]:
        """The rows of the events that were gathered, with the positions that they have here."""
        position = self._raise_position(0)
        rows = []
        for event in self._events:
            position = max(position + 1, event.position)
            rows.append(_of_event(msgspec.structs.replace(event, position=position)))
        self._raise_position(position)
        return rows

    def _raise_position(self, position: int) -> int:
        """Have this and all lower positions count as given; give the newest that was given before."""
        given: int = events.take_positions.run_all(self._tx, [(0,)])[0][0]
        if position > given:
            events.take_positions.run_all(self._tx, [(position - given,)])
        return given

    def _advance(self, line: WorkflowLine, row: _Row) -> None:
        """Bring a workflow to where its events have come, and to its end when all of them are there."""
        is_whole = (row.last_sequence, row.usage_count) == (line.last_sequence, line.usage_count)
        if is_whole and line.first_sequence == 1 and row.status != line.status:
            raise Malformed(f"The workflow {line.id} is {line.status} in the file, but its events tell {row.status}.")
        self._move(line, row, line.status if is_whole else row.status)
        if is_whole:
            del self.standing[line.id]
            _finish.run(
                self._tx,
                id=line.id,
                worktree_path=line.worktree_path,
                version=line.version,
                updated_at=line.updated_at,
            )
            for stage, sequence in line.open_stages:
                _stage.run(self._tx, workflow=line.id, stage=stage, sequence=sequence)
            self.taken.workflows += 1

    def _move(self, line: WorkflowLine, row: _Row, status: str) -> None:
        has_ended = status not in ACTIVE
        _advance.run(
            self._tx,
            id=line.id,
            last_sequence=row.last_sequence,
            status=status,
            started_at=line.started_at if status != Status.PENDING else None,
            completed_at=(line.completed_at or line.updated_at) if has_ended else None,
        )
        if has_ended and row.stored_status in ACTIVE:
            rollups.count_ending(self._tx, line.id)


def _is_last(line: EventLine | UsageLine, workflow: WorkflowLine) -> bool:
    """Whether no line of the workflow follows: its first event comes before its records, the others after them."""
    has_records_last = workflow.first_sequence == workflow.last_sequence and workflow.usage_count > 0
    if isinstance(line, UsageLine):
        return has_records_last and line.number == workflow.usage_count
    return line.sequence == workflow.last_sequence and not has_records_last


def _without_position(row: Row) -> Row:
    return (*row[:_POSITION], *row[_POSITION + 1 :])


def _dollars(record: UsageLine) -> float | None:
    return None if record.cost_nano is None else to_dollars(record.cost_nano)
