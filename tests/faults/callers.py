"""Callers that send everything a caller can, repeat what was not answered, and know what the record must hold."""

import http.client
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple
from uuid import UUID

from amelia_flask.moves import MOVES
from tests.serving import Server

BODIES: dict[str, dict[str, str]] = {"reject": {"feedback": "no"}, "fail": {"reason": "broken"}}
ACTIONS = ("event", "event", "batch", "usage", "usages", "move", "move", "create", "race", "patch", "delete", "again")
ENDED = {"completed", "failed", "cancelled"}
BUSY_SECONDS = 0.02
SETTLE_SECONDS = 30.0


class Request(NamedTuple):
    """One request; `workflow` is the one that it is about."""

    kind: str
    workflow: str
    method: str
    path: str
    body: Any


class Workflow:
    """What its caller was told of a workflow."""

    def __init__(self, status: str) -> None:
        self.status = status
        self.state: dict[str, int] = {}


class Known:
    """What all callers together were told: places of events, usage records as tokens and thousandths of a dollar."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.events: dict[str, tuple[str, int, int]] = {}
        self.usage: dict[str, tuple[str, int, int]] = {}
        self.batches: list[tuple[str, list[str]]] = []
        self.workflows: dict[str, Workflow] = {}
        self.leaving: set[str] = set()  # whose deletion has been asked for
        self.statuses: Counter[int] = Counter()
        self.wrong: list[Any] = []

    def forget(self, workflow: str) -> None:
        """All that went with a workflow."""
        self.workflows.pop(workflow, None)
        self.events = {name: place for name, place in self.events.items() if place[0] != workflow}
        self.usage = {name: record for name, record in self.usage.items() if record[0] != workflow}
        self.batches = [batch for batch in self.batches if batch[0] != workflow]


class Caller:
    """Sends one request after the other; what got no answer is sent again, with the same ids, before others."""

    def __init__(self, server: Server, known: Known, shared: list[str], seed: str) -> None:
        self._server = server
        self._known = known
        self._shared = shared
        self._random = random.Random(seed)
        self._number = int(seed.rpartition("-")[2])
        self._mine: list[str] = []
        self._pending: Request | None = None
        self._past: list[Request] = []
        self._connection: http.client.HTTPConnection | None = None

    def run(self, stopped: threading.Event) -> None:
        """Until told to stop."""
        while not stopped.is_set():
            if not self._go_on():
                time.sleep(BUSY_SECONDS)  # as any client that finds nobody there

    def settle(self) -> None:
        """Repeat what is still open until it is answered."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while self._pending is not None:
            assert time.monotonic() < deadline, self._pending
            self._go_on()

    def _go_on(self) -> bool:
        if self._pending is None:
            self._pending = self._next()
        try:
            status, answer = self._send(self._pending)
        except (OSError, http.client.HTTPException):
            self.close()
            return False
        with self._known.lock:
            self._known.statuses[status] += 1
            if status == 503:
                return False
            self._note(self._pending, status, answer)
        self._pending = None
        return True

    def _send(self, request: Request) -> tuple[int, Any]:
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=30)
        raw = None if request.body is None else json.dumps(request.body)
        self._connection.request(
            request.method, request.path, raw, {"Content-Type": "application/json"} if raw else {}
        )
        response = self._connection.getresponse()
        content = response.read()
        return response.status, json.loads(content) if content else None

    def close(self) -> None:
        """Hang up."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _id(self) -> str:
        return str(UUID(int=self._random.getrandbits(128), version=4))

    def _next(self) -> Request:
        action = self._random.choice(ACTIONS)
        if not self._mine and action in {"move", "patch", "delete", "again"}:
            action = "create"
        request: Request | None = getattr(self, f"_{action}")()
        return request or self._event()

    def _any(self) -> str:
        return self._random.choice(self._shared + self._mine)

    def _event(self) -> Request:
        workflow = self._any()
        return Request("events", workflow, "POST", f"/api/workflows/{workflow}/events", self._new_event())

    def _new_event(self) -> dict[str, Any]:
        return {"id": self._id(), "agent": "a", "event_type": "note", "message": "m" * self._random.randrange(2000)}

    def _batch(self) -> Request:
        workflow = self._any()
        batch = [self._new_event() for _ in range(self._random.randrange(2, 40))]
        with self._known.lock:
            self._known.batches.append((workflow, [event["id"] for event in batch]))
        return Request("events", workflow, "POST", f"/api/workflows/{workflow}/events", {"events": batch})

    def _new_usage(self) -> dict[str, Any]:
        number = self._random.randrange(1000)
        counts = {"input_tokens": number, "output_tokens": 1, "cost_usd": number / 1000}
        return {"id": self._id(), "agent": "a", "model": f"m-{number % 5}"} | counts

    def _usage(self) -> Request:
        workflow = self._any()
        return Request("usage", workflow, "POST", f"/api/workflows/{workflow}/token-usage", self._new_usage())

    def _usages(self) -> Request:
        workflow = self._any()
        body = {"token_usage": [self._new_usage() for _ in range(self._random.randrange(2, 20))]}
        return Request("usage", workflow, "POST", f"/api/workflows/{workflow}/token-usage", body)

    def _create(self, worktree: str | None = None) -> Request:
        workflow = self._id()
        body = {"id": workflow, "issue_id": "F-1", "worktree_path": worktree or f"/faults/{workflow}"}
        return Request("create", workflow, "POST", "/api/workflows", body)

    def _race(self) -> Request:
        return self._create("/faults/one-for-all")

    def _move(self) -> Request | None:
        workflow = self._random.choice(self._mine)
        status = self._known.workflows[workflow].status
        moves = sorted(name for name, move in MOVES.items() if status in move.sources)
        if not moves:
            return None
        name = self._random.choice(moves)
        body = BODIES.get(name, {}) | {"event_id": self._id(), "actor": "me"}
        return Request("move", workflow, "POST", f"/api/workflows/{workflow}/{name}", body)

    def _patch(self) -> Request:
        workflow = self._random.choice(self._mine)
        body = {"state": {f"k{self._random.randrange(5)}": self._random.randrange(1000)}}
        return Request("patch", workflow, "PATCH", f"/api/workflows/{workflow}", body)

    def _delete(self) -> Request | None:
        ended = [one for one in self._mine if self._known.workflows[one].status in ENDED]
        if not ended:
            return None
        workflow = self._random.choice(ended)
        self._known.leaving.add(workflow)
        return Request("delete", workflow, "DELETE", f"/api/workflows/{workflow}", None)

    def _again(self) -> Request | None:
        """Something that was answered: it must be recognised."""
        past = [one for one in self._past[-50:] if one.workflow in self._shared + self._mine]
        return self._random.choice(past)._replace(kind="again") if past else None

    def _note(self, request: Request, status: int, answer: Any) -> None:
        expected = {"create": {200, 201, 409}, "delete": {204, 404}, "again": {200}}
        if status not in expected.get(request.kind, {200, 201}):
            self._known.wrong.append((request, status, answer))
        elif status not in {404, 409} or request.kind == "delete":
            getattr(self, f"_note_{request.kind}", self._note_records)(request, answer)
            if request.kind in {"events", "usage", "move", "create"}:
                self._past.append(request)

    def _note_create(self, request: Request, answer: Any) -> None:
        self._mine.append(request.workflow)
        self._known.workflows[request.workflow] = Workflow(answer["status"])

    def _note_move(self, request: Request, answer: Any) -> None:
        self._known.workflows[request.workflow].status = answer["workflow"]["status"]
        self._place(request.workflow, answer["event"])

    def _note_patch(self, request: Request, answer: Any) -> None:
        state = self._known.workflows[request.workflow].state
        state |= request.body["state"]
        if answer["state"] != state:
            self._known.wrong.append((request, answer["state"], state))

    def _note_delete(self, request: Request, _answer: Any) -> None:
        self._mine.remove(request.workflow)
        self._known.forget(request.workflow)

    def _note_again(self, request: Request, answer: Any) -> None:
        told = [answer["event"]] if "event" in answer else answer.get("events", [])
        for place in told:
            self._place(request.workflow, place, is_known=True)

    def _note_records(self, request: Request, answer: Any) -> None:
        for place in answer.get("events", []):
            self._place(request.workflow, place)
        sent = request.body.get("token_usage", [request.body]) if request.kind == "usage" else []
        for record in sent:
            tokens = record["input_tokens"] + record["output_tokens"]
            self._known.usage[record["id"]] = (request.workflow, tokens, record["input_tokens"])

    def _place(self, workflow: str, place: Any, is_known: bool = False) -> None:
        told = (workflow, place["sequence"], place["position"])
        if is_known and self._known.events.get(place["id"]) != told:
            self._known.wrong.append((place, self._known.events.get(place["id"])))
        self._known.events[place["id"]] = told


class Crowd:
    """Callers at work at the same time."""

    def __init__(self, server: Server, count: int, seed: object) -> None:
        self.known = Known()
        paths = [{"issue_id": "F-0", "worktree_path": f"/faults/shared/{number}"} for number in range(3)]
        shared = [server.request("POST", "/api/workflows", body).json["id"] for body in paths]
        self.known.workflows |= {workflow: Workflow("pending") for workflow in shared}
        self._callers = [Caller(server, self.known, shared, f"{seed}-{number}") for number in range(count)]

    def work(self, while_at_it: Callable[[], object]) -> None:
        """Send until `while_at_it` has been done."""
        stopped = threading.Event()
        threads = [threading.Thread(target=caller.run, args=(stopped,)) for caller in self._callers]
        for thread in threads:
            thread.start()
        try:
            while_at_it()
        finally:
            stopped.set()
            for thread in threads:
                thread.join()

    def settle(self) -> None:
        """Repeat what is still open until it is answered."""
        for caller in self._callers:
            caller.settle()

    def close(self) -> None:
        """Hang up."""
        for caller in self._callers:
            caller.close()
