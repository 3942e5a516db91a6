"""Workflows and their moves."""

from typing import Annotated, TypeVar

import msgspec
from flask import request
from msgspec import UNSET, Meta, Struct, UnsetType

from amelia_flask import moves, summaries, workflows
from amelia_flask.errors import (
    ConcurrencyLimit,
    IdReused,
    InvalidCursor,
    InvalidState,
    NotFound,
    PreconditionFailed,
    WorkflowConflict,
    invalid,
)
from amelia_flask.redaction import redact
from amelia_flask.web.body import Body, given
from amelia_flask.web.operations import Answer, Resource, ledger

T = TypeVar("T", bound=Struct)

resource = Resource("workflows", __name__)

ONE = "/api/workflows/<uuid:workflow_id>"

Worktree = Annotated[
    str, Meta(min_length=1, max_length=workflows.LONGEST_PATH, description="Absolute, without `..`.")
]


class ListQuery(Struct, forbid_unknown_fields=True, kw_only=True):
    """Filters and the page of a list."""

    status: summaries.StatusName | UnsetType = UNSET
    worktree: Worktree | UnsetType = UNSET
    issue_id: workflows.IssueId | UnsetType = UNSET
    host: workflows.Host | UnsetType = UNSET
    limit: Annotated[int, Meta(ge=1, le=100)] = 20
    cursor: Annotated[str, Meta(description="The `cursor` of the page before.")] | UnsetType = UNSET


class ActiveQuery(Struct, forbid_unknown_fields=True):
    """The filter of the active workflows."""

    worktree: Worktree | UnsetType = UNSET


@resource.operation(
    "POST",
    "/api/workflows",
    {201: workflows.Created, 200: workflows.Created},
    body=Body(workflows.NewWorkflow),
    errors=(WorkflowConflict, IdReused, ConcurrencyLimit),
)
def create(body: workflows.NewWorkflow) -> Answer:
    """Register a workflow as pending. The same `id` with the same content again answers 200 with it as it is now."""
    created, is_new = ledger().write_to((), workflows.create, _arrived(body), ledger().settings.max_concurrent)
    return Answer(created, 201 if is_new else 200, {"Location": f"{request.script_root}/api/workflows/{created.id}"})


@resource.operation("GET", "/api/workflows", {200: summaries.WorkflowPage}, query=ListQuery, errors=(InvalidCursor,))
def list_page(query: ListQuery) -> summaries.WorkflowPage:
    """List workflows, newest first; following the cursor reaches every one once."""
    wanted = summaries.Filter(
        status=given(query.status),
        worktree_path=_normalised(query.worktree),
        issue_id=given(query.issue_id),
        host=given(query.host),
    )
    return ledger().read(summaries.page, wanted, query.limit, given(query.cursor))


@resource.operation("GET", "/api/workflows/active", {200: summaries.WorkflowPage}, query=ActiveQuery)
def list_active(query: ActiveQuery) -> summaries.WorkflowPage:
    """List all workflows that hold a worktree: pending, in progress or blocked."""
    return ledger().read(summaries.active, _normalised(query.worktree))


@resource.operation("GET", ONE, {200: summaries.Detail}, errors=(NotFound,))
def detail(workflow_id: str) -> Answer:
    """Read one workflow with its state, its usage and its newest events."""
    return _tagged(*ledger().read(summaries.detail, workflow_id))


@resource.operation(
    "PATCH",
    ONE,
    {200: summaries.Detail},
    body=Body(workflows.Patch, optional=True),
    errors=(NotFound, PreconditionFailed),
    headers=("If-Match",),
)
def patch(workflow_id: str, body: workflows.Patch) -> Answer:
    """Merge into the state (RFC 7396) and rename the worktree; with If-Match only at that version."""
    return _tagged(
        *ledger().write_to(
            (workflow_id,), workflows.patch, workflow_id, _arrived(body), request.headers.get("If-Match")
        )
    )


@resource.operation("DELETE", ONE, {204: None}, errors=(NotFound, InvalidState))
def delete(workflow_id: str) -> Answer:
    """Remove a finished workflow with all that belongs to it; its usage leaves the reports too."""
    while ledger().write_to((workflow_id,), workflows.delete_some_events, workflow_id):
        continue
    ledger().write_to((workflow_id,), workflows.delete, workflow_id)
    return Answer(status=204)


def _declare_move(name: str, move: moves.Move) -> None:
    optional = not any(member.required for member in msgspec.structs.fields(move.body))
    body: Body[moves.Start] = Body(move.body, optional=optional)

    def carry_out(workflow_id: str, body: moves.Start) -> moves.Moved:
        return ledger().write_to((workflow_id,), moves.carry_out, workflow_id, name, _arrived(body))

    sources = " or ".join(move.sources)
    carry_out.__doc__ = f"Move a workflow that is {sources} to {move.target}, with its `{move.event_type}` event."
    errors = (NotFound, InvalidState, IdReused)
    resource.operation("POST", f"{ONE}/{name}", {200: moves.Moved}, body=body, errors=errors, name=name)(carry_out)


for _name, _move in moves.MOVES.items():
    _declare_move(_name, _move)


def _arrived(body: T) -> T:
    """The body as it will be stored: without secrets, unless they are to be kept."""
    return redact(body) if ledger().settings.redact else body


def _tagged(found: summaries.Detail, etag: str) -> Answer:
    return Answer(found, headers={"ETag": etag})


def _normalised(worktree: str | UnsetType) -> str | None:
    if worktree is UNSET:
        return None
    try:
        return workflows.normalise(worktree)
    except ValueError as error:
        raise invalid(["query", "worktree"], str(error), worktree[:200]) from None
