"""Lists of workflows over HTTP: filters, order, cursors, and the active ones."""

import base64
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any
from uuid import uuid4

import pytest
from flask.testing import FlaskClient

from tests import ledgers
from tests.calls import WORKFLOWS, append, create, invalid, ledger_of, read, refused, url, without_duration
from tests.test_invariants import ACTIVE

SUMMARY = {
    "id",
    "issue_id",
    "worktree_path",
    "worktree_name",
    "host",
    "profile",
    "status",
    "created_at",
    "started_at",
    "completed_at",
    "failure_reason",
    "current_stage",
    "last_sequence",
    "total_cost_usd",
    "total_tokens",
    "total_duration_ms",
    "unpriced_tokens",
}
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
BOTH = pytest.mark.parametrize("path", [WORKFLOWS, f"{WORKFLOWS}/active"])


def listed(client: FlaskClient, path: str = WORKFLOWS, **query: Any) -> Any:
    """A page."""
    response = client.get(path, query_string=query)
    assert response.status_code == 200, response.text
    page = response.get_json()
    assert page.keys() == {"workflows", "total", "cursor", "has_more"}
    return page


def ids(page: Any) -> list[str]:
    return [workflow["id"] for workflow in page["workflows"]]


def create_at(client: FlaskClient, moment: datetime, **members: Any) -> str:
    """The id of a workflow that was created at `moment`."""
    return ledgers.create(ledger_of(client), now=moment, **members)


def cursor(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


@BOTH
def test_a_list_of_nothing_is_empty(client: FlaskClient, path: str) -> None:
    assert listed(client, path) == {"workflows": [], "total": 0, "cursor": None, "has_more": False}


@BOTH
def test_a_list_shows_each_workflow_as_its_detail_does(client: FlaskClient, path: str) -> None:
    workflow = create(client, "blocked", profile="fast", host="h")
    append(client, workflow, "stage_started", data={"stage": "build"})
    used = {"agent": "dev", "model": "no-such-model", "input_tokens": 10, "output_tokens": 1}
    assert client.post(url(workflow, "token-usage"), json=used | {"cost_usd": 0.1}).status_code == 201
    assert client.post(url(workflow, "token-usage"), json=used).status_code == 201
    (found,) = listed(client, path)["workflows"]
    assert found.keys() == SUMMARY
    assert without_duration(found).items() <= read(client, workflow).items()
    assert (found["current_stage"], found["last_sequence"], found["profile"]) == ("build", 4, "fast")
    assert (found["total_cost_usd"], found["total_tokens"], found["unpriced_tokens"]) == (0.1, 22, 11)
    assert found["total_duration_ms"] >= 0


def test_filters_narrow_the_list_each_and_together(client: FlaskClient) -> None:
    made = [
        {"issue_id": issue_id, "worktree_path": path, "host": host, "status": status}
        for (issue_id, status), path, host in product(
            [("A", "failed"), ("B", "cancelled"), ("A", "pending")], ["/a", "/b"], ["", "h"]
        )
    ]
    for workflow in made:
        create(client, **workflow)
    filters = product(
        [None, "pending", "failed", "in_progress"], [None, "/a", "//b/./", "/c"], [None, "A", "C"], [None, "", "h"]
    )
    for status, worktree, issue_id, host in filters:
        given = {"status": status, "worktree": worktree, "issue_id": issue_id, "host": host}
        page = listed(client, **{name: value for name, value in given.items() if value is not None})
        path = "/b" if worktree == "//b/./" else worktree
        wanted = {"status": status, "worktree_path": path, "issue_id": issue_id, "host": host}
        expected = [
            workflow
            for workflow in reversed(made)
            if all(value in (None, workflow[member]) for member, value in wanted.items())
        ]
        found = [{member: workflow[member] for member in made[0]} for workflow in page["workflows"]]
        assert (found, page["total"], page["has_more"]) == (expected, len(expected), False), given


def test_the_newest_comes_first_and_ids_decide_within_one_moment(client: FlaskClient) -> None:
    moments = [NOON, NOON + timedelta(microseconds=1), NOON, NOON - timedelta(days=1), NOON]
    made = [(moment, create_at(client, moment, id=str(uuid4()))) for moment in moments]
    expected = [workflow for _, workflow in sorted(made, reverse=True)]
    assert ids(listed(client)) == expected
    assert ids(listed(client, f"{WORKFLOWS}/active")) == expected


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8])
def test_following_the_cursor_reaches_every_workflow_once_while_others_are_added(
    client: FlaskClient, limit: int
) -> None:
    moments = [NOON + timedelta(seconds=second) for second in (0, 1, 1, 1, 1, 2, 3)]
    made = [(moment, create_at(client, moment, id=str(uuid4()))) for moment in moments]
    reached: list[str] = []
    page = listed(client, limit=limit)
    while True:
        assert len(page["workflows"]) == min(limit, len(made) - len(reached))
        reached += ids(page)
        assert page["has_more"] == (page["cursor"] is not None) == (len(reached) < len(made))
        if not page["has_more"]:
            break
        create(client)
        page = listed(client, limit=limit, cursor=page["cursor"])
        assert page["total"] > len(made)
    assert reached == [workflow for _, workflow in sorted(made, reverse=True)]


def test_a_cursor_continues_a_list_that_is_filtered(client: FlaskClient) -> None:
    made = [create(client, issue_id=f"ISSUE-{n % 2}") for n in range(6)]
    first = listed(client, issue_id="ISSUE-0", limit=2)
    rest = listed(client, issue_id="ISSUE-0", limit=2, cursor=first["cursor"])
    assert ids(first) + ids(rest) == made[4::-2]
    assert (first["total"], rest["total"], rest["cursor"]) == (3, 3, None)


def test_a_workflow_that_is_deleted_does_not_break_the_cursor_at_it(client: FlaskClient) -> None:
    made = [create(client, "cancelled") for _ in range(4)]
    page = listed(client, limit=2)
    assert client.delete(url(made[2])).status_code == 204
    assert ids(listed(client, limit=2, cursor=page["cursor"])) == [made[1], made[0]]


def test_a_page_holds_20_unless_more_are_asked_for(client: FlaskClient) -> None:
    made = [create(client) for _ in range(21)][::-1]
    assert ids(listed(client)) == made[:20]
    assert listed(client)["has_more"]
    assert ids(listed(client, limit=100)) == made


PLACE = "2026-01-01T12:00:00.000000Z 01890a5d-ac96-774b-bcce-b302099a8057"


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "x",
        "====",
        "!!!!",
        "é",
        "____",
        cursor("only-one-part"),
        cursor("2026-01-01T12:00:00.000000Z not-an-id"),
        cursor("yesterday 01890a5d-ac96-774b-bcce-b302099a8057"),
        cursor("2026-13-01T12:00:00.000000Z 01890a5d-ac96-774b-bcce-b302099a8057"),
        cursor("2026-01-01T12:00:00.0Z 01890a5d-ac96-774b-bcce-b302099a8057"),
        cursor("２026-01-01T12:00:00.000000Z 01890a5d-ac96-774b-bcce-b302099a8057"),
        cursor(PLACE.upper()),
        cursor(f"{PLACE} more"),
        cursor(PLACE) + "=",
        cursor(PLACE) + "\n",
        " " + cursor(PLACE),
        cursor(PLACE)[:-1],
        cursor("\ufffd"),
        "A" * 2000,
    ],
)
def test_a_cursor_that_was_never_given_out_is_refused(client: FlaskClient, bad: str) -> None:
    refused(client, 400, "INVALID_CURSOR", "GET", WORKFLOWS, query_string={"cursor": bad})


def test_a_cursor_says_where_to_continue_whether_or_not_a_workflow_is_there(client: FlaskClient) -> None:
    older, _ = create_at(client, NOON - timedelta(seconds=1)), create_at(client, NOON + timedelta(seconds=1))
    assert ids(listed(client, cursor=cursor(PLACE))) == [older]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("limit", value) for value in ("0", "101", "-1", "x", "", "1.5", "+5", "５", "9" * 30)),
        *(("status", value) for value in ("", "active", "PENDING", "pending,blocked")),
        *(("issue_id", value) for value in ("", "a" * 101, "a b", "a\n", "é")),
        *(("host", value) for value in ("h" * 256, "\0")),
        *(("worktree", value) for value in ("", "a", "/a/..", "/a\n", "/\x7f", "/" + "a" * 4096, "/\0")),
        ("unknown", "x"),
        ("offset", "0"),
    ],
)
def test_a_bad_query_value_is_refused(client: FlaskClient, name: str, value: str) -> None:
    invalid(client, ["query", name], "GET", WORKFLOWS, query_string={name: value})


@pytest.mark.parametrize(
    ("name", "value"), [("worktree", "a"), ("worktree", ""), ("status", "pending"), ("limit", "5"), ("cursor", "")]
)
def test_the_active_list_takes_a_worktree_and_nothing_else(client: FlaskClient, name: str, value: str) -> None:
    invalid(client, ["query", name], "GET", f"{WORKFLOWS}/active", query_string={name: value})


@BOTH
def test_a_parameter_that_is_given_twice_is_refused(client: FlaskClient, path: str) -> None:
    invalid(client, ["query", "worktree"], "GET", f"{path}?worktree=/a&worktree=/a")


def test_the_active_list_shows_all_that_hold_a_worktree(client: FlaskClient) -> None:
    statuses = ["pending", "in_progress", "blocked", "completed", "failed", "cancelled"]
    made = {create(client, status): status for status in statuses}
    more = [create(client, worktree_path="/same", host=str(host)) for host in range(101)]
    active = listed(client, f"{WORKFLOWS}/active")
    assert set(ids(active)) == {workflow for workflow, status in made.items() if status in ACTIVE} | set(more)
    assert (active["total"], active["cursor"], active["has_more"]) == (104, None, False)
    assert ids(listed(client, f"{WORKFLOWS}/active", worktree="//same/.")) == more[::-1]
