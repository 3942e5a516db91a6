"""What the service promises while many write at once. Real processes throughout."""

from collections import Counter
from functools import partial

import psutil

from tests.databases import Database
from tests.load import (
    Clients,
    check_record,
    create_workflows,
    event,
    in_parallel,
    single_events,
)
from tests.serving import Reply, Server, serving

CLIENTS = 32
EVENTS = 20_000
MOST_MEMORY = 70 * 2**20


def test_two_processes_and_many_clients_leave_no_gap(empty_database: Database) -> None:
    with serving(empty_database, workers=2) as server:
        workflows = create_workflows(server, 50)
        each = EVENTS // CLIENTS
        clients = Clients(server, [single_events(workflows, n, each) for n in range(CLIENTS)]).start()
        clients.join()
        assert clients.statuses == {201: EVENTS}
        assert max(memory_of_processes(server)) < MOST_MEMORY
        assert server.stop() == 0
    assert server.database.rows("SELECT COUNT(*) FROM events") == [(EVENTS + len(workflows),)]
    check_record(server.database)
    assert "locked" not in server.log.read_text()


def test_of_thirty_creates_for_one_worktree_one_wins(server: Server) -> None:
    body = {"issue_id": "RACE-1", "worktree_path": "/race/one"}
    replies = in_parallel(30, lambda _: server.request("POST", "/api/workflows", body))
    assert Counter(reply.status for reply in replies) == {201: 1, 409: 29}
    winner = next(reply.json["id"] for reply in replies if reply.status == 201)
    lost = [reply.json for reply in replies if reply.status == 409]
    assert {refusal["code"] for refusal in lost} == {"WORKFLOW_CONFLICT"}
    assert {refusal["details"]["workflow_id"] for refusal in lost} == {winner}
    assert {refusal["detail"]["active_workflow"]["id"] for refusal in lost} == {winner}


def test_of_approve_and_reject_one_wins(server: Server) -> None:
    for workflow in create_workflows(server, 10):
        path = f"/api/workflows/{workflow}"
        assert server.request("POST", f"{path}/start").status == 200
        assert server.request("POST", f"{path}/block").status == 200
        replies = in_parallel(2, partial(decide, server, path))
        assert sorted(reply.status for reply in replies) == [200, 422]
        won = next(reply.json["workflow"]["status"] for reply in replies if reply.status == 200)
        found = server.request("GET", path).json
        assert found["status"] == won
        decisions = [e["event_type"] for e in found["recent_events"] if e["event_type"].startswith("approval_")]
        assert decisions == ["approval_required", "approval_granted" if won == "in_progress" else "approval_rejected"]


def decide(server: Server, path: str, number: int) -> Reply:
    """Approve or reject."""
    if number == 0:
        return server.request("POST", f"{path}/approve")
    return server.request("POST", f"{path}/reject", {"feedback": "no"})


def test_the_same_event_from_many_at_once_is_stored_once(server: Server) -> None:
    path = f"/api/workflows/{create_workflows(server, 1)[0]}/events"
    body = event()
    replies = in_parallel(20, lambda _: server.request("POST", path, body))
    assert Counter(reply.status for reply in replies) == {201: 1, 200: 19}
    assert len({str(reply.json["events"]) for reply in replies}) == 1
    assert len(server.request("GET", f"{path}?event_type=note").json["events"]) == 1


def memory_of_processes(server: Server) -> list[int]:
    """Resident bytes of each process of the server."""
    assert server.process is not None
    children = psutil.Process(server.process.pid).children()
    assert len(children) == 2
    return [child.memory_info().rss for child in children]
