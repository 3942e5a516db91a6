"""A client of the HTTP API that stores nothing twice and loses nothing, with the standard library alone.

    with Client("http://127.0.0.1:8420") as client:
        workflow = client.create_workflow("PROJ-1", "/repos/project")
        client.start(workflow["id"])
        client.append(workflow["id"], {"agent": "developer", "event_type": "note", "message": "Hello"})

Whatever a call creates gets its id here, before the first attempt. So a call whose answer was lost (a connection
that broke, a time-out, 429, 502, 503, 504) is made again, and the service recognises what it has stored already.
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack, cast
from urllib.parse import quote

from amelia_flask.client.transport import Answer, ApiError, ClientError, Request, ServiceUnavailable, Transport
from amelia_flask.client.types import (
    AppendedEvents,
    CreatedWorkflow,
    Event,
    EventFilter,
    EventPage,
    EventQuery,
    Health,
    JsonObject,
    Moved,
    MoveOptions,
    NewEvent,
    NewUsage,
    RecordedUsage,
    UsagePage,
    UsageReport,
    WorkflowDetail,
    WorkflowFilter,
    WorkflowOptions,
    WorkflowPage,
    WorkflowPatch,
)
from amelia_flask.clock import new_id

__all__ = ["ApiError", "Client", "ClientError", "ServiceUnavailable"]

MAX_BATCH = 1000  # events or usage records in one transaction of the service

Shape = TypeVar("Shape")
Record = TypeVar("Record", NewEvent, NewUsage)


class Client:
    """Calls to one service, from any number of threads; connections are kept open until `close`.

    Every call raises ApiError where the service refuses it, and ServiceUnavailable where no attempt got an answer.
    An attempt waits up to `timeout` seconds; there are at most `attempts`, within `patience` seconds in all, with
    the pauses that the service asks for (Retry-After), or else growing ones. An id that is not a UUID is not found.

    A call that failed in the end can be made again without storing anything twice if the ids were the caller's.
    Raises ValueError for an address or a token that cannot be one.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8420",
        token: str | None = None,
        timeout: float = 30.0,
        attempts: int = 8,
        patience: float = 60.0,
    ) -> None:
        self._transport = Transport(base_url, token, timeout, attempts, patience)

    def close(self) -> None:
        """Close the connections that are kept open; a later call opens a new one."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def create_workflow(
        self, issue_id: str, worktree_path: str, **options: Unpack[WorkflowOptions]
    ) -> CreatedWorkflow:
        """Register a workflow as pending. With an `id` that is known already it answers with that workflow.

        While another active workflow holds the worktree: ApiError 409 WORKFLOW_CONFLICT, whose `detail` names it.
        """
        new = {"issue_id": issue_id, "worktree_path": worktree_path, **options}
        new["id"] = new.get("id") or new_id()
        return self._call(CreatedWorkflow, "POST", "/api/workflows", body=new)

    def get_workflow(self, workflow_id: str) -> WorkflowDetail:
        """One workflow with its state, its usage and its newest events."""
        return _tagged(self._transport.send(Request("GET", _of(workflow_id))))

    def list_workflows(self, **filters: Unpack[WorkflowFilter]) -> WorkflowPage:
        """A page of workflows, newest first; give its `cursor` for the next one."""
        return self._call(WorkflowPage, "GET", "/api/workflows", query=filters)

    def list_active_workflows(self, worktree: str | None = None) -> WorkflowPage:
        """All workflows that are pending, in progress or blocked."""
        return self._call(WorkflowPage, "GET", "/api/workflows/active", query={"worktree": worktree})

    def patch_workflow(
        self, workflow_id: str, if_match: str | None = None, **change: Unpack[WorkflowPatch]
    ) -> WorkflowDetail:
        """Merge into `state` (RFC 7396), or rename the worktree.

        With `if_match`, the `etag` of a detail, only if nothing has changed since: else ApiError 412. Then an
        attempt whose answer was lost is not repeated, because its repetition would meet its own change; the error
        says `outcome_unknown`.
        """
        headers = {} if if_match is None else {"If-Match": if_match}
        request = Request("PATCH", _of(workflow_id), body=change, headers=headers, repeatable=if_match is None)
        return _tagged(self._transport.send(request))

    def delete_workflow(self, workflow_id: str) -> None:
        """Remove a finished workflow with all that belongs to it; its usage leaves the reports too."""
        try:
            self._transport.send(Request("DELETE", _of(workflow_id)))
        except ApiError as error:
            # After an attempt whose answer was lost, not to be there any more is what was wanted.
            if error.status != 404 or not error.outcome_unknown:
                raise

    def start(self, workflow_id: str, **options: Unpack[MoveOptions]) -> Moved:
        """Move a pending workflow to in_progress. Any move that the status forbids: ApiError 422 INVALID_STATE."""
        return self._move(workflow_id, "start", options)

    def block(
        self,
        workflow_id: str,
        message: str | None = None,
        data: JsonObject | None = None,
        **options: Unpack[MoveOptions],
    ) -> Moved:
        """Hold a workflow that is in progress until somebody approves or rejects."""
        return self._move(workflow_id, "block", options, message=message, data=data)

    def approve(self, workflow_id: str, reason: str | None = None, **options: Unpack[MoveOptions]) -> Moved:
        """Let a blocked workflow go on."""
        return self._move(workflow_id, "approve", options, reason=reason)

    def reject(self, workflow_id: str, feedback: str, **options: Unpack[MoveOptions]) -> Moved:
        """End a blocked workflow as failed; `feedback` (1-1000 characters) becomes its failure_reason."""
        return self._move(workflow_id, "reject", options, feedback=feedback)

    def complete(
        self,
        workflow_id: str,
        message: str | None = None,
        data: JsonObject | None = None,
        **options: Unpack[MoveOptions],
    ) -> Moved:
        """End a workflow that is in progress as completed."""
        return self._move(workflow_id, "complete", options, message=message, data=data)

    def fail(self, workflow_id: str, reason: str, **options: Unpack[MoveOptions]) -> Moved:
        """End a workflow that is in progress or blocked as failed; `reason` becomes its failure_reason."""
        return self._move(workflow_id, "fail", options, reason=reason)

    def cancel(self, workflow_id: str, reason: str | None = None, **options: Unpack[MoveOptions]) -> Moved:
        """End any active workflow as cancelled."""
        return self._move(workflow_id, "cancel", options, reason=reason)

    def append(self, workflow_id: str, events: NewEvent | Iterable[NewEvent]) -> AppendedEvents:
        """Store one event or many at the end of the timeline, in the order given.

        Each thousand is stored whole or not at all; of more than a thousand, the first thousands may be stored
        when a later one is refused. No events at all: nothing is sent.
        """
        return cast(AppendedEvents, self._store(f"{_of(workflow_id)}/events", "events", events))

    def record(self, workflow_id: str, usage: NewUsage | Iterable[NewUsage]) -> RecordedUsage:
        """Record what one request to a model used, or many; each thousand whole or not at all, as in `append`."""
        return cast(RecordedUsage, self._store(f"{_of(workflow_id)}/token-usage", "token_usage", usage))

    def list_events(
        self, workflow_id: str | None = None, after: int = 0, wait: float = 0, **query: Unpack[EventQuery]
    ) -> EventPage:
        """A page of one workflow's events with a `sequence` greater than `after`; of all by `position` without an id.

        An empty page is held back for up to `wait` seconds (at most 30) until something comes.
        """
        path = "/api/events" if workflow_id is None else f"{_of(workflow_id)}/events"
        return self._call(EventPage, "GET", path, query={"after": after, "wait": wait, **query}, wait=wait)

    def follow(
        self, workflow_id: str | None = None, after: int = 0, wait: float = 20.0, **filters: Unpack[EventFilter]
    ) -> Iterator[Event]:
        """The events of one workflow, or of all, in order: those stored first, then each as it comes, for ever.

        What was lost with a connection is asked for again. After an error, go on by calling with `after` set to
        the `sequence` (of all: the `position`) of the last event that came.
        """
        if wait <= 0:
            raise ValueError("To follow without waiting would ask without end; give seconds to wait, up to 30.")
        while True:
            page = self.list_events(workflow_id, after, wait, **filters)
            yield from page["events"]
            after = page["next_after"]

    def list_token_usage(self, workflow_id: str, after: str | None = None, limit: int | None = None) -> UsagePage:
        """A page of a workflow's usage records in the order recorded; give its `next_after` for the next one."""
        query = {"after": after, "limit": limit}
        return self._call(UsagePage, "GET", f"{_of(workflow_id)}/token-usage", query=query)

    def usage_report(
        self, preset: str | None = None, start: str | date | None = None, end: str | date | None = None
    ) -> UsageReport:
        """Cost and tokens over days: a `preset` (7d, 30d, 90d, all), or from `start` to `end`, both included."""
        return self._call(UsageReport, "GET", "/api/usage", query={"preset": preset, "start": start, "end": end})

    def health(self) -> Health:
        """How the service is, after it has really written and read its database."""
        return self._call(Health, "GET", "/api/health")

    def _move(self, workflow_id: str, name: str, options: MoveOptions, **said: Any) -> Moved:
        event_id = options.get("event_id") or new_id()
        body = _given({**said, **options}) | {"event_id": event_id}
        return self._call(Moved, "POST", f"{_of(workflow_id)}/{name}", body=body)

    def _store(self, path: str, member: str, records: Record | Iterable[Record]) -> JsonObject:
        stored, duplicates = [], 0
        for batch in _batches(records):
            answer = self._call(dict, "POST", path, body={member: batch})
            stored += answer[member]
            duplicates += answer["duplicates"]
        return {member: stored, "duplicates": duplicates}

    def _call(
        self,
        _shape: type[Shape],
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        wait: float = 0,
    ) -> Shape:
        return cast(Shape, self._transport.send(Request(method, path, _given(query or {}), body, wait=wait)).json)


def _of(workflow_id: str) -> str:
    return f"/api/workflows/{quote(str(workflow_id), safe='')}"


def _tagged(answer: Answer) -> WorkflowDetail:
    return cast(WorkflowDetail, answer.json | {"etag": answer.headers["ETag"]})


def _given(members: Mapping[str, Any]) -> JsonObject:
    return {name: value for name, value in members.items() if value is not None}


def _batches(records: Record | Iterable[Record]) -> Iterator[list[JsonObject]]:
    """The records in batches that the service takes, every one with an id."""
    listed = [records] if isinstance(records, Mapping) else records
    named = [{**record, "id": record.get("id") or new_id()} for record in listed]
    for start in range(0, len(named), MAX_BATCH):
        yield named[start : start + MAX_BATCH]
