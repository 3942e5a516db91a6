"""Whether a record is what it must be: the invariants that can be told from the database alone, read at one moment.

Findings are lines that say what is wrong and where. Of a workflow that retention has taken its part of the sums by
day is left, so these are at least what the records give, and equal to it where nothing was pruned.
"""

from collections.abc import Callable, Iterator
from heapq import merge
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

from amelia_flask import clock, schema
from amelia_flask.database import FAULTS, Engine, Row
from amelia_flask.models import ACTIVE, Status
from amelia_flask.moves import MOVES
from amelia_flask.pricing import Counts
from amelia_flask.progress import Step, Unit

CHECKS_MADE = Unit("checks", 1)

Findings = Iterator[str]
_FINAL = tuple(str(status) for status in Status if status not in ACTIVE)
_ACTIVE = tuple(map(str, ACTIVE))
_MOVES = {move.event_type: move for move in MOVES.values()}
_CREATED = "workflow_created"
# What one more record adds to each of the sums.
_SUMS = {
    **{name: f"SUM({name})" for name in Counts._fields},
    "unpriced_tokens": f"SUM(CASE WHEN cost_nano IS NULL THEN {' + '.join(Counts._fields)} ELSE 0 END)",
    "cost_nano": "COALESCE(SUM(cost_nano), 0)",
    "savings_nano": "COALESCE(SUM(savings_nano), 0)",
}
_KEPT = "id NOT IN (SELECT id FROM pruned_workflows)"  # those are being emptied
_BELONGING = ("events", "token_usage", "open_stages", "usage_by_workflow")  # to workflows


def check(engine: Engine, step: Step = lambda _checks: None) -> Findings:
    """What is wrong with the database, which is not changed; `step` is given each check that was made.

    It may be in use, or a backup. Raises SchemaError where it is no database of this version.
    """
    schema.refuse_earlier(engine)
    with engine.peeking() as connection:
        connection.execute("BEGIN")
        record = _Record(engine, connection)
        for check_one in CHECKS:
            yield from _carried_out(check_one, record)
            step(1)


class _Record(NamedTuple):
    """A database at one moment."""

    engine: Engine
    connection: Any

    def rows(self, sql: str) -> Iterator[Row]:
        """What a query gives, some rows at a time."""
        return self.engine.stream(self.connection, sql)

    def row(self, sql: str) -> Row:
        """The one row that a query gives."""
        return tuple(self.connection.execute(sql).fetchone())


Check = Callable[[_Record], Findings]


def _carried_out(check_one: Check, record: _Record) -> Findings:
    """One that fails leaves the others as they are."""
    record.connection.execute("SAVEPOINT one_check")
    try:
        yield from check_one(record)
    except FAULTS as error:
        record.connection.execute("ROLLBACK TO SAVEPOINT one_check")
        reason = str(error).partition("\n")[0]
        yield f"the database: {check_one.__name__.strip('_')} could not be checked: {reason}"
    record.connection.execute("RELEASE SAVEPOINT one_check")


def _storage(record: _Record) -> Findings:
    for problem in record.engine.damages(record.connection):
        yield f"the database: {' '.join(problem.split())}"


def _foreign_keys(record: _Record) -> Findings:
    for table in _BELONGING:
        sql = f"""
            SELECT 1 FROM {table} WHERE NOT EXISTS (SELECT 1 FROM workflows WHERE id = {table}.workflow_id)
        """
        for _ in record.rows(sql):
            yield f"{table}: a row belongs to no row of workflows"


def _tables_and_indexes(record: _Record) -> Findings:
    there = record.engine.names(record.connection)
    for name in sorted(schema.names_of_tables_and_indexes() - there):
        yield f"the schema: {name} is missing"


def _sequences(record: _Record) -> Findings:
    sql = """
        SELECT workflow_id, before, sequence, earlier, position FROM (
            SELECT *, LAG(sequence) OVER one AS before, LAG(position) OVER one AS earlier
            FROM events WINDOW one AS (PARTITION BY workflow_id ORDER BY sequence)
        ) AS neighbours WHERE sequence != before + 1 OR position <= earlier
    """
    for workflow, before, sequence, earlier, position in record.rows(sql):
        if sequence != before + 1:
            yield f"workflow {workflow}: after the event with sequence {before} comes {sequence}"
        if position <= earlier:
            yield f"workflow {workflow}: sequence {sequence} has position {position}, the one before it {earlier}"


def _last_sequences(record: _Record) -> Findings:
    sql = f"""
        SELECT id, last_sequence, largest FROM (
            SELECT *, (SELECT MAX(sequence) FROM events WHERE workflow_id = workflows.id) AS largest FROM workflows
        ) AS ends WHERE largest IS DISTINCT FROM last_sequence AND (largest IS NOT NULL OR {_KEPT})
    """
    for workflow, last, largest in record.rows(sql):
        newest = "it has no events" if largest is None else f"its newest event has {largest}"
        yield f"workflow {workflow}: last_sequence is {last}, but {newest}"


def _positions(record: _Record) -> Findings:
    for position, count in record.rows("SELECT position, COUNT(*) FROM events GROUP BY 1 HAVING COUNT(*) > 1"):
        yield f"position {position}: {count} events have it"
    rows = list(record.rows("SELECT id, value FROM event_position"))
    (largest,) = record.row("SELECT COALESCE(MAX(position), 0) FROM events")
    if [number for number, _ in rows] != [1]:
        yield f"event_position: it has {len(rows)} rows in place of one"
    elif rows[0][1] < largest:
        yield f"event_position: it is {rows[0][1]}, but an event has position {largest}"


def _states(record: _Record) -> Findings:
    """A workflow's status is what the moves that its events tell of lead to, from the first event that is kept."""
    kinds = ", ".join(f"'{kind}'" for kind in (_CREATED, *_MOVES))
    sql = f"""
        SELECT w.id, w.status, e.sequence, e.event_type FROM events e JOIN workflows w ON w.id = e.workflow_id
        WHERE e.event_type IN ({kinds}) ORDER BY e.workflow_id, e.sequence
    """
    for (workflow, status), told in groupby(record.rows(sql), itemgetter(0, 1)):
        yield from _replay(workflow, status, [row[2:] for row in told])
    silent = f"""
        SELECT id FROM workflows WHERE NOT EXISTS (
            SELECT 1 FROM events WHERE workflow_id = workflows.id AND sequence = 1 AND event_type = '{_CREATED}'
        ) AND EXISTS (SELECT 1 FROM events WHERE workflow_id = workflows.id AND sequence = 1)
    """
    for (workflow,) in record.rows(silent):
        yield f"workflow {workflow}: its first event does not tell of its creation"


def _replay(workflow: str, status: str, told: list[Row]) -> Findings:
    current = None  # as long as retention took what came before
    for sequence, kind in told:
        if kind == _CREATED:
            current = Status.PENDING
            continue
        move = _MOVES[kind]
        if current is not None and current not in move.sources:
            yield f"workflow {workflow}: sequence {sequence} tells of {kind} while it was {current}"
        current = move.target
    if current != status:
        yield f"workflow {workflow}: it is {status}, but its events lead to {current}"


def _ends(record: _Record) -> Findings:
    sql = f"SELECT id, status, completed_at FROM workflows WHERE (status IN {_FINAL}) != (completed_at IS NOT NULL)"
    for workflow, status, completed_at in record.rows(sql):
        yield f"workflow {workflow}: it is {status}, but completed_at is {completed_at or 'null'}"


def _worktrees(record: _Record) -> Findings:
    sql = f"""
        SELECT host, worktree_path, COUNT(*) FROM workflows WHERE status IN {_ACTIVE}
        GROUP BY 1, 2 HAVING COUNT(*) > 1
    """
    for host, path, count in record.rows(sql):
        yield f"worktree {path} of host {host or 'none'}: {count} active workflows hold it"


def _open_stages(record: _Record) -> Findings:
    sql = """
        SELECT s.workflow_id, s.stage, s.sequence FROM open_stages s
        LEFT JOIN events e ON e.workflow_id = s.workflow_id AND e.sequence = s.sequence
        WHERE e.event_type IS DISTINCT FROM 'stage_started' AND (e.event_type IS NOT NULL
            OR s.sequence >= (SELECT MIN(sequence) FROM events WHERE workflow_id = s.workflow_id))
    """
    for workflow, stage, sequence in record.rows(sql):
        yield f"workflow {workflow}: the stage {stage!r} is open since sequence {sequence}, which does not start it"


def _breakdowns(record: _Record) -> Findings:
    names = list(_SUMS)[:-1]
    sums = ", ".join(_SUMS[name] for name in names)
    kept = f"SELECT workflow_id, agent, model, first_day, {', '.join(names)} FROM usage_by_workflow"
    records = f"SELECT workflow_id, agent, model, MIN(day), {sums} FROM token_usage"
    where = f"WHERE workflow_{_KEPT}"
    return _unequal(
        record,
        "usage_by_workflow",
        f"{kept} {where} ORDER BY 1, 2, 3",
        f"{records} {where} GROUP BY 1, 2, 3 ORDER BY 1, 2, 3",
        3,
        ("first_day", *names),
    )


def _totals(record: _Record) -> Findings:
    tokens = f"SUM({' + '.join(Counts._fields)})"
    return _unequal(
        record,
        "workflows",
        "SELECT id, usage_count, usage_count, total_tokens, unpriced_tokens, cost_nano FROM workflows "
        f"WHERE usage_count > 0 AND {_KEPT} ORDER BY id",
        f"SELECT workflow_id, COUNT(*), MAX(number), {tokens}, {_SUMS['unpriced_tokens']}, {_SUMS['cost_nano']} "
        f"FROM token_usage WHERE workflow_{_KEPT} GROUP BY 1 ORDER BY 1",
        1,
        ("usage_count", "usage_count", "total_tokens", "unpriced_tokens", "cost_nano"),
    )


def _usage_by_day(record: _Record) -> Findings:
    return _unequal(
        record,
        "usage_by_day",
        f"SELECT day, agent, model, {', '.join(_SUMS)} FROM usage_by_day ORDER BY 1, 2, 3",
        f"SELECT day, agent, model, {', '.join(_SUMS.values())} FROM token_usage GROUP BY 1, 2, 3 ORDER BY 1, 2, 3",
        3,
        tuple(_SUMS),
        outlives=True,
    )


_ENDED = f"status IN {_FINAL}"
_COUNTED = f"COUNT(*), COUNT(*) FILTER (WHERE {_ENDED}), COUNT(*) FILTER (WHERE status = '{Status.COMPLETED}')"


def _workflows_by_day(record: _Record) -> Findings:
    names = ("workflows", "finished", "successful", "duration_ms")
    return _unequal(
        record,
        "workflows_by_day",
        f"SELECT day, {', '.join(names)} FROM workflows_by_day ORDER BY 1",
        _counted_by_day(record.rows("SELECT created_at, status, started_at, completed_at FROM workflows ORDER BY 1")),
        1,
        names,
        outlives=True,
    )


def _counted_by_day(workflows: Iterator[Row]) -> Iterator[Row]:
    """Of each day on which workflows were created, how many, how many have ended and how, and how long they took."""
    for day, created in groupby(workflows, lambda row: str(row[0])[:10]):
        counts = (0, 0, 0, 0)
        for _, status, started_at, completed_at in created:
            has_times = status in _FINAL and started_at and completed_at
            took = clock.milliseconds(started_at, clock.from_text(completed_at)) if has_times else 0
            counts = (
                counts[0] + 1,
                counts[1] + (status in _FINAL),
                counts[2] + (status == Status.COMPLETED),
                counts[3] + took,
            )
        yield (day, *counts)


def _models_by_day(record: _Record) -> Findings:
    names = ("workflows", "finished", "successful")
    first = "SELECT workflow_id AS id, model, MIN(first_day) AS day FROM usage_by_workflow GROUP BY 1, 2"
    return _unequal(
        record,
        "models_by_day",
        f"SELECT day, model, {', '.join(names)} FROM models_by_day ORDER BY 1, 2",
        f"SELECT day, model, {_COUNTED} FROM ({first}) AS used JOIN workflows USING (id) GROUP BY 1, 2 ORDER BY 1, 2",
        2,
        names,
        outlives=True,
    )


def _finished(record: _Record) -> Findings:
    return _unequal(
        record,
        "finished_workflows",
        "SELECT status, workflows FROM finished_workflows ORDER BY 1",
        f"SELECT status, COUNT(*) FROM workflows WHERE {_ENDED} GROUP BY 1 ORDER BY 1",
        1,
        ("workflows",),
    )


def _unequal(
    record: _Record,
    table: str,
    kept: str,
    given: str | Iterator[Row],
    keys: int,
    names: tuple[str, ...],
    outlives: bool = False,
) -> Findings:
    """Where what a table has differs from what its records give; the rows of both begin with the keys and go by them.

    A row that is missing counts as noughts. What `outlives` pruned workflows may be more than the records give.
    """
    pruned = outlives and record.row("SELECT EXISTS (SELECT 1 FROM pruned_workflows)")[0]
    sides = (
        _tagged(record.rows(side) if isinstance(side, str) else side, number, keys)
        for number, side in enumerate((kept, given))
    )
    for key, rows in groupby(merge(*sides), itemgetter(0)):
        numbers = {side: row for _, side, row in rows}
        nothing = (0,) * len(names)
        for name, has, should in zip(names, numbers.get(0, nothing), numbers.get(1, nothing), strict=True):
            if has == should or (pruned and (name == "savings_nano" or has > should)):
                continue
            yield f"{table}, {', '.join(key)}: {name} is {has}, but its records give {should}"


def _tagged(rows: Iterator[Row], side: int, keys: int) -> Iterator[Row]:
    return ((row[:keys], side, row[keys:]) for row in rows)


CHECKS: tuple[Check, ...] = (
    _storage,
    _foreign_keys,
    _tables_and_indexes,
    _sequences,
    _last_sequences,
    _positions,
    _states,
    _ends,
    _worktrees,
    _open_stages,
    _breakdowns,
    _totals,
    _usage_by_day,
    _workflows_by_day,
    _models_by_day,
    _finished,
)
