"""Transcripts on disk into workflows: a workflow for each session and worktree, with its own times.

Files are read twice: first for what only the whole can tell (when a session began and ended, which of several
tellings of one request to a model counts), then for the events. Taking the same files in again changes nothing; files
that have grown add what is new.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID, uuid5

import msgspec

from amelia_flask import clock, events, moves, summaries, usage, workflows
from amelia_flask.errors import NotFound, WorkflowConflict
from amelia_flask.fields import MAX_OBJECT_BYTES
from amelia_flask.ledger import Ledger

# A session that has been silent for so long has ended.
IDLE = timedelta(minutes=720)
LONGEST_MESSAGE = 65_536
# A part of a file is stored as one transaction: at most so many events, from at most so many bytes of lines.
MOST_EVENTS = 10_000
MOST_BYTES = 8 * 1024 * 1024

_NAMESPACE = UUID("5a0f6c0e-6d0b-5d0e-9d5c-0e6a3f1c2b7d")


class Malformed(ValueError):
    """A line that cannot be taken in; the message says why."""


class Request(NamedTuple):
    """A request to a model as one line tells of it. The id of its usage record is the request's own."""

    message_id: str
    is_sidechain: bool
    usage: usage.NewUsage


class Told(NamedTuple):
    """What one line tells."""

    session: str
    directory: str | None
    moment: datetime
    events: list[events.NewEvent]
    request: Request | None


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
    records: list[usage.Priced] = field(default_factory=list)
    workflow_id: str | None = None

    @property
    def own_id(self) -> str:
        """The id of the workflow that is made for this session where nobody reported it before."""
        return str(uuid5(_NAMESPACE, "\n".join((self.source, self.name, self.worktree_path))))

    def saw(self, told: Told) -> None:
        """Widen the times to this line."""
        self.first, self.last = min(self.first, told.moment), max(self.last, told.moment)
        if self.first_event is None and told.events:
            self.first_event = told.events[0].id


@dataclass
class Taken:
    """What an import did: how many lines there were, and how many of them tell nothing; how many events and usage
    records were new, were known, have grown. `malformed` names each line that was left out, as `file:line: reason`.
    """

    lines: int = 0
    skipped: int = 0
    events: int = 0
    known_events: int = 0
    records: int = 0
    grown_records: int = 0
    workflows: set[str] = field(default_factory=set)
    malformed: list[str] = field(default_factory=list)


Key = tuple[str, str]  # session, worktree
Progress = Callable[[int], None]  # is given bytes as they are read; of each file twice its size in all


def files_of(paths: Iterable[Path], suffix: str) -> list[Path]:
    """The files named, and those with this suffix below the folders named. Raises FileNotFoundError."""
    found: dict[Path, None] = {}
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(path)
        found |= dict.fromkeys(sorted(path.rglob(f"*{suffix}")) if path.is_dir() else [path])
    return list(found)


def take_in(
    ledger: Ledger, form: Format, files: list[Path], progress: Progress, now: datetime | None = None
) -> Taken:
    """Store what the files tell. Raises OSError and DatabaseUnavailable; what was stored by then stays, and taking
    the files in again goes on from there.
    """
    taken = Taken()
    sessions = _survey(form, files, taken, progress)
    ended_before = (now or clock.now()) - IDLE
    for part in _parts(form, files, progress):
        session = sessions[part.key]
        stored = ledger.write(_store, session, part.events, session.last < ended_before)
        session.workflow_id, session.records = stored.workflow_id, []
        taken.workflows.add(stored.workflow_id)
        taken.events += len(part.events) - stored.known_events
        taken.known_events += stored.known_events
        taken.records += stored.records
        taken.grown_records += stored.grown_records
    return taken


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


def _lines(files: list[Path], progress: Progress) -> Iterator[tuple[Path, int, bytes]]:
    for path in files:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                progress(len(raw))
                if raw.strip():
                    yield path, number, raw


def _survey(form: Format, files: list[Path], taken: Taken, progress: Progress) -> dict[Key, Session]:
    sessions: dict[Key, Session] = {}
    requests: dict[str, tuple[Key, Request]] = {}
    for path, number, raw in _lines(files, progress):
        taken.lines += 1
        try:
            told = form.parse(raw)
        except Malformed as error:
            taken.malformed.append(f"{path}:{number}: {error}")
            continue
        if told is None:
            taken.skipped += 1
            continue
        key = _key(told)
        session = sessions.setdefault(key, Session(form.source, *key, told.moment, told.moment))
        session.saw(told)
        if told.request is not None:
            _keep_better(requests, key, told.request)
    kept = _without_replays(requests.values())
    for key, request in sorted(kept, key=lambda one: str(one[1].usage.timestamp)):
        sessions[key].records += usage.priced([request.usage])
    return sessions


def _key(told: Told) -> Key:
    try:
        return told.session, workflows.normalise(told.directory or "")
    except ValueError:
        return told.session, f"/unbound/{_label(told.session)}"


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


class _Part(NamedTuple):
    key: Key
    events: list[events.NewEvent]


def _parts(form: Format, files: list[Path], progress: Progress) -> Iterator[_Part]:
    """The events in parts that are stored together, those of one session of one file in the order of their lines."""
    for path in files:
        waiting: dict[Key, list[events.NewEvent]] = {}
        size = 0
        for _, _, raw in _lines([path], progress):
            told = _told(form, raw)
            if told is None:
                continue
            waiting.setdefault(_key(told), []).extend(told.events)
            size += len(raw)
            if size > MOST_BYTES or max(map(len, waiting.values())) > MOST_EVENTS:
                yield from map(_Part._make, waiting.items())
                waiting, size = {}, 0
        yield from map(_Part._make, waiting.items())


def _told(form: Format, raw: bytes) -> Told | None:
    try:
        return form.parse(raw)
    except Malformed:
        return None  # the survey has named it


class _Stored(NamedTuple):
    workflow_id: str
    known_events: int
    records: int
    grown_records: int


def _store(tx: Any, session: Session, part: list[events.NewEvent], has_ended: bool) -> _Stored:
    stored: list[int] = []

    def fill(workflow_id: str) -> None:
        known = events.append(tx, workflow_id, events.arrived(part)).duplicates if part else 0
        stored.extend((known, *usage.record_or_grow(tx, workflow_id, session.records)))

    workflow_id = session.workflow_id or _known(tx, session)
    if workflow_id is not None:
        fill(workflow_id)
        _complete(tx, workflow_id, session, has_ended)
    elif has_ended:
        workflow_id = moves.create_completed(tx, _new(session), session.first, session.last, fill)
    else:
        workflow_id = _start(tx, session)
        fill(workflow_id)
    return _Stored(workflow_id, *stored)


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


def _complete(tx: Any, workflow_id: str, session: Session, has_ended: bool) -> None:
    """Complete the session's own workflow, which was taken in while it went on."""
    is_own = workflow_id == session.own_id
    if is_own and has_ended and summaries.summary(tx, workflow_id).status == "in_progress":
        moves.carry_out(tx, workflow_id, "complete", moves.Report(), session.last)
