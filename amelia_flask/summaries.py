"""Workflows as they are read: one, a page of them, the active ones."""

import base64
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal, NamedTuple
from uuid import UUID

import msgspec
import peewee
from msgspec import Struct

from amelia_flask import clock, events, timeline, usage
from amelia_flask.database import Prepared, Row, at_most, param
from amelia_flask.errors import InvalidCursor, NotFound
from amelia_flask.fields import JsonObject, Timestamp, object_from_text
from amelia_flask.models import ACTIVE, FinishedWorkflows, OpenStage, Workflow
from amelia_flask.pricing import to_dollars

RECENT_EVENTS = 50

StatusName = Literal["pending", "in_progress", "blocked", "completed", "failed", "cancelled"]


class Summary(Struct):
    """A workflow as a list shows it; the columns are selected in this order."""

    id: str
    issue_id: str
    worktree_path: str
    worktree_name: str
    host: str
    profile: str | None
    status: StatusName
    created_at: Timestamp
    started_at: Timestamp | None
    completed_at: Timestamp | None
    failure_reason: str | None
    current_stage: str | None
    last_sequence: int
    total_cost_usd: float
    total_tokens: int
    total_duration_ms: int | None
    unpriced_tokens: int


class Detail(Summary, kw_only=True):
    """A workflow with its state, its usage and its newest events, oldest first."""

    state: JsonObject
    token_usage: usage.WorkflowUsage | None
    recent_events: list[events.StoredEvent]
    plan: None = None


class WorkflowPage(Struct):
    """A page of workflows, newest first. `total` counts all that match; `cursor` continues the list."""

    workflows: list[Summary]
    total: int
    cursor: str | None
    has_more: bool


class Filter(NamedTuple):
    """Which workflows to list."""

    status: str | None = None
    worktree_path: str | None = None
    issue_id: str | None = None
    host: str | None = None


_stage = (
    OpenStage.select(OpenStage.stage)
    .where(OpenStage.workflow == Workflow.id)
    .order_by(OpenStage.sequence.desc())
    .limit(peewee.SQL("1"))
)
_SUMMARY = (
    Workflow.id,
    Workflow.issue_id,
    Workflow.worktree_path,
    Workflow.worktree_name,
    Workflow.host,
    Workflow.profile,
    Workflow.status,
    Workflow.created_at,
    Workflow.started_at,
    Workflow.completed_at,
    Workflow.failure_reason,
    _stage,
    Workflow.last_sequence,
    Workflow.cost_nano,
    Workflow.total_tokens,
    Workflow.unpriced_tokens,
)
_STARTED, _COMPLETED, _COST, _TOKENS, _UNPRICED = 8, 9, 13, 14, 15  # where these are in a row

_this = Workflow.id == param("id")

is_active = Workflow.status.in_([peewee.SQL(f"'{status}'") for status in ACTIVE])  # as literals: the index has them


_one = Prepared(lambda: Workflow.select(*_SUMMARY, Workflow.state_json, Workflow.version).where(_this))

_count = peewee.fn.COUNT(peewee.SQL("*"))
_active = Workflow.select(_count).where(is_active)
_finished = peewee.fn.COALESCE(peewee.fn.SUM(FinishedWorkflows.workflows), 0)
_count_active = Prepared(lambda: _active)
_count_finished = Prepared(
    lambda: FinishedWorkflows.select(_finished).where(FinishedWorkflows.status == param("status"))
)
_count_all = Prepared(lambda: FinishedWorkflows.select(_finished + _active))


def summary(db: Any, workflow_id: str) -> Summary:
    """One workflow as lists show it. Raises NotFound."""
    return _summary(_row(db, workflow_id)[:-2], clock.now())


def detail(db: Any, workflow_id: str) -> tuple[Detail, str]:
    """One workflow with all that belongs to it, and its ETag. Raises NotFound."""
    *row, state_json, version = _row(db, workflow_id)
    return Detail(
        **msgspec.structs.asdict(_summary(row, clock.now())),
        state=object_from_text(state_json),
        token_usage=usage.of_workflow(db, workflow_id),
        recent_events=timeline.recent(db, workflow_id, RECENT_EVENTS),
    ), etag(version)


def etag(version: int) -> str:
    """The entity tag of a workflow: it changes with every move and patch, not with appended events."""
    return f'"{version}"'


def page(db: Any, wanted: Filter, limit: int, cursor: str | None = None) -> WorkflowPage:
    """Workflows by (created_at, id), newest first. Raises InvalidCursor."""
    values = wanted._asdict()
    filters = tuple(name for name, value in values.items() if value is not None)
    if cursor is not None:
        values["created_at"], values["id"] = _from_cursor(cursor)
    rows = _page_query(filters, cursor is not None).run(db, limit=limit + 1, **values)
    now = clock.now()
    found = [_summary(row, now) for row in rows[:limit]]
    has_more = len(rows) > limit
    next_cursor = _to_cursor(found[-1].created_at, found[-1].id) if has_more else None
    return WorkflowPage(found, _total(db, wanted, filters), next_cursor, has_more)


def active(db: Any, worktree_path: str | None = None) -> WorkflowPage:
    """All workflows that hold a worktree, newest first."""
    rows = _active_query(worktree_path is not None).run(db, worktree_path=worktree_path)
    now = clock.now()
    return WorkflowPage([_summary(row, now) for row in rows], len(rows), None, False)


def count_active(db: Any) -> int:
    """How many workflows hold a worktree."""
    count: int = _count_active.run(db)[0][0]
    return count


def _row(db: Any, workflow_id: str) -> Row:
    rows = _one.run(db, id=workflow_id)
    if not rows:
        raise NotFound
    return rows[0]


def _summary(row: Row, now: datetime) -> Summary:
    duration = _duration(row[_STARTED], row[_COMPLETED], now)
    sums = to_dollars(row[_COST]), row[_TOKENS], duration, row[_UNPRICED]
    return Summary(*row[:_COST], *sums)  # type: ignore[call-arg]  # a checker cannot count columns


def _duration(started_at: str | None, completed_at: str | None, now: datetime) -> int | None:
    if started_at is None:
        return None
    return clock.milliseconds(started_at, now if completed_at is None else datetime.fromisoformat(completed_at))


def _to_cursor(created_at: str, workflow_id: str) -> str:
    return base64.urlsafe_b64encode(f"{created_at} {workflow_id}".encode()).decode().rstrip("=")


def _from_cursor(cursor: str) -> tuple[str, str]:
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        created_at, workflow_id = base64.urlsafe_b64decode(padded).decode().split(" ")
        place = clock.to_text(clock.from_text(created_at)), str(UUID(workflow_id))
    except ValueError:
        raise InvalidCursor from None
    if _to_cursor(*place) != cursor:
        raise InvalidCursor  # decoders are lenient: only the one spelling that was given out is taken
    return place


_NEWEST_FIRST = (Workflow.created_at.desc(), Workflow.id.desc())


# Few workflows share one of these: the index of the first that is given finds them, and that of no other filter.
_SELECTIVE = ("issue_id", "worktree_path")


def _clauses(filters: tuple[str, ...]) -> list[Any]:
    leading = next((name for name in _SELECTIVE if name in filters), None)
    return [_equals(getattr(Workflow, name), name, leading in (None, name)) for name in filters]


def _equals(column: Any, name: str, by_index: bool) -> Any:
    """Where `column` has the value of the parameter; an expression in place of the column rules its index out."""
    return (column if by_index else column.concat(peewee.SQL("''"))) == param(name)


@lru_cache
def _page_query(filters: tuple[str, ...], continued: bool) -> Prepared:
    clauses = _clauses(filters)
    if continued:
        here = peewee.EnclosedNodeList([Workflow.created_at, Workflow.id])
        clauses.append(here < peewee.EnclosedNodeList([param("created_at"), param("id")]))
    query = Workflow.select(*_SUMMARY).order_by(*_NEWEST_FIRST).limit(at_most("limit"))
    return Prepared(lambda: query.where(*clauses) if clauses else query)


def _total(db: Any, wanted: Filter, filters: tuple[str, ...]) -> int:
    """How many workflows match: from the sums that are kept where those would be very many."""
    query = _count_query(filters)
    if not filters:
        query = _count_all
    elif filters == ("status",) and wanted.status not in ACTIVE:
        query = _count_finished
    total: int = query.run(db, **wanted._asdict())[0][0]
    return total


@lru_cache
def _count_query(filters: tuple[str, ...]) -> Prepared:
    return Prepared(lambda: Workflow.select(_count).where(*_clauses(filters)))


@lru_cache
def _active_query(by_worktree: bool) -> Prepared:
    query = Workflow.select(*_SUMMARY).where(is_active).order_by(*_NEWEST_FIRST)
    return Prepared(lambda: query.where(Workflow.worktree_path == param("worktree_path")) if by_worktree else query)
