"""An example of a record, so that who is new here has something to look at: what it tells is made up.

It is the same each time but for its ids and for the moment at which it ends.
"""

import random
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import peewee

from amelia_flask import events, moves, usage, workflows
from amelia_flask.database import Prepared
from amelia_flask.errors import FileRefused
from amelia_flask.ledger import Ledger
from amelia_flask.models import EventPosition, TokenUsage, Workflow
from amelia_flask.pricing import Counts

SEED = 8420


class Filled(NamedTuple):
    """How much there is now, and which workflow waits for a human."""

    workflows: int
    events: int
    usage_records: int
    waiting: str


class _Story(NamedTuple):
    """A workflow: when it began, how long it has run, and the moves and stages that it went through."""

    issue_id: str
    worktree_path: str
    hours_ago: float
    hours: float
    way: tuple[str, ...]
    profile: str = "claude"


_PLANNED = ("start", "plan", "block", "approve")
_DONE = (*_PLANNED, "implement", "review", "complete")

STORIES = (
    _Story("SHOP-101", "/home/maria/shop/checkout", 590, 3.5, _DONE),
    _Story("SHOP-104", "/home/maria/shop/search", 505, 2, _DONE, "mixed"),
    _Story("API-7", "/home/li/api/rate-limit", 430, 1.2, ("start", "plan", "implement", "fail")),
    _Story("SHOP-109", "/home/maria/shop/emails", 340, 4, _DONE),
    _Story("API-9", "/home/li/api/pagination", 262, 0.6, ("start", "plan", "block", "reject"), "mixed"),
    _Story("DOCS-3", "/home/li/docs/install", 200, 0.8, ("start", "plan", "implement", "complete"), "local"),
    _Story("SHOP-112", "/home/maria/shop/checkout", 121, 5, _DONE, "mixed"),
    _Story("API-12", "/home/li/api/webhooks", 76, 0.4, ("start", "plan", "cancel")),
    _Story("SHOP-115", "/home/maria/shop/invoices", 27, 2.5, _DONE),
    _Story("API-14", "/home/li/api/webhooks", 2.2, 2.1, (*_PLANNED, "implement…"), "mixed"),
    _Story("SHOP-118", "/home/maria/shop/returns", 1.1, 0.9, ("start", "plan", "block")),
    _Story("DOCS-5", "/home/li/docs/upgrade", 0.5, 0.4, ("start", "plan…"), "local"),
    _Story("API-15", "/home/li/api/audit-log", 0.1, 0.05, ()),
)
_SAID: dict[str, moves.Start] = {
    "start": moves.Start(actor="orchestrator"),
    "block": moves.Report(message="The plan is ready. May I go on?", data=msgspec.Raw(b'{"files":7,"risk":"low"}')),
    "approve": moves.Decision(actor="maria", reason="Yes, and keep the old endpoint."),
    "reject": moves.Rejection(actor="li", feedback="Use cursors, not offsets."),
    "complete": moves.Report(message="Merged"),
    "fail": moves.Failure(reason="The tests fail after three attempts."),
    "cancel": moves.Decision(actor="li", reason="Somebody else has done it."),
}
# Agent of a stage, and its model by profile. For in-house models there is no price.
_AGENTS = {"plan": "architect", "implement": "developer", "review": "reviewer"}
_MODELS = {
    "claude": {"plan": "claude-opus-4-1", "implement": "claude-sonnet-4-5", "review": "claude-haiku-4-5"},
    "mixed": {"plan": "gpt-5", "implement": "claude-sonnet-4-5", "review": "gemini-2.5-pro"},
    "local": {"plan": "claude-sonnet-4-5", "implement": "in-house-coder-7b", "review": "in-house-coder-7b"},
}
_DEEDS: tuple[tuple[str, str, events.Level, dict[str, Any]], ...] = (
    ("message", "I read the issue and the code around it.", "info", {}),
    ("tool_call", "grep", "debug", {"tool": "grep", "pattern": "def total", "matches": 12}),
    ("tool_call", "edit", "info", {"tool": "edit", "file": "src/orders.py", "lines": 38}),
    ("tool_call", "pytest", "info", {"tool": "bash", "command": "pytest -q", "exit": 0}),
    ("tool_call", "pytest", "error", {"tool": "bash", "command": "pytest -q", "exit": 1, "failed": 2}),
    ("message", "A test is slow: it reads the whole fixture twice.", "warning", {}),
)

Change = Callable[[Any], object]
Timed = Callable[[datetime], Change]  # a change once its moment is known

_position = Prepared(lambda: EventPosition.select(EventPosition.value))
_records = Prepared(lambda: TokenUsage.select(peewee.fn.COUNT(peewee.SQL("*"))))
_waiting = Prepared(lambda: Workflow.select(Workflow.id).where(Workflow.status == "blocked"))


def fill(ledger: Ledger, now: datetime) -> Filled:
    """Store the example, which ends at `now`, all of it or nothing. Raises FileRefused unless the record is empty."""
    dice = random.Random(SEED)
    steps: list[tuple[datetime, Change]] = []
    for story in STORIES:
        workflow_id = UUID(int=dice.getrandbits(128), version=4)
        steps += _spread(story, now, list(_changes(story, workflow_id, dice)))
    steps.sort(key=lambda step: step[0])
    return ledger.write(_fill, [change for _, change in steps])


def _fill(tx: Any, changes: list[Change]) -> Filled:
    if _position.run(tx)[0][0]:
        raise FileRefused("The database holds a record already; the example is for an empty one.")
    for change in changes:
        change(tx)
    return Filled(len(STORIES), _position.run(tx)[0][0], _records.run(tx)[0][0], _waiting.run(tx)[0][0])


def _spread(story: _Story, now: datetime, changes: list[Timed]) -> Iterator[tuple[datetime, Change]]:
    """The changes with their moments, from the story's beginning to its end."""
    start = now - timedelta(hours=story.hours_ago)
    for number, change in enumerate(changes):
        moment = start + timedelta(hours=story.hours * number / len(changes))
        yield moment, change(moment)


def _changes(story: _Story, workflow_id: UUID, dice: random.Random) -> Iterator[Timed]:
    yield partial(_creation, story, workflow_id)
    for name in story.way:
        if name in moves.MOVES:
            yield partial(_move, str(workflow_id), name)
        else:
            yield from _stage(story, str(workflow_id), name, dice)


def _stage(story: _Story, workflow_id: str, name: str, dice: random.Random) -> Iterator[Timed]:
    """What an agent does in a stage; one whose name ends with an ellipsis goes on still."""
    stage = name.removesuffix("…")
    tell = partial(_event, workflow_id, _AGENTS[stage])
    yield partial(tell, "stage_started", f"Stage {stage} started", "info", {"stage": stage})
    for _ in range(dice.randint(3, 6)):
        yield partial(tell, *dice.choice(_DEEDS))
        yield partial(_usage, workflow_id, _AGENTS[stage], _MODELS[story.profile][stage], _counts(dice))
    if stage == name:
        yield partial(tell, "stage_completed", f"Stage {stage} completed", "info", {"stage": stage})


def _counts(dice: random.Random) -> Counts:
    return Counts(dice.randint(200, 4000), dice.randint(100, 6000), dice.randint(0, 90_000), dice.randint(0, 9000))


def _creation(story: _Story, workflow_id: UUID, moment: datetime) -> Change:
    new = workflows.NewWorkflow(
        issue_id=story.issue_id,
        worktree_path=story.worktree_path,
        host="laptop" if "maria" in story.worktree_path else "buildbox",
        profile=story.profile,
        state=msgspec.Raw(b'{"example":true}'),
        id=workflow_id,
    )
    return lambda tx: workflows.create(tx, new, now=moment)


def _move(workflow_id: str, name: str, moment: datetime) -> Change:
    return lambda tx: moves.carry_out(tx, workflow_id, name, _SAID[name], moment)


def _event(
    workflow_id: str, agent: str, kind: str, message: str, level: events.Level, data: dict[str, Any], moment: datetime
) -> Change:
    raw = msgspec.Raw(msgspec.json.encode(data) if data else b"null")
    new = events.NewEvent(agent=agent, event_type=kind, message=message, level=level, data=raw, timestamp=moment)
    return lambda tx: events.append(tx, workflow_id, events.arrived([new]))


def _usage(workflow_id: str, agent: str, model: str, counts: Counts, moment: datetime) -> Change:
    new = usage.NewUsage(agent=agent, model=model, **counts._asdict(), timestamp=moment)
    records = usage.priced([new])
    return lambda tx: usage.record(tx, workflow_id, records)
