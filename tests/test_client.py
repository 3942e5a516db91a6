"""The Python client: every call against a real server, and faults of every kind between the two."""

import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from amelia_flask.client import ApiError, Client, ServiceUnavailable
from amelia_flask.client.types import NewEvent
from tests.proxy import Fault, proxying
from tests.serving import Server, free_port, serving
from tests.test_imports import PACKAGE, imported


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.url) as client:
        yield client


@pytest.fixture
def workflow(client: Client) -> str:
    return create(client)


def create(client: Client) -> str:
    """The id of a new workflow in a worktree of its own."""
    return client.create_workflow("CLIENT-1", f"/client/{uuid4()}")["id"]


def note(**members: Any) -> NewEvent:
    whole: dict[str, Any] = {"agent": "dev", "event_type": "note", "message": "m"} | members
    return whole  # type: ignore[return-value]  # made of what callers may give


USED: Any = {"agent": "dev", "model": "claude-sonnet-4-5", "input_tokens": 1000, "output_tokens": 100}


def test_a_workflow_goes_through_its_life(client: Client, workflow: str) -> None:
    assert client.start(workflow, actor="me")["status"] == "started"
    assert client.block(workflow, "Look", {"plan": 1})["event"]["data"] == {"plan": 1}
    assert client.approve(workflow, "Fine", actor="you")["event"]["data"] == {"actor": "you", "reason": "Fine"}
    assert client.complete(workflow, "Done")["workflow"]["status"] == "completed"
    assert client.get_workflow(workflow)["status"] == "completed"
    client.delete_workflow(workflow)
    with pytest.raises(ApiError) as refused:
        client.get_workflow(workflow)
    assert (refused.value.status, refused.value.code) == (404, "NOT_FOUND")


@pytest.mark.parametrize(
    ("move", "status", "reason"),
    [
        (lambda client, workflow: client.reject(workflow, "No"), "failed", "No"),
        (lambda client, workflow: client.fail(workflow, "It broke"), "failed", "It broke"),
        (lambda client, workflow: client.cancel(workflow, "Enough"), "cancelled", None),
    ],
)
def test_a_workflow_can_end_otherwise(
    client: Client, workflow: str, move: Callable[[Client, str], Any], status: str, reason: str | None
) -> None:
    client.start(workflow)
    client.block(workflow)
    move(client, workflow)
    found = client.get_workflow(workflow)
    assert (found["status"], found["failure_reason"]) == (status, reason)


def test_workflows_are_listed_and_filtered(client: Client, workflow: str) -> None:
    path = client.get_workflow(workflow)["worktree_path"]
    assert [one["id"] for one in client.list_active_workflows(path)["workflows"]] == [workflow]
    assert client.list_workflows(worktree=path, status="pending", limit=1)["total"] == 1
    assert client.list_workflows(worktree=path, status="failed")["workflows"] == []


def test_a_patch_merges_and_is_refused_at_another_version(client: Client, workflow: str) -> None:
    first = client.get_workflow(workflow)
    second = client.patch_workflow(workflow, if_match=first["etag"], state={"a": 1}, worktree_name="new")
    assert (second["state"], second["worktree_name"]) == ({"a": 1}, "new")
    with pytest.raises(ApiError) as refused:
        client.patch_workflow(workflow, if_match=first["etag"], state={"a": 2})
    assert refused.value.code == "PRECONDITION_FAILED"
    assert client.get_workflow(workflow)["state"] == {"a": 1}


def test_many_events_go_in_batches_and_come_back_in_order(client: Client, workflow: str) -> None:
    answer = client.append(workflow, (note(message=str(number)) for number in range(1500)))
    assert [place["sequence"] for place in answer["events"]] == list(range(2, 1502))
    page = client.list_events(workflow, after=1, limit=1000)
    assert [event["message"] for event in page["events"]] == [str(number) for number in range(1000)]
    assert client.append(workflow, [])["events"] == []


def test_usage_is_recorded_listed_and_reported(client: Client, workflow: str) -> None:
    before = client.usage_report("7d")["summary"]["total_tokens"]
    assert client.record(workflow, [USED, USED])["duplicates"] == 0
    page = client.list_token_usage(workflow, limit=1)
    assert page["has_more"]
    assert client.list_token_usage(workflow, after=page["next_after"])["token_usage"][0]["input_tokens"] == 1000
    today = datetime.now(UTC).date()
    assert client.usage_report(start=today, end=today)["summary"]["total_tokens"] >= 2200
    assert client.usage_report("7d")["summary"]["total_tokens"] >= before + 2200


def test_times_and_ids_may_be_python_values(client: Client) -> None:
    workflow = client.create_workflow("CLIENT-2", f"/client/{uuid4()}", id=str(UUID(int=uuid4().int)))["id"]
    client.append(workflow, note(timestamp=datetime(2026, 1, 1, tzinfo=UTC)))
    assert client.list_events(workflow, after=1)["events"][0]["timestamp"] == "2026-01-01T00:00:00.000000Z"


def test_health_is_read(client: Client) -> None:
    assert client.health()["status"] == "healthy"


def test_a_follower_gets_what_is_there_and_then_what_comes(client: Client, workflow: str) -> None:
    follower = client.follow(workflow, wait=20)
    assert next(follower)["event_type"] == "workflow_created"
    writer = threading.Thread(target=lambda: client.append(workflow, note(message="later")))
    writer.start()
    assert next(follower)["message"] == "later"
    writer.join()


def test_to_follow_without_waiting_is_refused(client: Client) -> None:
    with pytest.raises(ValueError, match="without waiting"):
        next(client.follow(wait=0))


def test_a_refusal_says_what_the_service_said_and_is_not_repeated(server: Server) -> None:
    with proxying(server) as proxy, Client(proxy.url) as client:
        workflow = client.create_workflow("CLIENT-3", f"/client/{uuid4()}")
        with pytest.raises(ApiError) as refused:
            client.create_workflow("CLIENT-4", workflow["worktree_path"])
        assert len(proxy.seen) == 2
    error = refused.value
    assert (error.status, error.code, error.outcome_unknown) == (409, "WORKFLOW_CONFLICT", False)
    assert error.detail["active_workflow"]["id"] == error.details["workflow_id"] == workflow["id"]
    assert str(error).startswith("409 WORKFLOW_CONFLICT: ")
    assert pickle.loads(pickle.dumps(error)).code == error.code


FAULTS: list[Fault] = ["lost", "cut", 429, 502, 503, 504]


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_is_lost_nothing_is_stored_twice(server: Server, client: Client, fault: Fault) -> None:
    path = f"/client/{uuid4()}"
    # Every call meets the fault first and goes through when it is repeated.
    with proxying(server, *[fault, None] * 6) as proxy, Client(proxy.url) as faulty:
        workflow = faulty.create_workflow("CLIENT-5", path)["id"]
        faulty.start(workflow)
        faulty.append(workflow, [note(message="one"), note(message="two")])
        faulty.record(workflow, USED)
        faulty.complete(workflow)
        assert faulty.get_workflow(workflow)["total_tokens"] == 1100
        bodies = [body for _, _, _, body in proxy.seen]
    assert bodies[::2] == bodies[1::2], "a repetition says the same, ids included"
    events = client.list_events(workflow)["events"]
    kinds = ["workflow_created", "workflow_started", "note", "note", "workflow_completed"]
    assert [event["event_type"] for event in events] == kinds
    assert len(client.list_token_usage(workflow)["token_usage"]) == 1
    assert client.list_workflows(worktree=path)["total"] == 1


def test_a_lost_deletion_is_a_deletion(server: Server, client: Client, workflow: str) -> None:
    client.cancel(workflow)
    with proxying(server, "lost") as proxy, Client(proxy.url) as faulty:
        faulty.delete_workflow(workflow)
    with pytest.raises(ApiError):
        client.delete_workflow(workflow)


def test_a_conditional_patch_whose_answer_was_lost_is_not_repeated(
    server: Server, client: Client, workflow: str
) -> None:
    with proxying(server, None, "lost") as proxy, Client(proxy.url) as faulty:
        tag = faulty.get_workflow(workflow)["etag"]
        with pytest.raises(ServiceUnavailable) as failed:
            faulty.patch_workflow(workflow, if_match=tag, state={"a": 1})
    assert failed.value.outcome_unknown
    assert client.get_workflow(workflow)["state"] == {"a": 1}


def test_attempts_are_bounded(server: Server) -> None:
    with proxying(server, *[502] * 9) as proxy, Client(proxy.url, attempts=3) as client:
        with pytest.raises(ApiError) as failed:
            client.health()
        assert len(proxy.seen) == 3
    assert (failed.value.code, failed.value.is_passing) == ("HTTP_502", True)


def test_a_pause_that_is_longer_than_the_patience_is_not_begun(server: Server) -> None:
    with proxying(server, 503) as proxy, Client(proxy.url, patience=5) as client:
        proxy.retry_after = "60"
        with pytest.raises(ApiError) as failed:
            client.health()
        assert len(proxy.seen) == 1
    assert failed.value.retry_after == 60


def test_a_service_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    port = free_port()
    outcome: list[Any] = []
    with Client(f"http://127.0.0.1:{port}") as client:
        waiting = threading.Thread(target=lambda: outcome.append(client.create_workflow("CLIENT-6", "/x")))
        waiting.start()
        with serving(tmp_path / "amelia.db", port=port):
            waiting.join(30)
    assert outcome[0]["status"] == "pending"


def test_a_service_that_never_comes_is_said_to_be_away() -> None:
    with (
        Client(f"http://127.0.0.1:{free_port()}", patience=0.2) as client,
        pytest.raises(ServiceUnavailable) as failed,
    ):
        client.health()
    assert not failed.value.outcome_unknown
    assert "cannot be reached" in str(failed.value)


def test_a_connection_that_the_service_closed_is_not_used_again(tmp_path: Path) -> None:
    with serving(tmp_path / "amelia.db") as server, Client(server.url, attempts=1) as client:
        assert client.health()["status"] == "healthy"
        assert server.stop() == 0
        server.start()
        assert client.health()["status"] == "healthy"


def test_the_token_is_sent(server: Server) -> None:
    with proxying(server) as proxy, Client(proxy.url, token="s3cret-s3cret-s3cret") as client:
        client.health()
        [(_, _, headers, _)] = proxy.seen
    assert headers["Authorization"] == "Bearer s3cret-s3cret-s3cret"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"base_url": "127.0.0.1:8420"}, "not the address of a service"),
        ({"base_url": "ftp://localhost"}, "not the address of a service"),
        ({"token": "line\nfeed"}, "The token"),
        ({"token": " "}, "The token"),
    ],
)
def test_an_address_or_a_token_that_cannot_be_one_is_refused(arguments: dict[str, str], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Client(**arguments)  # type: ignore[arg-type]  # texts alone


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800", object()])
def test_what_json_cannot_hold_is_refused_before_it_is_sent(client: Client, workflow: str, value: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        client.append(workflow, note(data={"value": value}))
    assert client.get_workflow(workflow)["last_sequence"] == 1


def test_the_client_needs_the_standard_library_alone() -> None:
    used = {name.partition(".")[0] for file in (PACKAGE / "client").glob("*.py") for name in imported(file)}
    assert used - {"amelia_flask"} <= sys.stdlib_module_names
