"""The moves of a workflow from status to status, each one transaction with the event that tells of it."""

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta, Struct

from amelia_flask import clock, events, rollups, summaries, workflows
from amelia_flask.database import Prepared, param
from amelia_flask.errors import IdReused, NotFound
from amelia_flask.fields import Id, JsonObject, check_object, no_object, object_to_text
from amelia_flask.models import ACTIVE, Status, Workflow
from amelia_flask.redaction import same_json, same_text

Actor = Annotated[str, Meta(min_length=1, max_length=100, description="Who decided.")]
Reason = Annotated[str, Meta(min_length=1, max_length=65_536)]
Feedback = Annotated[str, Meta(min_length=1, max_length=1000)]


class Start(Struct, forbid_unknown_fields=True, kw_only=True):
    """A move that says nothing more. `event_id` is the id of the event it writes: a retry repeats it."""

    actor: Actor | None = None
    event_id: Id | None = None


class Report(Start, forbid_unknown_fields=True, kw_only=True):
    """A move with a message and data of the caller's."""

    message: events.Message | None = None
    data: JsonObject = msgspec.field(default_factory=no_object)

    def __post_init__(self) -> None:
        self.data = check_object("data", self.data)


class Decision(Start, forbid_unknown_fields=True, kw_only=True):
    """A move that may say why."""

    reason: Reason | None = None


class Rejection(Start, forbid_unknown_fields=True, kw_only=True):
    """A move that says what is wrong."""

    feedback: Feedback


class Failure(Start, forbid_unknown_fields=True, kw_only=True):
    """A move that says why it came to this."""

    reason: Reason


class Move(NamedTuple):
    """One row of the table of moves."""

    sources: tuple[Status, ...]
    target: Status
    event_type: str
    answer: str
    body: type[Start]
    message: str


BLOCKABLE = (Status.IN_PROGRESS, Status.BLOCKED)
MOVES = {
    "start": Move((Status.PENDING,), Status.IN_PROGRESS, "workflow_started", "started", Start, "Workflow started"),
    "block": Move(
        (Status.IN_PROGRESS,), Status.BLOCKED, "approval_required", "blocked", Report, "Approval is required"
    ),
    "approve": Move(
        (Status.BLOCKED,), Status.IN_PROGRESS, "approval_granted", "approved", Decision, "Approval was granted"
    ),
    "reject": Move(
        (Status.BLOCKED,), Status.FAILED, "approval_rejected", "rejected", Rejection, "Approval was rejected"
    ),
    "complete": Move(
        (Status.IN_PROGRESS,), Status.COMPLETED, "workflow_completed", "completed", Report, "Workflow completed"
    ),
    "fail": Move(BLOCKABLE, Status.FAILED, "workflow_failed", "failed", Failure, "Workflow failed"),
    "cancel": Move(ACTIVE, Status.CANCELLED, "workflow_cancelled", "cancelled", Decision, "Workflow cancelled"),
}


class Moved(Struct):
    """What a move did: the workflow as it is now and the event that was written."""

    status: Literal["started", "blocked", "approved", "rejected", "completed", "failed", "cancelled"]
    workflow_id: str
    workflow: summaries.Summary
    event: events.StoredEvent


def _update(move: Move) -> Prepared:
    columns: dict[str, Any] = {
        "status": str(move.target),
        "updated_at": param("now"),
        "version": Workflow.version + 1,
    }
    if move.event_type == "workflow_started":
        columns["started_at"] = param("now")
    if move.target not in ACTIVE:
        columns |= {"completed_at": param("now"), "failure_reason": param("failure_reason")}
    source = Workflow.status.in_([str(status) for status in move.sources])
    return Prepared(
        lambda: Workflow.update(columns).where((Workflow.id == param("id")) & source).returning(Workflow.created_at)
    )


_updates = {name: _update(move) for name, move in MOVES.items()}
_status = Prepared(lambda: Workflow.select(Workflow.status).where(Workflow.id == param("id")))


def carry_out(tx: Any, workflow_id: str, name: str, said: Start, moment: datetime | None = None) -> Moved:
    """Make the move `name`, or answer for the same move made before under the same `event_id`.

    Raises NotFound, IdReused, and InvalidState where the workflow's status does not allow the move.
    """
    move = MOVES[name]
    message, data = _content(move, said)
    event = _made_before(tx, workflow_id, move, said, message, data)
    if event is None:
        now = clock.to_text(moment or clock.now())
        _change_status(tx, workflow_id, name, said, now)
        event = events.append_own(tx, workflow_id, move.event_type, message, data, said.event_id, now)
    return Moved(move.answer, workflow_id, summaries.summary(tx, workflow_id), event)  # type: ignore[arg-type]  # one of the table


def create_completed(
    tx: Any, new: workflows.NewWorkflow, started: datetime, completed: datetime, fill: Callable[[str], None]
) -> str:
    """Register a workflow that ran to its end before anybody told of it, with its own times; give its id.

    It holds no worktree, so another one may. `fill` is called with the id to store what lies between its start and
    its end.
    """
    workflow_id = workflows.insert_completed(tx, new, started, completed)
    rollups.count_ending(tx, workflow_id)
    start, end = MOVES["start"], MOVES["complete"]
    events.append_own(tx, workflow_id, start.event_type, start.message, None, None, clock.to_text(started))
    fill(workflow_id)
    events.append_own(tx, workflow_id, end.event_type, end.message, None, None, clock.to_text(completed))
    return workflow_id


def _content(move: Move, said: Start) -> tuple[str, dict[str, Any]]:
    """The message and data of the event: the caller's data, with who decided and why under fixed names."""
    message = (said.message if isinstance(said, Report) else None) or move.message
    data = msgspec.json.decode(object_to_text(said.data) or "{}") if isinstance(said, Report) else {}
    for member in ("actor", "reason", "feedback"):
        value = getattr(said, member, None)
        if value is not None:
            data[member] = value
    return message, data


def _made_before(
    tx: Any, workflow_id: str, move: Move, said: Start, message: str, data: dict[str, Any]
) -> events.StoredEvent | None:
    event = events.find(tx, said.event_id) if said.event_id is not None else None
    if event is None:
        return None
    text = msgspec.json.encode(data).decode() if data else None
    same = (event.workflow_id, event.event_type) == (workflow_id, move.event_type)
    if not same or not same_text(event.message, message) or not same_json(object_to_text(event.data), text):
        raise IdReused(id=event.id) if _status.run(tx, id=workflow_id) else NotFound
    return event


def _change_status(tx: Any, workflow_id: str, name: str, said: Start, now: str) -> None:
    reason = getattr(said, "feedback", None) or (said.reason if isinstance(said, Failure) else None)
    if not _updates[name].run(tx, id=workflow_id, now=now, failure_reason=reason):
        found = _status.run(tx, id=workflow_id)
        raise workflows.invalid_state(workflow_id, found[0][0]) if found else NotFound
    if MOVES[name].target not in ACTIVE:
        rollups.count_ending(tx, workflow_id)
