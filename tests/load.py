"""Many clients at once, and what the record must look like afterwards."""

import http.client
import itertools
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

from amelia_flask import audit
from tests.databases import Database
from tests.serving import Server

Call = tuple[str, Any]  # path, body


class Clients:
    """Threads with a connection each, which send what their iterator gives until it ends or the server is gone."""

    def __init__(self, server: Server, calls: list[Iterator[Call]]) -> None:
        self.statuses: Counter[int] = Counter()
        self.acknowledged: list[tuple[Call, Any]] = []
        self._server = server
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._run, args=(each,), daemon=True) for each in calls]

    def start(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def wait_for(self, count: int) -> None:
        """Until so many writes have been acknowledged."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.acknowledged) >= count, 60)

    def _run(self, calls: Iterator[Call]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=30)
        try:
            for path, body in calls:
                connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
                response = connection.getresponse()
                self._note((path, body), response.status, json.loads(response.read()))
        except (OSError, http.client.HTTPException):
            return  # the server was killed: what it did not acknowledge may or may not be stored
        finally:
            connection.close()

    def _note(self, call: Call, status: int, answer: Any) -> None:
        with self._changed:
            self.statuses[status] += 1
            if status < 300:
                self.acknowledged.append((call, answer))
                self._changed.notify_all()


def create_workflows(server: Server, count: int) -> list[str]:
    """So many workflows, each in a worktree of its own."""
    created = [
        server.request("POST", "/api/workflows", {"issue_id": f"LOAD-{n}", "worktree_path": f"/load/{uuid4()}"})
        for n in range(count)
    ]
    assert {reply.status for reply in created} == {201}
    return [reply.json["id"] for reply in created]


def event(**members: object) -> dict[str, object]:
    """An event with an id."""
    return {"id": str(uuid4()), "agent": "load", "event_type": "note", "message": "m" * 100} | members


def single_events(workflows: list[str], first: int, count: int) -> Iterator[Call]:
    """`count` events one by one over all workflows, beginning with the one numbered `first`."""
    for workflow in itertools.islice(itertools.cycle(workflows), first, first + count):
        yield f"/api/workflows/{workflow}/events", event()


def mixed(workflows: list[str], first: int) -> Iterator[Call]:
    """Single events, batches of twenty, and usage, without end."""
    for n, workflow in enumerate(itertools.cycle(workflows), first):
        batch = {"events": [event(correlation_id=str(n)) for _ in range(20)]}
        usage = {"id": str(uuid4()), "agent": "load", "model": "m", "input_tokens": n, "output_tokens": 1}
        yield f"/api/workflows/{workflow}/events", event()
        yield f"/api/workflows/{workflow}/events", batch
        yield f"/api/workflows/{workflow}/token-usage", usage | {"cost_usd": 0.1}


def check_record(database: Database) -> None:
    """Sound by every check; and where nothing was deleted or pruned, nothing is missing at the beginning either."""
    assert list(audit.check(database.engine)) == []
    count, position = database.rows("SELECT COUNT(*), MAX(position) FROM events")[0]
    assert database.rows("SELECT COUNT(*) FROM events WHERE sequence = 1") == database.rows(
        "SELECT COUNT(*) FROM workflows"
    )
    assert count == position == database.rows("SELECT value FROM event_position")[0][0]


def check_acknowledged(database: Database, acknowledged: list[tuple[Call, Any]]) -> None:
    """Every acknowledged record is there once, where its answer said; every batch is whole."""
    stored = {row[0]: row[1:] for row in database.rows("SELECT id, sequence, position FROM events")}
    usage = {row[0] for row in database.rows("SELECT id FROM token_usage")}
    for _, answer in acknowledged:
        for place in answer.get("events", []):
            assert stored[place["id"]] == (place["sequence"], place["position"])
        assert all(record["id"] in usage for record in answer.get("token_usage", []))
    batches = database.rows("SELECT COUNT(*) FROM events WHERE correlation_id IS NOT NULL GROUP BY workflow_id")
    assert all(count % 20 == 0 for (count,) in batches)


def in_parallel(count: int, call: Callable[[int], Any]) -> list[Any]:
    """What `call` gives for 0 … count - 1, all begun at one moment."""
    barrier = threading.Barrier(count)
    results: list[Any] = [None] * count

    def run(number: int) -> None:
        barrier.wait()
        results[number] = call(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
