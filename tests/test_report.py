"""The usage report over HTTP: its periods, its days, and that its sums are those of the stored records."""

import tempfile
from collections import defaultdict
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amelia_flask import clock
from tests import api as http
from tests.api import Api
from tests.databases import Databases
from tests.ledgers import move

api = http.fresh

PRICED = "claude-haiku-4-5"  # 1, 5, 0.1 and 1.25 dollars a million
JANUARY = {"start": "2026-01-01", "end": "2026-01-31"}
WAYS: dict[str, list[str]] = {
    "pending": [],
    "in_progress": ["start"],
    "completed": ["start", "complete"],
    "failed": ["start", "fail"],
    "cancelled": ["cancel"],
}
SAID = {"fail": {"reason": "r"}}


def at(day: int, hour: int = 0) -> datetime:
    """A moment in January 2026."""
    return datetime(2026, 1, day, hour, tzinfo=UTC)


def today() -> date:
    return clock.now().date()


def record(api: Api, workflow: str, day: int | str, *counts: int, **members: Any) -> None:
    """Record usage on a day, which is one of January 2026 unless it is written out."""
    moment = f"{day}T12:00:00Z" if isinstance(day, str) else clock.to_text(at(day, 12))
    names = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_creation_tokens")
    body = {"agent": "dev", "model": "m", "input_tokens": 0, "output_tokens": 0, "timestamp": moment}
    body |= dict(zip(names, counts, strict=False)) | members
    api.accepted(f"/api/workflows/{workflow}/token-usage", body)


def ended(api: Api, status: str, created: int = 1, hours: int = 1) -> str:
    """A workflow that was created on that day, started at once, and brought to `status` some hours later."""
    workflow = api.create(at(created))
    for name in WAYS[status]:
        move(api.ledger, workflow, name, at(created, 0 if name == "start" else hours), **SAID.get(name, {}))
    return workflow


def delete(api: Api, workflow: str) -> None:
    assert api.app.test_client().delete(f"/api/workflows/{workflow}").status_code == 204


def report(api: Api, **query: str) -> Any:
    return api.get("/api/usage", **query or JANUARY)


def days(found: Any) -> list[str]:
    return [day["date"] for day in found["trend"]]


@pytest.mark.parametrize(("query", "length"), [("", 30), ("7d", 7), ("30d", 30), ("90d", 90), ("all", 1)])
def test_a_preset_ends_today_and_has_every_day(api: Api, query: str, length: int) -> None:
    last = today()
    found = api.get("/api/usage", **{"preset": query} if query else {})
    if today() == last:  # not at midnight
        assert days(found) == [(last - timedelta(days=back)).isoformat() for back in reversed(range(length))]


@pytest.mark.parametrize(
    ("start", "end", "length"),
    [
        ("2026-01-01", "2026-01-01", 1),
        ("2024-02-28", "2024-03-01", 3),
        ("0001-01-01", "0001-01-02", 2),
        ("0001-01-03", "0001-01-10", 8),
        ("9999-12-30", "9999-12-31", 2),
        ("2016-01-01", "2026-01-07", 3660),
    ],
)
def test_a_period_has_every_day_from_start_to_end(api: Api, start: str, end: str, length: int) -> None:
    found = api.get("/api/usage", start=start, end=end)
    assert (days(found)[0], days(found)[-1], len(days(found))) == (start, end, length)
    assert all(day == {"date": day["date"], "cost_usd": 0, "workflows": 0, "by_model": {}} for day in found["trend"])
    assert found["summary"] == {
        "total_cost_usd": 0,
        "total_workflows": 0,
        "total_tokens": 0,
        "total_duration_ms": 0,
        "cache_hit_rate": None,
        "cache_savings_usd": 0,
        "previous_period_cost_usd": 0,
        "successful_workflows": 0,
        "success_rate": None,
        "unpriced_tokens": 0,
    }
    assert (found["by_model"], found["by_agent"]) == ([], [])


@pytest.mark.parametrize(
    "query",
    [
        "preset=",
        "preset=1d",
        "preset=30D",
        "preset=30",
        "start=2026-01-01",
        "end=2026-01-01",
        "start=&end=",
        "start=2026-01-02&end=2026-01-01",
        "start=2026-02-30&end=2026-03-01",
        "start=2026-1-1&end=2026-01-02",
        "start=20260101&end=20260102",
        "start=2026-W01-1&end=2026-01-02",
        "start=2026-01-01T00:00:00Z&end=2026-01-02",
        "start=0000-01-01&end=0000-01-02",
        "start=-001-01-01&end=2026-01-01",
        "start=２026-01-01&end=2026-01-02",
        "start=2026-01-01%0A&end=2026-01-02",
        "start=2026-01-01&end=99999-01-01",
        "start=2016-01-01&end=2026-01-08",
        "start=0001-01-01&end=9999-12-31",
        "preset=7d&start=2026-01-01&end=2026-01-02",
        "preset=all&start=2026-01-01",
    ],
)
def test_any_other_period_is_refused(api: Api, query: str) -> None:
    api.bad_query("/api/usage", query, (400, "INVALID_PERIOD"))


@pytest.mark.parametrize("query", ["x=1", "period=7d", "preset=7d&preset=7d", "preset=7d%00"])
def test_a_bad_query_is_refused(api: Api, query: str) -> None:
    api.bad_query("/api/usage", query)


def test_days_are_those_of_the_records_in_utc(api: Api) -> None:
    workflow = api.create(at(1))
    for moment in ("2026-01-02T00:00:00Z", "2026-01-02T23:59:59.999999Z", "2026-01-03T00:30:00+01:00"):
        record(api, workflow, 1, cost_usd=1, timestamp=moment)
    record(api, workflow, 1, cost_usd=1, timestamp="2026-01-02T23:30:00-01:00")
    costs = {day["date"]: day["cost_usd"] for day in report(api)["trend"] if day["cost_usd"]}
    assert costs == {"2026-01-02": 3, "2026-01-03": 1}
    assert [day["cost_usd"] for day in report(api, start="2026-01-02", end="2026-01-02")["trend"]] == [3]
    assert report(api, start="2026-01-03", end="2026-01-04")["summary"]["total_cost_usd"] == 1


def test_the_previous_period_is_as_long_and_just_before(api: Api) -> None:
    workflow = api.create(at(1))
    for day in range(1, 11):
        record(api, workflow, day, cost_usd=2**day)
    for first, last in ((5, 5), (4, 6), (9, 10), (8, 10)):
        found = report(api, start=f"2026-01-{first:02}", end=f"2026-01-{last:02}")["summary"]
        assert found["total_cost_usd"] == sum(2**day for day in range(first, last + 1))
        length = last - first + 1
        assert found["previous_period_cost_usd"] == sum(2**day for day in range(first - length, first))
    assert report(api, preset="all")["summary"]["previous_period_cost_usd"] is None


def test_the_cache_is_told_by_its_rate_and_its_savings(api: Api) -> None:
    workflow = api.create(at(1))
    record(api, workflow, 1, 1000, 5, 3000, 500, model=PRICED)
    record(api, workflow, 2, 100, 5, 300, 100, model=PRICED, cost_usd=7)  # reported; its price is known none the less
    record(api, workflow, 3, 1000, 5, 4000, 0, model="m")  # no price is known: saves nothing that could be told
    record(api, workflow, 4, 1000, 5, 0, 0, model=PRICED)
    summary = report(api)["summary"]
    # 3,300 cache reads at 0.1 in place of 1 dollar a million.
    assert summary["cache_savings_usd"] == 0.00297
    assert summary["cache_hit_rate"] == 7300 / (3100 + 7300 + 600)
    assert report(api, start="2026-01-04", end="2026-01-04")["summary"]["cache_hit_rate"] == 0
    assert report(api, start="2026-01-05", end="2026-01-05")["summary"]["cache_hit_rate"] is None


@pytest.mark.parametrize(
    ("statuses", "finished", "successful"),
    [
        ([], 0, 0),
        (["pending", "in_progress"], 0, 0),
        (["completed"], 1, 1),
        (["failed", "cancelled"], 2, 0),
        (["completed", "completed", "failed", "cancelled", "pending"], 4, 2),
    ],
    ids=str,
)
def test_success_is_completed_among_finished(api: Api, statuses: list[str], finished: int, successful: int) -> None:
    for status in statuses:
        record(api, ended(api, status), 2, 1)
    ended(api, "failed", created=9)  # without usage: no model counts it
    found = report(api, start="2026-01-01", end="2026-01-08")
    rate = successful / finished if finished else None
    for sums in (found["summary"], *found["by_model"]):
        assert (sums["successful_workflows"], sums["success_rate"]) == (successful, rate)
    assert found["summary"]["total_workflows"] == len(statuses)
    assert [model["workflows"] for model in found["by_model"]] == [len(statuses)] * bool(statuses)


def test_workflows_are_counted_on_the_day_they_were_created(api: Api) -> None:
    for day in (3, 3, 5):
        record(api, ended(api, "completed", created=day), 9, 1)
    found = report(api)
    assert {day["date"]: day["workflows"] for day in found["trend"] if day["workflows"]} == {
        "2026-01-03": 2,
        "2026-01-05": 1,
    }
    assert report(api, start="2026-01-04", end="2026-01-09")["summary"]["total_workflows"] == 1
    assert report(api, start="2026-01-09", end="2026-01-09")["summary"]["total_workflows"] == 0


def test_a_model_counts_a_workflow_on_the_day_of_its_first_use_however_late_that_is_told(api: Api) -> None:
    workflow = ended(api, "completed")

    def counted_on() -> dict[str, list[int]]:
        counts: dict[str, list[int]] = defaultdict(list)
        for day in range(1, 11):
            for model in report(api, start=f"2026-01-{day:02}", end=f"2026-01-{day:02}")["by_model"]:
                assert model["successful_workflows"] == model["workflows"]
                counts[model["model"]] += [day] * model["workflows"]
        return counts

    record(api, workflow, 5, 1)
    record(api, workflow, 7, 1)
    record(api, workflow, 7, 1, agent="qa")
    record(api, workflow, 6, 1, model="n")
    assert counted_on() == {"m": [5], "n": [6]}
    record(api, workflow, 3, 1, agent="qa")
    assert counted_on() == {"m": [3], "n": [6]}
    record(api, ended(api, "completed"), 4, 1)
    assert counted_on() == {"m": [3, 4], "n": [6]}


def test_durations_run_from_the_start_to_the_end_or_to_now(api: Api) -> None:
    for status, hours in (("completed", 2), ("failed", 3), ("cancelled", 5), ("pending", 5)):
        ended(api, status, hours=hours)
    assert report(api)["summary"]["total_duration_ms"] == 5 * 3_600_000
    ended(api, "in_progress")
    before = clock.milliseconds(clock.to_text(at(1)), clock.now())
    found = report(api)["summary"]["total_duration_ms"] - 5 * 3_600_000
    assert before <= found <= clock.milliseconds(clock.to_text(at(1)), clock.now())


@pytest.mark.parametrize("distance", [-20_000, -3660, -3659, -40, 1, 2, 400])
def test_all_of_time_has_every_record_whatever_the_clock_of_its_agent(api: Api, distance: int) -> None:
    day = (today() + timedelta(days=distance)).isoformat()
    record(api, api.create(), day, 5, cost_usd=2)
    record(api, api.create(), today().isoformat(), 5, cost_usd=3)
    found = report(api, preset="all")
    assert (found["summary"]["total_cost_usd"], found["summary"]["total_tokens"]) == (5, 10)
    assert {one["date"]: one["cost_usd"] for one in found["trend"] if one["cost_usd"]}[day] == 2
    assert days(found) == sorted(set(days(found)))
    assert {day, today().isoformat()} <= set(days(found))
    if abs(distance) < 3660:
        assert len(days(found)) == abs(distance) + 1


def test_models_and_agents_come_with_their_days_the_most_expensive_first(api: Api) -> None:
    workflow = api.create(at(1))
    record(api, workflow, 3, 1, 2, 3, 4, model="cheap", cost_usd=1, agent="b")
    record(api, workflow, 2, 10, 0, 0, 0, model="cheap", agent="a")
    record(api, workflow, 2, 100, 0, 0, 0, model="dear", cost_usd=5, agent="a")
    found = report(api)
    assert found["by_agent"] == [
        {"agent": "a", "tokens": 110, "cost_usd": 5},
        {"agent": "b", "tokens": 10, "cost_usd": 1},
    ]
    assert [model["model"] for model in found["by_model"]] == ["dear", "cheap"]
    assert found["by_model"][1] == {
        "model": "cheap",
        "workflows": 1,
        "tokens": 20,
        "input_tokens": 11,
        "output_tokens": 2,
        "cache_read_tokens": 3,
        "cache_creation_tokens": 4,
        "cost_usd": 1,
        "trend": [
            {"date": "2026-01-02", "cost_usd": 0, "tokens": 10},
            {"date": "2026-01-03", "cost_usd": 1, "tokens": 10},
        ],
        "successful_workflows": 0,
        "success_rate": None,
        "unpriced_tokens": 10,
    }
    assert found["trend"][1] == {
        "date": "2026-01-02",
        "cost_usd": 5,
        "workflows": 0,
        "by_model": {"cheap": 0, "dear": 5},
    }


def test_a_workflow_that_is_deleted_leaves_the_reports(api: Api) -> None:
    record(api, ended(api, "completed"), 3, 1, 2, 3, 4, model=PRICED, agent="a")
    before = report(api)
    workflow = ended(api, "failed", created=2)
    record(api, workflow, 3, 1, 2, 3, 4, model=PRICED, agent="a")
    record(api, workflow, 4, 1, 2, 3, 4)
    assert report(api) != before
    delete(api, workflow)
    assert report(api) == before


histories = st.lists(
    st.tuples(
        st.integers(1, 4),  # the day of its creation
        st.sampled_from(sorted(WAYS)),
        st.booleans(),  # deleted in the end
        st.lists(
            st.tuples(
                st.integers(1, 6),
                st.lists(st.integers(0, 10**6), min_size=4, max_size=4),
                st.sampled_from(["a", "b"]),
                st.sampled_from([PRICED, "m"]),
                st.sampled_from([None, 0.1, 0.7, 1e-9]),
            ),
            max_size=4,
        ),
    ),
    max_size=4,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=histories, first=st.integers(1, 6), length=st.integers(0, 5))
def test_all_sums_are_those_of_the_stored_records(
    databases: Databases, tmp_path: Path, history: Any, first: int, length: int
) -> None:
    with databases.lend(Path(tempfile.mkdtemp(dir=tmp_path))) as database, closing(Api(database)) as api:
        for created, status, gone, records in history:
            workflow = ended(api, status, created)
            for day, counts, agent, model, cost in records:
                record(api, workflow, day, *counts, agent=agent, model=model, cost_usd=cost)
            if gone and status not in ("pending", "in_progress"):
                delete(api, workflow)
        last = first + length
        check_sums(api, f"2026-01-{first:02}", f"2026-01-{last:02}")


def check_sums(api: Api, start: str, end: str) -> None:
    found = report(api, start=start, end=end)
    total = sums(api, start, end)
    summary = found["summary"]
    assert (summary["total_tokens"], summary["total_cost_usd"], summary["unpriced_tokens"]) == total[4:7]
    assert summary["cache_savings_usd"] == total[7]
    assert (
        sum(model["tokens"] for model in found["by_model"]) == sum(a["tokens"] for a in found["by_agent"]) == total[4]
    )
    for model in found["by_model"]:
        names = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_creation_tokens", "tokens", "cost_usd")
        assert tuple(model[name] for name in names) == sums(api, start, end, "model", model["model"])[:6]
        assert all(
            day["tokens"] == sums(api, day["date"], day["date"], "model", model["model"])[4] for day in model["trend"]
        )
        assert (model["workflows"], model["successful_workflows"]) == first_uses(api, start, end, model["model"])
    for agent in found["by_agent"]:
        assert (agent["tokens"], agent["cost_usd"]) == sums(api, start, end, "agent", agent["agent"])[4:6]
    assert [day["cost_usd"] for day in found["trend"]] == [sums(api, day, day)[5] for day in days(found)]
    created = api.database.rows("SELECT status FROM workflows WHERE created_at BETWEEN ? AND ?", *bounds(start, end))
    assert summary["total_workflows"] == sum(day["workflows"] for day in found["trend"]) == len(created)
    assert summary["successful_workflows"] == created.count(("completed",))


def bounds(start: str, end: str) -> tuple[str, str]:
    """The first moment of the first day and the last of the last."""
    return f"{start}T00:00:00.000000Z", f"{end}T23:59:59.999999Z"


def sums(api: Api, start: str, end: str, column: str = "1", value: Any = 1) -> tuple[Any, ...]:
    """The four counts, all tokens, dollars, tokens without a price and dollars saved, over the stored records."""
    found = api.database.rows(
        "SELECT input_tokens, output_tokens, cache_read_tokens, cache_creation_tokens, cost_nano, savings_nano"
        f" FROM token_usage WHERE timestamp BETWEEN ? AND ? AND {column} = ?",
        *(*bounds(start, end), value),
    )
    counts = [sum(row[n] for row in found) for n in range(4)]
    cost, saved = (sum(row[n] or 0 for row in found) / 10**9 for n in (4, 5))
    return (*counts, sum(counts), cost, sum(sum(row[:4]) for row in found if row[4] is None), saved)


def first_uses(api: Api, start: str, end: str, model: str) -> tuple[int, int]:
    """How many workflows first used the model between these days, and how many of them are completed."""
    statuses = api.database.rows(
        "SELECT status FROM workflows JOIN token_usage ON workflow_id = workflows.id WHERE model = ?"
        " GROUP BY workflows.id HAVING MIN(timestamp) BETWEEN ? AND ?",
        *(model, *bounds(start, end)),
    )
    return len(statuses), statuses.count(("completed",))
