"""The timeline read over HTTP: pages in both directions, filters, and readers that wait."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import pytest

from amelia_flask import timeline as reading
from amelia_flask.models import LEVELS
from amelia_flask.stream import open_readers
from tests import api as http
from tests.api import MISSING, NOBODY, Api

api = http.api
fresh = http.fresh

ALL = "/api/events"
AGENTS = ("dev", "qa")
TYPES = ("note", "test.run", "note_2")
KINDS = [
    {"agent": agent, "event_type": kind, "level": level} for agent, kind, level in product(AGENTS, TYPES, LEVELS)
]


def of(workflow: str) -> str:
    return f"/api/workflows/{workflow}/events"


def append(api: Api, workflow: str, *members: dict[str, Any]) -> Any:
    """Append events with these members; where they stand."""
    given = [{"agent": "dev", "event_type": "note", "message": "m"} | one for one in members]
    return api.accepted(of(workflow), {"events": given})["events"]


def numbers(page: Any, name: str = "sequence") -> list[int]:
    return [event[name] for event in page["events"]]


@pytest.fixture(scope="module")
def timeline(api: Api) -> str:
    """A workflow with 25 events: that of its creation, then one of each of 24 kinds."""
    workflow = api.create()
    append(api, workflow, *KINDS)
    append(api, api.create(), {}, {})
    return workflow


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, range(1, 26)),
        ({"limit": 3}, (1, 2, 3)),
        ({"after": 3, "limit": 3}, (4, 5, 6)),
        ({"after": 23}, (24, 25)),
        ({"after": 25}, ()),
        ({"after": 2**63 - 1}, ()),
        ({"before": 3}, (1, 2)),
        ({"before": 0}, ()),
        ({"before": 2**63 - 1, "limit": 2}, (1, 2)),
        ({"after": 3, "before": 6}, (4, 5)),
        ({"after": 3, "before": 4}, ()),
        ({"after": 6, "before": 3}, ()),
        ({"order": "asc", "limit": 2}, (1, 2)),
        ({"order": "desc", "limit": 2}, (25, 24)),
        ({"order": "desc", "before": 24, "limit": 2}, (23, 22)),
        ({"order": "desc", "after": 23}, (25, 24)),
        ({"order": "desc", "after": 3, "before": 9, "limit": 2}, (8, 7)),
        ({"limit": 1000}, range(1, 26)),
    ],
    ids=str,
)
def test_after_means_greater_before_smaller_and_order_only_sorts(
    api: Api, timeline: str, query: dict[str, Any], expected: Any
) -> None:
    page = api.get(of(timeline), **query)
    assert numbers(page) == list(expected)
    assert page["next_after"] == max(expected, default=query.get("after", 0))
    assert page["next_before"] == min(expected, default=query.get("before"))
    within = [n for n in range(1, 26) if query.get("after", 0) < n < query.get("before", 26)]
    assert page["has_more"] == (len(within) > len(expected))
    assert page.keys() == {"events", "next_after", "next_before", "has_more"}


@pytest.mark.parametrize("level", [None, *LEVELS])
@pytest.mark.parametrize("kind", [None, *TYPES, "no_such"])
@pytest.mark.parametrize("agent", [None, *AGENTS, "nobody"])
def test_filters_hold_each_and_together(
    api: Api, timeline: str, agent: str | None, kind: str | None, level: str | None
) -> None:
    wanted = {"agent": agent, "event_type": kind, "level": level}
    query = {name: value for name, value in wanted.items() if value is not None}
    expected = [
        n
        for n, one in enumerate(KINDS, 2)
        if agent in {None, one["agent"]}
        and kind in {None, one["event_type"]}
        and LEVELS.index(one["level"]) >= LEVELS.index(level or "debug")
    ]
    assert numbers(api.get(of(timeline), **query, after=1)) == expected
    assert numbers(api.get(of(timeline), **query, after=1, order="desc")) == expected[::-1]
    page = api.get(of(timeline), **query, after=5, before=20, limit=2)
    within = [n for n in expected if 5 < n < 20]
    assert (numbers(page), page["has_more"]) == (within[:2], len(within) > 2)
    everywhere = [event for event in api.get(ALL, **query)["events"] if event["workflow_id"] == timeline]
    assert [event["sequence"] for event in everywhere if event["sequence"] > 1] == expected


@pytest.mark.parametrize("limit", [1, 4, 5, 24, 25, 26])
@pytest.mark.parametrize("query", [{}, {"agent": "qa"}, {"level": "warning", "event_type": "note"}], ids=str)
@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("everywhere", [False, True])
def test_paging_reaches_everything_once(
    api: Api, timeline: str, everywhere: bool, order: str, query: dict[str, str], limit: int
) -> None:
    address, number = (ALL, "position") if everywhere else (of(timeline), "sequence")
    whole = api.get(address, **query, limit=1000)["events"]
    found = list(paged(lambda bound: api.get(address, **query, **bound, order=order, limit=limit), order))
    assert found == (whole if order == "asc" else whole[::-1])
    assert [event[number] for event in whole] == sorted({event[number] for event in whole})


def paged(read: Callable[[dict[str, int]], Any], order: str) -> Iterator[Any]:
    name = "after" if order == "asc" else "before"
    bound: dict[str, int] = {}
    while True:
        page = read(bound)
        yield from page["events"]
        bound = {name: page[f"next_{name}"]}
        if not page["has_more"]:
            return


def test_all_workflows_are_read_by_position(fresh: Api) -> None:
    one, two = fresh.create(), fresh.create()
    append(fresh, one, {"message": "a"}, {"message": "b"})
    append(fresh, two, {"message": "c"})
    append(fresh, one, {"message": "d"})
    page = fresh.get(ALL, after=2)
    assert numbers(page, "position") == [3, 4, 5, 6]
    assert [(event["workflow_id"], event["message"]) for event in page["events"]] == [
        (one, "a"),
        (one, "b"),
        (two, "c"),
        (one, "d"),
    ]
    assert (page["next_after"], page["next_before"], page["has_more"]) == (6, 3, False)
    assert numbers(fresh.get(ALL, order="desc", limit=2), "position") == [6, 5]
    assert numbers(fresh.get(ALL, before=3), "position") == [1, 2]


def test_there_may_be_nothing_to_read(fresh: Api) -> None:
    assert fresh.get(ALL) == {"events": [], "next_after": 0, "next_before": None, "has_more": False}
    assert fresh.get(ALL, after=7, before=9) == {
        "events": [],
        "next_after": 7,
        "next_before": 9,
        "has_more": False,
    }


BAD_NUMBERS = ["", "x", "-1", "1.5", "1_0", "+1", "01", "%201", "٣", "0x1", "nan", str(2**63), "9" * 30, "1&{}=2"]
BAD_QUERIES = [
    *(f"{name}={value.format(name)}" for name in ("after", "before") for value in BAD_NUMBERS),
    *(f"limit={value.format('limit')}" for value in [*BAD_NUMBERS, "0", "1001"]),
    *(f"wait={value}" for value in ("", "x", "-1", "-0.1", "30.1", "nan", "inf", "1e999")),
    *(f"order={value}" for value in ("", "ASC", "newest", "asc&order=asc")),
    *(f"level={value}" for value in ("", "INFO", "fatal")),
    *(f"event_type={value}" for value in ("", "Note", "1", "a" * 65, "note%0A", "a%00")),
    *(f"agent={value}" for value in ("", "a" * 101, "a%00")),
    *("x=1", "Limit=1", "sequence=1", "cursor=1"),
]


@pytest.mark.parametrize("query", BAD_QUERIES, ids=lambda query: query[:30])
def test_a_bad_query_is_refused_and_the_parameter_named(api: Api, timeline: str, query: str) -> None:
    for address in (of(timeline), ALL):
        api.bad_query(address, query)


@pytest.mark.parametrize("workflow", [NOBODY, "no-uuid"])
@pytest.mark.parametrize("query", ["", "after=1000", "wait=10"])
def test_a_workflow_that_is_not_there_has_no_timeline(api: Api, workflow: str, query: str) -> None:
    api.bad_query(of(workflow), query, MISSING)


def waiting(api: Api, address: str, **query: Any) -> tuple[ThreadPoolExecutor, Any]:
    """A reader on a thread of its own, once it waits."""
    pool = ThreadPoolExecutor(1)
    answer = pool.submit(api.get, address, wait=20, **query)
    deadline = time.monotonic() + 10
    while open_readers.here == 0:
        assert time.monotonic() < deadline
        assert not answer.done(), answer.result()
        time.sleep(0.001)  # between two looks at the count
    return pool, answer


@pytest.mark.parametrize("everywhere", [False, True])
def test_an_empty_page_is_held_back_until_something_comes(fresh: Api, everywhere: bool) -> None:
    workflow, other = fresh.create(), fresh.create()
    address, after = (ALL, 2) if everywhere else (of(workflow), 1)
    pool, answer = waiting(fresh, address, after=after, event_type="awaited")
    with pool:
        append(fresh, other, {})
        append(fresh, workflow, {"event_type": "note"})
        assert not answer.done()
        assert open_readers.here == 1
        started = time.monotonic()
        (place,) = append(fresh, workflow, {"event_type": "awaited"})
        page = answer.result(10)
        assert time.monotonic() - started < 5
    assert [event["id"] for event in page["events"]] == [place["id"]]
    assert page["next_after"] == place["position" if everywhere else "sequence"]
    assert open_readers.here == 0


def test_a_page_that_is_not_empty_is_not_held_back(api: Api, timeline: str) -> None:
    started = time.monotonic()
    assert numbers(api.get(of(timeline), after=24, wait=30)) == [25]
    assert time.monotonic() - started < 5


def test_an_empty_page_is_given_back_after_its_seconds(api: Api, timeline: str) -> None:
    started = time.monotonic()
    page = api.get(of(timeline), after=25, wait=0.2)
    assert 0.2 <= time.monotonic() - started < 5
    assert page == {"events": [], "next_after": 25, "next_before": None, "has_more": False}


def test_a_reader_that_follows_misses_nothing_whatever_is_written_meanwhile(fresh: Api) -> None:
    workflows = [fresh.create() for _ in range(4)]
    done = threading.Event()
    places: list[Any] = []

    def write(workflow: str) -> None:
        for size in (1, 3, 1, 2) * 5:
            places.extend(append(fresh, workflow, *[{}] * size))

    def follow() -> list[int]:
        seen: list[int] = []
        while True:
            last_round = done.is_set()
            page = fresh.get(ALL, after=seen[-1] if seen else 4, limit=3)
            seen += numbers(page, "position")
            if last_round and not page["events"]:
                return seen

    with ThreadPoolExecutor(5) as pool:
        followed = pool.submit(follow)
        for written in [pool.submit(write, workflow) for workflow in workflows]:
            written.result()
        done.set()
        assert followed.result() == list(range(5, 5 + len(places)))
    for workflow in workflows:
        assert numbers(fresh.get(of(workflow))) == list(range(1, 37))
    assert sorted(place["position"] for place in places) == followed.result()


def test_a_page_of_large_events_is_cut_and_goes_on_where_it_ended(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST_BYTES", 10_000)
    workflow = api.create()
    append(api, workflow, *({"message": "m" * size} for size in (1, 6000, 3000, 2000, 20_000, 5, 9000)))
    for order, bound, name in (("asc", "after", "next_after"), ("desc", "before", "next_before")):
        found: list[int] = []
        query: dict[str, Any] = {"order": order, "event_type": "note"}
        while len(found) < 7:
            page = api.get(of(workflow), **query)
            assert sum(len(event["message"]) for event in page["events"]) <= 10_000 or len(page["events"]) == 1
            found += numbers(page)
            query[bound] = page[name]
            assert page["has_more"] == (len(found) < 7)
        assert found == sorted(range(2, 9), reverse=order == "desc")
