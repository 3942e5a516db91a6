"""The timeline: events read in pages, of one workflow by sequence, of all by position."""

from functools import cache
from typing import Any, NamedTuple

from msgspec import Struct
from peewee import SQL

from amelia_flask.database import Prepared, Row, at_most, param
from amelia_flask.events import COLUMNS, Level, StoredEvent, from_row, refuse_unknown
from amelia_flask.models import LEVELS, Event

# A page ends before the event with which its messages and data would pass this, but for its first event.
MOST_BYTES = 16 * 1024 * 1024


class EventPage(Struct):
    """A page of events; `next_after` and `next_before` continue it in either direction.

    It holds fewer than `limit` where these would be more than 16 MiB; `has_more` tells.
    """

    events: list[StoredEvent]
    next_after: int | None
    next_before: int | None
    has_more: bool


class Page(NamedTuple):
    """Which events to read: numbers greater than `after` and smaller than `before`, filtered and sorted."""

    after: int = 0
    before: int | None = None
    limit: int = 100
    newest_first: bool = False
    event_type: str | None = None
    agent: str | None = None
    level: Level | None = None


# Levels are literals: only so does SQLite see that a partial index holds all that is asked for.
_went_wrong = Event.level.in_([SQL("'warning'"), SQL("'error'")])


def page(db: Any, workflow_id: str, wanted: Page) -> EventPage:
    """A page of one workflow's events by sequence. Raises NotFound."""
    found = _page(db, wanted, workflow_id)
    if not found.events:
        refuse_unknown(db, workflow_id)
    return found


def page_of_all(db: Any, wanted: Page) -> EventPage:
    """A page of all workflows' events by position."""
    return _page(db, wanted, None)


def recent(db: Any, workflow_id: str, limit: int) -> list[StoredEvent]:
    """The newest events of a workflow, oldest first."""
    return _page(db, Page(limit=limit, newest_first=True), workflow_id).events[::-1]


def _page(db: Any, wanted: Page, workflow_id: str | None) -> EventPage:
    filters = tuple(name for name in ("event_type", "agent") if getattr(wanted, name) is not None)
    query = _page_query(
        workflow_id is not None, wanted.before is not None, wanted.newest_first, filters, wanted.level
    )
    values = wanted._asdict() | {"workflow": workflow_id, "limit": wanted.limit + 1}
    rows, is_cut = query.run_within(db, MOST_BYTES, _size, **values)
    events = [from_row(row) for row in rows[: wanted.limit]]
    numbers = [event.sequence if workflow_id is not None else event.position for event in events]
    return EventPage(
        events,
        max(numbers, default=wanted.after),
        min(numbers, default=wanted.before),
        is_cut or len(rows) > wanted.limit,
    )


def _size(row: Row) -> int:
    """About how many bytes of an answer an event takes."""
    return len(row[8]) + len(row[9] or "")


def _at_least(level: Level) -> Any:
    clause = Event.level.in_([SQL(f"'{name}'") for name in LEVELS[LEVELS.index(level) :]])
    return clause & _went_wrong if level == "error" else clause


@cache
def _page_query(
    of_one: bool, has_before: bool, newest_first: bool, filters: tuple[str, ...], level: Level | None
) -> Prepared:
    number = Event.sequence if of_one else Event.position
    clauses = [number > param("after")]
    if of_one:
        clauses.append(Event.workflow == param("workflow"))
    if has_before:
        clauses.append(number < param("before"))
    if "event_type" in filters:
        clauses.append(Event.event_type == param("event_type"))
    if "agent" in filters:
        clauses.append(Event.agent == param("agent"))
    if level is not None:
        clauses.append(_at_least(level))
    order = number.desc() if newest_first else number.asc()
    return Prepared(lambda: Event.select(*COLUMNS).where(*clauses).order_by(order).limit(at_most("limit")))
