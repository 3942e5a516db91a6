"""Workflows over HTTP: created once each, with every bound of every member, and who may hold a worktree."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from flask import Flask
from flask.testing import FlaskClient

from amelia_flask import create_app, schema
from amelia_flask.moves import MOVES
from amelia_flask.settings import from_environment
from amelia_flask.sqlite import SqliteEngine
from tests.answers import EVENT, USAGE
from tests.calls import (
    WORKFLOWS,
    create,
    database_of,
    invalid,
    new,
    read,
    refused,
    url,
    without_duration,
)
from tests.load import in_parallel
from tests.test_invariants import SAID
from tests.test_workflow_list import SUMMARY

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", re.ASCII)
ID = "01890a5d-ac96-774b-bcce-b302099a8057"
FINAL = ["completed", "failed", "cancelled"]
ACTIVE = ["pending", "in_progress", "blocked"]


def post(client: FlaskClient, **members: Any) -> Any:
    """The answer to a creation."""
    return client.post(WORKFLOWS, json=members)


def test_a_new_workflow_is_pending_and_answers_with_its_summary_and_where_it_is(client: FlaskClient) -> None:
    response = post(client, issue_id="ISSUE-1", worktree_path="/trees/tree", profile="fast", host="h", state={"a": 1})
    created = response.get_json()
    assert response.status_code == 201
    assert response.headers["Location"] == f"/api/workflows/{created['id']}"
    assert created.keys() == SUMMARY | {"message"}
    assert UUID(created["id"]).version == 7
    assert TIME.fullmatch(created["created_at"])
    assert created == {
        "id": created["id"],
        "message": created["message"],
        "issue_id": "ISSUE-1",
        "worktree_path": "/trees/tree",
        "worktree_name": "tree",
        "host": "h",
        "profile": "fast",
        "status": "pending",
        "created_at": created["created_at"],
        "started_at": None,
        "completed_at": None,
        "failure_reason": None,
        "current_stage": None,
        "last_sequence": 1,
        "total_cost_usd": 0.0,
        "total_tokens": 0,
        "total_duration_ms": None,
        "unpriced_tokens": 0,
    }
    assert isinstance(created["message"], str)
    assert created["message"]
    assert client.get(response.headers["Location"]).get_json()["state"] == {"a": 1}


def test_a_creation_is_stored_with_the_event_that_tells_of_it(client: FlaskClient) -> None:
    workflow = create(client, issue_id="A/1", worktree_path="/w", host="h", profile="p", state={"a": [1, 0.5, "ü"]})
    columns = "issue_id, worktree_path, worktree_name, status, started_at, completed_at, host, profile, last_sequence"
    stored = database_of(client).rows(f"SELECT {columns} FROM workflows WHERE id = ?", workflow)
    assert stored == [("A/1", "/w", "w", "pending", None, None, "h", "p", 1)]
    assert read(client, workflow)["state"] == {"a": [1, 0.5, "ü"]}
    (event,) = read(client, workflow)["recent_events"]
    assert (event["event_type"], event["sequence"]) == ("workflow_created", 1)
    assert event["timestamp"] == read(client, workflow)["created_at"]
    assert event["data"] == {"issue_id": "A/1", "worktree_path": "/w", "host": "h", "profile": "p"}


def test_what_is_left_out_has_a_default(client: FlaskClient) -> None:
    whole = read(client, create(client, worktree_path="/a/b"))
    assert (whole["worktree_name"], whole["host"], whole["profile"], whole["state"]) == ("b", "", None, None)


def test_members_that_nobody_knows_are_ignored_in_a_creation(client: FlaskClient) -> None:
    create(client, start=True, plan_now=False, driver="api", task_title="T", task_description=None, x={"y": []})


@pytest.mark.parametrize(
    ("member", "value"),
    [
        *(("issue_id", value) for value in ("a", "A" * 100, "azAZ09-_./#:", "#1", "-")),
        *(("worktree_path", value) for value in ("/", "/" + "a" * 4095, "/a..b/..c/d..", "/ü/☃/ a", "/a/...")),
        *(("worktree_name", value) for value in ("n", "ü" * 255, None)),
        *(("host", value) for value in ("", "ü" * 255)),
        *(("profile", value) for value in ("p", "ü" * 64, None)),
        ("state", {}),
        ("state", None),
        ("state", {"a": {"b": [None, True, -1.5, 2**63 - 1, "ü"]}}),
        ("state", {"a": "x" * (262_144 - len('{"a":""}'))}),
        ("id", None),
    ],
)
def test_every_member_is_taken_up_to_its_bounds(client: FlaskClient, member: str, value: Any) -> None:
    found = read(client, create(client, **{member: value}))
    assert found[member] == value or value is None


@pytest.mark.parametrize(
    ("member", "value"),
    [
        *(("issue_id", value) for value in ("", "a" * 101, "a b", "a\n", "\na", "é", "٣", "a,b", "a\\b", 5, None)),
        *(("worktree_path", value) for value in ("", "a", "./a", "~/a", " /a", "C:\\a", 5, None, ["/a"])),
        *(("worktree_path", value) for value in ("/..", "/a/..", "/a/../b", "/../a", "/a/b/../../..")),
        *(("worktree_path", value) for value in ("/a\n", "/a\tb", "/\x1b", "/\x7f", "/\x85", "/" + "a" * 4096)),
        *(("worktree_name", value) for value in ("", "n" * 256, "a\n", "\x1b", "\x80", 5)),
        *(("host", value) for value in ("h" * 256, "h\n", "\x7f", "h\x85h", 5, None)),
        *(("profile", value) for value in ("", "p" * 65, "p\n", "p\x9f", 5)),
        *(("state", value) for value in (["a"], "a", 5, True, {"a": "x" * (262_144 - len('{"a":"') - 1)})),
        *(
            ("id", value)
            for value in ("", "x", "a" * 36, f"{ID}\n", f" {ID}", f"{{{ID}}}", ID[:-1], "１" + ID[1:], 5)
        ),
    ],
)
def test_what_is_outside_the_bounds_is_refused(client: FlaskClient, member: str, value: Any) -> None:
    invalid(client, ["body", member], "POST", WORKFLOWS, json=new(**{member: value}))


@pytest.mark.parametrize("member", ["issue_id", "worktree_path"])
def test_a_member_that_is_needed_must_be_there(client: FlaskClient, member: str) -> None:
    body = {name: value for name, value in new().items() if name != member}
    invalid(client, ["body", member], "POST", WORKFLOWS, json=body)


@pytest.mark.parametrize("member", ["issue_id", "worktree_path", "worktree_name", "host", "profile", "id", "unknown"])
@pytest.mark.parametrize("text", ["/a\0b", "/\ud800"])
def test_text_that_no_database_keeps_is_no_json_to_us(client: FlaskClient, member: str, text: str) -> None:
    refused(client, 400, "MALFORMED_JSON", "POST", WORKFLOWS, json=new(**{member: text}))


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'"a"', b"{", b"\xff", b'{"issue_id":"a","issue_id":"a"}'])
def test_a_body_that_is_no_object_creates_nothing(client: FlaskClient, body: bytes) -> None:
    before = database_of(client).dump()
    response = client.post(WORKFLOWS, data=body, content_type="application/json")
    assert response.status_code == (422 if body in {b"[]", b"null", b'"a"'} else 400)
    assert database_of(client).dump() == before


@pytest.mark.parametrize(
    ("given", "kept", "name"),
    [
        ("//a/./b/", "/a/b", "b"),
        ("/", "/", "/"),
        ("//", "/", "/"),
        ("///", "/", "/"),
        ("/./", "/", "/"),
        ("/a/", "/a", "a"),
        ("/a//b", "/a/b", "b"),
        ("/a/b/.", "/a/b", "b"),
        ("/a/...", "/a/...", "..."),
        ("/a /b", "/a /b", "b"),
        ("/A", "/A", "A"),
    ],
)
def test_a_path_has_one_spelling_for_storing_and_for_filtering(
    client: FlaskClient, given: str, kept: str, name: str
) -> None:
    workflow = create(client, worktree_path=given)
    found = read(client, workflow)
    assert (found["worktree_path"], found["worktree_name"]) == (kept, name)
    for path in (WORKFLOWS, f"{WORKFLOWS}/active"):
        assert client.get(path, query_string={"worktree": given}).get_json()["total"] == 1
    answer = refused(client, 409, "WORKFLOW_CONFLICT", "POST", WORKFLOWS, json=new(worktree_path=kept))
    assert answer["details"] == {"workflow_id": workflow, "worktree_path": kept}


@pytest.mark.parametrize(
    "again",
    [
        {},
        {"id": ID.upper()},
        {"id": ID.replace("-", "")},
        {"worktree_path": "//w/./tree/"},
        {"worktree_name": "tree"},
        {"state": {"b": [2], "a": 1}},
        {"task_title": "members that nobody knows say nothing"},
    ],
)
def test_the_same_id_with_the_same_content_answers_with_the_workflow_as_it_is_now(
    client: FlaskClient, again: dict[str, Any]
) -> None:
    body = {"id": ID, "issue_id": "A-1", "worktree_path": "/w/tree", "state": {"a": 1, "b": [2]}}
    assert post(client, **body).status_code == 201
    client.post(url(ID, "start"))
    client.patch(url(ID), json={"state": {"a": 2}, "worktree_name": "renamed"})
    before = database_of(client).dump()
    response = post(client, **body | again)
    assert (response.status_code, response.headers["Location"]) == (200, f"/api/workflows/{ID}")
    assert database_of(client).dump() == before
    found = response.get_json()
    assert found.keys() == SUMMARY | {"message"}
    assert without_duration(found).items() <= (read(client, ID) | {"message": found["message"]}).items()
    assert (found["status"], found["worktree_name"]) == ("in_progress", "renamed")


@pytest.mark.parametrize("status", [*ACTIVE, *FINAL])
@pytest.mark.parametrize(
    "other",
    [
        {"issue_id": "A-2"},
        {"worktree_path": "/elsewhere"},
        {"worktree_name": "named"},
        {"host": "h"},
        {"profile": "p"},
        {"state": {"a": 1.0}},
        {"state": {}},
        {"state": None},
    ],
)
def test_the_same_id_with_other_content_is_refused(client: FlaskClient, status: str, other: dict[str, Any]) -> None:
    body = {"id": ID, "issue_id": "A-1", "worktree_path": "/w", "state": {"a": 1}}
    create(client, status, **body)
    answer = refused(client, 409, "ID_REUSED", "POST", WORKFLOWS, json=body | other)
    assert answer["details"] == {"id": ID}


def test_a_deleted_id_is_free_again(client: FlaskClient) -> None:
    create(client, "cancelled", id=ID)
    assert client.delete(url(ID)).status_code == 204
    assert read(client, create(client, id=ID, issue_id="OTHER-1"))["status"] == "pending"


@pytest.mark.parametrize("status", ACTIVE)
def test_a_worktree_that_an_active_workflow_holds_is_refused(client: FlaskClient, status: str) -> None:
    workflow = create(client, status, issue_id="A-1", worktree_path="/w")
    answer = refused(client, 409, "WORKFLOW_CONFLICT", "POST", WORKFLOWS, json=new(worktree_path="/w", id=ID))
    assert answer["details"] == {"workflow_id": workflow, "worktree_path": "/w"}
    assert answer["detail"] == {
        "message": answer["error"],
        "active_workflow": {"id": workflow, "issue_id": "A-1", "status": status},
    }


@pytest.mark.parametrize("name", ["complete", "fail", "reject", "cancel"])
def test_a_worktree_is_free_again_after_every_final_move(client: FlaskClient, name: str) -> None:
    workflow = create(client, "blocked" if name == "reject" else "in_progress", worktree_path="/w")
    assert client.post(url(workflow, name), json=SAID.get(name, {})).status_code == 200
    assert create(client, worktree_path="/w") != workflow


def test_the_same_path_on_another_host_is_another_worktree(client: FlaskClient) -> None:
    made = [create(client, worktree_path="/w", host=host) for host in ("", "a", "A", "b")]
    assert len(set(made)) == 4
    refused(client, 409, "WORKFLOW_CONFLICT", "POST", WORKFLOWS, json=new(worktree_path="/w", host="a"))


def test_of_rivals_for_a_worktree_exactly_one_gets_it(app: Flask, client: FlaskClient) -> None:
    def rival(_: int) -> int:
        return app.test_client().post(WORKFLOWS, json=new(worktree_path="/w")).status_code

    assert sorted(in_parallel(6, rival)) == [201] + [409] * 5
    assert client.get(WORKFLOWS).get_json()["total"] == 1


def test_the_same_creation_at_one_moment_is_stored_once(app: Flask, client: FlaskClient) -> None:
    body = new(id=ID)

    def caller(_: int) -> int:
        return app.test_client().post(WORKFLOWS, json=body).status_code

    assert sorted(in_parallel(6, caller)) == [200] * 5 + [201]
    assert client.get(WORKFLOWS).get_json()["total"] == 1


@pytest.fixture
def limited(tmp_path: Path) -> Iterator[FlaskClient]:
    """A service that allows two active workflows."""
    path = tmp_path / "limited.db"
    schema.set_up(SqliteEngine(path))
    app = create_app(from_environment({"AMELIA_DATABASE_PATH": str(path), "AMELIA_MAX_CONCURRENT": "2"}))
    yield app.test_client()
    app.extensions["ledger"].close()


def test_no_more_are_active_than_the_setting_allows(limited: FlaskClient) -> None:
    first, body = create(limited, "blocked"), new(id=ID)
    create(limited, "completed")
    assert post(limited, **body).status_code == 201
    answer = refused(limited, 429, "CONCURRENCY_LIMIT", "POST", WORKFLOWS, json=new())
    assert answer["details"] == {"current": 2, "limit": 2}
    assert post(limited, **new()).headers["Retry-After"] == "30"
    assert post(limited, **body).status_code == 200  # what is there already is not one more
    assert limited.post(url(first, "cancel")).status_code == 200
    create(limited)


def test_rivals_do_not_exceed_the_limit_together(limited: FlaskClient) -> None:
    def rival(_: int) -> int:
        return limited.application.test_client().post(WORKFLOWS, json=new()).status_code

    assert sorted(in_parallel(6, rival)) == [201] * 2 + [429] * 4


ROUTES = [
    ("GET", ()),
    ("PATCH", ()),
    ("DELETE", ()),
    *(("POST", (name,)) for name in MOVES),
    ("GET", ("events",)),
    ("POST", ("events",)),
    ("GET", ("token-usage",)),
    ("POST", ("token-usage",)),
]
BODIES = SAID | {"events": EVENT, "token-usage": USAGE}


@pytest.mark.parametrize(
    "workflow",
    [ID, "x", "1", ID[:-1], f"{ID}0", f"{ID}%0A", f"%20{ID}", f"{{{ID}}}", "%EF%BC%91" + ID[1:], "active "],
)
@pytest.mark.parametrize(("method", "rest"), ROUTES)
def test_a_workflow_that_is_not_there_is_not_found(
    client: FlaskClient, method: str, rest: tuple[str, ...], workflow: str
) -> None:
    body = None if method == "GET" else BODIES.get("".join(rest), {})
    refused(client, 404, "NOT_FOUND", method, url(workflow, *rest), json=body)
