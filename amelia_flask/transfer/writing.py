"""Writes the record, or some workflows of it, as lines.

An export reads one moment, in one transaction of the database, because of rows that change no older version is kept.
While it is open the write-ahead log cannot shrink, so the lines go to a file and never straight to a slow reader.
"""

from collections.abc import Generator, Iterator
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
import peewee

from amelia_flask import clock
from amelia_flask.database import Prepared, param, reading
from amelia_flask.errors import NotFound
from amelia_flask.ledger import Ledger
from amelia_flask.models import Event, EventPosition, OpenStage, PrunedWorkflow, TokenUsage, Workflow
from amelia_flask.progress import Step
from amelia_flask.transfer.lines import (
    EVENT_COLUMNS,
    USAGE_COLUMNS,
    VERSION,
    WORKFLOW_COLUMNS,
    End,
    EventLine,
    Header,
    Line,
    UsageLine,
    WorkflowLine,
)
from amelia_flask.transfer.pruned import Kept, pruned_lines


class Selection(NamedTuple):
    """Which workflows to export: these ids, where any are named, created at `since` or later and before `until`."""

    ids: tuple[str, ...] = ()
    since: datetime | None = None
    until: datetime | None = None


_workflow = Prepared(lambda: Workflow.select(*WORKFLOW_COLUMNS).where(Workflow.id == param("id")))
_ids = Prepared(lambda: Workflow.select(Workflow.id).where(Workflow.id == param("id")))
_stages = Prepared(
    lambda: (
        OpenStage.select(OpenStage.stage, OpenStage.sequence)
        .where(OpenStage.workflow == param("workflow"))
        .order_by(OpenStage.stage)
    )
)
_position = Prepared(lambda: EventPosition.select(EventPosition.value))
_is_pruned = peewee.fn.EXISTS(PrunedWorkflow.select(PrunedWorkflow.id).where(PrunedWorkflow.id == Workflow.id))
_encoder = msgspec.json.Encoder()


def newest_position(ledger: Ledger) -> int:
    """The position up to which an export that begins now counts its steps."""
    position: int = ledger.read(_position.run)[0][0]
    return position


def export(ledger: Ledger, wanted: Selection, step: Step) -> Generator[bytes, None, None]:
    """The lines of an export, as of the moment at which the first is asked for; `step` is told the positions passed.

    It holds a connection until it is read to its end or closed. Raises NotFound for an id that no workflow has, and
    DatabaseUnavailable.
    """
    with reading(ledger.readers) as db:
        db.take_time()  # as long as the record is large
        for workflow_id in wanted.ids:
            if not _ids.run(db, id=workflow_id):
                raise NotFound(f"There is no workflow {workflow_id}.")
        for line in _lines(db, wanted, step):
            yield _encoder.encode(line) + b"\n"


def _lines(db: Any, wanted: Selection, step: Step) -> Iterator[Line]:
    kept = None if any(wanted) else Kept()
    end = End(_position.run(db)[0][0])  # the first read: it fixes the moment
    yield Header("amelia-flask", VERSION)
    passed = 0
    for *row, is_first in db.rows_of(_events(wanted)):
        event = EventLine(*row)
        yield from _workflow_lines(db, event, kept) if is_first else [event]
        step(event.position - passed)
        passed = event.position
    if kept is not None:
        yield from pruned_lines(db, kept)
    yield end


def _workflow_lines(db: Any, first: EventLine, kept: Kept | None) -> Iterator[Line]:
    row = _workflow.run(db, id=first.workflow_id)[0]
    line = WorkflowLine(*(*row, first.sequence, _stages.run(db, workflow=first.workflow_id)))
    yield line
    yield first
    first_days: dict[str, str] = {}
    records = TokenUsage.select(*USAGE_COLUMNS).where(TokenUsage.workflow == line.id).order_by(TokenUsage.number)
    for values in db.rows_of(records):
        record = UsageLine(*values)
        if kept is not None:
            kept.add(record.key, record.sums)
            first_days[record.model] = min(record.timestamp[:10], first_days.get(record.model, record.timestamp[:10]))
        yield record
    if kept is not None:
        kept.count(line, first_days)


def _selected(wanted: Selection) -> list[Any]:
    """What a workflow must be; one that retention has begun to take counts as taken."""
    clauses = [~_is_pruned]
    if wanted.ids:
        clauses.append(Workflow.id.in_(wanted.ids))
    if wanted.since is not None:
        clauses.append(Workflow.created_at >= clock.to_text(wanted.since))
    if wanted.until is not None:
        clauses.append(Workflow.created_at < clock.to_text(wanted.until))
    return clauses


def _events(wanted: Selection) -> Any:
    """All events of the workflows by position, each with whether it is the first of its workflow.

    Without an index on the workflow: with it the database would hold all of them to sort them.
    """
    before = Event.alias()
    follows = peewee.fn.EXISTS(
        before.select(before.sequence).where(
            (before.workflow == Event.workflow) & (before.sequence == Event.sequence - 1)
        )
    )
    workflow = Event.workflow.concat(peewee.SQL("''"))
    chosen = Workflow.select(Workflow.id).where(*_selected(wanted))
    taken = PrunedWorkflow.select(PrunedWorkflow.id)
    clause = workflow.in_(chosen) if any(wanted) else workflow.not_in(taken)
    return Event.select(*EVENT_COLUMNS, ~follows).where(clause).order_by(Event.position)
