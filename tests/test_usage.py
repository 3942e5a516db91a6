"""Token usage is recorded over HTTP: each record once, with its cost, exactly summed or not stored at all."""

import math
from typing import Any

import pytest

from amelia_flask import clock
from tests import api as http
from tests.api import INVALID, MALFORMED, MISSING, NOBODY, REUSED, Api

api = http.api
fresh = http.fresh

MINIMUM = {"agent": "dev", "model": "no-such-model", "input_tokens": 10, "output_tokens": 1}
COUNTS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_creation_tokens")
PRICED = "claude-haiku-4-5"  # 1, 5, 0.1 and 1.25 dollars a million
LARGEST = 10**15
LARGEST_TOTAL = 2**62


def used(**members: Any) -> dict[str, Any]:
    return MINIMUM | members


def counted(*counts: int, **members: Any) -> dict[str, Any]:
    return used(**dict(zip(COUNTS, counts, strict=True)), **members)


def of(workflow: str) -> str:
    return f"/api/workflows/{workflow}/token-usage"


def stored(api: Api, workflow: str) -> Any:
    return api.get(of(workflow), limit=1000)["token_usage"]


@pytest.fixture
def workflow(api: Api) -> str:
    return api.create()


@pytest.mark.parametrize(
    "body",
    [
        used(input_tokens=1),
        {"token_usage": [used(input_tokens=1), used(input_tokens=2)]},
        [used(input_tokens=1), used(input_tokens=2), used(input_tokens=3)],
        {"token_usage": [used(input_tokens=n) for n in range(1000)]},
        [used(input_tokens=n) for n in range(10_000)],
    ],
    ids=["one", "batch", "lines", "largest batch", "most lines"],
)
def test_records_are_stored_in_the_order_sent(fresh: Api, body: Any) -> None:
    workflow = fresh.create()
    given = body if isinstance(body, list) else body.get("token_usage", [body])
    answer = fresh.accepted(of(workflow), body)
    assert answer["duplicates"] == 0
    found = fresh.database.rows("SELECT id, input_tokens FROM token_usage ORDER BY number")
    assert found == [
        (one["id"], sent["input_tokens"]) for one, sent in zip(answer["token_usage"], given, strict=True)
    ]
    tokens = sum(one["input_tokens"] + one["output_tokens"] for one in given)
    assert fresh.get(f"/api/workflows/{workflow}")["total_tokens"] == tokens
    assert fresh.get("/api/usage")["summary"]["total_tokens"] == tokens


def test_a_record_is_read_as_it_was_sent(api: Api, workflow: str) -> None:
    sent = counted(
        *(1, 2, 3, 4), id="u/1", request_id="r", cost_usd=0.25, timestamp="2026-01-02T03:04:05.678901Z", agent="ü"
    )
    assert api.accepted(of(workflow), sent) == {
        "token_usage": [{"id": "u/1", "cost_usd": 0.25, "cost_source": "reported"}],
        "duplicates": 0,
    }
    assert stored(api, workflow) == [sent | {"workflow_id": workflow, "cost_source": "reported"}]


def test_members_that_may_be_left_out_have_their_defaults(api: Api, workflow: str) -> None:
    before = clock.to_text(clock.now())
    api.accepted(of(workflow), used())
    api.accepted(of(workflow), used(**dict.fromkeys(["cost_usd", "request_id", "timestamp", "id"])))
    for found in stored(api, workflow):
        assert (found["cache_read_tokens"], found["cache_creation_tokens"], found["request_id"]) == (0, 0, None)
        assert before <= found["timestamp"] <= clock.to_text(clock.now())


@pytest.mark.parametrize(
    ("record", "cost", "source", "unpriced"),
    [
        (counted(1, 1, 1, 1, cost_usd=0.1), 0.1, "reported", 0),
        (counted(1, 1, 1, 1, cost_usd=0), 0.0, "reported", 0),
        (counted(1, 1, 1, 1, cost_usd=1.23456789012), 1.23456789, "reported", 0),
        (counted(1, 1, 1, 1, cost_usd=1_000_000), 1_000_000.0, "reported", 0),
        (counted(1, 1, 1, 1, cost_usd=0, model=PRICED), 0.0, "reported", 0),
        (counted(1000, 100, 10_000, 2000, model=PRICED), 0.005, "computed", 0),
        (counted(1000, 100, 10_000, 2000, model=f"anthropic/{PRICED}"), 0.005, "computed", 0),
        (counted(0, 0, 0, 0, model=PRICED), 0.0, "computed", 0),
        (counted(10**6, 0, 0, 0, model="o3", timestamp="2025-06-10T05:00:00+12:00"), 10.0, "computed", 0),
        (counted(10**6, 0, 0, 0, model="o3", timestamp="2025-06-10T00:00:00Z"), 2.0, "computed", 0),
        (counted(10**6, 0, 0, 0, model="o3", timestamp="1999-01-01T00:00:00Z"), 10.0, "computed", 0),
        (counted(1, 2, 4, 8), None, "unpriced", 15),
        (counted(1, 2, 4, 8, cost_usd=None), None, "unpriced", 15),
        (counted(0, 0, 0, 0), None, "unpriced", 0),
    ],
    ids=lambda given: str(given)[60:],
)
def test_a_cost_is_reported_or_computed_or_unknown(
    fresh: Api, record: dict[str, Any], cost: float | None, source: str, unpriced: int
) -> None:
    workflow = fresh.create()
    (answer,) = fresh.accepted(of(workflow), record)["token_usage"]
    (found,) = stored(fresh, workflow)
    for one in (answer, found):
        assert (one["cost_usd"], one["cost_source"]) == (cost, source)
    assert fresh.database.rows("SELECT cost_usd, cost_source FROM token_usage") == [(cost, source)]
    detail = fresh.get(f"/api/workflows/{workflow}")
    report = fresh.get("/api/usage", preset="all")
    for sums in (detail, detail["token_usage"], report["summary"]):
        assert (sums["total_cost_usd"], sums["unpriced_tokens"]) == (cost or 0.0, unpriced)
    for sums in (detail["token_usage"]["breakdown"][0], report["by_model"][0]):
        assert (sums["cost_usd"], sums["unpriced_tokens"]) == (cost or 0.0, unpriced)


@pytest.mark.parametrize(
    "members",
    [
        *({name: value} for name in COUNTS for value in (0, LARGEST)),
        {"agent": "x" * 100},
        {"model": "x" * 200},
        {"request_id": "x" * 200},
        {"id": "~" * 128},
        {"cost_usd": 1_000_000},
    ],
    ids=lambda members: str(members)[:40],
)
def test_members_are_taken_up_to_their_bounds(api: Api, members: dict[str, Any]) -> None:
    workflow = api.create()
    # An agent of its own, so that the largest counts do not add up to too much on one day.
    api.accepted(of(workflow), used(agent=workflow) | members)
    assert stored(api, workflow)[0].items() >= members.items()


BAD_MEMBERS: dict[str, list[Any]] = {
    **{name: [-1, LARGEST + 1, 2**63, 1.5, "1", True, None] for name in COUNTS},
    "agent": ["", "x" * 101, 1, None],
    "model": ["", "x" * 201, 1, None],
    "cost_usd": [-0.01, 1_000_000.01, "1", True, []],
    "request_id": ["", "x" * 201, 1],
    "id": ["", "a b", "x" * 129, 1],
    "timestamp": ["", "2026-01-01", "2026-01-01T00:00:00", "0001-01-01T00:00:00+01:00", 0],
    **{name: [1] for name in ("cost_source", "workflow_id", "total_tokens", "source", "x")},
}


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in BAD_MEMBERS.items() for value in values],
    ids=lambda given: str(given)[:30],
)
def test_a_bad_member_is_named_and_nothing_is_stored(api: Api, workflow: str, name: str, value: Any) -> None:
    for body, loc in (
        (used(**{name: value}), ["body", name]),
        ({"token_usage": [used(), used(**{name: value})]}, ["body", "token_usage", 1, name]),
        ([used(), used(**{name: value})], ["body", 1, name]),
    ):
        assert api.refused(of(workflow), body, INVALID)["detail"][0]["loc"] == loc


@pytest.mark.parametrize("name", sorted(MINIMUM))
def test_a_missing_member_is_named(api: Api, workflow: str, name: str) -> None:
    body = {key: value for key, value in MINIMUM.items() if key != name}
    assert api.refused(of(workflow), body, INVALID)["detail"][0]["loc"] == ["body", name]


@pytest.mark.parametrize(
    ("body", "refusal"),
    [
        ({}, INVALID),
        (b"[]", INVALID),
        ({"token_usage": []}, INVALID),
        ({"token_usage": [used()] * 1001}, INVALID),
        ({"token_usage": [used()], "x": 1}, INVALID),
        ([used()] * 10_001, INVALID),
        ([used(), {"token_usage": [used()]}], INVALID),
        ([], MALFORMED),
        ([used(), b"{"], MALFORMED),
        (b'{"input_tokens": NaN}', MALFORMED),
    ],
    ids=lambda given: str(given)[:40],
)
def test_a_body_of_another_shape_is_refused_whole(
    api: Api, workflow: str, body: Any, refusal: tuple[int, str]
) -> None:
    api.refused(of(workflow), body, refusal)


REPEATS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"model": PRICED}, {}),
    ({"cost_usd": 0.1}, {}),
    ({"timestamp": "2026-01-01T00:00:00Z"}, {"timestamp": "2026-01-01T01:00:00+01:00"}),
    ({"cache_read_tokens": 0}, {"cache_creation_tokens": 0}),
]


@pytest.mark.parametrize(("first", "again"), REPEATS, ids=str)
def test_the_same_id_with_the_same_content_is_counted_once(
    api: Api, workflow: str, first: dict[str, Any], again: dict[str, Any]
) -> None:
    one = used(id=clock.new_id()) | first
    answer = api.accepted(of(workflow), {"token_usage": [one, used(), one | again]})
    assert answer["duplicates"] == 1
    assert answer["token_usage"][0] == answer["token_usage"][2]
    before = api.get(of(workflow)), api.get("/api/usage", preset="all")["summary"]["total_tokens"]
    timeless = {name: value for name, value in one.items() if name != "timestamp"}
    for repeat in (one | again, timeless):
        assert api.accepted(of(workflow), [repeat, repeat], 200) == {
            "token_usage": [answer["token_usage"][0]] * 2,
            "duplicates": 2,
        }
    assert (api.get(of(workflow)), api.get("/api/usage", preset="all")["summary"]["total_tokens"]) == before


@pytest.mark.parametrize(
    ("first", "other"),
    [
        *(({}, {name: 7}) for name in COUNTS),
        ({}, {"agent": "qa"}),
        ({}, {"model": "other"}),
        ({}, {"request_id": "r"}),
        ({}, {"cost_usd": 0}),
        ({"cost_usd": 0.1}, {"cost_usd": None}),
        ({"cost_usd": 0.1}, {"cost_usd": 0.100000001}),
        ({"model": PRICED}, {"cost_usd": 0.000015}),  # what it was computed to
        ({}, {"timestamp": "2026-01-01T00:00:00Z"}),
    ],
    ids=str,
)
def test_the_same_id_with_other_content_is_refused_with_its_whole_batch(
    api: Api, workflow: str, first: dict[str, Any], other: dict[str, Any]
) -> None:
    one = used(id=clock.new_id()) | first
    api.refused(of(workflow), {"token_usage": [used(), one, one | other]}, REUSED)
    api.accepted(of(workflow), one)
    for body in (one | other, {"token_usage": [used(), one | other]}, [used(), one | other]):
        assert api.refused(of(workflow), body, REUSED)["details"] == {"id": one["id"]}


def test_an_id_belongs_to_one_workflow(api: Api, workflow: str) -> None:
    one = used(id=clock.new_id())
    api.accepted(of(workflow), one)
    api.refused(of(api.create()), one, REUSED)
    api.refused(of(NOBODY), one, MISSING)


@pytest.mark.parametrize("name", [NOBODY, "no-uuid"])
def test_a_workflow_that_is_not_there_has_no_usage(api: Api, name: str) -> None:
    api.refused(of(name), used(), MISSING)
    api.bad_query(of(name), "", MISSING)


def test_money_is_summed_exactly(fresh: Api) -> None:
    workflow = fresh.create()
    fresh.accepted(of(workflow), [used(cost_usd=0.1)] * 30)
    report = fresh.get("/api/usage")
    assert sum([0.1] * 30) != 3.0
    assert fresh.get(f"/api/workflows/{workflow}")["total_cost_usd"] == 3.0
    assert fresh.get(of(workflow))["summary"]["total_cost_usd"] == 3.0
    assert fresh.get("/api/workflows")["workflows"][0]["total_cost_usd"] == 3.0
    assert report["summary"]["total_cost_usd"] == report["trend"][-1]["cost_usd"] == 3.0
    assert report["trend"][-1]["by_model"] == {"no-such-model": 3.0}
    assert report["by_model"][0]["cost_usd"] == report["by_agent"][0]["cost_usd"] == 3.0


def test_a_total_beyond_64_bits_is_refused_and_nothing_of_it_stored(fresh: Api) -> None:
    full = [counted(LARGEST, LARGEST, LARGEST, LARGEST)] * (LARGEST_TOTAL // (4 * LARGEST))
    one, two = fresh.create(), fresh.create()
    fresh.refused(of(one), [*full, full[0]], INVALID)
    fresh.refused(of(one), [full[0]] * 10_000, INVALID)
    fresh.accepted(of(one), full)
    (problem,) = fresh.refused(of(one), [used(), full[0]], INVALID)["detail"]
    assert problem.keys() == {"type", "loc", "msg", "input"}
    fresh.refused(of(two), [counted(0, LARGEST, 0, 0)] * 4000, INVALID)  # the sum of that day
    fresh.refused(of(two), counted(0, LARGEST, 0, 0, model=PRICED), INVALID)  # the cost
    fresh.accepted(of(two), used())


def test_a_report_may_sum_more_than_a_workflow(fresh: Api) -> None:
    count = LARGEST_TOTAL // LARGEST
    for agent in range(5):
        fresh.accepted(of(fresh.create()), [counted(LARGEST, 0, 0, 0, agent=f"{agent}")] * count)
    report = fresh.get("/api/usage")
    total = 5 * count * LARGEST
    assert total > 2**64
    assert report["summary"]["total_tokens"] == report["summary"]["unpriced_tokens"] == total
    assert report["by_model"][0]["input_tokens"] == total


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8])
def test_paging_reaches_every_record_once_in_the_order_recorded(fresh: Api, limit: int) -> None:
    workflow, other = fresh.create(), fresh.create()
    for n in range(7):
        fresh.accepted(of(workflow), used(input_tokens=n, timestamp=f"2026-01-0{7 - n}T00:00:00Z"))
        fresh.accepted(of(other), used())
    found: list[int] = []
    query: dict[str, Any] = {}
    for left in reversed(range(math.ceil(7 / limit))):
        page = fresh.get(of(workflow), limit=limit, **query)
        found += [one["input_tokens"] for one in page["token_usage"]]
        assert len(page["token_usage"]) <= limit
        assert page["summary"] == fresh.get(f"/api/workflows/{workflow}")["token_usage"]
        assert page["has_more"] == (left > 0)
        query = {"after": page["next_after"]}
    assert found == list(range(7))
    empty = fresh.get(of(workflow), **query)
    assert (empty["token_usage"], empty["next_after"], empty["has_more"]) == ([], query["after"], False)
    fresh.accepted(of(workflow), used(input_tokens=7))
    assert [one["input_tokens"] for one in fresh.get(of(workflow), **query)["token_usage"]] == [7]


def test_a_workflow_that_used_nothing_has_no_sums(api: Api, workflow: str) -> None:
    assert api.get(of(workflow)) == {"token_usage": [], "summary": None, "next_after": None, "has_more": False}


@pytest.mark.parametrize("after", ["", "x", "-1", "1.0", "٣", "9" * 19, "9" * 400, "%201"])
def test_an_after_that_was_not_given_out_is_refused(api: Api, workflow: str, after: str) -> None:
    api.bad_query(of(workflow), f"after={after}", (400, "INVALID_CURSOR"))


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "limit=x", "limit=", "x=1", "before=1", "after=1&after=1"]
)
def test_a_bad_query_is_refused(api: Api, workflow: str, query: str) -> None:
    api.bad_query(of(workflow), query)


def test_sums_are_told_by_agent_and_model(api: Api, workflow: str) -> None:
    api.accepted(
        of(workflow),
        [
            counted(1, 2, 3, 4, agent="b", cost_usd=0.5),
            counted(10, 20, 30, 40, agent="a"),
            counted(100, 200, 300, 400, agent="b"),
            counted(1000, 0, 0, 0, agent="b", model=PRICED),
        ],
    )
    summary = api.get(of(workflow))["summary"]
    assert summary == {
        "total_input_tokens": 1111,
        "total_output_tokens": 222,
        "total_cache_read_tokens": 333,
        "total_cache_creation_tokens": 444,
        "total_cost_usd": 0.501,
        "unpriced_tokens": 1100,
        "breakdown": [
            counted(10, 20, 30, 40, agent="a", cost_usd=0.0, unpriced_tokens=100),
            counted(1000, 0, 0, 0, agent="b", model=PRICED, cost_usd=0.001, unpriced_tokens=0),
            counted(101, 202, 303, 404, agent="b", cost_usd=0.5, unpriced_tokens=1000),
        ],
    }
    detail = api.get(f"/api/workflows/{workflow}")
    assert (detail["token_usage"], detail["total_tokens"], detail["total_cost_usd"]) == (summary, 2110, 0.501)
