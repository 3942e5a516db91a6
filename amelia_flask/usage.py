"""Token usage: each record kept with its cost. The sums over records: `rollups.py`; over days: `report.py`."""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple

from msgspec import Meta, Struct

from amelia_flask import clock, rollups
from amelia_flask.database import Prepared, Row, at_most, by_id, param
from amelia_flask.errors import IdReused, InvalidCursor, NotFound
from amelia_flask.fields import Id, Moment, Timestamp, check_moment
from amelia_flask.models import TokenUsage, Workflow
from amelia_flask.pricing import Counts, price, to_dollars, to_nano

MAX_BATCH = 1000
MAX_LINES = 10_000
LARGEST_COUNT = 10**15
LARGEST_COST = 1_000_000

Count = Annotated[int, Meta(ge=0, le=LARGEST_COUNT)]
Cost = Annotated[float, Meta(ge=0, le=LARGEST_COST)]
CostSource = Literal["reported", "computed", "unpriced"]


class NewUsage(Struct, forbid_unknown_fields=True, kw_only=True):
    """What one request to a model used. The four counts are disjoint: `input_tokens` is without the cache.

    With `cost_usd` that cost is kept as reported; without it the cost is computed where the model's price on
    the day of `timestamp` (default: now) is known.
    """

    agent: Annotated[str, Meta(min_length=1, max_length=100)]
    model: Annotated[str, Meta(min_length=1, max_length=200)]
    input_tokens: Count
    output_tokens: Count
    cache_read_tokens: Count = 0
    cache_creation_tokens: Count = 0
    cost_usd: Cost | None = None
    request_id: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    timestamp: Moment | None = None
    id: Id | None = None

    def __post_init__(self) -> None:
        check_moment("timestamp", self.timestamp)


class Recorded(Struct):
    """What a record costs: null where no price is known."""

    id: str
    cost_usd: float | None
    cost_source: CostSource


class RecordedUsage(Struct):
    """The records in the order sent; `duplicates` counts those that had been stored before."""

    token_usage: list[Recorded]
    duplicates: int


class StoredUsage(Struct):
    """A record as it is read."""

    id: str
    workflow_id: str
    agent: str
    model: str
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_creation_tokens: int
    cost_usd: float | None
    cost_source: CostSource
    request_id: str | None
    timestamp: Timestamp


class AgentModelUsage(Struct):
    """What one agent used of one model."""

    agent: str
    model: str
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_creation_tokens: int
    cost_usd: float
    unpriced_tokens: int


class WorkflowUsage(Struct, kw_only=True):
    """A workflow's totals, and the same by agent and model."""

    total_input_tokens: int
    total_output_tokens: int
    total_cache_read_tokens: int
    total_cache_creation_tokens: int
    total_cost_usd: float
    unpriced_tokens: int
    breakdown: list[AgentModelUsage]


class UsagePage(Struct):
    """A page of records in the order recorded; `next_after` continues it."""

    token_usage: list[StoredUsage]
    summary: WorkflowUsage | None
    next_after: str | None
    has_more: bool


class Priced(NamedTuple):
    """A record about to be stored: what `NewUsage` says, complete and with its cost."""

    id: str
    agent: str
    model: str
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_creation_tokens: int
    cost_nano: int | None
    savings_nano: int | None
    cost_source: str
    timestamp: str
    request_id: str | None
    has_id: bool
    has_timestamp: bool

    @property
    def counts(self) -> Counts:
        """The four counts."""
        return Counts(*self[3:7])

    @property
    def sums(self) -> rollups.Sums:
        """What the record adds to the sums."""
        return rollups.sums_of(self.counts, self.cost_nano, self.savings_nano)

    @property
    def key(self) -> rollups.Key:
        """Under which the reports sum it: day in UTC, agent and model."""
        return self.timestamp[:10], self.agent, self.model


_RECORD = (
    TokenUsage.id,
    TokenUsage.workflow,
    TokenUsage.agent,
    TokenUsage.model,
    TokenUsage.input_tokens,
    TokenUsage.output_tokens,
    TokenUsage.cache_read_tokens,
    TokenUsage.cache_creation_tokens,
    TokenUsage.cost_nano,
    TokenUsage.cost_source,
    TokenUsage.request_id,
    TokenUsage.timestamp,
    TokenUsage.number,
    TokenUsage.savings_nano,
)
_INSERTED = (
    TokenUsage.id,
    TokenUsage.agent,
    TokenUsage.model,
    TokenUsage.input_tokens,
    TokenUsage.output_tokens,
    TokenUsage.cache_read_tokens,
    TokenUsage.cache_creation_tokens,
    TokenUsage.cost_nano,
    TokenUsage.savings_nano,
    TokenUsage.cost_source,
    TokenUsage.timestamp,
    TokenUsage.request_id,
    TokenUsage.workflow,
    TokenUsage.number,
    TokenUsage.day,
    TokenUsage.cost_usd,
)
_stored = by_id(*_RECORD)
_insert = Prepared(
    lambda: TokenUsage.insert_many([tuple(param(column.name) for column in _INSERTED)], fields=list(_INSERTED))
)
_COUNTED = (*_INSERTED[3:9], TokenUsage.cost_usd)
_grow = Prepared(
    lambda: TokenUsage.update({column: param(column.name) for column in _COUNTED}).where(TokenUsage.id == param("id"))
)
_workflow_exists = Prepared(lambda: Workflow.select(Workflow.id).where(Workflow.id == param("workflow")))
_page = Prepared(
    lambda: (
        TokenUsage.select(*_RECORD)
        .where((TokenUsage.workflow == param("workflow")) & (TokenUsage.number > param("after")))
        .order_by(TokenUsage.number)
        .limit(at_most("limit"))
    )
)


def priced(new: Sequence[NewUsage]) -> list[Priced]:
    """The records with their ids, times and costs. Done before the transaction: looking prices up takes time."""
    now = clock.now()
    return [_priced(record, now) for record in new]


def record(tx: Any, workflow_id: str, records: Sequence[Priced]) -> RecordedUsage:
    """Store the records and add them to every sum, all or none.

    A record whose id is stored already with the same content is not counted again. Raises NotFound, IdReused
    for an id that is taken by other content, and ValidationError where a sum would leave 64 bits.
    """
    fresh: dict[str, Priced] = {}
    answers: dict[str, Recorded] = {}
    stored = {row[0]: row for row in _stored.run_all(tx, [(one.id,) for one in records if one.has_id])}
    for one in records:
        twin = _twin(tx, workflow_id, one, fresh, stored) if one.has_id else None
        answers[one.id] = twin or _recorded(one.id, one.cost_nano, one.cost_source)
        if twin is None:
            fresh.setdefault(one.id, one)
    if fresh:
        _store(tx, workflow_id, list(fresh.values()))
    return RecordedUsage([answers[one.id] for one in records], len(records) - len(fresh))


def record_or_grow(tx: Any, workflow_id: str, records: Sequence[Priced]) -> tuple[int, int]:
    """Store the records with new ids; let those stored under the other ids grow to what is said now; count both.

    A request that was read while it ran is told again with more tokens, and the totals follow. What says less, or
    something else, changes nothing. Raises what `record` raises, but for IdReused.
    """
    fresh, grown = [], 0
    for one in records:
        rows = _stored.run(tx, id=one.id)
        if rows:
            grown += _grow_to(tx, rows[0], one)
        else:
            fresh.append(one)
    if fresh:
        _store(tx, workflow_id, fresh)
    return len(fresh), grown


def of_workflow(db: Any, workflow_id: str) -> WorkflowUsage | None:
    """A workflow's sums by agent and model, None where nothing was recorded."""
    rows = rollups.breakdown(db, workflow_id)
    if not rows:
        return None
    columns = list(zip(*rows, strict=True))
    return WorkflowUsage(
        total_input_tokens=sum(columns[2]),
        total_output_tokens=sum(columns[3]),
        total_cache_read_tokens=sum(columns[4]),
        total_cache_creation_tokens=sum(columns[5]),
        total_cost_usd=to_dollars(sum(columns[7])),
        unpriced_tokens=sum(columns[6]),
        breakdown=[_agent_model(*row) for row in rows],
    )


def page(db: Any, workflow_id: str, after: str | None, limit: int) -> UsagePage:
    """A page of a workflow's records in the order recorded. Raises NotFound and InvalidCursor."""
    if after is not None and not (after.isascii() and after.isdigit() and len(after) <= 18):
        raise InvalidCursor
    _refuse_unknown(db, workflow_id)
    rows = _page.run(db, workflow=workflow_id, after=int(after or 0), limit=limit + 1)
    found = rows[:limit]
    next_after = str(found[-1][-2]) if found else after
    return UsagePage([_from_row(row) for row in found], of_workflow(db, workflow_id), next_after, len(rows) > limit)


def _priced(record: NewUsage, now: datetime) -> Priced:
    moment = record.timestamp or now
    counts = Counts(record.input_tokens, record.output_tokens, record.cache_read_tokens, record.cache_creation_tokens)
    computed = price(record.model, counts, moment)
    cost = computed.cost_nano if computed else None
    return Priced(
        record.id or clock.new_id(),
        record.agent,
        record.model,
        *counts,
        cost if record.cost_usd is None else to_nano(Decimal(repr(record.cost_usd))),
        computed.savings_nano if computed else None,
        "reported" if record.cost_usd is not None else "unpriced" if computed is None else "computed",
        clock.to_text(moment),
        record.request_id,
        record.id is not None,
        record.timestamp is not None,
    )


def _recorded(record_id: str, cost_nano: int | None, cost_source: str) -> Recorded:
    return Recorded(record_id, _dollars(cost_nano), cost_source)  # type: ignore[arg-type]  # one of three


def _dollars(nano: int | None) -> float | None:
    return None if nano is None else to_dollars(nano)


def _agent_model(agent: str, model: str, *sums: int) -> AgentModelUsage:
    *counts, unpriced_tokens, cost_nano = sums
    return AgentModelUsage(agent, model, *Counts(*counts), to_dollars(cost_nano), unpriced_tokens)


def _from_row(row: Row) -> StoredUsage:
    *head, cost_nano, cost_source, request_id, timestamp, _, _ = row
    return StoredUsage(*head, _dollars(cost_nano), cost_source, request_id, timestamp)  # type: ignore[call-arg]  # a checker cannot count


def _twin(
    tx: Any, workflow_id: str, one: Priced, fresh: dict[str, Priced], stored: dict[str, Row]
) -> Recorded | None:
    """The record with this id and content that is stored already, None where there is none or it is in this batch."""
    earlier = fresh.get(one.id)
    if earlier is not None:
        if _said(one, one.has_timestamp) != _said(earlier, one.has_timestamp):
            raise IdReused(id=one.id)
        return None
    row = stored.get(one.id)
    if row is None:
        return None
    if row[1] != workflow_id:
        _refuse_unknown(tx, workflow_id)
        raise IdReused(id=one.id)
    kept = _kept(one, row)
    if _said(one, one.has_timestamp) != _said(kept, one.has_timestamp):
        raise IdReused(id=one.id)
    return _recorded(one.id, kept.cost_nano, kept.cost_source)


def _refuse_unknown(db: Any, workflow_id: str) -> None:
    if not _workflow_exists.run(db, workflow=workflow_id):
        raise NotFound


def _kept(one: Priced, row: Row) -> Priced:
    """The record that is stored under the id of `one`."""
    _, _, agent, model, *counts, cost_nano, cost_source, request_id, timestamp, _, savings_nano = row
    return Priced(
        one.id,
        agent,
        model,
        *Counts(*counts),
        cost_nano,
        savings_nano,
        cost_source,
        timestamp,
        request_id,
        one.has_id,
        one.has_timestamp,
    )


def _grow_to(tx: Any, row: Row, one: Priced) -> bool:
    kept = _kept(one, row)
    more = one.sums.minus(kept.sums)
    if (one.key, one.cost_source) != (kept.key, kept.cost_source) or min(more) < 0 or not more.tokens:
        return False
    rollups.add(tx, row[1], [(kept.key, more)], records=0)
    _grow.run(tx, cost_usd=_dollars(one.cost_nano), **one._asdict())
    return True


def _said(record: Priced, with_timestamp: bool) -> tuple[Any, ...]:
    """What the caller said: a computed cost and a time of arrival are not part of it."""
    reported = record.cost_nano if record.cost_source == "reported" else None
    moment = record.timestamp if with_timestamp else None
    return (record.agent, record.model, record.counts, reported, record.request_id, moment)


def _store(tx: Any, workflow_id: str, records: list[Priced]) -> None:
    added = [(one.key, one.sums) for one in records]
    number = rollups.add(tx, workflow_id, added, len(records)) - len(records)
    rows = [
        (*record[:12], workflow_id, number + n, record.key[0], _dollars(record.cost_nano))
        for n, record in enumerate(records, 1)
    ]
    _insert.run_many(tx, rows)
