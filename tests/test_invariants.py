"""The nine invariants of the record, checked after every step of random histories.

The history goes through the real writer into a real file; what is checked is what another program finds there.
"""

import contextlib
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from amelia_flask import audit, clock, events, moves, report, retention, usage, workflows
from amelia_flask.errors import AmeliaError, IdReused, InvalidState, NotFound, ValidationError, WorkflowConflict
from amelia_flask.ledger import Ledger
from tests.databases import Databases, Files
from tests.ledgers import decode, new_event, new_usage, new_workflow

ACTIVE = {"pending", "in_progress", "blocked"}
# The statuses from which a move may start, and the one to which it leads.
TABLE = {
    "start": ({"pending"}, "in_progress"),
    "block": ({"in_progress"}, "blocked"),
    "approve": ({"blocked"}, "in_progress"),
    "reject": ({"blocked"}, "failed"),
    "complete": ({"in_progress"}, "completed"),
    "fail": ({"in_progress", "blocked"}, "failed"),
    "cancel": (ACTIVE, "cancelled"),
}
REPLAYED = {
    "workflow_created": "pending",
    "workflow_started": "in_progress",
    "approval_required": "blocked",
    "approval_granted": "in_progress",
    "approval_rejected": "failed",
    "workflow_completed": "completed",
    "workflow_failed": "failed",
    "workflow_cancelled": "cancelled",
}
SAID: dict[str, dict[str, Any]] = {"reject": {"feedback": "No"}, "fail": {"reason": "It broke"}}
MODELS = ("claude-sonnet-4-5", "no-such-model")

names = st.sampled_from(["a", "b", "c"])
ids = st.one_of(st.none(), st.sampled_from([f"id-{n}" for n in range(6)]))
counts = st.one_of(st.integers(0, 5), st.integers(0, 10**15))
event_members = st.fixed_dictionaries(
    {"message": names, "event_type": st.sampled_from(["note", "stage_started", "stage_completed"])},
    optional={"id": ids, "data": st.fixed_dictionaries({"stage": names})},
)
usage_members = st.fixed_dictionaries(
    {
        "agent": names,
        "model": st.sampled_from(MODELS),
        "input_tokens": counts,
        "output_tokens": counts,
        "cache_read_tokens": counts,
        "cache_creation_tokens": counts,
        "timestamp": st.sampled_from(["2026-01-01T23:59:59Z", "2026-01-02T00:00:00Z", "2026-01-05T12:00:00+12:00"]),
    },
    optional={"id": ids, "cost_usd": st.sampled_from([0.0, 0.1, 0.000000001, 999_999.999999999])},
)


class Fault(Exception):
    """A change that fails after it has done its work."""


class Histories(RuleBasedStateMachine):
    """What callers may do, and what must hold whatever they did."""

    databases: Databases
    known = Bundle("known")

    @initialize()
    def begin(self) -> None:
        self.lent = ExitStack()
        folder = Path(self.lent.enter_context(tempfile.TemporaryDirectory()))
        self.database = self.lent.enter_context(self.databases.lend(folder))
        self.ledger: Ledger = self.database.ledger()
        self.status: dict[str, str] = {}
        self.acknowledged: dict[str, tuple[str, int, int]] = {}
        self.last_position = 0
        # What was recorded and not deleted, of workflows that were pruned too: day, agent, model -> sums.
        self.used: dict[str, Counter[tuple[Any, ...]]] = defaultdict(Counter)
        self.pruned: Counter[tuple[Any, ...]] = Counter()

    def teardown(self) -> None:
        if hasattr(self, "ledger"):
            self.ledger.close()
            self.lent.close()

    def refused(self, error: type[AmeliaError] | tuple[type[AmeliaError], ...], call: Callable[[], Any]) -> None:
        """The call is refused, and not a byte of the record has changed."""
        before = self.database.dump()
        with pytest.raises(error):
            call()
        assert self.database.dump() == before

    def repeated(self, call: Callable[[], Any]) -> None:
        """The same call again gives the same answer and changes nothing."""
        before = self.database.dump()
        call()
        assert self.database.dump() == before

    @rule(target=known, path=names, host=st.sampled_from(["", "h"]))
    def create(self, path: str, host: str) -> Any:
        new = new_workflow(worktree_path=f"/{path}", host=host, id=clock.new_id())

        def create() -> workflows.Created:
            return self.ledger.write(workflows.create, new)[0]

        held = "SELECT COUNT(*) FROM workflows WHERE worktree_path = ? AND host = ? AND status IN {}"
        if self.database.rows(held.format(tuple(sorted(ACTIVE))), f"/{path}", host) != [(0,)]:
            self.refused(WorkflowConflict, create)
            return multiple()
        created = create()
        self.status[created.id] = "pending"
        self.repeated(create)
        new.issue_id += "x"
        self.refused(IdReused, create)
        return created.id

    @rule(workflow=known, name=st.sampled_from(sorted(TABLE)), event_id=ids)
    def move(self, workflow: str, name: str, event_id: str | None) -> None:
        said = decode(moves.MOVES[name].body, event_id=event_id, actor="me", **SAID.get(name, {}))

        def move() -> moves.Moved:
            return self.ledger.write(moves.carry_out, workflow, name, said)

        sources, target = TABLE[name]
        if event_id in self.acknowledged:
            before = self.database.dump()
            with contextlib.suppress(IdReused, NotFound):
                assert move().event.id == event_id
            assert self.database.dump() == before
        elif workflow not in self.status:
            self.refused(NotFound, move)
        elif self.status[workflow] not in sources:
            self.refused(InvalidState, move)
        else:
            moved = move()
            self.status[workflow] = target
            assert moved.workflow.status == target
            self.acknowledge(workflow, [moved.event])

    @rule(workflow=known, batch=st.lists(event_members, min_size=1, max_size=4))
    def append(self, workflow: str, batch: list[dict[str, Any]]) -> None:
        given = [new_event(**members) for members in batch]
        before = self.database.dump()
        try:
            answer = self.ledger.write(events.append, workflow, events.arrived(given))
        except (IdReused, NotFound):
            assert self.database.dump() == before
            return
        assert workflow in self.status
        self.acknowledge(workflow, answer.events)
        again = [new_event(**members | {"id": place.id}) for members, place in zip(batch, answer.events, strict=True)]
        self.repeated(lambda: self.ledger.write(events.append, workflow, events.arrived(again)))

    @rule(workflow=known, batch=st.lists(usage_members, min_size=1, max_size=3))
    def record(self, workflow: str, batch: list[dict[str, Any]]) -> None:
        given = usage.priced([new_usage(**members) for members in batch])
        before = self.database.dump()
        try:
            answer = self.ledger.write(usage.record, workflow, given)
        except (IdReused, NotFound, ValidationError):
            assert self.database.dump() == before
            return
        stored = {row[0] for row in before["token_usage"]}
        for one in {one.id: one for one in given if one.id not in stored}.values():
            self.used[workflow] += sums_of(one.key, *one[3:7], one.cost_nano)
        assert len(answer.token_usage) == len(batch)
        again = [one._replace(has_id=True) for one in given]
        self.repeated(lambda: self.ledger.write(usage.record, workflow, again))

    @rule(workflow=known, batch=st.lists(event_members, min_size=1, max_size=2))
    def fail_within(self, workflow: str, batch: list[dict[str, Any]]) -> None:
        """A change that fails half-way leaves nothing, and its neighbours alone."""

        def change(tx: Any) -> None:
            events.append(tx, workflow, events.arrived([new_event(**members | {"id": None}) for members in batch]))
            raise Fault

        self.refused(AmeliaError, lambda: self.ledger.write(change))

    @rule(workflow=known, value=names)
    def patch(self, workflow: str, value: str) -> None:
        change = decode(workflows.Patch, state={"value": value})
        if workflow not in self.status:
            self.refused(NotFound, lambda: self.ledger.write(workflows.patch, workflow, change))
        else:
            self.ledger.write(workflows.patch, workflow, change)

    @rule(workflow=known)
    def delete(self, workflow: str) -> None:
        def delete() -> None:
            self.ledger.write(workflows.delete, workflow)

        if workflow not in self.status:
            self.refused(NotFound, delete)
        elif self.status[workflow] in ACTIVE:
            self.refused(InvalidState, delete)
        else:
            delete()
            self.forget(workflow)

    @rule(workflow=known)
    def prune(self, workflow: str) -> None:
        """What retention does to a finished workflow: it goes, its usage stays in the sums by day."""
        if self.status.get(workflow, "pending") not in ACTIVE:
            self.ledger.write(lambda tx: list(retention._take_workflow(tx, workflow)))
            self.pruned += self.used[workflow]
            self.forget(workflow)

    @rule()
    def restart(self) -> None:
        self.ledger.close()
        self.ledger = self.database.ledger()

    def forget(self, workflow: str) -> None:
        del self.status[workflow]
        self.used.pop(workflow, None)
        gone = [event for event, place in self.acknowledged.items() if place[0] == workflow]
        for event in gone:
            del self.acknowledged[event]

    def acknowledge(self, workflow: str, places: list[Any]) -> None:
        for place in places:
            known = self.acknowledged.setdefault(place.id, (workflow, place.sequence, place.position))
            assert known == (workflow, place.sequence, place.position)

    @invariant()
    def nothing_acknowledged_is_lost_or_moved(self) -> None:
        stored = {
            row[0]: row[1:] for row in self.database.rows("SELECT id, workflow_id, sequence, position FROM events")
        }
        assert self.acknowledged.items() <= stored.items()

    @invariant()
    def sequences_have_no_gap_and_positions_rise_with_them(self) -> None:
        by_workflow = defaultdict(list)
        for workflow, sequence, position in self.database.rows(
            "SELECT workflow_id, sequence, position FROM events ORDER BY workflow_id, sequence"
        ):
            by_workflow[workflow].append((sequence, position))
        for places in by_workflow.values():
            assert [sequence for sequence, _ in places] == list(range(1, len(places) + 1))
            positions = [position for _, position in places]
            assert positions == sorted(set(positions))
        last: dict[str, int] = dict(self.database.rows("SELECT id, last_sequence FROM workflows"))
        assert last == {workflow: len(places) for workflow, places in by_workflow.items()}

    @invariant()
    def no_position_appears_at_or_below_one_that_was_seen(self) -> None:
        found = self.database.rows("SELECT MAX(position) FROM events")[0][0] or 0
        taken = self.database.rows("SELECT value FROM event_position")[0][0]
        assert found <= taken
        assert taken >= self.last_position
        self.last_position = taken

    @invariant()
    def a_worktree_has_one_active_workflow_at_most(self) -> None:
        active = [
            (host, path)
            for host, path, status in self.database.rows("SELECT host, worktree_path, status FROM workflows")
            if status in ACTIVE
        ]
        assert len(active) == len(set(active))

    @invariant()
    def replaying_the_events_gives_the_status(self) -> None:
        replayed = {
            workflow: REPLAYED[event_type]
            for workflow, event_type in self.database.rows(
                "SELECT workflow_id, event_type FROM events ORDER BY workflow_id, sequence"
            )
            if event_type in REPLAYED
        }
        assert dict(self.database.rows("SELECT id, status FROM workflows")) == replayed == self.status

    @invariant()
    def sums_equal_what_was_recorded(self) -> None:
        recorded = sum(self.used.values(), self.pruned.copy())
        summed: Counter[tuple[Any, ...]] = Counter()
        for day, agent, model, *numbers in self.database.rows(
            f"SELECT day, agent, model, {', '.join(NAMES)} FROM usage_by_day"
        ):
            summed += Counter({(day, agent, model, name): n for name, n in zip(NAMES, numbers, strict=True)})
        assert summed == +recorded

    @invariant()
    def totals_of_workflows_equal_their_records(self) -> None:
        for workflow, tokens, nano in self.database.rows("SELECT id, total_tokens, cost_nano FROM workflows"):
            sums = self.used[workflow]
            assert tokens == sum(value for key, value in sums.items() if key[-1] in NAMES[:4])
            assert nano == sum(value for key, value in sums.items() if key[-1] == "cost_nano")

    @invariant()
    def the_check_finds_nothing(self) -> None:
        assert list(audit.check(self.database.engine)) == []

    @invariant()
    def the_report_says_the_same(self) -> None:
        period = report.period(None, "2026-01-01", "2026-01-05", datetime(2026, 1, 6, tzinfo=UTC))
        found = self.ledger.read(report.report, period)
        recorded = sum(self.used.values(), self.pruned.copy())
        nano = sum(value for key, value in recorded.items() if key[-1] == "cost_nano")
        tokens = sum(value for key, value in recorded.items() if key[-1] in NAMES[:4])
        assert (found.summary.total_cost_usd, found.summary.total_tokens) == (nano / 10**9, tokens)
        assert sum(one.tokens for one in found.by_model) == sum(one.tokens for one in found.by_agent) == tokens


NAMES = (
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_creation_tokens",
    "cost_nano",
    "unpriced_tokens",
)


def sums_of(key: tuple[str, str, str], *numbers: int | None) -> Counter[tuple[Any, ...]]:
    """What one record adds, by day, agent, model and column."""
    *used, nano = numbers
    unpriced = sum(number or 0 for number in used) if nano is None else 0
    return Counter({(*key, name): value or 0 for name, value in zip(NAMES, (*used, nano, unpriced), strict=True)})


def test_what_must_hold_does_whatever_callers_do(databases: Databases) -> None:
    chosen = settings(
        max_examples=40 if isinstance(databases, Files) else 15,  # a server takes longer for each of many looks
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    Histories.databases = databases
    run_state_machine_as_test(Histories, settings=chosen)
