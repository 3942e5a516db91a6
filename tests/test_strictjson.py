"""JSON at its strictest, wherever a body brings it."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amelia_flask import create_app, strictjson
from amelia_flask.errors import MalformedJson
from amelia_flask.settings import from_environment
from tests.answers import EVENT, check_refusal, check_refused, new_workflow
from tests.calls import database_of
from tests.databases import Database

NDJSON = "application/x-ndjson"

# Values that no JSON text may hold, each written as it would stand after `"k":`.
MALFORMED = {
    "NaN": b"NaN",
    "Infinity": b"Infinity",
    "minus Infinity": b"-Infinity",
    "1e999": b"1e999",
    "-1e999": b"-1e999",
    "1e309 in a list": b"[0, 1e309]",
    "5000 digits": b"9" * 5000,
    "minus 5000 digits": b"-" + b"9" * 5000,
    "1001 digits": b"9" * 1001,
    "a repeated member": b'{"a":1,"a":1}',
    "a repeated member far inside": b'[[{"b":{"a":1,"b":2,"a":3}}]]',
    "a member repeated by an escape": rb'{"a":1,"\u0061":2}',
    "an empty name twice": b'{"":1,"":2}',
    "65 deep": b"[" * 65 + b"]" * 65,
    "65 objects deep": b'{"a":' * 65 + b"1" + b"}" * 65,
    "500 deep": b"[" * 500 + b"]" * 500,
    "100,000 deep": b"[" * 100_000 + b"]" * 100_000,
    "100,000 deep and never closed": b'{"a":[' * 50_000,
    "a byte that UTF-8 never has": b'"\xff"',
    "an overlong NUL": b'"\xc0\x80"',
    "a surrogate in UTF-8": b'"\xed\xa0\x80"',
    "a character cut off": b'"\xe2\x82"',
    "a character beyond Unicode": b'"\xf4\x90\x80\x80"',
    "Latin-1": b'"\xe9t\xe9"',
    "bad UTF-8 in a name": b'{"\xff":1}',
    "a lone high surrogate": rb'"\ud800"',
    "a lone low surrogate": rb'"\uDC00"',
    "two high surrogates": rb'"\ud83d\uD83D"',
    "a pair the wrong way round": rb'"\ude00\ud83d"',
    "a low surrogate after a pair": rb'"\ud83d\ude00\ude00"',
    "a pair with a backslash between": rb'"\ud83d\\\ude00"',
    "a lone surrogate in a name": rb'{"a\udfff":1}',
    "NUL": rb'"a\u0000b"',
    "NUL in a name": rb'{"\u0000":1}',
    "NUL after a backslash": rb'"\\\u0000"',
    "NUL as it is": b'"\x00"',
    "a line feed as it is": b'"\n"',
    "trailing garbage": b"1 x",
    "two values": b"1 2",
    "nothing": b"",
    "a trailing comma": b"[1,]",
    "a trailing comma in an object": b'{"a":1,}',
    "single quotes": b"'a'",
    "a name without quotes": b"{a:1}",
    "a comment": b"1 /* one */",
    "a leading zero": b"01",
    "a plus sign": b"+1",
    "a fraction without digits": b"1.",
    "a fraction alone": b".5",
    "hexadecimal": b"0x10",
    "True": b"True",
    "undefined": b"undefined",
    "a string that never ends": b'"abc',
    "an escape that is none": rb'"\x41"',
    "half an escape": rb'"\u00"',
    "a number that is too large and then a syntax error": b"[99999999999999999999,]",
    "a number that is too large, repeated": b'{"a":99999999999999999999,"a":1}',
    "a number that is too large and then a longer one": b"[99999999999999999999," + b"9" * 5000 + b"]",
    "a number that is too large, never closed": b"[99999999999999999999" + b",[" * 10_000,
    "a number that is too large and then NaN": b"[99999999999999999999,NaN]",
}
TOO_LARGE = {
    "2^63": b"9223372036854775808",
    "-2^63-1": b"-9223372036854775809",
    "2^64": b"18446744073709551616",
    "thirty digits": b"9" * 30,
    "a thousand digits": b"9" * 1000,
    "far inside": b'[{"a":[0,{"b":99999999999999999999}]}]',
    "twice": b"[99999999999999999999,-99999999999999999999]",
}
KEPT = {
    "2^63-1": 2**63 - 1,
    "-2^63": -(2**63),
    "a float": 1.5e300,
    "an escaped backslash before u0000": "\\u0000",
    "an escaped backslash before ud800": "\\ud800 \\\\udc00",
    "a pair": "\U0001f600",
    "pairs side by side": "\U0001f600\U0001f601\ufffd\ud7ff\ue000",
    "brackets in strings": ["[" * 100, "}]" * 100, '\\"[[' * 50],
    "names that look like members": {"__proto__": {"constructor": None}, "": "", "events": []},
    "side by side, not nested": [[]] * 100,
}


@pytest.fixture
def url(client: FlaskClient) -> str:
    """Where the events of a new workflow go."""
    return f"/api/workflows/{new_workflow(client)}/events"


def event_with(value: bytes) -> bytes:
    return json.dumps(EVENT)[:-1].encode() + b', "data": {"k":' + value + b"}}"


def bodies(value: bytes) -> list[tuple[str, str, bytes]]:
    """The last part of the address, the media type and the body, for each place where a value can stand."""
    event, good = event_with(value), json.dumps(EVENT).encode()
    return [
        ("/events", "application/json", event),
        ("/events", "application/json", b'{"events":[' + good + b"," + event + b"]}"),
        ("/events", NDJSON, good + b"\r\n\n" + event + b"\n"),
        ("/start", "application/json", b'{"actor":' + value + b"}"),
        ("", "application/json", b'{"issue_id":"A-1","worktree_path":"/w","state":{"k":' + value + b"}}"),
    ]


def refuse_everywhere(app: Flask, value: bytes, status: int, code: str) -> None:
    """Send a value in every place; each is refused and nothing of any is stored."""
    client = app.test_client()
    workflow = f"/api/workflows/{new_workflow(client)}"
    before = database_of(client).dump()
    for part, media_type, body in bodies(value):
        url = workflow + part if part else "/api/workflows"
        answer = check_refused(client.post(url, data=body, content_type=media_type), status, code)
        if media_type == NDJSON:
            named = answer["error"].startswith("Line 3: ") if status == 400 else answer["detail"][0]["loc"][1] == 1
            assert named, answer
    assert database_of(client).dump() == before


@pytest.mark.parametrize("value", MALFORMED.values(), ids=list(MALFORMED))
def test_what_is_malformed_is_refused_wherever_it_stands(app: Flask, value: bytes) -> None:
    with pytest.raises(MalformedJson):
        strictjson.parse(value)
    refuse_everywhere(app, value, 400, "MALFORMED_JSON")


@pytest.mark.parametrize("value", TOO_LARGE.values(), ids=list(TOO_LARGE))
def test_an_integer_outside_64_bits_is_refused_wherever_it_stands(app: Flask, value: bytes) -> None:
    refuse_everywhere(app, value, 422, "VALIDATION_ERROR")


def test_an_integer_outside_64_bits_is_named(client: FlaskClient, url: str) -> None:
    body = event_with(b'[0, {"b": [1, 99999999999999999999]}]')
    problem = client.post(url, data=body, content_type="application/json").get_json()["detail"][0]
    assert problem["loc"] == ["body", "data", "k", 1, "b", 1]
    assert problem["input"] == 99999999999999999999


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"\xef\xbb\xbf{}", 400, "MALFORMED_JSON"),
        ("{}".encode("utf-16"), 400, "MALFORMED_JSON"),
        ("{}".encode("utf-32-le"), 400, "MALFORMED_JSON"),
        (b"", 400, "MALFORMED_JSON"),
        (b" \r\n\t", 400, "MALFORMED_JSON"),
        (b"\0", 400, "MALFORMED_JSON"),
        (b"{}{}", 400, "MALFORMED_JSON"),
        (b"{} x", 400, "MALFORMED_JSON"),
        (b"\x0b{}", 400, "MALFORMED_JSON"),
        (b"\xc2\xa0{}", 400, "MALFORMED_JSON"),
        *((body, 422, "VALIDATION_ERROR") for body in (b"[]", b"null", b"1", b'"a"', b"true", b"[{}]", b"{}")),
    ],
)
def test_a_body_is_one_object(client: FlaskClient, body: bytes, status: int, code: str) -> None:
    for url in ("/api/workflows", f"/api/workflows/{new_workflow(client)}/events"):
        check_refused(client.post(url, data=body, content_type="application/json"), status, code)


@pytest.mark.parametrize(("place", "around"), [(0, 2), (1, 4), (2, 2), (4, 2)])
def test_a_body_may_be_64_deep(client: FlaskClient, place: int, around: int) -> None:
    workflow = f"/api/workflows/{new_workflow(client)}"

    def status(depth: int) -> int:
        inner = depth - around
        part, media_type, body = bodies(b"[" * inner + b"]" * inner)[place]
        url = workflow + part if part else "/api/workflows"
        return client.post(url, data=body, content_type=media_type).status_code

    assert (status(65), status(64)) == (400, 201)


@pytest.mark.parametrize("value", KEPT.values(), ids=list(KEPT))
def test_what_is_unusual_but_sound_is_kept(client: FlaskClient, url: str, value: Any) -> None:
    assert store_and_read(client, url, {"k": value}) == {"k": value}


def store_and_read(client: FlaskClient, url: str, data: Any, *, ascii_only: bool = True) -> Any:
    body = json.dumps(EVENT | {"data": data}, ensure_ascii=ascii_only).encode()
    response = client.post(url, data=body, content_type="application/json")
    assert response.status_code == 201, response.text
    return client.get(f"{url}?order=desc&limit=1").get_json()["events"][0]["data"]


@pytest.fixture
def exact(database: Database) -> Iterator[tuple[FlaskClient, str]]:
    """HTTP to an application that keeps what looks like a secret, as drawn text does now and then; and a workflow."""
    app = create_app(from_environment({**database.settings, "AMELIA_REDACT": "off"}))
    client = app.test_client()
    yield client, f"/api/workflows/{new_workflow(client)}/events"
    app.extensions["ledger"].close()


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=30)
often = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@often
@given(data=st.dictionaries(TEXT, VALUES), ascii_only=st.booleans())
def test_whatever_json_says_comes_back_the_same(exact: tuple[FlaskClient, str], data: Any, ascii_only: bool) -> None:
    found = store_and_read(*exact, data, ascii_only=ascii_only)
    # As text, so that 1, 1.0 and true, or 0.0 and -0.0, are not taken for the same.
    assert json.dumps(found) == json.dumps(data)


@given(st.text(st.sampled_from('\ud83d\ude00\0\\"ud/a8[]{}é'), max_size=12))
def test_a_string_is_refused_exactly_when_it_holds_nul_or_a_lone_surrogate(text: str) -> None:
    written = json.dumps(text)
    meant = json.loads(written)  # two surrogates that make a pair have become one character
    if "\0" in meant or any("\ud800" <= character <= "\udfff" for character in meant):
        with pytest.raises(MalformedJson):
            strictjson.parse(written.encode())
    else:
        assert strictjson.parse(written.encode()) == meant


@given(
    st.recursive(st.sampled_from(["[", '"]', 1]), lambda inner: st.lists(inner, max_size=3), max_leaves=9), st.data()
)
def test_depth_is_counted_in_brackets_outside_strings(value: Any, data: st.DataObject) -> None:
    wanted = data.draw(st.integers(strictjson.MAX_DEPTH - 2, strictjson.MAX_DEPTH + 2))
    while depth(value) < wanted:
        value = [value] if data.draw(st.booleans()) else {'\\"[': value}
    raw = json.dumps(value).encode()
    if depth(value) > strictjson.MAX_DEPTH:
        with pytest.raises(MalformedJson):
            strictjson.parse(raw)
    else:
        assert strictjson.parse(raw) == value


def depth(value: Any) -> int:
    members = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if members is None else 1 + max(map(depth, members), default=0)


def test_what_is_quoted_from_a_body_is_short(client: FlaskClient) -> None:
    answer = client.post("/api/workflows", json=["x" * 10_000, *range(10_000)]).get_json()
    check_refusal(answer, "VALIDATION_ERROR")
    assert len(answer["detail"][0]["input"]) == strictjson.LONGEST_QUOTE + 1


@pytest.mark.parametrize("name", ["`", "x" * 1000, "[0]", "$", "é\n", ".."])
def test_a_member_is_named_whatever_it_is_called(client: FlaskClient, url: str, name: str) -> None:
    response = client.post(url, json=EVENT | {name: 1})
    problem = check_refused(response, 422, "VALIDATION_ERROR")["detail"][0]
    assert (problem["type"], problem["loc"]) == ("extra_forbidden", ["body", name[:100]])


def test_the_same_value_has_the_same_canonical_form() -> None:
    assert strictjson.canonical({"b": [1, {"d": 1, "c": 2}], "a": None}) == b'{"a":null,"b":[1,{"c":2,"d":1}]}'
