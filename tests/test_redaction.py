"""Secrets are taken out of what agents tell, and nothing else is."""

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from flask.testing import FlaskClient
from hypothesis import example, given
from hypothesis import strategies as st

from amelia_flask import create_app, events
from amelia_flask.fields import MAX_OBJECT_BYTES
from amelia_flask.intake import claude_code, transcripts
from amelia_flask.redaction import NAMES, RULES, Rule, may_hold_secret, redact_json, redact_text, redact_value
from amelia_flask.settings import from_environment
from tests.calls import append, create, database_of, new, read, url
from tests.databases import Database
from tests.ledgers import new_event
from tests.transcripts import line, write

EXAMPLES = [rule.example for rule in RULES]
# What stays of an example beside the marker; of the others nothing does.
KEPT = {
    "cookie header": "Set-Cookie: {}",
    "assignment": "GITHUB_TOKEN={}",
    "authorization header": "Authorization: Basic {}",
    "password in a URL": "postgres://user:{}@db/app",
}
SECRET = "hunter2"
MARKER = "[redacted 7 characters]"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_each_rule_takes_out_its_example_and_says_how_long_it_was(rule: Rule) -> None:
    kept = KEPT.get(rule.name, "{}")
    length = len(rule.example) - len(kept) + 2
    assert redact_text(f"see {rule.example}") == "see " + kept.format(f"[redacted {length} characters]")


@pytest.mark.parametrize(
    "name", [*NAMES, "apikey", "api-key", "X-API-Key", "GITHUB_TOKEN", "clientSecret", "refresh_token"]
)
def test_what_stands_under_a_telling_name_is_taken_out_at_any_depth(name: str) -> None:
    value = {"a": [{name: SECRET, "kept": [1, None]}], name: {"x": [SECRET, 1234567, None, True, ""]}}
    marked = {"a": [{name: MARKER, "kept": [1, None]}], name: {"x": [MARKER, MARKER, None, True, ""]}}
    assert msgspec.json.decode(redact_json(msgspec.json.encode(value).decode())) == marked


@pytest.mark.parametrize(
    "text",
    [
        '{"input_tokens": 5, "max_tokens": 9, "token_count": 1, "tokenizer": "bpe", "secretary": "Ann", "key": "k"}',
        '{ "a" : 1.0e2, "b": "\\u00e9 \\/ @", "password": null, "token": "" }',
        "def login(token: str, password: Optional[str] = None) -> Token: return get(token=read(), key=key)",
        "The secret: practice. Token::Kind, password=$PASSWORD, http://localhost:8080/@vite, me@example.com",
        "risk-assessment-of-everything-2, task-sk-learn, sk-short, -----BEGIN PRIVATE KEY----- begins one",
    ],
)
def test_what_only_resembles_a_secret_stays(text: str) -> None:
    assert (redact_json if text.startswith("{") else redact_text)(text) == text


@pytest.mark.parametrize(
    ("text", "marked"),
    [
        ('{\\"token\\": \\"hunter2\\"}', '{\\"token\\": \\"{}\\"}'),
        ("password: 'hunter2'", "password: '{}'"),
        ("PASSWORD = hunter2, then", "PASSWORD = {}, then"),
        ("https://x/?access_token=hunter2&a=b", "https://x/?access_token={}&a=b"),
        ("-H 'Authorization: Bearer hunter2' https://x", "-H 'Authorization: Bearer {}' https://x"),
        ("redis://:hunter2@cache", "redis://:{}@cache"),
    ],
)
def test_an_assignment_is_found_however_it_is_written(text: str, marked: str) -> None:
    assert redact_text(text) == marked.replace("{}", MARKER)


@pytest.mark.parametrize("text", [r'{"pass\u0077ord":"hunter2"}', r'{"url":"redis:\/\/:hunter2@cache"}'])
def test_an_escape_in_json_hides_nothing(text: str) -> None:
    assert SECRET not in redact_json(text)
    assert MARKER in redact_json(text)


def _tells(text: str) -> bool:
    """Whether a rule's example stands in the text, or it is a telling name: both are among what hypothesis tries."""
    name = text.replace(" ", "").lower()
    return any(shape in text for shape in EXAMPLES) or name.endswith(tuple(name.replace("_", "") for name in NAMES))


ordinary = st.text(st.characters(exclude_characters=":=@_-", exclude_categories=["Cs"])).filter(
    lambda t: not _tells(t)
)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | ordinary,
    lambda inner: st.lists(inner) | st.dictionaries(ordinary, inner),
)
pieces = st.sampled_from(
    [*EXAMPLES, *NAMES, MARKER, *"=:\"'\\ -_@/\n", "Bearer ", "a", "1", "://", "[redacted 1", "password: "]
)
mixed = st.lists(pieces | st.text(max_size=3), max_size=12).map("".join)


@given(ordinary)
def test_ordinary_text_passes_unchanged(text: str) -> None:
    assert redact_text(text) == text


@given(json_values, st.booleans())
def test_ordinary_json_passes_byte_for_byte(value: Any, is_wide: bool) -> None:
    raw = msgspec.json.encode(value)
    text = (msgspec.json.format(raw, indent=3) if is_wide else raw).decode()
    assert redact_json(text) == text


@given(mixed)
@example("password=a[redacted 7 characters]")
@example('token: "x [redacted 7 characters]"')
def test_what_was_redacted_is_not_redacted_again(text: str) -> None:
    once = redact_text(text)
    assert redact_text(once) == once
    value = redact_value({"password": text, text: [text]})
    assert redact_value(value) == value


@given(mixed)
def test_no_marker_gives_way_to_another(text: str) -> None:
    assert redact_text(f"{MARKER} {text}").startswith(MARKER)


@pytest.mark.parametrize("head", ["", "password=x ", 'token: "', "-----BEGIN PRIVATE KEY-----"])
@pytest.mark.parametrize(
    "unit",
    [
        *(
            "a",
            " ",
            "\\",
            "@",
            "token ",
            "token: abc(1",
            "password:$X",
            "api_key",
            "api key ",
            "cookie:",
            "cookie: a",
        ),
        *("sk-", "-sk-", "-----BEGIN PRIVATE KEY-----A-", "://", "://a:b", "eyJ", "eyJaaaaaaaa.", "AKIA", "xoxb-"),
        *("ghp_", "_a", "-k", "ya29.", "authorization: bearer ", MARKER, "[redacted 1", 'key"', 'secret=\\"'),
    ],
)
def test_no_text_takes_long(head: str, unit: str) -> None:
    text = head + unit * (1_000_000 // len(unit))
    # Usually below 0.1; what is quadratic would take minutes.
    assert min(_seconds(text) for _ in range(2)) < 0.5


def _seconds(text: str) -> float:
    started = time.process_time()
    redact_text(text)
    return time.process_time() - started


def test_most_events_are_seen_to_be_clean() -> None:
    assert not may_hold_secret('pytest -q tests/test_events.py\n{"exit": 1, "files": ["a_b.py"], "input_tokens": 3}')
    assert all(may_hold_secret(text) for text in EXAMPLES)


@pytest.fixture
def keeping(database: Database) -> Iterator[FlaskClient]:
    """A client of an application that keeps secrets."""
    app = create_app(from_environment({**database.settings, "AMELIA_REDACT": "off"}))
    yield app.test_client()
    app.extensions["ledger"].close()


TELLING: dict[str, Any] = {"message": "password=hunter2", "data": {"token": SECRET, "a": 1}}
TOLD = {"message": f"password={MARKER}", "data": {"token": MARKER, "a": 1}}


def _tell_everything(client: FlaskClient) -> tuple[Any, Database]:
    """A workflow that holds secrets wherever one may stand, as it is read back; and its database."""
    workflow = create(client, state={"api_key": SECRET})
    client.patch(url(workflow), json={"state": {"more": {"cookie": SECRET}}})
    append(client, workflow, **TELLING)
    client.post(url(workflow, "start"), json={})
    for name, said in {
        "block": TELLING,
        "approve": {"reason": "token=hunter2"},
        "fail": {"reason": "secret=hunter2"},
    }.items():
        assert client.post(url(workflow, name), json=said).status_code == 200
    other = create(client, "blocked")
    assert client.post(url(other, "reject"), json={"feedback": "passwd=hunter2"}).status_code == 200
    return read(client, workflow), database_of(client)


def test_no_secret_reaches_the_database(client: FlaskClient) -> None:
    workflow, database = _tell_everything(client)
    assert workflow["state"] == {"api_key": MARKER, "more": {"cookie": MARKER}}
    assert workflow["failure_reason"] == f"secret={MARKER}"
    assert [{name: event[name] for name in TOLD} for event in workflow["recent_events"]].count(TOLD) == 2
    assert SECRET not in str(database.dump())
    client.application.extensions["ledger"].close()
    assert not [file for file in database.folder.iterdir() if SECRET.encode() in file.read_bytes()]


def test_switched_off_it_keeps_what_came(keeping: FlaskClient) -> None:
    workflow, database = _tell_everything(keeping)
    assert workflow["state"] == {"api_key": SECRET, "more": {"cookie": SECRET}}
    assert database.rows("SELECT count(*) FROM events WHERE message || data_json LIKE '%redacted%'") == [(0,)]


@pytest.mark.parametrize("first", ["on", "off"])
def test_a_repeat_is_recognised_after_the_setting_was_changed(database: Database, first: str) -> None:
    body, said = new(id=str(uuid4()), state={"token": SECRET}), TELLING | {"event_id": "m"}
    event = {"agent": "dev", "event_type": "note", "id": "e"} | TELLING
    for redacts in (first, {"on": "off", "off": "on"}[first]):
        app = create_app(from_environment({**database.settings, "AMELIA_REDACT": redacts}))
        client, status = app.test_client(), 201 if redacts == first else 200
        assert client.post("/api/workflows", json=body).status_code == status
        assert client.post(url(body["id"], "events"), json=event).status_code == status
        other = client.post(url(body["id"], "events"), json=event | {"message": "password=other-one"})
        assert other.status_code == 409
        if redacts == first:
            client.post(url(body["id"], "start"), json={})
        assert client.post(url(body["id"], "block"), json=said).status_code == 200
        app.extensions["ledger"].close()


@pytest.mark.parametrize("redacts", ["on", "off"])
def test_transcripts_are_redacted_on_arrival_too(database: Database, tmp_path: Path, redacts: str) -> None:
    form = transcripts.Format(claude_code.SOURCE, claude_code.parse)
    told = write(tmp_path / "a.jsonl", line(content="password=hunter2"))
    with closing(database.ledger(redact=redacts)) as ledger:
        transcripts.store(ledger, transcripts.survey(form, [told], lambda _: None), lambda _: None)
    found = str(database.rows("SELECT message, data_json FROM events"))
    assert (SECRET in found, MARKER in found) == (redacts == "off", redacts == "on")


def test_what_outgrows_its_bound_becomes_one_marker() -> None:
    names = {f"{n}_token": "a" for n in range(MAX_OBJECT_BYTES // 20)}
    message = "token=a " * 8192
    [told] = events.arrived([new_event(message=message, data=names)])
    assert told.row.message == "[redacted 65536 characters]"
    assert msgspec.json.decode(told.row.data_json or "").keys() == {"redacted"}
