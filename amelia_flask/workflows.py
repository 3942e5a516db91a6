"""Workflows: created, listed, read, patched and deleted. Their moves from status to status: `moves.py`."""

import hashlib
import posixpath
import unicodedata
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import msgspec
import peewee
from msgspec import UNSET, Meta, Struct, UnsetType

from amelia_flask import clock, events, rollups, summaries
from amelia_flask.database import Prepared, param
from amelia_flask.errors import (
    ConcurrencyLimit,
    IdReused,
    InvalidState,
    NotFound,
    PreconditionFailed,
    WorkflowConflict,
    invalid,
)
from amelia_flask.fields import (
    MAX_OBJECT_BYTES,
    JsonObject,
    check_object,
    check_text,
    no_object,
    object_to_text,
)
from amelia_flask.models import ACTIVE, PrunedWorkflow, Status, Workflow
from amelia_flask.redaction import redact_json
from amelia_flask.strictjson import canonical
from amelia_flask.summaries import is_active

LONGEST_PATH = 4096
PIECE = 2000  # events: some 20 ms of a transaction

IssueId = Annotated[str, Meta(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9\-_./#:]+$(?!\n)")]
Host = Annotated[str, Meta(max_length=255)]
WorktreeName = Annotated[str, Meta(min_length=1, max_length=255)]


class NewWorkflow(Struct, kw_only=True):
    """A workflow as it is registered. Members that are not named here are ignored: older clients send more."""

    issue_id: IssueId
    worktree_path: Annotated[str, Meta(min_length=1, max_length=LONGEST_PATH, description="Absolute, without `..`.")]
    worktree_name: WorktreeName | None = None
    host: Host = ""
    profile: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    state: JsonObject = msgspec.field(default_factory=no_object)
    id: UUID | None = None

    def __post_init__(self) -> None:
        try:
            self.worktree_path = normalise(self.worktree_path)
        except ValueError as error:
            raise ValueError(f"`worktree_path`: {error}") from None
        check_text("host", self.host)
        check_text("profile", self.profile or "")
        check_text("worktree_name", self.worktree_name or "")
        self.state = check_object("state", self.state)


class Created(summaries.Summary, kw_only=True):
    """The workflow, and a sentence that says what happened."""

    message: str


class Patch(Struct, forbid_unknown_fields=True, kw_only=True):
    """What can be changed by hand: `state` by JSON merge patch (RFC 7396), and the worktree's name."""

    state: JsonObject | UnsetType = UNSET
    worktree_name: WorktreeName | UnsetType = UNSET

    def __post_init__(self) -> None:
        if self.state is not UNSET:
            self.state = check_object("state", self.state)
        if self.worktree_name is not UNSET:
            check_text("worktree_name", self.worktree_name)


_this = Workflow.id == param("id")
_digest = Prepared(lambda: Workflow.select(Workflow.digest).where(_this))
_pruned = Prepared(lambda: PrunedWorkflow.select(PrunedWorkflow.id).where(PrunedWorkflow.id == param("id")))
_version = Prepared(lambda: Workflow.select(Workflow.version, Workflow.state_json).where(_this))
_status = Prepared(lambda: Workflow.select(Workflow.status, Workflow.created_at).where(_this))
_holder = Prepared(
    lambda: Workflow.select(Workflow.id, Workflow.issue_id, Workflow.status).where(
        (Workflow.host == param("host")) & (Workflow.worktree_path == param("worktree_path")) & is_active
    )
)
_delete = Prepared(lambda: Workflow.delete().where(_this & ~is_active).returning(Workflow.id))
_patch = Prepared(
    lambda: Workflow.update(
        state_json=param("state"),
        worktree_name=peewee.fn.COALESCE(param("name"), Workflow.worktree_name),
        updated_at=param("now"),
        version=Workflow.version + 1,
    ).where(_this)
)


def normalise(path: str) -> str:
    """The one spelling of a worktree's path, found without looking at any disk. Raises ValueError."""
    if len(path) > LONGEST_PATH:
        raise ValueError(f"Expected at most {LONGEST_PATH} characters")
    if not path.startswith("/"):
        raise ValueError("Expected an absolute path")
    if ".." in path.split("/"):
        raise ValueError("Expected a path without `..`")
    if any(unicodedata.category(character) == "Cc" for character in path):
        raise ValueError("Expected no control characters")
    return "/" + posixpath.normpath(path).lstrip("/")


def create(
    tx: Any, new: NewWorkflow, max_concurrent: int | None = None, now: datetime | None = None
) -> tuple[Created, bool]:
    """Register a workflow as pending, with its `workflow_created` event; tells whether it was new.

    The same id with the same content again answers with the workflow as it is now. Raises WorkflowConflict while
    another active one holds the worktree, ConcurrencyLimit at `max_concurrent` active ones, and IdReused where
    the id stands for other content, or for a workflow that retention has taken.
    """
    digest = _digest_of(new)
    workflow_id = str(new.id) if new.id else clock.new_id()
    known = _digest.run(tx, id=workflow_id) if new.id else []
    if known:
        if known[0][0] != digest:
            raise IdReused(id=workflow_id)
        return _created(tx, workflow_id, "The workflow exists already"), False
    if new.id and was_pruned(tx, workflow_id):
        raise IdReused(f"The workflow {workflow_id} was pruned; its id is not used again.", id=workflow_id)
    _refuse_conflict(tx, new)
    _refuse_above(tx, max_concurrent)
    _insert(tx, workflow_id, new, digest, clock.to_text(now or clock.now()))
    return _created(tx, workflow_id, f"Workflow created for {new.issue_id}"), True


def insert_completed(tx: Any, new: NewWorkflow, started_at: datetime, completed_at: datetime) -> str:
    """Register a workflow that has run to its end already, and holds no worktree; its id must be new.

    Only its `workflow_created` event is written here: `moves.create_completed` writes the others.
    """
    workflow_id = str(new.id) if new.id else clock.new_id()
    moment = clock.to_text(started_at)
    ended = {"status": Status.COMPLETED, "started_at": moment, "completed_at": clock.to_text(completed_at)}
    _insert(tx, workflow_id, new, _digest_of(new), moment, **ended)
    return workflow_id


def patch(tx: Any, workflow_id: str, change: Patch, if_match: str | None = None) -> tuple[summaries.Detail, str]:
    """Merge into the state and rename the worktree.

    Raises NotFound, PreconditionFailed for another version, and ValidationError for a state that grows too large.
    """
    found = _version.run(tx, id=workflow_id)
    if not found:
        raise NotFound
    version, state_json = found[0]
    if if_match is not None and not _matches(if_match, summaries.etag(version)):
        raise PreconditionFailed(workflow_id=workflow_id, etag=summaries.etag(version))
    state = state_json if change.state is UNSET else _merge(state_json, object_to_text(change.state))
    name = None if change.worktree_name is UNSET else change.worktree_name
    _patch.run(tx, id=workflow_id, state=state, name=name, now=clock.to_text(clock.now()))
    return summaries.detail(tx, workflow_id)


def delete_some_events(tx: Any, workflow_id: str) -> bool:
    """Remove a piece of a finished workflow's oldest events; whether there were more than a piece.

    Done until there are not, it lets others write in the middle of a deletion that would hold them up for long.
    Raises what `delete` raises.
    """
    refuse_active(tx, workflow_id)
    return events.remove_oldest(tx, workflow_id, PIECE)


def delete(tx: Any, workflow_id: str) -> None:
    """Remove a finished workflow with all that belongs to it, its usage in the reports included.

    Raises NotFound, also for one that retention has begun to take, and InvalidState while it is active.
    """
    refuse_active(tx, workflow_id)
    if was_pruned(tx, workflow_id):
        raise NotFound
    rollups.forget(tx, workflow_id)
    _delete.run(tx, id=workflow_id)


def was_pruned(db: Any, workflow_id: str) -> bool:
    """Whether retention has taken this workflow, or has begun to."""
    return bool(_pruned.run(db, id=workflow_id))


def refuse_active(tx: Any, workflow_id: str) -> None:
    """Raises InvalidState for an active workflow, NotFound for none."""
    found = _status.run(tx, id=workflow_id)
    if not found:
        raise NotFound
    if found[0][0] in ACTIVE:
        raise invalid_state(workflow_id, found[0][0])


def invalid_state(workflow_id: str, status: str) -> InvalidState:
    """The refusal of what `status` does not allow."""
    return InvalidState(
        f"The workflow is {status}, which does not allow this.", workflow_id=workflow_id, current_status=status
    )


def _created(tx: Any, workflow_id: str, message: str) -> Created:
    return Created(message=message, **msgspec.structs.asdict(summaries.summary(tx, workflow_id)))


def _refuse_conflict(tx: Any, new: NewWorkflow) -> None:
    holder = _holder.run(tx, host=new.host, worktree_path=new.worktree_path)
    if holder:
        workflow_id, issue_id, status = holder[0]
        message = f"The worktree {new.worktree_path} is held by the active workflow {workflow_id}."
        raise WorkflowConflict(
            message,
            detail={
                "message": message,
                "active_workflow": {"id": workflow_id, "issue_id": issue_id, "status": status},
            },
            workflow_id=workflow_id,
            worktree_path=new.worktree_path,
        )


def _refuse_above(tx: Any, max_concurrent: int | None) -> None:
    if max_concurrent is not None and (current := summaries.count_active(tx)) >= max_concurrent:
        raise ConcurrencyLimit(current=current, limit=max_concurrent)


def _insert(tx: Any, workflow_id: str, new: NewWorkflow, digest: str, now: str, **columns: str) -> None:
    Workflow.insert(
        id=workflow_id,
        issue_id=new.issue_id,
        worktree_path=new.worktree_path,
        worktree_name=_name(new),
        host=new.host,
        profile=new.profile,
        state_json=object_to_text(new.state),
        created_at=now,
        updated_at=now,
        digest=digest,
        **columns,
    ).execute(tx)
    data = {"issue_id": new.issue_id, "worktree_path": new.worktree_path, "host": new.host, "profile": new.profile}
    events.append_own(tx, workflow_id, "workflow_created", f"Workflow created for {new.issue_id}", data, None, now)
    rollups.count_workflow(tx, now)


def _name(new: NewWorkflow) -> str:
    return new.worktree_name or posixpath.basename(new.worktree_path) or "/"


def _digest_of(new: NewWorkflow) -> str:
    state = object_to_text(new.state)
    if state is not None:
        state = redact_json(state, MAX_OBJECT_BYTES)  # whether secrets are kept or not, a repeat is recognised
    content = [
        new.issue_id,
        new.worktree_path,
        _name(new),
        new.host,
        new.profile,
        None if state is None else msgspec.json.decode(state),
    ]
    return hashlib.sha256(canonical(content)).hexdigest()


def _merge(stored: str | None, change: str | None) -> str | None:
    if change is None:
        return None
    merged = msgspec.json.encode(merge(msgspec.json.decode(stored or "{}"), msgspec.json.decode(change)))
    if len(merged) > MAX_OBJECT_BYTES:
        raise invalid(["body", "state"], f"The state would grow beyond {MAX_OBJECT_BYTES} bytes as JSON")
    return merged.decode()


def merge(target: Any, change: Any) -> Any:
    """JSON merge patch: RFC 7396, section 2."""
    if not isinstance(change, dict):
        return change
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in change.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge(merged.get(name), value)
    return merged


def _matches(if_match: str, tag: str) -> bool:
    """RFC 9110, 13.1.1: any of the tags listed, or `*`; weak tags never match."""
    return if_match.strip() == "*" or tag in [given.strip() for given in if_match.split(",")]
