"""The moves of a workflow from status to status, over HTTP: the whole table, what they say, and their repeats."""

from typing import Any
from uuid import uuid4

import pytest
from flask import Flask
from flask.testing import FlaskClient

from tests.calls import append, create, database_of, invalid, read, refused, url, without_duration
from tests.load import in_parallel
from tests.test_invariants import ACTIVE, REPLAYED, SAID, TABLE

ANSWERS = {
    "start": ("started", "workflow_started"),
    "block": ("blocked", "approval_required"),
    "approve": ("approved", "approval_granted"),
    "reject": ("rejected", "approval_rejected"),
    "complete": ("completed", "workflow_completed"),
    "fail": ("failed", "workflow_failed"),
    "cancel": ("cancelled", "workflow_cancelled"),
}
STATUSES = ("pending", "in_progress", "blocked", "completed", "failed", "cancelled")
ALLOWED = [(status, name) for name, (sources, _) in TABLE.items() for status in STATUSES if status in sources]
FORBIDDEN = [(status, name) for status in STATUSES for name in TABLE if (status, name) not in ALLOWED]
SOURCE = {name: status for status, name in reversed(ALLOWED)}
BEYOND_SUMMARY = {"state", "token_usage", "recent_events", "plan"}
OPTIONAL = [name for name in TABLE if name not in SAID]


def said(name: str, **members: Any) -> dict[str, Any]:
    """A body that the move accepts."""
    return SAID.get(name, {}) | members


def move(client: FlaskClient, workflow: str, name: str, **members: Any) -> Any:
    """The answer to the move, which is allowed."""
    response = client.post(url(workflow, name), json=said(name, **members))
    assert response.status_code == 200, response.text
    return response.get_json()


@pytest.mark.parametrize(("status", "name"), ALLOWED)
def test_an_allowed_move_gives_its_status_and_writes_one_event(client: FlaskClient, status: str, name: str) -> None:
    workflow = create(client, status)
    before = read(client, workflow)
    moved = move(client, workflow, name)
    after = read(client, workflow)
    assert moved.keys() == {"status", "workflow_id", "workflow", "event"}
    answer, event_type = ANSWERS[name]
    assert (moved["status"], moved["workflow_id"]) == (answer, workflow)
    assert after["status"] == TABLE[name][1]
    assert without_duration(moved["workflow"]) == {member: after[member] for member in after.keys() - BEYOND_SUMMARY}
    assert after["recent_events"] == [*before["recent_events"], moved["event"]]
    assert (moved["event"]["event_type"], moved["event"]["workflow_id"]) == (event_type, workflow)
    assert moved["event"]["sequence"] == after["last_sequence"] == before["last_sequence"] + 1
    unmoved = {"status", "started_at", "completed_at", "failure_reason", "last_sequence", "recent_events"}
    assert {member for member in after if after[member] != before[member]} <= unmoved


@pytest.mark.parametrize(("status", "name"), FORBIDDEN)
def test_a_forbidden_move_is_refused_and_changes_nothing(client: FlaskClient, status: str, name: str) -> None:
    workflow = create(client, status)
    answer = refused(client, 422, "INVALID_STATE", "POST", url(workflow, name), json=said(name))
    assert answer["details"] == {"workflow_id": workflow, "current_status": status}


def test_the_table_has_a_row_for_every_status_and_move() -> None:
    assert (len(ALLOWED), len(FORBIDDEN)) == (10, 32)


@pytest.mark.parametrize(
    ("name", "members", "message", "data"),
    [
        ("start", {}, None, None),
        ("start", {"actor": "me"}, None, {"actor": "me"}),
        ("block", {}, None, None),
        (
            "block",
            {"message": "Look", "data": {"plan": [1, 0.5, "ü"]}, "actor": "me"},
            "Look",
            {"plan": [1, 0.5, "ü"], "actor": "me"},
        ),
        ("block", {"data": {"actor": "theirs"}, "actor": "me"}, None, {"actor": "me"}),
        ("approve", {}, None, None),
        ("approve", {"reason": "Fine", "actor": "me"}, None, {"reason": "Fine", "actor": "me"}),
        ("reject", {"feedback": "No"}, None, {"feedback": "No"}),
        ("reject", {"feedback": "No", "actor": "me"}, None, {"feedback": "No", "actor": "me"}),
        ("complete", {"message": "Done", "data": {"a": {}}}, "Done", {"a": {}}),
        ("complete", {"message": None, "data": None, "actor": None, "event_id": None}, None, None),
        ("fail", {"reason": "It broke", "actor": "me"}, None, {"reason": "It broke", "actor": "me"}),
        ("cancel", {}, None, None),
        ("cancel", {"reason": "Enough"}, None, {"reason": "Enough"}),
    ],
)
def test_an_event_says_who_decided_and_why(
    client: FlaskClient, name: str, members: dict[str, Any], message: str | None, data: Any
) -> None:
    event = move(client, create(client, SOURCE[name]), name, **members)["event"]
    assert event["data"] == data
    assert event["message"] == message if message else event["message"]
    assert (event["level"], event["correlation_id"]) == ("info", None)


@pytest.mark.parametrize(
    ("name", "members", "failure_reason"),
    [
        ("reject", {"feedback": "Not like this"}, "Not like this"),
        ("fail", {"reason": "Out of memory"}, "Out of memory"),
        ("complete", {"message": "Done"}, None),
        ("cancel", {"reason": "Enough"}, None),
    ],
)
def test_a_final_move_says_when_and_a_failure_why(
    client: FlaskClient, name: str, members: dict[str, Any], failure_reason: str | None
) -> None:
    moved = move(client, create(client, SOURCE[name]), name, **members)
    assert moved["workflow"]["completed_at"] == moved["event"]["timestamp"]
    assert moved["workflow"]["failure_reason"] == failure_reason


def test_the_start_is_remembered_and_no_other_move_sets_it(client: FlaskClient) -> None:
    workflow = create(client)
    started = move(client, workflow, "start")
    times = [(started["workflow"]["started_at"], started["workflow"]["completed_at"])]
    for name in ("block", "approve", "block"):
        moved = move(client, workflow, name)["workflow"]
        times.append((moved["started_at"], moved["completed_at"]))
    assert times == [(started["event"]["timestamp"], None)] * 4
    assert move(client, workflow, "reject")["workflow"]["started_at"] == started["event"]["timestamp"]


def test_a_workflow_cancelled_before_its_start_never_started(client: FlaskClient) -> None:
    cancelled = move(client, create(client), "cancel")["workflow"]
    assert (cancelled["started_at"], cancelled["total_duration_ms"]) == (None, None)


@pytest.mark.parametrize(
    "names",
    [
        ("start", "complete"),
        ("start", "block", "approve", "block", "approve", "fail"),
        ("start", "block", "reject"),
        ("start", "block", "fail"),
        ("start", "block", "cancel"),
        ("cancel",),
    ],
)
def test_replaying_the_events_gives_the_status_after_every_move(client: FlaskClient, names: tuple[str, ...]) -> None:
    workflow = create(client)
    for name in names:
        append(client, workflow)
        move(client, workflow, name)
        events = client.get(url(workflow, "events")).get_json()["events"]
        told = [REPLAYED[event["event_type"]] for event in events if event["event_type"] in REPLAYED]
        assert told[-1] == read(client, workflow)["status"] == TABLE[name][1]
    assert len(told) == len(names) + 1


@pytest.mark.parametrize("name", TABLE)
def test_the_same_move_again_answers_with_its_first_event_and_the_workflow_as_it_is_now(
    client: FlaskClient, name: str
) -> None:
    workflow = create(client, SOURCE[name])
    first = move(client, workflow, name, event_id="once", actor="me")
    assert first["event"]["id"] == "once"
    append(client, workflow)
    if TABLE[name][1] in ACTIVE:
        move(client, workflow, "cancel")
    before = database_of(client).dump()
    again = move(client, workflow, name, event_id="once", actor="me")
    assert database_of(client).dump() == before
    assert (again["status"], again["workflow_id"], again["event"]) == (first["status"], workflow, first["event"])
    now = read(client, workflow)
    assert without_duration(again["workflow"]).items() <= now.items()
    assert now["last_sequence"] > first["workflow"]["last_sequence"]


def test_the_order_of_members_and_what_is_left_out_do_not_make_a_repeat_another_move(client: FlaskClient) -> None:
    workflow = create(client, "in_progress")
    first = move(client, workflow, "block", event_id="once", data={"a": 1, "b": [2]})
    again = move(client, workflow, "block", event_id="once", data={"b": [2], "a": 1}, message=None, actor=None)
    assert again == first | {"workflow": again["workflow"]}


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("start", {}, {"actor": "me"}),
        ("start", {"actor": "me"}, {"actor": "you"}),
        ("block", {"message": "One"}, {"message": "Two"}),
        ("block", {"message": "One"}, {}),
        ("block", {"data": {"a": 1}}, {"data": {"a": 2}}),
        ("block", {"data": {"a": 1}}, {"data": {"a": 1.0}}),
        ("approve", {"reason": "One"}, {"reason": "Two"}),
        ("reject", {"feedback": "One"}, {"feedback": "Two"}),
        ("complete", {}, {"data": {}, "message": "Two"}),
        ("fail", {"reason": "One"}, {"reason": "Two"}),
        ("cancel", {"reason": "One"}, {}),
    ],
)
def test_an_event_id_with_other_content_is_refused_whatever_the_status(
    client: FlaskClient, name: str, first: dict[str, Any], second: dict[str, Any]
) -> None:
    workflow = create(client, SOURCE[name])
    move(client, workflow, name, event_id="once", **first)
    # The move is forbidden by now, so this tells what is decided first.
    answer = refused(
        client, 409, "ID_REUSED", "POST", url(workflow, name), json=said(name, event_id="once", **second)
    )
    assert answer["details"] == {"id": "once"}


@pytest.mark.parametrize("name", TABLE)
def test_an_event_id_that_tells_of_something_else_is_refused(client: FlaskClient, name: str) -> None:
    workflow, other = create(client, SOURCE[name]), create(client, SOURCE[name])
    told = move(client, other, name, event_id="of-another")["event"]
    append(client, workflow, id="a-note", message=told["message"], data=told["data"])
    move(client, workflow, "cancel", event_id="another-move", actor="me")
    for event_id in ("a-note", "of-another", "another-move"):
        refused(client, 409, "ID_REUSED", "POST", url(workflow, name), json=said(name, event_id=event_id))


@pytest.mark.parametrize(
    ("name", "members"),
    [
        ("start", {"actor": "a"}),
        ("start", {"actor": "ü" * 100}),
        ("start", {"event_id": "!"}),
        ("start", {"event_id": "~" * 128}),
        ("reject", {"feedback": "n"}),
        ("reject", {"feedback": "ü" * 1000}),
        ("fail", {"reason": "r"}),
        ("block", {"message": "m" * 65_536}),
        ("block", {"data": {"a": "x" * (262_144 - len('{"a":""}'))}}),
        ("complete", {"data": {}}),
    ],
)
def test_what_a_move_says_is_taken_up_to_its_bounds(client: FlaskClient, name: str, members: dict[str, Any]) -> None:
    move(client, create(client, SOURCE[name]), name, **members)


OUTSIDE: dict[str, list[Any]] = {
    "actor": ["", "a" * 101, 5, ["a"]],
    "event_id": ["", "e" * 129, "a b", "a\n", "é", 5],
    "feedback": ["", "f" * 1001, None, 5],
    "reason": ["", 5],
    "message": ["m" * 65_537, 5],
    "data": [[], "a", 5, True, {"a": "x" * (262_144 - len('{"a":"') - 1)}],
}


@pytest.mark.parametrize(
    ("name", "member", "value"),
    [
        (name, member, value)
        for name, members in {
            "start": ("actor", "event_id"),
            "block": ("message", "data", "actor"),
            "approve": ("reason", "actor"),
            "reject": ("feedback", "event_id"),
            "complete": ("message", "data"),
            "fail": ("reason", "actor"),
            "cancel": ("reason", "event_id"),
        }.items()
        for member in members
        for value in OUTSIDE[member]
    ],
)
def test_what_is_outside_the_bounds_is_refused(client: FlaskClient, name: str, member: str, value: Any) -> None:
    workflow = create(client, SOURCE[name])
    invalid(client, ["body", member], "POST", url(workflow, name), json=said(name, **{member: value}))


@pytest.mark.parametrize(
    ("name", "member"),
    [
        *((name, "unknown") for name in TABLE),
        *(("start", member) for member in ("message", "data", "reason", "feedback")),
        *((name, "feedback") for name in ("block", "approve", "complete", "fail", "cancel")),
        *((name, "message") for name in ("approve", "reject", "fail", "cancel")),
        *((name, "reason") for name in ("block", "reject", "complete")),
    ],
)
def test_a_member_that_the_move_does_not_know_is_refused(client: FlaskClient, name: str, member: str) -> None:
    workflow = create(client, SOURCE[name])
    invalid(client, ["body", member], "POST", url(workflow, name), json=said(name, **{member: "x"}))


@pytest.mark.parametrize(
    "sent",
    [{}, {"json": {}}, {"content_type": "application/json"}, {"content_type": "application/json", "data": b" \n"}],
    ids=["nothing", "an empty object", "only a content type", "white space"],
)
@pytest.mark.parametrize("name", OPTIONAL)
def test_no_body_is_needed_where_every_member_is_optional(
    client: FlaskClient, name: str, sent: dict[str, Any]
) -> None:
    assert client.post(url(create(client, SOURCE[name]), name), **sent).status_code == 200


@pytest.mark.parametrize(("name", "member"), [("reject", "feedback"), ("fail", "reason")])
@pytest.mark.parametrize("sent", [{}, {"json": {}}, {"json": {"actor": "me"}}])
def test_a_move_that_must_say_why_is_refused_without(
    client: FlaskClient, name: str, member: str, sent: dict[str, Any]
) -> None:
    invalid(client, ["body", member], "POST", url(create(client, SOURCE[name]), name), **sent)


@pytest.mark.parametrize(
    ("status", "code", "sent"),
    [
        (422, "VALIDATION_ERROR", {"json": []}),
        (422, "VALIDATION_ERROR", {"json": None, "data": b"null", "content_type": "application/json"}),
        (400, "MALFORMED_JSON", {"data": b"{", "content_type": "application/json"}),
        (400, "MALFORMED_JSON", {"data": b'{"actor":"\\u0000"}', "content_type": "application/json"}),
        (415, "UNSUPPORTED_MEDIA_TYPE", {"data": b"{}", "content_type": "text/plain"}),
        (415, "UNSUPPORTED_MEDIA_TYPE", {"content_type": "text/plain"}),
    ],
)
@pytest.mark.parametrize("name", TABLE)
def test_a_body_that_is_no_json_object_is_refused(
    client: FlaskClient, name: str, status: int, code: str, sent: dict[str, Any]
) -> None:
    refused(client, status, code, "POST", url(create(client, SOURCE[name]), name), **sent)


@pytest.mark.parametrize("name", TABLE)
def test_a_move_of_a_workflow_that_is_not_there_is_not_found(client: FlaskClient, name: str) -> None:
    append(client, create(client), id="known")
    for event_id in ("known", "unknown"):
        refused(client, 404, "NOT_FOUND", "POST", url(str(uuid4()), name), json=said(name, event_id=event_id))


@pytest.mark.parametrize(
    ("status", "names"),
    [("pending", ("start",)), ("blocked", ("approve", "reject")), ("in_progress", ("complete", "fail", "cancel"))],
)
def test_of_rivals_exactly_one_wins(app: Flask, client: FlaskClient, status: str, names: tuple[str, ...]) -> None:
    workflow = create(client, status)
    before = read(client, workflow)["last_sequence"]

    def rival(number: int) -> int:
        name = names[number % len(names)]
        answer = app.test_client().post(url(workflow, name), json=said(name, actor=str(number)))
        return answer.status_code

    assert sorted(in_parallel(6, rival)) == [200] + [422] * 5
    assert read(client, workflow)["last_sequence"] == before + 1
