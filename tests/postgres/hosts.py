"""Several servers on one PostgreSQL: callers that use them all, readers that follow, and what the record must be."""

import itertools
import threading
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

from amelia_flask import audit
from amelia_flask.postgres import PostgresEngine
from tests.faults.callers import Known
from tests.load import Call, Clients, event
from tests.postgres.clusters import Cluster
from tests.serving import Reply, Server

# A caller's patience ends twelve seconds after it asked; what is over that is what a busy machine adds.
ANSWER_SECONDS = 13.0


class Spread:
    """Several servers as callers see them behind one name: each new connection goes to the next of them."""

    def __init__(self, *servers: Server) -> None:
        self._first = servers[0]
        self._ports = itertools.cycle(server.port for server in servers)

    @property
    def port(self) -> int:
        """The port of the next one."""
        return next(self._ports)

    def request(self, method: str, path: str, body: Any = None) -> Reply:
        """One request to the first of them."""
        return self._first.request(method, path, body)


class TimedClients(Clients):
    """Clients that note how long each answer took, in seconds."""

    def __init__(self, server: Server, calls: list[Iterator[Call]]) -> None:
        super().__init__(server, calls)
        self.seconds: list[float] = []
        self._last = threading.local()

    def _run(self, calls: Iterator[Call]) -> None:
        self._last.moment = time.perf_counter()
        super()._run(calls)

    def _note(self, call: Call, status: int, answer: Any) -> None:
        self.seconds.append(time.perf_counter() - self._last.moment)
        super()._note(call, status, answer)
        self._last.moment = time.perf_counter()


class Follower:
    """A reader that follows all events through one server, and holds each position that it saw, in that order."""

    def __init__(self, server: Server) -> None:
        self.positions: list[int] = []
        self.unexpected: list[Reply] = []
        self._server = server
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._follow)
        self._thread.start()

    def stop(self) -> list[int]:
        """Read to the end, then no more."""
        self._stopped.set()
        self._thread.join()
        return self.positions

    def _follow(self) -> None:
        after = 0
        while True:
            is_last = self._stopped.is_set()  # asked before the page is read
            reply = self._server.request("GET", f"/api/events?after={after}&limit=1000&wait={0 if is_last else 1}")
            if reply.status != 200:
                self.unexpected.append(reply)
                return
            page = reply.json
            self.positions += [one["position"] for one in page["events"]]
            after = page["next_after"]
            if is_last and not page["events"]:
                return


def everything(shared: list[str], number: int, until: threading.Event) -> Iterator[Call]:
    """Whatever a caller may write, to workflows that all have in common and to one of its own, until told to stop."""
    for turn, workflow in enumerate(itertools.cycle(shared), number):
        if until.is_set():
            return
        mine = str(uuid4())
        usage = {"id": str(uuid4()), "agent": "load", "model": f"m{turn % 3}", "input_tokens": 7, "output_tokens": 1}
        yield "/api/workflows", {"id": mine, "issue_id": "HOSTS-1", "worktree_path": f"/hosts/{mine}"}
        yield f"/api/workflows/{workflow}/events", event()
        yield f"/api/workflows/{mine}/start", {}
        yield f"/api/workflows/{workflow}/token-usage", usage | {"cost_usd": 0.001}
        yield f"/api/workflows/{workflow}/events", {"events": [event(correlation_id=str(turn)) for _ in range(20)]}
        yield f"/api/workflows/{mine}/token-usage", {"token_usage": [usage | {"id": str(uuid4())} for _ in range(5)]}
        yield f"/api/workflows/{mine}/events", event()
        yield f"/api/workflows/{mine}/complete", {}


def check_sound(cluster: Cluster, database: str) -> None:
    """By every check of the service's own."""
    assert list(audit.check(PostgresEngine(cluster.url(database)))) == []


def check_gapless(cluster: Cluster, database: str) -> int:
    """Where nothing was deleted, every position and every sequence is there once; how many events there are."""
    check_sound(cluster, database)
    sql = "SELECT count(*), count(DISTINCT position), min(position), max(position) FROM events"
    count, *numbers = cluster.run(sql, database=database)[0]
    assert numbers == [count, 1, count]
    assert cluster.run("SELECT value FROM event_position", database=database) == [(count,)]
    gaps = """
        SELECT id FROM workflows WHERE last_sequence !=
        (SELECT count(DISTINCT sequence) FROM events WHERE workflow_id = workflows.id AND sequence <= last_sequence)
    """
    assert cluster.run(gaps, database=database) == []
    return int(count)


def check_acknowledged(cluster: Cluster, database: str, clients: Clients) -> None:
    """Every record that was acknowledged is there, where its answer said."""
    stored = {row[0]: row[1:] for row in cluster.run("SELECT id, sequence, position FROM events", database=database)}
    usage = {name for (name,) in cluster.run("SELECT id FROM token_usage", database=database)}
    for _, answer in clients.acknowledged:
        for place in [*answer.get("events", []), *([answer["event"]] if "event" in answer else [])]:
            assert stored[place["id"]] == (place["sequence"], place["position"])
        assert {record["id"] for record in answer.get("token_usage", [])} <= usage


def check_kept(cluster: Cluster, database: str, known: Known) -> None:
    """What was answered is there, where its answer said; what was not answered is there whole or not at all."""
    assert known.wrong == []
    sql = "SELECT id, workflow_id, sequence, position FROM events"
    stored = {row[0]: row[1:] for row in cluster.run(sql, database=database)}
    events = {name: place for name, place in known.events.items() if place[0] not in known.leaving}
    assert events == {name: stored.get(name) for name in events}
    usage = {name for (name,) in cluster.run("SELECT id FROM token_usage", database=database)}
    assert {name for name, record in known.usage.items() if record[0] not in known.leaving} <= usage
    for workflow, batch in known.batches:
        assert sum(name in stored for name in batch) in {0, len(batch)}, (workflow, batch)


def check_settled(cluster: Cluster, database: str, known: Known) -> None:
    """The record is exactly what the callers were told, and sound."""
    assert known.wrong == []
    told = "SELECT id, workflow_id, sequence, position FROM events WHERE event_type != 'workflow_created'"
    assert {row[0]: row[1:] for row in cluster.run(told, database=database)} == known.events
    usage = "SELECT id, workflow_id, input_tokens + output_tokens, input_tokens FROM token_usage"
    assert {row[0]: row[1:] for row in cluster.run(usage, database=database)} == known.usage
    statuses = {name: workflow.status for name, workflow in known.workflows.items()}
    assert dict(cluster.run("SELECT id, status FROM workflows", database=database)) == statuses
    check_sound(cluster, database)


def check_refused(reply: Reply) -> None:
    """A 503 that says when to come again, and nothing that is nobody's business."""
    assert reply.status == 503, reply
    assert int(reply.headers["Retry-After"]) > 0
    said = reply.raw.decode().lower()
    for secret in ("s3cret", "127.0.0.1", "postgresql://", "select", "psycopg", "connection", "insert", "amelia@"):
        assert secret not in said, said
