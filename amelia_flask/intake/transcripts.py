"""Transcripts on disk into workflows: a workflow for each session and worktree, with its own times.

Files are read twice: `survey` finds what only the whole can tell (when a session began and ended, which of several
tellings of one request to a model counts), `store` makes the events. Both hold a part of the files at a time, and
what the requests used. Taking the same files in again changes nothing; files that have grown add what is new.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID, uuid5

import msgspec

from amelia_flask import clock, events, moves, retention, summaries, usage, workflows
from amelia_flask.errors import NotFound, WorkflowConflict
from amelia_flask.fields import MAX_OBJECT_BYTES
from amelia_flask.ledger import Ledger
from amelia_flask.progress import Step

# A session that has been silent for so long has ended.
IDLE = timedelta(minutes=720)
LONGEST_MESSAGE = 65_536
# At most so many bytes of lines are stored as one transaction, and half of it where there are as many: enough to make
# its costs small, few enough that others who write wait for a blink.
MOST_BYTES = 8 * 1024 * 1024
# A longer line is taken as several, and they are malformed.
LONGEST_LINE = 64 * 1024 * 1024

_NAMESPACE = UUID("5a0f6c0e-6d0b-5d0e-9d5c-0e6a3f1c2b7d")


class Malformed(ValueError):
    """A line that cannot be taken in; the message says why."""


class Request(NamedTuple):
    """A request to a model as one line tells of it. The id of its usage record is the request's own."""

    message_id: str
    is_sidechain: bool
    usage: usage.NewUsage


class Told(NamedTuple):
    """What one line tells. What it tells of a request, and its events, are made when they are asked for."""

    session: str
    directory: str | None
    moment: datetime
    request: Callable[[], Request | None]
    events: Callable[[], list[events.NewEvent]]


Parse = Callable[[bytes], Told | None]


class Format(NamedTuple):
    """An agent's transcripts: the name of the source, and what parses a line."""

    source: str
    parse: Parse


@dataclass
class Session:
    """What is known of one session in one worktree once all files were read."""

    source: str
    name: str
    worktree_path: str
    first: datetime
    last: datetime
    first_event: str | None = None
    requests: list[usage.NewUsage] = field(default_factory=list)

    @property
    def own_id(self) -> str:
        """The id of the workflow that is made for this session where nobody reported it before."""
        return str(uuid5(_NAMESPACE, "\n".join((self.source, self.name, self.worktree_path))))

    def saw(self, told: Told) -> None:
        """Widen the times to this line."""
        self.first, self.last = min(self.first, told.moment), max(self.last, told.moment)
        if self.first_event is None:
            self.first_event = next((event.id for event in told.events()), None)


Key = tuple[str, str]  # session, worktree


@dataclass
class Survey:
    """What the files tell as a whole: their sessions; how many lines there are, and how many of them tell nothing.
    `malformed` names each line that is left out, as `file:line: reason`.
    """

    form: Format
    files: list[Path]
    sessions: dict[Key, Session] = field(default_factory=dict)
    lines: int = 0
    skipped: int = 0
    malformed: list[str] = field(default_factory=list)


class _Outcome(NamedTuple):
    """What a part of a session became."""

    workflow_id: str
    new_events: int
    known_events: int
    new_records: int
    grown_records: int


@dataclass
class Stored:
    """What was stored: in which workflows; how many events and usage records were new, were known, have grown."""

    workflows: set[str] = field(default_factory=set)
    new_events: int = 0
    known_events: int = 0
    new_records: int = 0
    grown_records: int = 0

    def add(self, outcome: _Outcome) -> None:
        """Count what a part of a session became."""
        self.workflows.add(outcome.workflow_id)
        self.new_events += outcome.new_events
        self.known_events += outcome.known_events
        self.new_records += outcome.new_records
        self.grown_records += outcome.grown_records


def files_of(paths: Iterable[Path], suffix: str) -> list[Path]:
    """The files named, and those with this suffix below the folders named. Raises FileNotFoundError."""
    found: dict[Path, None] = {}
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(path)
        found |= dict.fromkeys(sorted(path.rglob(f"*{suffix}")) if path.is_dir() else [path])
    return list(found)


def survey(form: Format, files: list[Path], step: Step) -> Survey:
    """Read what `store` has to know before it begins; `step` is given bytes as they are read. Raises OSError."""
    found = Survey(form, files)
    requests: dict[str, tuple[Key, Request]] = {}
    for path in files:
        for number, raw in _lines(path, step):
            found.lines += 1
            try:
                _note(found, requests, form.parse(raw))
            except Malformed as error:
                found.malformed.append(f"{path}:{number}: {error}")
    kept = _without_replays(requests.values())
    for key, request in sorted(kept, key=lambda one: str(one[1].usage.timestamp)):
        found.sessions[key].requests.append(request.usage)
    return found


def store(ledger: Ledger, found: Survey, step: Step, now: datetime | None = None) -> Stored:
    """Store what the files tell. Raises OSError and DatabaseUnavailable; what was stored by then stays, and taking
    the files in again goes on from there.
    """
    stored = Stored()
    ended_before = (now or clock.now()) - IDLE
    for waiting in _waiting(found, step):
        new = {key: events.arrived(told, ledger.settings.redact) for key, told in waiting.items()}
        parts = [_part(found.sessions[key], arrived, ended_before) for key, arrived in new.items()]
        for part, outcome in zip(parts, ledger.write(_store, parts), strict=True):
            part.session.requests = []
            stored.add(outcome)
    return stored


def clipped_text(text: str) -> str:
    """`text`, cut where it is longer than the message of an event may be."""
    return text if len(text) <= LONGEST_MESSAGE else text[: LONGEST_MESSAGE - 1] + "…"


def clipped_data(members: dict[str, Any]) -> msgspec.Raw:
    """The members that are there, as data of an event; what is too large for it is named in `omitted`."""
    kept = {name: value for name, value in members.items() if value is not None}
    raw = msgspec.json.encode(kept)
    if len(raw) > MAX_OBJECT_BYTES:
        large = [name for name, value in kept.items() if len(msgspec.json.encode(value)) > MAX_OBJECT_BYTES // 16]
        raw = msgspec.json.encode({name: kept[name] for name in kept if name not in large} | {"omitted": large})
    return msgspec.Raw(raw)


def _lines(path: Path, step: Step) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        for number, raw in enumerate(iter(partial(file.readline, LONGEST_LINE), b""), 1):
            step(len(raw))
            if not raw.isspace():
                yield number, raw


def _note(found: Survey, requests: dict[str, tuple[Key, Request]], told: Told | None) -> None:
    if told is None:
        found.skipped += 1
        return
    key = _key(told.session, told.directory)
    session = found.sessions.setdefault(key, Session(found.form.source, *key, told.moment, told.moment))
    session.saw(told)
    request = told.request()
    if request is not None:
        _keep_better(requests, key, request)


@lru_cache
def _key(session: str, directory: str | None) -> Key:
    try:
        return session, workflows.normalise(directory or "")
    except ValueError:
        return session, f"/unbound/{_label(session)}"


def _label(session: str) -> str:
    """The session's name within the characters of an issue id, distinct where something had to be replaced."""
    label = re.sub(r"[^A-Za-z0-9_.-]", "-", session, flags=re.ASCII)[:60].replace("..", "-")
    return label if label == session else f"{label}-{hashlib.sha256(session.encode()).hexdigest()[:8]}"


def _keep_better(requests: dict[str, tuple[Key, Request]], key: Key, request: Request) -> None:
    """The lines of one answer repeat its usage, with more tokens as it grows."""
    usage_id = str(request.usage.id)
    if usage_id not in requests or _weight(request) > _weight(requests[usage_id][1]):
        requests[usage_id] = key, request


def _weight(request: Request) -> tuple[int, float]:
    used = request.usage
    tokens = used.input_tokens + used.output_tokens + used.cache_read_tokens + used.cache_creation_tokens
    return tokens, used.cost_usd or 0


def _without_replays(requests: Iterable[tuple[Key, Request]]) -> Iterator[tuple[Key, Request]]:
    """A message that is told under several requests, once of them beside the main conversation, was replayed there.

    It was paid for once: by the main conversation, or else by the telling with most tokens or cost.
    """
    by_message: dict[str, list[tuple[Key, Request]]] = {}
    for key, request in requests:
        by_message.setdefault(request.message_id, []).append((key, request))
    for told in by_message.values():
        main = [one for one in told if not one[1].is_sidechain]
        yield from told if len(main) == len(told) else main or [max(told, key=lambda one: _weight(one[1]))]


def _waiting(found: Survey, step: Step) -> Iterator[dict[Key, list[events.NewEvent]]]:
    """The events that are stored together, those of a session in the order of its lines.

    Only a long file is cut, so that most sessions are stored whole, with their completion at the end. A session that
    began after the survey is left for the next time.
    """
    waiting: dict[Key, list[events.NewEvent]] = {}
    size = 0
    for path in found.files:
        for _, raw in _lines(path, step):
            told = _told(found.form, raw)
            key = _key(told.session, told.directory) if told else None
            if told is None or key not in found.sessions:
                continue
            waiting.setdefault(key, []).extend(told.events())
            size += len(raw)
            if size >= MOST_BYTES:
                yield waiting
                waiting, size = {}, 0
        if size >= MOST_BYTES // 2:
            yield waiting
            waiting, size = {}, 0
    if waiting:
        yield waiting


def _told(form: Format, raw: bytes) -> Told | None:
    try:
        return form.parse(raw)
    except Malformed:
        return None  # the survey has named it


class _Part(NamedTuple):
    """What is stored of a session as one, made ready before the transaction."""

    session: Session
    events: list[events.Arrived]
    records: list[usage.Priced]
    has_ended: bool


def _part(session: Session, new: list[events.Arrived], ended_before: datetime) -> _Part:
    return _Part(session, new, usage.priced(session.requests), session.last < ended_before)


def _store(tx: Any, parts: list[_Part]) -> list[_Outcome]:
    return [_store_part(tx, part) for part in parts]


def _store_part(tx: Any, part: _Part) -> _Outcome:
    counts: list[int] = []

    def fill(workflow_id: str) -> None:
        new = _without_pruned(tx, workflow_id, part.events)
        known = events.append(tx, workflow_id, new).duplicates + len(part.events) - len(new)
        grown = usage.record_or_grow(tx, workflow_id, part.records)
        counts.extend((len(part.events) - known, known, *grown))

    session = part.session
    if workflows.was_pruned(tx, session.own_id):
        return _Outcome(session.own_id, 0, len(part.events), 0, 0)  # the sums by day have it already
    workflow_id = _known(tx, session)
    if workflow_id is not None:
        fill(workflow_id)
        _complete(tx, workflow_id, part)
    elif part.has_ended:
        workflow_id = moves.create_completed(tx, _new(session), session.first, session.last, fill)
    else:
        workflow_id = _start(tx, session)
        fill(workflow_id)
    return _Outcome(workflow_id, *counts)


def _without_pruned(tx: Any, workflow_id: str, told: list[events.Arrived]) -> list[events.Arrived]:
    """Without the events that retention took since they were told before: those before the first that is known.

    Where none is known, those that are no later than the oldest that is kept.
    """
    oldest = retention.oldest_kept(tx, workflow_id)
    if oldest is None:
        return told
    for number, (_, row) in enumerate(told):
        if events.find(tx, row.id) is not None:
            return told[number:]
    return [one for one in told if one.row.timestamp > oldest]


def _known(tx: Any, session: Session) -> str | None:
    """The workflow that took the session in before: its own, or the one that then held the worktree."""
    try:
        return summaries.summary(tx, session.own_id).id
    except NotFound:
        event = events.find(tx, session.first_event) if session.first_event else None
        return event.workflow_id if event else None


def _new(session: Session) -> workflows.NewWorkflow:
    return workflows.NewWorkflow(
        issue_id=f"{session.source}/{_label(session.name)}",
        worktree_path=session.worktree_path,
        state=msgspec.Raw(msgspec.json.encode({"source": session.source, "session_id": session.name})),
        id=UUID(session.own_id),
    )


def _start(tx: Any, session: Session) -> str:
    """A workflow for a session that goes on: a new one, or the one that holds its worktree."""
    try:
        created, _ = workflows.create(tx, _new(session), now=session.first)
    except WorkflowConflict as conflict:
        return str(conflict.details["workflow_id"])
    moves.carry_out(tx, created.id, "start", moves.Start(), session.first)
    return created.id


def _complete(tx: Any, workflow_id: str, part: _Part) -> None:
    """Complete the session's own workflow, which was taken in while it went on."""
    is_own = workflow_id == part.session.own_id
    if is_own and part.has_ended and summaries.summary(tx, workflow_id).status == "in_progress":
        moves.carry_out(tx, workflow_id, "complete", moves.Report(), part.session.last)
