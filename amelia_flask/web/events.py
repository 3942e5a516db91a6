"""The timeline of events: appended, read in pages, waited for."""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from amelia_flask import events, timeline
from amelia_flask.errors import IdReused, NotFound, TooManyStreams
from amelia_flask.stream import page_or_wait
from amelia_flask.web.body import Records, given
from amelia_flask.web.operations import Answer, Resource, ledger

resource = Resource("events", __name__)

OF_ONE = "/api/workflows/<uuid:workflow_id>/events"

Number = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class EventBatch(Struct, forbid_unknown_fields=True):
    """Events that are stored together or not at all."""

    events: Annotated[list[events.NewEvent], Meta(min_length=1, max_length=events.MAX_BATCH)]


class PageQuery(Struct, forbid_unknown_fields=True, kw_only=True):
    """Which events: numbers greater than `after` and smaller than `before`; `wait` for some, in seconds."""

    after: Number = 0
    before: Number | UnsetType = UNSET
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    order: Literal["asc", "desc"] = "asc"
    event_type: events.EventType | UnsetType = UNSET
    agent: events.Agent | UnsetType = UNSET
    level: Annotated[events.Level, Meta(description="At least this level.")] | UnsetType = UNSET
    wait: Annotated[float, Meta(ge=0, le=30, description="Seconds to hold back an empty page.")] = 0


@resource.operation(
    "POST",
    OF_ONE,
    {201: events.AppendedEvents, 200: events.AppendedEvents},
    body=Records(events.NewEvent, EventBatch, "events", events.MAX_LINES),
    errors=(NotFound, IdReused),
)
def append(workflow_id: str, body: list[events.NewEvent]) -> Answer:
    """Append one event, a batch, or NDJSON lines, all or none; 200 where all of them were there already."""
    appended = ledger().append(workflow_id, events.arrived(body, ledger().settings.redact))
    return Answer(appended, 200 if appended.duplicates == len(body) else 201)


@resource.operation("GET", OF_ONE, {200: timeline.EventPage}, query=PageQuery, errors=(NotFound, TooManyStreams))
def page(workflow_id: str, query: PageQuery) -> timeline.EventPage:
    """Read a page of a workflow's events by sequence."""
    wanted = _wanted(query)
    return page_or_wait(ledger(), lambda: ledger().read(timeline.page, workflow_id, wanted), query.wait)


@resource.operation("GET", "/api/events", {200: timeline.EventPage}, query=PageQuery, errors=(TooManyStreams,))
def page_of_all(query: PageQuery) -> timeline.EventPage:
    """Read a page of all workflows' events by position."""
    wanted = _wanted(query)
    return page_or_wait(ledger(), lambda: ledger().read(timeline.page_of_all, wanted), query.wait)


def _wanted(query: PageQuery) -> timeline.Page:
    return timeline.Page(
        after=query.after,
        before=given(query.before),
        limit=query.limit,
        newest_first=query.order == "desc",
        event_type=given(query.event_type),
        agent=given(query.agent),
        level=given(query.level),
    )
