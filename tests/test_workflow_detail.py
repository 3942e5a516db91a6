"""One workflow over HTTP: its detail, its stage, patches of its state, and its deletion."""

import re
from datetime import UTC, datetime
from typing import Any

import pytest
from flask.testing import FlaskClient

from amelia_flask import workflows
from tests import ledgers
from tests.calls import append, create, database_of, invalid, ledger_of, read, refused, url
from tests.test_workflow_list import SUMMARY

LARGEST = 262_144
FINAL = ["completed", "failed", "cancelled"]


def use(client: FlaskClient, workflow: str, **members: Any) -> None:
    """Record one request to a model."""
    record = {"agent": "dev", "model": "no-such-model", "input_tokens": 10, "output_tokens": 1} | members
    assert client.post(url(workflow, "token-usage"), json=record).status_code == 201


def tag(client: FlaskClient, workflow: str) -> str:
    """The workflow's ETag."""
    return client.get(url(workflow)).headers["ETag"]


def patched(client: FlaskClient, workflow: str, if_match: str | None = None, **members: Any) -> Any:
    """The answer to a patch that is accepted."""
    headers = {} if if_match is None else {"If-Match": if_match}
    response = client.patch(url(workflow), json=members, headers=headers)
    assert response.status_code == 200, response.text
    return response.get_json()


def test_the_detail_is_the_summary_with_state_usage_and_events(client: FlaskClient) -> None:
    workflow = create(client, state={"a": None})
    response = client.get(url(workflow))
    detail = response.get_json()
    assert detail.keys() == SUMMARY | {"state", "token_usage", "recent_events", "plan"}
    assert (detail["state"], detail["token_usage"], detail["plan"]) == ({"a": None}, None, None)
    assert [event["event_type"] for event in detail["recent_events"]] == ["workflow_created"]
    assert re.fullmatch(r'"[0-9]+"', response.headers["ETag"])


def test_usage_is_told_in_total_and_by_agent_and_model(client: FlaskClient) -> None:
    workflow = create(client)
    use(client, workflow, agent="b", cache_read_tokens=100, cache_creation_tokens=1000)
    use(client, workflow, agent="a", cost_usd=0.1)
    use(client, workflow, agent="a", cost_usd=0.2)
    detail = read(client, workflow)
    assert detail["token_usage"] == {
        "total_input_tokens": 30,
        "total_output_tokens": 3,
        "total_cache_read_tokens": 100,
        "total_cache_creation_tokens": 1000,
        "total_cost_usd": 0.3,
        "unpriced_tokens": 1111,
        "breakdown": [
            {
                "agent": "a",
                "model": "no-such-model",
                "input_tokens": 20,
                "output_tokens": 2,
                "cache_read_tokens": 0,
                "cache_creation_tokens": 0,
                "cost_usd": 0.3,
                "unpriced_tokens": 0,
            },
            {
                "agent": "b",
                "model": "no-such-model",
                "input_tokens": 10,
                "output_tokens": 1,
                "cache_read_tokens": 100,
                "cache_creation_tokens": 1000,
                "cost_usd": 0.0,
                "unpriced_tokens": 1111,
            },
        ],
    }
    assert (detail["total_cost_usd"], detail["total_tokens"], detail["unpriced_tokens"]) == (0.3, 1133, 1111)


def test_the_newest_fifty_events_are_shown_oldest_first(client: FlaskClient) -> None:
    workflow = create(client)
    other = create(client)
    batch = {"events": [{"agent": "dev", "event_type": "note", "message": str(n)} for n in range(60)]}
    for each in (workflow, other):
        assert client.post(url(each, "events"), json=batch).status_code == 201
    shown = read(client, workflow)["recent_events"]
    assert [event["sequence"] for event in shown] == list(range(12, 62))
    assert shown == client.get(url(workflow, "events"), query_string={"after": 11}).get_json()["events"]


STARTED, COMPLETED = "stage_started", "stage_completed"


@pytest.mark.parametrize(
    ("told", "stage"),
    [
        ([], None),
        ([(STARTED, "plan")], "plan"),
        ([(STARTED, "plan"), (COMPLETED, "plan")], None),
        ([(STARTED, "plan"), (STARTED, "build")], "build"),
        ([(STARTED, "plan"), (STARTED, "build"), (COMPLETED, "build")], "plan"),
        ([(STARTED, "plan"), (STARTED, "build"), (COMPLETED, "plan")], "build"),
        ([(STARTED, "plan"), (COMPLETED, "plan"), (STARTED, "plan")], "plan"),
        ([(STARTED, "plan"), (STARTED, "build"), (STARTED, "plan")], "plan"),
        ([(STARTED, "plan"), (STARTED, "build"), (STARTED, "plan"), (COMPLETED, "plan")], "build"),
        ([(COMPLETED, "plan"), (STARTED, "plan")], "plan"),
        ([(STARTED, "plan"), (COMPLETED, "other")], "plan"),
        ([(STARTED, "plan"), ("note", "build")], "plan"),
        ([(STARTED, None), (STARTED, 5), (STARTED, "")], None),
    ],
)
def test_the_current_stage_is_the_newest_that_was_not_completed(
    client: FlaskClient, told: list[tuple[str, Any]], stage: str | None
) -> None:
    workflow = create(client, "in_progress")
    for event_type, name in told:
        append(client, workflow, event_type, data={"stage": name})
    append(client, create(client), STARTED, data={"stage": "of another workflow"})
    append(client, workflow, STARTED, message="without a stage")
    assert read(client, workflow)["current_stage"] == stage


def test_a_finished_workflow_took_the_time_from_its_start_to_its_end(client: FlaskClient) -> None:
    ledger, workflow = ledger_of(client), create(client)
    ledgers.move(ledger, workflow, "start", datetime(2026, 1, 1, 12, tzinfo=UTC))
    running = client.get(url(workflow)).get_json()["total_duration_ms"]
    passed = datetime.now(UTC) - datetime(2026, 1, 1, 12, tzinfo=UTC)
    assert 0 <= passed.total_seconds() * 1000 - running < 60_000
    moved = ledgers.move(ledger, workflow, "complete", datetime(2026, 1, 1, 12, 1, 30, 999, tzinfo=UTC))
    assert moved.workflow.total_duration_ms == 90_000
    assert client.get(url(workflow)).get_json()["total_duration_ms"] == 90_000


@pytest.mark.parametrize(
    ("state", "patch", "merged"),
    [  # RFC 7396, appendix A, where both are objects; then what it leaves to the text
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
        ({"a": "foo"}, {"b": None}, {"a": "foo"}),
        ({"a": 1}, {"a": {"b": 2}}, {"a": {"b": 2}}),
        ({"a": {"b": 1}}, {"a": [None]}, {"a": [None]}),
        ({"a": {"b": {"c": 1, "d": 2}}}, {"a": {"b": {"c": None}}}, {"a": {"b": {"d": 2}}}),
        ({"a": 1}, {}, {"a": 1}),
        (None, {"a": 1, "b": None}, {"a": 1}),
        (None, {}, {}),
        ({"a": 1}, None, None),
        ({"big": 2**63 - 1, "f": 0.1}, {"ü": -(2**63)}, {"big": 2**63 - 1, "f": 0.1, "ü": -(2**63)}),
    ],
)
def test_a_patch_is_merged_into_the_state(client: FlaskClient, state: Any, patch: Any, merged: Any) -> None:
    workflow = create(client, state=state)
    response = client.patch(url(workflow), json={"state": patch})
    assert (response.status_code, response.get_json()["state"]) == (200, merged)
    assert read(client, workflow)["state"] == merged


def test_a_patch_answers_with_the_detail_and_its_new_tag_and_writes_no_event(client: FlaskClient) -> None:
    workflow = create(client, state={"a": 1})
    before, events = read(client, workflow), database_of(client).rows("SELECT * FROM events")
    response = client.patch(url(workflow), json={"state": {"b": 2}, "worktree_name": "renamed"})
    whole = client.get(url(workflow))
    assert (response.get_json(), response.headers["ETag"]) == (whole.get_json(), whole.headers["ETag"])
    assert read(client, workflow) == before | {"state": {"a": 1, "b": 2}, "worktree_name": "renamed"}
    assert database_of(client).rows("SELECT * FROM events") == events


@pytest.mark.parametrize("status", ["pending", "in_progress", "blocked", *FINAL])
def test_each_member_is_patched_alone_whatever_the_status(client: FlaskClient, status: str) -> None:
    workflow = create(client, status, state={"a": 1}, worktree_path="/w/tree")
    assert patched(client, workflow, worktree_name="ü" * 255)["state"] == {"a": 1}
    found = patched(client, workflow, state={"b": 2})
    assert (found["worktree_name"], found["state"], found["status"]) == ("ü" * 255, {"a": 1, "b": 2}, status)
    assert patched(client, workflow)["state"] == {"a": 1, "b": 2}


@pytest.mark.parametrize("sent", [{}, {"json": {}}, {"content_type": "application/json"}])
def test_a_patch_of_nothing_needs_no_body_and_makes_a_version(client: FlaskClient, sent: dict[str, Any]) -> None:
    workflow = create(client, state={"a": 1})
    before = read(client, workflow)
    assert client.patch(url(workflow), **sent).headers["ETag"] == tag(client, workflow) == '"2"'
    assert read(client, workflow) == before


@pytest.mark.parametrize(
    ("member", "value"),
    [
        *(("state", value) for value in (["a"], "a", 5, True, {"a": "x" * LARGEST})),
        *(("worktree_name", value) for value in ("", "n" * 256, "a\n", "\x7f", 5, None)),
        *((member, "x") for member in ("status", "issue_id", "worktree_path", "version", "unknown")),
    ],
)
def test_a_patch_of_anything_else_is_refused(client: FlaskClient, member: str, value: Any) -> None:
    invalid(client, ["body", member], "PATCH", url(create(client, state={"a": 1})), json={member: value})


def test_a_state_does_not_grow_beyond_its_bound(client: FlaskClient) -> None:
    workflow = create(client, state={"a": ""})
    fits = LARGEST - len('{"a":"","b":""}')
    patched(client, workflow, state={"b": "x" * fits})
    invalid(client, ["body", "state"], "PATCH", url(workflow), json={"state": {"a": "y"}})
    assert patched(client, workflow, state={"a": "y", "b": None})["state"] == {"a": "y"}


@pytest.mark.parametrize(
    ("if_match", "is_met"),
    [
        ('"2"', True),
        ('"1", "2"', True),
        ('"7","2" ,"9"', True),
        ("*", True),
        (" * ", True),
        ('"1"', False),
        ('"1", "3"', False),
        ('W/"2"', False),
        ("2", False),
        ('"2', False),
        ("", False),
        ('"22"', False),
    ],
)
def test_a_patch_is_made_only_at_the_version_that_it_names(client: FlaskClient, if_match: str, is_met: bool) -> None:
    workflow = create(client, "in_progress")
    assert tag(client, workflow) == '"2"'
    if is_met:
        patched(client, workflow, if_match, state={"a": 1})
        return
    headers = {"If-Match": if_match}
    answer = refused(
        client, 412, "PRECONDITION_FAILED", "PATCH", url(workflow), json={"state": {"a": 1}}, headers=headers
    )
    assert answer["details"] == {"workflow_id": workflow, "etag": '"2"'}


def test_of_two_patches_at_one_version_the_second_is_refused(client: FlaskClient) -> None:
    workflow = create(client)
    seen = tag(client, workflow)
    patched(client, workflow, seen, state={"a": 1})
    headers = {"If-Match": seen}
    refused(client, 412, "PRECONDITION_FAILED", "PATCH", url(workflow), json={"state": {}}, headers=headers)


def test_the_tag_changes_with_every_move_and_patch_and_not_with_appends(client: FlaskClient) -> None:
    workflow = create(client)
    seen = [tag(client, workflow)]
    for name in ("start", "block", "approve", "complete"):
        assert client.post(url(workflow, name)).status_code == 200
        seen.append(tag(client, workflow))
        append(client, workflow, STARTED, data={"stage": "s"})
        use(client, workflow)
        assert tag(client, workflow) == seen[-1]
    for members in ({"state": {"a": 1}}, {"worktree_name": "n"}, {}):
        patched(client, workflow, **members)
        seen.append(tag(client, workflow))
    assert len(set(seen)) == len(seen) == 8


def test_a_repeated_move_leaves_the_tag(client: FlaskClient) -> None:
    workflow = create(client)
    for _ in range(2):
        assert client.post(url(workflow, "start"), json={"event_id": "once"}).status_code == 200
        assert tag(client, workflow) == '"2"'


@pytest.mark.parametrize("status", FINAL)
def test_deleting_a_finished_workflow_takes_everything_of_it_out_of_the_record(
    client: FlaskClient, status: str
) -> None:
    kept = create(client, "completed")
    use(client, kept, cost_usd=0.1)
    before, report = database_of(client).dump(), client.get("/api/usage").get_json()
    workflow = create(client, status)
    append(client, workflow, STARTED, data={"stage": "s"})
    use(client, workflow, cost_usd=0.2)
    use(client, workflow, model="another-model", timestamp="2026-01-01T00:00:00Z")
    assert client.get("/api/usage").get_json() != report
    response = client.delete(url(workflow))
    assert (response.status_code, response.data) == (204, b"")
    assert "Content-Type" not in response.headers
    refused(client, 404, "NOT_FOUND", "GET", url(workflow))
    refused(client, 404, "NOT_FOUND", "GET", url(workflow, "events"))
    refused(client, 404, "NOT_FOUND", "DELETE", url(workflow))
    after = database_of(client).dump()
    for table in ("workflows", "events", "token_usage", "open_stages", "usage_by_workflow"):
        assert after[table] == before[table]
    assert client.get("/api/usage").get_json() == report
    assert client.get("/api/usage?preset=all").get_json()["summary"]["total_tokens"] == 11


def test_a_long_workflow_is_deleted_in_pieces_between_which_others_write(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workflows, "PIECE", 3)
    workflow, other = create(client, "completed"), create(client)
    for _ in range(10):
        append(client, workflow)
    before = ledger_of(client).writer.commits
    assert client.delete(url(workflow)).status_code == 204
    assert ledger_of(client).writer.commits >= before + 5
    assert database_of(client).rows("SELECT DISTINCT workflow_id FROM events") == [(other,)]


@pytest.mark.parametrize("status", ["pending", "in_progress", "blocked"])
def test_an_active_workflow_is_not_deleted(client: FlaskClient, status: str) -> None:
    workflow = create(client, status)
    answer = refused(client, 422, "INVALID_STATE", "DELETE", url(workflow))
    assert answer["details"] == {"workflow_id": workflow, "current_status": status}


def test_positions_go_on_after_a_deletion(client: FlaskClient) -> None:
    workflow = create(client, "cancelled")
    last = append(client, workflow)["position"]
    assert client.delete(url(workflow)).status_code == 204
    assert append(client, create(client))["position"] == last + 2


def test_an_id_is_read_in_upper_case_too(client: FlaskClient) -> None:
    workflow = create(client)
    assert read(client, workflow.upper())["id"] == workflow
