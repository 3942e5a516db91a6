"""What retention took, moved along: reports on past days say the same in the other database.

What the pruned workflows left is what the sums by day hold beyond the workflows that are exported.
"""

import operator
from collections.abc import Iterable, Iterator
from typing import Any

from amelia_flask import clock, rollups, workflows
from amelia_flask.database import Prepared, param
from amelia_flask.models import PrunedWorkflow, Workflow
from amelia_flask.transfer.lines import DayLine, PrunedLine, WorkflowLine

Key = tuple[str, ...]  # day; day and model; day, agent and model
Numbers = tuple[int, ...]

_is_there = Prepared(lambda: Workflow.select(Workflow.id).where(Workflow.id == param("id")))
_note = Prepared(lambda: PrunedWorkflow.insert_many([(param("id"),)], fields=[PrunedWorkflow.id]))


class Kept:
    """The sums by day of what an export holds; as many as there are in the tables by day."""

    def __init__(self) -> None:
        self._sums: dict[Key, Numbers] = {}

    def add(self, key: Key, numbers: Numbers) -> None:
        """Count a record, or what is summed like one."""
        self._sums[key] = tuple(map(operator.add, self._sums.get(key, (0,) * len(numbers)), numbers))

    def count(self, line: WorkflowLine, first_days: dict[str, str]) -> None:
        """Count a workflow, and on which day it first used each model."""
        ending = rollups.ending(line.status)
        passed = (
            clock.milliseconds(line.started_at, clock.from_text(line.completed_at))
            if line.started_at and line.completed_at
            else 0
        )
        self.add((line.created_at[:10],), (1, *ending, passed))
        for model, day in first_days.items():
            self.add((day, model), (1, *ending))

    def left(self, key: Key, numbers: Numbers) -> Numbers:
        """What remains of the numbers without what the export holds."""
        return tuple(map(operator.sub, numbers, self._sums.get(key, (0,) * len(numbers))))


def pruned_lines(db: Any, kept: Kept) -> Iterator[PrunedLine]:
    """What retention took; no line where it took nothing."""
    taken = [workflow_id for (workflow_id,) in db.rows_of(PrunedWorkflow.select().order_by(PrunedWorkflow.id))]
    if taken:
        yield PrunedLine(taken, list(_days(db, kept)))


def _days(db: Any, kept: Kept) -> Iterator[DayLine]:
    left: dict[str, DayLine] = {}
    for key, numbers in _sums_by_day(db):
        remaining = kept.left(key, numbers)
        if not any(remaining):
            continue
        day = left.setdefault(key[0], DayLine(key[0], (0, 0, 0, 0), [], []))
        row: Any = (*key[1:], *remaining)
        if len(key) == 1:
            day.workflows = row
        elif len(key) == 2:
            day.models.append(row)
        else:
            day.usage.append(row)
    yield from (left[day] for day in sorted(left))


def _sums_by_day(db: Any) -> Iterable[tuple[Key, Numbers]]:
    """Every row of the tables by day: its keys and its numbers."""
    for model, keys, names in rollups.TABLES_BY_DAY:
        columns = [getattr(model, name) for name in (*keys, *names)]
        order = [getattr(model, name) for name in keys]
        for row in db.rows_of(model.select(*columns).order_by(*order)):
            yield row[: len(keys)], row[len(keys) :]


def take_pruned(tx: Any, line: PrunedLine) -> str | None:
    """Take over what pruned workflows left in the sums, where none of them is counted here; all of it or nothing.

    Answers with a sentence where some of them are: what each of them left cannot be told apart.
    """
    known = [one for one in line.workflows if _is_counted(tx, one)]
    if known and len(known) < len(line.workflows):
        return (
            f"The sums of {len(line.workflows)} pruned workflows are left out: {len(known)} of them are counted here"
            f" already, {known[0]} for one."
        )
    if not known:
        _note.run_many(tx, [(one,) for one in line.workflows])
        for day in line.days:
            _add_day(tx, day)
    return None


def _is_counted(tx: Any, workflow_id: str) -> bool:
    return bool(_is_there.run(tx, id=workflow_id)) or workflows.was_pruned(tx, workflow_id)


def _add_day(tx: Any, day: DayLine) -> None:
    rollups.add_pruned(tx, (day.day,), day.workflows)
    for model, *numbers in day.models:
        rollups.add_pruned(tx, (day.day, model), tuple(numbers))
    for agent, model, *numbers in day.usage:
        rollups.add_pruned(tx, (day.day, agent, model), tuple(numbers))
