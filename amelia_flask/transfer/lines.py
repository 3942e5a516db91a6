"""The record as lines of JSON (NDJSON), to be moved to another database: the format, and its reading.

Each line has a `kind`. The first is the header with the version of the format, the last is `end`, so that a file that
was cut off is known as such. Between them stand the events of all workflows by position; before the first event of a
workflow the workflow itself, and after it its usage records. What follows from these lines is left out: sums, days,
dollars.
"""

from collections.abc import Iterator
from datetime import datetime
from functools import partial
from typing import IO, Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from amelia_flask import events, rollups, strictjson, usage, workflows
from amelia_flask.errors import AmeliaError, MalformedJson, ValidationError
from amelia_flask.fields import Id, check_text
from amelia_flask.models import ACTIVE, LARGEST_TOTAL, Event, TokenUsage, Workflow
from amelia_flask.pricing import Counts
from amelia_flask.summaries import StatusName

VERSION = 1
LONGEST_LINE = 64 * 1024 * 1024

Uuid = Annotated[str, Meta(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$(?!\n)")]
Time = Annotated[str, Meta(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\.[0-9]{6}Z$(?!\n)")]
Day = Annotated[str, Meta(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$(?!\n)")]
Natural = Annotated[int, Meta(ge=0, le=LARGEST_TOTAL)]
Number = Annotated[int, Meta(ge=1, le=LARGEST_TOTAL)]
Signed = Annotated[int, Meta(ge=-LARGEST_TOTAL, le=LARGEST_TOTAL)]
Model = Annotated[str, Meta(min_length=1, max_length=200)]


class _Line(Struct, tag_field="kind", forbid_unknown_fields=True):
    """What every line has."""


class Header(_Line, tag="header"):
    """The first line."""

    format: Literal["amelia-flask"]
    version: int


class WorkflowLine(_Line, tag="workflow"):
    """A workflow as its columns hold it, its open stages with their sequences, and the sequence of its first event,
    which is not 1 where retention took the oldest.
    """

    id: Uuid
    issue_id: workflows.IssueId
    worktree_path: str
    worktree_name: workflows.WorktreeName
    status: StatusName
    started_at: Time | None
    completed_at: Time | None
    failure_reason: str | None
    state_json: str | None
    created_at: Time
    updated_at: Time
    host: workflows.Host
    profile: Annotated[str, Meta(min_length=1, max_length=64)] | None
    last_sequence: Natural
    version: Natural
    digest: str
    usage_count: Natural
    first_sequence: Number
    open_stages: list[tuple[str, int]]


class EventLine(_Line, tag="event"):
    """An event as its columns hold it."""

    id: Id
    workflow_id: Uuid
    sequence: Number
    position: Number
    timestamp: Time
    agent: events.Agent
    event_type: events.EventType
    level: events.Level
    message: events.Message
    data_json: str | None
    correlation_id: str | None


class UsageLine(_Line, tag="token_usage"):
    """A usage record as its columns hold it."""

    id: Id
    workflow_id: Uuid
    number: Number
    agent: events.Agent
    model: Model
    input_tokens: usage.Count
    output_tokens: usage.Count
    cache_read_tokens: usage.Count
    cache_creation_tokens: usage.Count
    cost_nano: Natural | None
    savings_nano: Signed | None
    cost_source: usage.CostSource
    timestamp: Time
    request_id: str | None
    source: str | None

    @property
    def sums(self) -> rollups.Sums:
        """What the record adds to the sums."""
        counts = Counts(self.input_tokens, self.output_tokens, self.cache_read_tokens, self.cache_creation_tokens)
        return rollups.sums_of(counts, self.cost_nano, self.savings_nano)

    @property
    def key(self) -> rollups.Key:
        """Under which the reports sum it."""
        return self.timestamp[:10], self.agent, self.model


class DayLine(Struct, forbid_unknown_fields=True):
    """What pruned workflows left in the sums of a day, in the order of the columns of the tables by day."""

    day: Day
    workflows: tuple[int, int, int, int]
    models: list[tuple[Model, int, int, int]]
    usage: list[tuple[events.Agent, Model, int, int, int, int, int, int, int]]


class PrunedLine(_Line, tag="pruned"):
    """What retention took: the workflows, and the sums by day that they left. In an export of the whole record."""

    workflows: list[Uuid]
    days: list[DayLine]


class End(_Line, tag="end"):
    """The last line. `event_position` is the newest position ever given, also to events that are there no longer."""

    event_position: Natural


Line = Header | WorkflowLine | EventLine | UsageLine | PrunedLine | End


class Malformed(AmeliaError):
    """A line is not one that an export writes."""


def columns_of(model: Any, line: type[_Line]) -> tuple[Any, ...]:
    """The columns that a line of this type holds, in its order."""
    return tuple(model._meta.columns[name] for name in line.__struct_fields__ if name in model._meta.columns)


WORKFLOW_COLUMNS, EVENT_COLUMNS, USAGE_COLUMNS = (
    columns_of(model, line) for model, line in ((Workflow, WorkflowLine), (Event, EventLine), (TokenUsage, UsageLine))
)
_decoder: "msgspec.json.Decoder[Line]" = msgspec.json.Decoder(Line)
_object = msgspec.json.Decoder(dict[str, Any])


def read(file: IO[bytes]) -> Iterator[tuple[int, int, Line]]:
    """Each line with its number and its length in bytes. Raises Malformed with the number of the line at fault."""
    number, ended = 0, False
    for number, raw in _raw_lines(file):
        line = _decode(number, raw)
        if isinstance(line, Header) != (number == 1) or ended:
            raise Malformed(f"Line {number}: A header comes first and only there, and nothing follows the end.")
        ended = isinstance(line, End)
        yield number, len(raw), line
    if not ended:
        raise Malformed(f"Line {number + 1}: The file was cut off here: an export ends with a line of kind `end`.")


def _raw_lines(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    for number, raw in enumerate(iter(partial(file.readline, LONGEST_LINE), b""), 1):
        if not raw.endswith(b"\n"):
            raise Malformed(
                f"Line {number}: The file was cut off here, or this line is longer than any of an export."
            )
        yield number, raw


def _decode(number: int, raw: bytes) -> Line:
    try:
        line = strictjson.decode(raw, _decoder)
        _check(line)
        return line
    except (MalformedJson, ValidationError) as error:
        raise Malformed(f"Line {number}: {error.message}") from None
    except ValueError as error:
        raise Malformed(f"Line {number}: {error}") from None


def _check(line: Line) -> None:
    """What the types do not say. Raises ValueError; for text that is no object, MalformedJson or ValidationError."""
    match line:
        case Header(version=version) if version != VERSION:
            raise ValueError(
                f"The export has format version {version}, and this version of amelia-flask reads {VERSION}."
            )
        case WorkflowLine():
            _check_workflow(line)
        case EventLine(timestamp=timestamp, data_json=data_json):
            _check_times(timestamp)
            _check_object(data_json)
        case UsageLine(timestamp=timestamp):
            _check_times(timestamp)
            if (line.cost_nano is None) != (line.cost_source == "unpriced"):
                raise ValueError("A record is unpriced exactly when it has no cost.")


def _check_workflow(line: WorkflowLine) -> None:
    _check_times(line.created_at, line.updated_at, line.started_at, line.completed_at)
    _check_object(line.state_json)
    if workflows.normalise(line.worktree_path) != line.worktree_path:
        raise ValueError("The worktree path has another spelling.")
    for name in ("host", "profile", "worktree_name"):
        check_text(name, getattr(line, name) or "")
    if (line.status in ACTIVE) != (line.completed_at is None):
        raise ValueError("A workflow has a time of completion exactly when it has ended.")
    if line.first_sequence > line.last_sequence:
        raise ValueError("The first event of a workflow is none of its events.")


def _check_times(*moments: str | None) -> None:
    for moment in moments:
        if moment is not None:
            datetime.fromisoformat(moment)


def _check_object(text: str | None) -> None:
    if text is not None:
        strictjson.decode(text.encode(), _object)
