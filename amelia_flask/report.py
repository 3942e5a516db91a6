"""The usage report over days, read from the sums by day: no record is touched."""

import re
from collections import defaultdict
from collections.abc import Iterable
from datetime import date, datetime, timedelta
from typing import Any, NamedTuple

import peewee
from msgspec import Struct

from amelia_flask import clock
from amelia_flask.database import Prepared, Row, param
from amelia_flask.errors import InvalidPeriod
from amelia_flask.models import ACTIVE, ModelsByDay, UsageByDay, Workflow, WorkflowsByDay
from amelia_flask.pricing import to_dollars
from amelia_flask.rollups import Sums

PRESETS = {"7d": 7, "30d": 30, "90d": 90}
LONGEST_DAYS = 3660

_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)


class Period(NamedTuple):
    """Days from `start` to `end`, both included; without a start, all days with data and those up to `end`."""

    start: date | None
    end: date


class UsageSummary(Struct, kw_only=True):
    """The whole period; rates and the previous period are null where there is nothing to compare."""

    total_cost_usd: float
    total_workflows: int
    total_tokens: int
    total_duration_ms: int
    cache_hit_rate: float | None
    cache_savings_usd: float
    previous_period_cost_usd: float | None
    successful_workflows: int
    success_rate: float | None
    unpriced_tokens: int


class DayUsage(Struct):
    """One day in UTC: workflows created, cost in all and by model."""

    date: str
    cost_usd: float
    workflows: int
    by_model: dict[str, float]


class ModelDay(Struct):
    """One day of a model."""

    date: str
    cost_usd: float
    tokens: int


class ModelUsage(Struct, kw_only=True):
    """One model; `workflows` counts those that first used it in the period, `trend` has the days of use."""

    model: str
    workflows: int
    tokens: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_creation_tokens: int
    cost_usd: float
    trend: list[ModelDay]
    successful_workflows: int
    success_rate: float | None
    unpriced_tokens: int


class AgentUsage(Struct):
    """One agent."""

    agent: str
    tokens: int
    cost_usd: float


class UsageReport(Struct):
    """Cost and tokens over days, by model and by agent, the most expensive first."""

    summary: UsageSummary
    trend: list[DayUsage]
    by_model: list[ModelUsage]
    by_agent: list[AgentUsage]


class _Counted(NamedTuple):
    workflows: int = 0
    finished: int = 0
    successful: int = 0

    @property
    def success_rate(self) -> float | None:
        return self.successful / self.finished if self.finished else None


def _between(day: Any) -> Any:
    return (day >= param("start")) & (day <= param("end"))


# The database's sums end at 64 bits, and each number may be near that: they are summed in halves and joined here.
_HALF = 32


def _in_halves(name: str) -> tuple[Any, Any]:
    column = getattr(UsageByDay, name)
    high = peewee.Expression(column, ">>", peewee.SQL(str(_HALF)))
    return peewee.fn.SUM(high), peewee.fn.SUM(column.bin_and(peewee.SQL(str(2**_HALF - 1))))


def _sums_by(*columns: Any) -> Prepared:
    halves = [half for name in Sums._fields for half in _in_halves(name)]
    return Prepared(
        lambda: (
            UsageByDay.select(*columns, *halves).where(_between(UsageByDay.day)).group_by(*columns).order_by(*columns)
        )
    )


_by_day_and_model = _sums_by(UsageByDay.day, UsageByDay.model)
_by_agent = _sums_by(UsageByDay.agent)
_costs = Prepared(lambda: UsageByDay.select(UsageByDay.cost_nano).where(_between(UsageByDay.day)))
_workflows = Prepared(
    lambda: WorkflowsByDay.select(
        WorkflowsByDay.day,
        WorkflowsByDay.workflows,
        WorkflowsByDay.finished,
        WorkflowsByDay.successful,
        WorkflowsByDay.duration_ms,
    ).where(_between(WorkflowsByDay.day))
)
_models = Prepared(
    lambda: ModelsByDay.select(
        ModelsByDay.model, ModelsByDay.workflows, ModelsByDay.finished, ModelsByDay.successful
    ).where(_between(ModelsByDay.day))
)
_running = Prepared(
    lambda: Workflow.select(Workflow.started_at).where(
        Workflow.status.in_([str(status) for status in ACTIVE])
        & Workflow.started_at.is_null(False)
        & (Workflow.created_at >= param("first"))
        & (Workflow.created_at <= param("last"))
    )
)


def period(preset: str | None, start: str | None, end: str | None, now: datetime | None = None) -> Period:
    """The period that the parameters name, 30 days with today by default. Raises InvalidPeriod."""
    today = (now or clock.now()).date()
    if start is None and end is None:
        if preset == "all":
            return Period(None, today)
        days = PRESETS.get("30d" if preset is None else preset)
        if days is None:
            raise InvalidPeriod
        return Period(today - timedelta(days=days - 1), today)
    if preset is not None or start is None or end is None:
        raise InvalidPeriod
    first, last = _day(start), _day(end)
    if first > last or (last - first).days >= LONGEST_DAYS:
        raise InvalidPeriod
    return Period(first, last)


def report(db: Any, wanted: Period, now: datetime | None = None) -> UsageReport:
    """What was used in the period."""
    now = now or clock.now()
    values = {"start": _start(wanted), "end": _end(wanted)}
    used = {(day, model): _joined(halves) for day, model, *halves in _by_day_and_model.run(db, **values)}
    used = {key: sums for key, sums in used.items() if any(sums)}
    created = {row[0]: row[1:] for row in _workflows.run(db, **values) if any(row[1:])}
    days = _days(wanted, {*created, *(day for day, _ in used)})
    return UsageReport(
        _summary(db, wanted, used, created, now),
        _trend(days, used, created),
        _models_of(used, _models.run(db, **values)),
        _agents_of(_by_agent.run(db, **values)),
    )


Used = dict[tuple[str, str], Sums]  # by day and model, in this order


def _joined(halves: list[int]) -> Sums:
    return Sums(*((high << _HALF) + low for high, low in zip(halves[::2], halves[1::2], strict=True)))


def _total(many: Iterable[tuple[int, ...]]) -> list[int]:
    """The sums of each column."""
    return [sum(column) for column in zip(*many, strict=True)]


def _day(text: str) -> date:
    if not _DAY.fullmatch(text):
        raise InvalidPeriod
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise InvalidPeriod from None


def _start(wanted: Period) -> str:
    return wanted.start.isoformat() if wanted.start else ""


def _end(wanted: Period) -> str:
    """The last day; of all time the calendar's last, because the clocks of agents may be ahead."""
    return (wanted.end if wanted.start else date.max).isoformat()


def _days(wanted: Period, found: set[str]) -> list[str]:
    """Every day of the period; of one longer than LONGEST_DAYS its newest, and those before that have data."""
    first = _start(wanted) or min([*found, wanted.end.isoformat()])
    last = date.fromisoformat(max([*found, wanted.end.isoformat()]))
    count = min((last - date.fromisoformat(first)).days + 1, LONGEST_DAYS)
    return sorted({*found, *((last - timedelta(days=back)).isoformat() for back in range(count))})


def _summary(db: Any, wanted: Period, used: Used, created: dict[str, Any], now: datetime) -> UsageSummary:
    total = Sums(*_total(used.values()))
    counts = _Counted(*_total(row[:3] for row in created.values()))
    input_side = total.input_tokens + total.cache_read_tokens + total.cache_creation_tokens
    return UsageSummary(
        total_cost_usd=to_dollars(total.cost_nano),
        total_workflows=counts.workflows,
        total_tokens=total.tokens,
        total_duration_ms=sum(row[3] for row in created.values()) + _running_ms(db, wanted, now),
        cache_hit_rate=total.cache_read_tokens / input_side if input_side else None,
        cache_savings_usd=to_dollars(total.savings_nano),
        previous_period_cost_usd=_previous_cost(db, wanted),
        successful_workflows=counts.successful,
        success_rate=counts.success_rate,
        unpriced_tokens=total.unpriced_tokens,
    )


def _running_ms(db: Any, wanted: Period, now: datetime) -> int:
    """How long the active workflows that were created in the period have run."""
    first = f"{wanted.start}{clock.FIRST[10:]}" if wanted.start else clock.FIRST
    rows = _running.run(db, first=first, last=f"{_end(wanted)}{clock.LAST[10:]}")
    return sum(clock.milliseconds(started_at, now) for (started_at,) in rows)


def _previous_cost(db: Any, wanted: Period) -> float | None:
    if wanted.start is None:
        return None
    length = (wanted.end - wanted.start).days + 1
    rows = _costs.run(db, start=_before(wanted.start, length), end=_before(wanted.start, 1))
    return to_dollars(sum(cost_nano for (cost_nano,) in rows))


def _before(day: date, days: int) -> str:
    """The day so many days earlier; where the calendar has none, a text that sorts before every day."""
    return (day - timedelta(days=days)).isoformat() if day.toordinal() > days else ""


def _trend(days: list[str], used: Used, created: dict[str, Any]) -> list[DayUsage]:
    costs: dict[str, dict[str, int]] = defaultdict(dict)
    for (day, model), sums in used.items():
        costs[day][model] = sums.cost_nano
    return [
        DayUsage(
            day,
            to_dollars(sum(costs[day].values())),
            created[day][0] if day in created else 0,
            {model: to_dollars(nano) for model, nano in costs[day].items()},
        )
        for day in days
    ]


def _models_of(used: Used, counted: list[Row]) -> list[ModelUsage]:
    by_day: dict[str, dict[str, Sums]] = defaultdict(dict)
    for (day, model), sums in used.items():
        by_day[model][day] = sums
    counts: dict[str, list[Row]] = defaultdict(list)
    for model, *numbers in counted:
        if any(numbers):
            counts[model].append(numbers)
    models = [_model(name, by_day[name], _Counted(*_total(counts[name]))) for name in sorted({*by_day, *counts})]
    return sorted(models, key=lambda one: -one.cost_usd)


def _model(name: str, by_day: dict[str, Sums], counts: _Counted) -> ModelUsage:
    total = Sums(*_total(by_day.values()))
    return ModelUsage(
        model=name,
        workflows=counts.workflows,
        tokens=total.tokens,
        input_tokens=total.input_tokens,
        output_tokens=total.output_tokens,
        cache_read_tokens=total.cache_read_tokens,
        cache_creation_tokens=total.cache_creation_tokens,
        cost_usd=to_dollars(total.cost_nano),
        trend=[ModelDay(day, to_dollars(sums.cost_nano), sums.tokens) for day, sums in by_day.items()],
        successful_workflows=counts.successful,
        success_rate=counts.success_rate,
        unpriced_tokens=total.unpriced_tokens,
    )


def _agents_of(rows: list[Row]) -> list[AgentUsage]:
    used = {name: sums for name, *halves in rows if any(sums := _joined(halves))}
    agents = [AgentUsage(name, sums.tokens, to_dollars(sums.cost_nano)) for name, sums in used.items()]
    return sorted(agents, key=lambda one: -one.cost_usd)
