"""A ledger on a database of its own, and what callers send to it made from keyword arguments.

A test module takes the fixture by an assignment: `ledger = ledgers.ledger`.
"""

from collections.abc import Iterator
from itertools import count
from typing import Any, TypeVar

import msgspec
import pytest

from amelia_flask import events, moves, usage, workflows
from amelia_flask.ledger import Ledger
from tests.databases import Database

T = TypeVar("T")

_numbers = count(1)


@pytest.fixture
def ledger(database: Database) -> Iterator[Ledger]:
    """A ledger on a new database."""
    ledger = database.ledger()
    yield ledger
    ledger.close()


def decode(kind: type[T], **members: Any) -> T:
    """The struct that a body with these members is decoded to. Raises msgspec.ValidationError."""
    return msgspec.json.decode(msgspec.json.encode(members), type=kind)


def new_workflow(**members: Any) -> workflows.NewWorkflow:
    """A workflow to be registered, in a worktree of its own unless `members` name one."""
    return decode(
        workflows.NewWorkflow, **{"issue_id": "ISSUE-1", "worktree_path": f"/worktrees/{next(_numbers)}"} | members
    )


def new_event(**members: Any) -> events.NewEvent:
    """An event to be appended."""
    return decode(events.NewEvent, **{"agent": "dev", "event_type": "note", "message": "m"} | members)


def new_usage(**members: Any) -> usage.NewUsage:
    """A usage record, of 10 tokens in and 1 out unless `members` say otherwise; the model has no price."""
    return decode(
        usage.NewUsage, **{"agent": "dev", "model": "no-such-model", "input_tokens": 10, "output_tokens": 1} | members
    )


def create(ledger: Ledger, now: Any = None, **members: Any) -> str:
    """The id of a new workflow, which was created at `now`."""
    return ledger.write(workflows.create, new_workflow(**members), now=now)[0].id


def move(ledger: Ledger, workflow_id: str, name: str, moment: Any = None, **members: Any) -> moves.Moved:
    """Carry out the move `name` at `moment`."""
    return ledger.write(moves.carry_out, workflow_id, name, decode(moves.MOVES[name].body, **members), moment)


def record(ledger: Ledger, workflow_id: str, *records: dict[str, Any]) -> usage.RecordedUsage:
    """Record the usage that each of the dictionaries describes, as one batch."""
    return ledger.write(usage.record, workflow_id, usage.priced([new_usage(**members) for members in records]))
