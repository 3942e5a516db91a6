"""Events are appended over HTTP: in order, whole batches or nothing, each id once, and kept as they were sent."""

import re
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amelia_flask import clock
from amelia_flask.events import SERVICE_TYPES
from tests import api as http
from tests.api import INVALID, MALFORMED, MISSING, NOBODY, REUSED, Api
from tests.ledgers import move

api = http.api
fresh = http.fresh

MINIMUM = {"agent": "dev", "event_type": "note", "message": "m"}
LARGEST_DATA = 262_144


def event(**members: Any) -> dict[str, Any]:
    return MINIMUM | members


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in MINIMUM.items() if key != name}


def address(workflow: str) -> str:
    return f"/api/workflows/{workflow}/events"


def newest(api: Api, workflow: str) -> Any:
    return api.get(address(workflow), order="desc", limit=1)["events"][0]


def nested(size: int) -> dict[str, str]:
    """An object that is so many bytes long as JSON."""
    return {"x": "y" * (size - len('{"x":""}'))}


@pytest.fixture
def workflow(api: Api) -> str:
    """A new workflow, whose first event is that of its creation."""
    return api.create()


@pytest.mark.parametrize(
    "body",
    [
        event(message="a"),
        {"events": [event(message="a"), event(message="b")]},
        [event(message="a"), event(message="b"), event(message="c")],
        {"events": [event(message=str(n)) for n in range(1000)]},
        [event(message=str(n)) for n in range(10_000)],
    ],
    ids=["one", "batch", "lines", "largest batch", "most lines"],
)
def test_events_get_the_next_numbers_in_the_order_sent(fresh: Api, body: Any) -> None:
    api, workflow = fresh, fresh.create()
    sent = body if isinstance(body, list) else body.get("events", [body])
    before = newest(api, workflow)
    answer = api.accepted(address(workflow), body)
    assert answer["duplicates"] == 0
    assert [place["sequence"] for place in answer["events"]] == list(range(2, len(sent) + 2))
    first = before["position"] + 1
    assert [place["position"] for place in answer["events"]] == list(range(first, first + len(sent)))
    stored = api.database.rows("SELECT id, message FROM events WHERE workflow_id = ? AND sequence > 1", workflow)
    messages: dict[str, str] = dict(stored)
    assert [messages[place["id"]] for place in answer["events"]] == [one["message"] for one in sent]


def test_lines_may_be_blank_and_end_as_they_do_on_windows(api: Api, workflow: str) -> None:
    line = msgspec.json.encode(MINIMUM)
    answer = api.accepted(address(workflow), [b"", line + b"\r", b"  ", b"\r", line, b"\t" + line + b" ", b""])
    assert len(answer["events"]) == 3


def test_an_event_is_read_as_it_was_sent(api: Api, workflow: str) -> None:
    sent = event(
        id="an/id:~!",
        level="warning",
        data={"a": [1, None, {"b": "ü"}]},
        correlation_id="c",
        timestamp="2026-01-02T03:04:05.678901Z",
        message="line\nline\t\u2028 𝄞",
    )
    (place,) = api.accepted(address(workflow), sent)["events"]
    assert newest(api, workflow) == sent | {"workflow_id": workflow} | place


def test_members_that_may_be_left_out_have_their_defaults(api: Api, workflow: str) -> None:
    nulls = dict.fromkeys(["data", "correlation_id", "timestamp", "id"])
    for body in (event(), event(**nulls)):
        before = clock.to_text(clock.now())
        (place,) = api.accepted(address(workflow), body)["events"]
        found = newest(api, workflow)
        assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", place["id"])
        assert (found["level"], found["data"], found["correlation_id"]) == ("info", None, None)
        assert before <= found["timestamp"] <= clock.to_text(clock.now())


@pytest.mark.parametrize(
    "members",
    [
        {"agent": "x" * 100},
        {"agent": "é" * 100},
        {"event_type": "x" * 64},
        {"event_type": "a0_.z"},
        {"message": ""},
        {"message": "𝄞" * 65_536},
        {"data": {}},
        {"data": nested(LARGEST_DATA)},
        {"correlation_id": "c" * 200},
        {"id": "~" * 128},
        *({"level": level} for level in ("debug", "info", "warning", "error")),
    ],
    ids=lambda members: str(members)[:40],
)
def test_members_are_taken_up_to_their_bounds(api: Api, workflow: str, members: dict[str, Any]) -> None:
    api.accepted(address(workflow), event(**members))
    assert newest(api, workflow).items() >= members.items()


BAD_MEMBERS: dict[str, list[Any]] = {
    "agent": ["", "x" * 101, 1, None, ["dev"]],
    "event_type": [
        "",
        "Note",
        "1note",
        "_note",
        "no-te",
        "note\n",
        "nöte",
        "ａ",
        "x" * 65,
        7,
        *sorted(SERVICE_TYPES),
    ],
    "message": [None, 1, {}, "m" * 65_537],
    "level": ["", "INFO", "critical", None, 1],
    "data": [[], "x", 1, True, nested(LARGEST_DATA + 1)],
    "correlation_id": ["", "c" * 201, 1],
    "id": ["", "a b", "a\n", "\x7f", "ä", "x" * 129, 1],
    "timestamp": [
        "",
        "now",
        1767225600,
        "2026-01-01",
        "2026-01-01T00:00:00",
        "2026-01-01T00:00Z",
        "2026-02-30T00:00:00Z",
        "2026-01-01T24:00:00Z",
        "2026-01-01T00:00:00+24:00",
        "0001-01-01T00:00:00+00:01",
        "9999-12-31T23:59:59-00:01",
        "２026-01-01T00:00:00Z",
        "2026-01-01T00:00:00Z\n",
    ],
    **{name: [1] for name in ("sequence", "position", "workflow_id", "Agent", "x")},
}


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in BAD_MEMBERS.items() for value in values],
    ids=lambda given: str(given)[:30],
)
def test_a_bad_member_is_named_and_nothing_is_stored(api: Api, workflow: str, name: str, value: Any) -> None:
    for body, loc in (
        (event(**{name: value}), ["body", name]),
        ({"events": [event(), event(**{name: value})]}, ["body", "events", 1, name]),
        ([event(), event(), event(**{name: value})], ["body", 2, name]),
    ):
        (problem,) = api.refused(address(workflow), body, INVALID)["detail"]
        assert problem["loc"] == loc
        assert problem.keys() == {"type", "loc", "msg", "input"}


@pytest.mark.parametrize("name", sorted(MINIMUM))
def test_a_missing_member_is_named(api: Api, workflow: str, name: str) -> None:
    (problem,) = api.refused(address(workflow), without(name), INVALID)["detail"]
    assert (problem["loc"], problem["type"]) == (["body", name], "missing")


@pytest.mark.parametrize(
    ("body", "refusal"),
    [
        ({}, INVALID),
        (b"[]", INVALID),
        (b"null", INVALID),
        ({"events": []}, INVALID),
        ({"events": None}, INVALID),
        ({"events": [event()] * 1001}, INVALID),
        ({"events": [[]]}, INVALID),
        ({"events": [event()], "x": 1}, INVALID),
        ({"events": [event()], **MINIMUM}, INVALID),
        ([], MALFORMED),
        ([b"", b" "], MALFORMED),
        ([event()] * 10_001, INVALID),
        ([event(), {"events": [event()]}], INVALID),
        ([event(), b"[]"], INVALID),
        ([event(), b"{"], MALFORMED),
        ([msgspec.json.encode(event()) * 2], MALFORMED),
        (b"{'events': []}", MALFORMED),
    ],
    ids=lambda given: str(given)[:40],
)
def test_a_body_of_another_shape_is_refused_whole(
    api: Api, workflow: str, body: Any, refusal: tuple[int, str]
) -> None:
    api.refused(address(workflow), body, refusal)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00.000000Z"),
        ("2026-01-01T00:00:00.5+05:30", "2025-12-31T18:30:00.500000Z"),
        ("2026-01-01t00:00:00.000001-08:00", "2026-01-01T08:00:00.000001Z"),
        ("2026-01-01T00:00:00.1234567z", "2026-01-01T00:00:00.123457Z"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00.000000Z"),
        ("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999Z"),
    ],
)
def test_times_are_kept_in_utc_with_microseconds(api: Api, workflow: str, given: str, kept: str) -> None:
    api.accepted(address(workflow), event(timestamp=given))
    assert newest(api, workflow)["timestamp"] == kept
    assert api.database.rows("SELECT timestamp FROM events WHERE workflow_id = ? AND sequence = 2", workflow) == [
        (kept,)
    ]


@pytest.mark.parametrize(
    "text",
    [
        '{"a":9223372036854775807,"b":-9223372036854775808}',
        '{"a":9007199254740993}',
        '{"a":0.1,"b":1.0,"c":1e5,"d":-0.0,"e":1E-7,"f":0.10000000000000000555}',
        '{ "b" : 1 ,\t"a" : [ ] }',
        '{"\\u00e9":"\\ud834\\udd1e","ü":"𝄞","":"\\/"}',
    ],
)
def test_data_is_kept_byte_for_byte(api: Api, workflow: str, text: str) -> None:
    body = msgspec.json.encode(event()).decode()[:-1] + f',"data": {text} }}'
    for sent in (body.encode(), f'{{"events":[{body}]}}'.encode(), [body.encode()]):
        api.accepted(address(workflow), sent)
        response = api.app.test_client().get(f"{address(workflow)}?order=desc&limit=1")
        assert f'"data":{text},' in response.text


def test_white_space_does_not_count_where_data_would_be_too_long_with_it(api: Api, workflow: str) -> None:
    data = nested(LARGEST_DATA)
    body = msgspec.json.encode(event(data=data)).replace(b'{"x":', b'{"x": ')
    api.accepted(address(workflow), body)
    assert newest(api, workflow)["data"] == data


REPEATS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"data": {"a": 1, "b": {"c": 2, "d": 3}}}, {"data": {"b": {"d": 3, "c": 2}, "a": 1}}),
    ({"timestamp": "2026-01-01T00:00:00Z"}, {}),
    ({"timestamp": "2026-01-01T00:00:00Z"}, {"timestamp": "2026-01-01T01:00:00.000+01:00"}),
    ({"level": "info", "data": None, "correlation_id": None}, {}),
]
OTHERS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"agent": "qa"}),
    ({}, {"event_type": "other"}),
    ({}, {"message": "other"}),
    ({}, {"level": "error"}),
    ({}, {"data": {}}),
    ({}, {"correlation_id": "c"}),
    ({}, {"timestamp": "2026-01-01T00:00:00Z"}),
    ({"timestamp": "2026-01-01T00:00:00Z"}, {"timestamp": "2026-01-01T00:00:00.000001Z"}),
    ({"data": {"a": 1}}, {"data": {"a": 1.0}}),
    ({"data": {"a": 1}}, {"data": {"a": True}}),
    ({"data": {"a": [1, 2]}}, {"data": {"a": [2, 1]}}),
    ({"data": {"a": 9007199254740992}}, {"data": {"a": 9007199254740993}}),
    ({"data": {"a": None}}, {"data": {}}),
]


@pytest.mark.parametrize(("first", "again"), REPEATS)
def test_the_same_id_with_the_same_content_is_stored_once(
    api: Api, workflow: str, first: dict[str, Any], again: dict[str, Any]
) -> None:
    one, two = (event(id=clock.new_id()) | first for _ in range(2))
    stored = api.accepted(address(workflow), {"events": [one, two]})["events"]
    before = api.get(address(workflow))
    repeated = [event(id=two["id"]) | again, event(id=one["id"]) | again]
    for body in ({"events": repeated}, repeated):
        assert api.accepted(address(workflow), body, 200) == {"events": stored[::-1], "duplicates": 2}
    assert api.get(address(workflow)) == before


@pytest.mark.parametrize(("first", "again"), REPEATS)
def test_an_id_that_comes_twice_in_a_batch_is_stored_once(
    api: Api, workflow: str, first: dict[str, Any], again: dict[str, Any]
) -> None:
    one = event(id=clock.new_id())
    answer = api.accepted(address(workflow), {"events": [one | first, event(), one | again]})
    assert answer["duplicates"] == 1
    assert [place["sequence"] for place in answer["events"]] == [2, 3, 2]


def test_a_batch_of_old_and_new_answers_in_the_order_sent(api: Api, workflow: str) -> None:
    old = event(id=clock.new_id())
    api.accepted(address(workflow), old)
    answer = api.accepted(address(workflow), [event(), old, event()])
    assert [place["sequence"] for place in answer["events"]] == [3, 2, 4]
    assert answer["duplicates"] == 1


@pytest.mark.parametrize(("first", "other"), OTHERS, ids=str)
def test_the_same_id_with_other_content_is_refused_with_its_whole_batch(
    api: Api, workflow: str, first: dict[str, Any], other: dict[str, Any]
) -> None:
    one = event(id=clock.new_id())
    within = {"events": [event(), one | first, one | other]}
    assert api.refused(address(workflow), within, REUSED)["details"] == {"id": one["id"]}
    api.accepted(address(workflow), one | first)
    for body in (one | other, {"events": [event(), one | other]}, [event(), event(), one | other]):
        assert api.refused(address(workflow), body, REUSED)["details"] == {"id": one["id"]}


def test_an_id_belongs_to_one_workflow(api: Api, workflow: str) -> None:
    one = event(id=clock.new_id())
    api.accepted(address(workflow), one)
    api.refused(address(api.create()), one, REUSED)
    api.refused(address(NOBODY), one, MISSING)


def test_the_id_of_an_event_of_the_service_is_taken(api: Api, workflow: str) -> None:
    created = newest(api, workflow)
    api.refused(address(workflow), event(id=created["id"], message=created["message"]), REUSED)


@pytest.mark.parametrize("name", [NOBODY, "no-uuid", "", "..", "%00"])
@pytest.mark.parametrize("body", [event(), {"events": [event()]}, [event()]], ids=["one", "batch", "lines"])
def test_a_workflow_that_is_not_there_takes_no_events(api: Api, name: str, body: Any) -> None:
    api.refused(address(name), body, MISSING)


def test_a_workflow_is_found_in_any_spelling_of_its_id(api: Api, workflow: str) -> None:
    api.accepted(address(workflow.upper()), event())
    assert newest(api, workflow)["workflow_id"] == workflow


@pytest.mark.parametrize(
    "moves", [["cancel"], ["start", "complete"], ["start", "fail"], ["start", "block", "reject"]]
)
def test_a_workflow_that_has_ended_still_takes_events(api: Api, workflow: str, moves: list[str]) -> None:
    for name in moves:
        move(api.ledger, workflow, name, **{"fail": {"reason": "r"}, "reject": {"feedback": "f"}}.get(name, {}))
    last = newest(api, workflow)["sequence"]
    answer = api.accepted(address(workflow), event())
    assert answer["events"][0]["sequence"] == last + 1


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
)
names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5)
objects = st.dictionaries(
    names, st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(names, inner), max_leaves=10)
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=objects, message=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_whatever_is_sent_comes_back_and_is_known_again(
    api: Api, workflow: str, data: dict[str, Any], message: str
) -> None:
    sent = event(id=clock.new_id(), data=data, message=message)
    stored = api.accepted(address(workflow), sent)["events"]
    found = newest(api, workflow)
    assert (found["data"], found["message"]) == (data, message)
    again = sent | {"data": dict(reversed(data.items()))}
    assert api.accepted(address(workflow), again, 200) == {"events": stored, "duplicates": 1}
