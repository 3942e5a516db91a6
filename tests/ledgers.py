"""A ledger on a database file of its own, and what callers send to it made from keyword arguments.

A test module takes the fixture by an assignment: `ledger = ledgers.ledger`.
"""

from collections.abc import Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
from peewee import sqlite3 as engine

from amelia_flask import events, moves, schema, usage, workflows
from amelia_flask.ledger import Ledger
from amelia_flask.settings import from_environment

T = TypeVar("T")

_numbers = count(1)


def opened(path: Path) -> Ledger:
    """A ledger on the database at `path`, which is made where it is missing. The caller closes it."""
    schema.set_up(path)
    return Ledger(from_environment({"AMELIA_DATABASE_PATH": str(path)}))


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """A ledger on a new database."""
    ledger = opened(tmp_path / "amelia.db")
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


def rows(path: Path, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    """What any other program finds in the database, through a connection of its own."""
    with closing(engine.connect(path)) as connection:
        found: list[tuple[Any, ...]] = connection.execute(sql, values).fetchall()
        return found


def dump(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table: what must be the same before and after a change that was refused."""
    tables = [name for (name,) in rows(path, "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY 1")]
    return {name: sorted(rows(path, f"SELECT * FROM {name}"), key=repr) for name in tables}


def execute(path: Path, *statements: str) -> None:
    """What any other program does to the database; foreign keys are not looked at."""
    with closing(engine.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def add_events(path: Path, workflow_id: str, count: int) -> None:
    """So many events at the end of a workflow's timeline, faster than they could be appended."""
    execute(
        path,
        f"""INSERT INTO events (workflow_id, sequence, id, position, timestamp, agent, event_type, message)
        WITH RECURSIVE number (n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM number WHERE n < {count})
        SELECT id, last_sequence + n, id || n, value + n, updated_at, 'dev', 'note', printf('%0200d', n)
        FROM number, (SELECT value FROM event_position), (SELECT * FROM workflows WHERE id = '{workflow_id}')
        """,
        f"UPDATE workflows SET last_sequence = last_sequence + {count} WHERE id = '{workflow_id}'",
        f"UPDATE event_position SET value = value + {count}",
    )
