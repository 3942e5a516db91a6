"""The sums of usage, kept in the transaction that changes what they sum: by workflow, by day, by model.

They make a report a short read, and they outlive pruned workflows. What they say equals the sum over the stored
records and those that retention has pruned.
"""

import operator
from collections.abc import Iterable
from functools import reduce
from typing import Any, NamedTuple

import peewee

from amelia_flask import clock
from amelia_flask.database import MISTAKES, Prepared, Row, param
from amelia_flask.errors import NotFound, ValidationError, invalid
from amelia_flask.models import (
    ACTIVE,
    LARGEST_TOTAL,
    FinishedWorkflows,
    ModelsByDay,
    Status,
    TokenUsage,
    UsageByDay,
    UsageByWorkflow,
    Workflow,
    WorkflowsByDay,
)
from amelia_flask.pricing import Counts

Key = tuple[str, str, str]  # day, agent, model


class Sums(NamedTuple):
    """What is summed; also a difference to be added to sums."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_creation_tokens: int = 0
    unpriced_tokens: int = 0
    cost_nano: int = 0
    savings_nano: int = 0

    def plus(self, other: "Sums") -> "Sums":
        """The sum of both."""
        return Sums(*map(operator.add, self, other))

    def minus(self, other: "Sums") -> "Sums":
        """The difference of both."""
        return Sums(*map(operator.sub, self, other))

    @property
    def tokens(self) -> int:
        """All four counts together."""
        return sum(self[:4])


def sums_of(counts: Counts, cost_nano: int | None, savings_nano: int | None) -> Sums:
    """What one record adds."""
    return Sums(*counts, sum(counts) if cost_nano is None else 0, cost_nano or 0, savings_nano or 0)


def _columns(model: Any, *names: str) -> tuple[Any, ...]:
    return tuple(getattr(model, name) for name in names)


def _earlier_day() -> Any:
    stored, added = UsageByWorkflow.first_day, peewee.EXCLUDED.first_day
    return peewee.Case(None, [(added < stored, added)], stored)


def _upsert(model: Any, keys: tuple[Any, ...], sums: tuple[Any, ...], **others: Any) -> Prepared:
    """Add to the row with these keys, which is made where it is missing; `others` are columns with their update."""
    columns = [*keys, *sums, *_columns(model, *others)]
    update = {column: column + getattr(peewee.EXCLUDED, column.column_name) for column in sums}
    update |= {getattr(model, name): value for name, value in others.items()}
    row = tuple(param(column.name) for column in columns)
    return Prepared(
        lambda: model.insert_many([row], fields=columns).on_conflict(conflict_target=list(keys), update=update)
    )


_DAY_KEYS = (UsageByDay.day, UsageByDay.agent, UsageByDay.model)
_DAY_SUMS = _columns(UsageByDay, *Sums._fields)
_WORKFLOW_KEYS = (UsageByWorkflow.workflow, UsageByWorkflow.agent, UsageByWorkflow.model)
_WORKFLOW_SUMS = _columns(UsageByWorkflow, *Sums._fields[:6])

_add_to_workflow = Prepared(
    lambda: (
        Workflow.update(
            usage_count=Workflow.usage_count + param("records"),
            total_tokens=Workflow.total_tokens + param("tokens"),
            unpriced_tokens=Workflow.unpriced_tokens + param("unpriced_tokens"),
            cost_nano=Workflow.cost_nano + param("cost_nano"),
            updated_at=param("now"),
        )
        .where(Workflow.id == param("workflow"))
        .returning(Workflow.usage_count, Workflow.status)
    )
)
_change_breakdown = Prepared(
    lambda: UsageByWorkflow.update({column: column + param(column.name) for column in _WORKFLOW_SUMS}).where(
        *(column == param(column.name) for column in _WORKFLOW_KEYS)
    )
)
_add_to_breakdown = _upsert(UsageByWorkflow, _WORKFLOW_KEYS, _WORKFLOW_SUMS, first_day=_earlier_day())
_take_from_day = Prepared(
    lambda: UsageByDay.update({column: column - param(column.name) for column in _DAY_SUMS}).where(
        *(column == param(column.name) for column in _DAY_KEYS)
    )
)
# Each table by day with its keys and its sums, one key more from table to table.
TABLES_BY_DAY = (
    (WorkflowsByDay, ("day",), ("workflows", "finished", "successful", "duration_ms")),
    (ModelsByDay, ("day", "model"), ("workflows", "finished", "successful")),
    (UsageByDay, ("day", "agent", "model"), Sums._fields),
)
_add_workflows, _add_models, _add_to_day = (
    _upsert(model, _columns(model, *keys), _columns(model, *names)) for model, keys, names in TABLES_BY_DAY
)
_add_finished = _upsert(FinishedWorkflows, (FinishedWorkflows.status,), _columns(FinishedWorkflows, "workflows"))
_first_day = Prepared(
    lambda: UsageByWorkflow.select(peewee.fn.MIN(UsageByWorkflow.first_day)).where(
        (UsageByWorkflow.workflow == param("workflow")) & (UsageByWorkflow.model == param("model"))
    )
)
_first_days = Prepared(
    lambda: (
        UsageByWorkflow.select(UsageByWorkflow.model, peewee.fn.MIN(UsageByWorkflow.first_day))
        .where(UsageByWorkflow.workflow == param("workflow"))
        .group_by(UsageByWorkflow.model)
    )
)
_times = Prepared(
    lambda: Workflow.select(Workflow.status, Workflow.created_at, Workflow.started_at, Workflow.completed_at).where(
        Workflow.id == param("workflow")
    )
)
_breakdown = Prepared(
    lambda: (
        UsageByWorkflow.select(*_WORKFLOW_KEYS[1:], *_WORKFLOW_SUMS)
        .where(UsageByWorkflow.workflow == param("workflow"))
        .order_by(UsageByWorkflow.agent, UsageByWorkflow.model)
    )
)
_RECORD_KEYS = _columns(TokenUsage, "day", "agent", "model")
_RECORD_COUNTS = _columns(TokenUsage, *Counts._fields)
_unpriced = peewee.Case(None, [(TokenUsage.cost_nano.is_null(), reduce(operator.add, _RECORD_COUNTS))], 0)
_RECORD_SUMS = (*_RECORD_COUNTS, _unpriced, TokenUsage.cost_nano, TokenUsage.savings_nano)
_recorded = Prepared(
    lambda: (
        TokenUsage.select(*_RECORD_KEYS, *map(peewee.fn.SUM, _RECORD_SUMS))
        .where(TokenUsage.workflow == param("workflow"))
        .group_by(*_RECORD_KEYS)
    )
)


def add(tx: Any, workflow_id: str, added: list[tuple[Key, Sums]], records: int) -> int:
    """Add what so many new records of a workflow say to every sum; answers with how many it has now.

    Raises NotFound, and ValidationError where a sum would leave 64 bits.
    """
    total = reduce(Sums.plus, (sums for _, sums in added), Sums())
    if max(*total, total.tokens) > LARGEST_TOTAL:
        raise _too_large()
    days = _first_days_of(added)
    before = {model: _first_day.run(tx, workflow=workflow_id, model=model)[0][0] for model in days}
    try:
        count, status = _add_to_totals(tx, workflow_id, records, total)
        for (day, agent, model), sums in _grouped(added).items():
            values = sums._asdict() | {"agent": agent, "model": model}
            _add_to_day.run(tx, day=day, **values)
            _add_to_breakdown.run(tx, workflow=workflow_id, first_day=day, **values)
    except MISTAKES:
        raise _too_large() from None
    _count_models(tx, before, days, status)
    return count


def change(tx: Any, workflow_id: str, key: Key, difference: Sums) -> None:
    """Add a difference, of which some may be negative, to the sums that one workflow's records under `key` are in.

    Raises NotFound, and ValidationError where a sum would leave 64 bits.
    """
    day, agent, model = key
    try:
        _add_to_totals(tx, workflow_id, 0, difference)
        _take_from_day.run(tx, day=day, agent=agent, model=model, **Sums().minus(difference)._asdict())
        _change_breakdown.run(tx, workflow=workflow_id, agent=agent, model=model, **difference._asdict())
    except MISTAKES:
        raise _too_large() from None


def add_pruned(tx: Any, key: tuple[str, ...], numbers: tuple[int, ...]) -> None:
    """Add to a row of a table by day what workflows left in it that were pruned elsewhere.

    The table is the one of TABLES_BY_DAY that has so many keys. Raises ValidationError where a sum would leave 64
    bits.
    """
    _, keys, names = TABLES_BY_DAY[len(key) - 1]
    query = (_add_workflows, _add_models, _add_to_day)[len(key) - 1]
    try:
        query.run(tx, **dict(zip((*keys, *names), (*key, *numbers), strict=True)))
    except MISTAKES:
        raise _too_large() from None


def breakdown(db: Any, workflow_id: str) -> list[Row]:
    """A workflow's sums by agent and model: these two, the four counts, unpriced tokens and nano-dollars."""
    return _breakdown.run(db, workflow=workflow_id)


def count_workflow(tx: Any, created_at: str) -> None:
    """Count a new workflow on the day of its creation."""
    _add_workflows.run(tx, day=created_at[:10], workflows=1, finished=0, successful=0, duration_ms=0)


def count_ending(tx: Any, workflow_id: str) -> None:
    """Count the end of a workflow that was just moved to a final status, where its beginning was counted."""
    _count_ending(tx, workflow_id, 1)


def release(tx: Any, workflow_id: str) -> None:
    """Count a finished workflow that is about to be pruned no longer among those still there; all else stays."""
    status, *_ = _times.run(tx, workflow=workflow_id)[0]
    _add_finished.run(tx, status=status, workflows=-1)


def forget(tx: Any, workflow_id: str) -> None:
    """Take a finished workflow that is about to be deleted, and all of its usage, out of the sums by day."""
    _count_ending(tx, workflow_id, -1)
    _, created_at, *_ = _times.run(tx, workflow=workflow_id)[0]
    _add_workflows.run(tx, day=created_at[:10], workflows=-1, finished=0, successful=0, duration_ms=0)
    for model, day in _first_days.run(tx, workflow=workflow_id):
        _add_models.run(tx, day=day, model=model, workflows=-1, finished=0, successful=0)
    for day, agent, model, *sums in _recorded.run(tx, workflow=workflow_id):
        recorded = Sums(*(number or 0 for number in sums))  # the sum of nothing but nulls is null
        _take_from_day.run(tx, day=day, agent=agent, model=model, **recorded._asdict())


def ending(status: str) -> tuple[int, int]:
    """How a workflow with this status counts among the finished and the successful."""
    return int(status not in ACTIVE), int(status == Status.COMPLETED)


def _too_large() -> ValidationError:
    return invalid(["body"], "A total would grow beyond what 64 bits hold")


def _add_to_totals(tx: Any, workflow_id: str, records: int, total: Sums) -> tuple[int, str]:
    taken = _add_to_workflow.run(
        tx,
        workflow=workflow_id,
        records=records,
        tokens=total.tokens,
        unpriced_tokens=total.unpriced_tokens,
        cost_nano=total.cost_nano,
        now=clock.to_text(clock.now()),
    )
    if not taken:
        raise NotFound
    return taken[0][0], taken[0][1]


def _first_days_of(added: list[tuple[Key, Sums]]) -> dict[str, str]:
    """The first of the days on which each model was used."""
    days: dict[str, str] = {}
    for (day, _, model), _ in added:
        days[model] = min(day, days.get(model, day))
    return days


def _count_models(tx: Any, before: dict[str, str | None], days: dict[str, str], status: str) -> None:
    """Count the workflow on the day on which it first used each model; a late record may move that day back."""
    finished, successful = ending(status)
    for model, day in days.items():
        earlier = before[model]
        if earlier is not None and earlier <= day:
            continue
        if earlier is not None:
            _add_models.run(tx, day=earlier, model=model, workflows=-1, finished=-finished, successful=-successful)
        _add_models.run(tx, day=day, model=model, workflows=1, finished=finished, successful=successful)


def _count_ending(tx: Any, workflow_id: str, sign: int) -> None:
    status, created_at, started_at, completed_at = _times.run(tx, workflow=workflow_id)[0]
    finished, successful = (sign * count for count in ending(status))
    duration_ms = sign * (clock.milliseconds(started_at, clock.from_text(completed_at)) if started_at else 0)
    _add_workflows.run(
        tx, day=created_at[:10], workflows=0, finished=finished, successful=successful, duration_ms=duration_ms
    )
    _add_finished.run(tx, status=status, workflows=sign)
    for model, day in _first_days.run(tx, workflow=workflow_id):
        _add_models.run(tx, day=day, model=model, workflows=0, finished=finished, successful=successful)


def _grouped(keyed: Iterable[tuple[Key, Sums]]) -> dict[Key, Sums]:
    groups: dict[Key, Sums] = {}
    for key, sums in keyed:
        groups[key] = groups.get(key, Sums()).plus(sums)
    return groups
