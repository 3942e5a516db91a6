"""Random histories of a record, for what must hold of any."""

import contextlib
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amelia_flask import audit, clock, events, moves, retention, usage, workflows
from amelia_flask.errors import AmeliaError
from amelia_flask.ledger import Ledger
from amelia_flask.models import Event, PrunedWorkflow, TokenUsage
from tests import ledgers
from tests.databases import Database, Databases, Files
from tests.ledgers import new_event

T = TypeVar("T")

START = datetime(2026, 1, 1, 23, 59, tzinfo=UTC)
DATA: tuple[dict[str, Any] | None, ...] = (None, {"stage": "plan"}, {"stage": "é\n\"'\\"}, {"deep": [[{"a": 1.50}]]})
SAID: dict[str, dict[str, Any]] = {"reject": {"feedback": "No"}, "fail": {"reason": "Ω broke\n"}}
COUNTS = (0, 7, 10**12)

# Each step is drawn as a number and made of it, so that a failing history shrinks to few and small numbers.
histories = st.lists(st.integers(0, 2**24), min_size=12, max_size=40)


def hold(databases: Databases, examples: st.SearchStrategy[T], most: int, check: Callable[[T], None]) -> None:
    """Have `check` hold of so many examples; of a third on a server, where each of many statements takes longer."""
    many = settings(
        max_examples=most if isinstance(databases, Files) else most // 3,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    many(given(examples)(check))()


def make(ledger: Ledger, history: list[int]) -> None:
    """Do what the numbers say; what is not allowed at that point is refused and left out."""
    known: list[str] = [ledgers.create(ledger, START)]
    for minutes, number in enumerate(history):
        dice = random.Random(number)
        with contextlib.suppress(AmeliaError):
            _step(ledger, known, dice, START + timedelta(minutes=20 * minutes))


def _step(ledger: Ledger, known: list[str], dice: random.Random, moment: datetime) -> None:
    workflow = dice.choice(known)
    match dice.randrange(17):
        case 0 | 1 | 2:
            path = f"/w/{dice.randrange(3)}"
            known.append(ledgers.create(ledger, moment, worktree_path=path, host=dice.choice(["", "h"]), state={}))
        case 3 | 4 | 5 | 6:
            name = dice.choice(sorted(moves.MOVES))
            ledgers.move(ledger, workflow, name, moment, actor="me", **SAID.get(name, {}))
        case 7 | 8 | 9:
            ledger.write(events.append, workflow, events.arrived([_event(dice, moment) for _ in range(3)]))
        case 10 | 11 | 12:
            ledger.write(usage.record, workflow, usage.priced([_usage(dice, moment) for _ in range(2)]))
        case 13:
            patch = ledgers.decode(workflows.Patch, state={"n": dice.random()}, worktree_name="x")
            ledger.write(workflows.patch, workflow, patch)
        case 14:
            ledger.write(workflows.delete, workflow)
        case 15:
            ledger.write(_begin_to_prune, workflow)
        case _:
            prune(ledger, before=clock.to_text(moment - timedelta(hours=2)), max_events=dice.choice([2, 100]))


def prune(ledger: Ledger, before: str = clock.LAST, max_events: int = 100) -> None:
    """Take what has ended before a time, and of all others more events than so many."""
    for _ in retention.steps(ledger, retention.Limits(before, max_events, clock.FIRST)):
        pass


def _begin_to_prune(tx: Any, workflow: str) -> None:
    """What retention leaves that is killed in the middle of a workflow."""
    workflows.refuse_active(tx, workflow)
    PrunedWorkflow.insert(id=workflow).execute(tx)
    Event.delete().where((Event.workflow == workflow) & (Event.sequence <= 2)).execute(tx)
    TokenUsage.delete().where((TokenUsage.workflow == workflow) & (TokenUsage.number == 1)).execute(tx)


def _event(dice: random.Random, moment: datetime) -> events.NewEvent:
    kind = dice.choice(["note", "stage_started", "stage_completed"])
    members = {"timestamp": clock.to_text(moment), "level": dice.choice(["info", "error"]), "data": dice.choice(DATA)}
    return new_event(event_type=kind, message=dice.choice(["m", "ünï\n\u2028", ""]), **members)


def _usage(dice: random.Random, moment: datetime) -> usage.NewUsage:
    counts = {name: dice.choice(COUNTS) for name in ("input_tokens", "output_tokens", "cache_read_tokens")}
    members: dict[str, Any] = {"agent": dice.choice("ab"), "timestamp": clock.to_text(moment), **counts}
    if dice.random() < 0.3:
        members["cost_usd"] = dice.choice([0.0, 0.1, 999_999.999999999])
    return ledgers.new_usage(model=dice.choice(["claude-sonnet-4-5", "no-such-model"]), **members)


def check(database: Database) -> None:
    """What holds of a record at every moment."""
    assert list(audit.check(database.engine)) == []
