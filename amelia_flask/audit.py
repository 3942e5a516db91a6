"""Whether a record is what it must be: the invariants that can be told from the database alone, read at one moment.

Findings are lines that say what is wrong and where. Of a workflow that retention has taken its part of the sums by
day is left, so these are at least what the records give, and equal to it where nothing was pruned.
"""

from collections.abc import Callable, Iterator
from heapq import merge
from itertools import groupby
from operator import itemgetter
from typing import Any

from amelia_flask import clock, schema
from amelia_flask.database import FAULTS, Engine
from amelia_flask.models import ACTIVE, Status
from amelia_flask.moves import MOVES
from amelia_flask.pricing import Counts
from amelia_flask.progress import Step, Unit

CHECKS_MADE = Unit("checks", 1)

Findings = Iterator[str]
Row = tuple[Any, ...]


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


def check(engine: Engine, step: Step = lambda _checks: None) -> Findings:
    """What is wrong with the database which is not changed; `step` is given each check that was made.

    It may be in use, or a backup. Raises SchemaError where it is no database of this version.
    """
    schema.refuse_earlier(engine)
    with engine.peeking() as connection:
        connection.create_function("milliseconds", 2, _milliseconds, deterministic=True)
        connection.execute("BEGIN")
        for check_one in CHECKS:
            try:
                yield from check_one(connection)
            except FAULTS as error:
                yield f"the file: {check_one.__name__.strip('_')} could not be checked: {error}"
            step(1)


def _milliseconds(start: str, end: str | None) -> int:
    return clock.milliseconds(start, clock.from_text(end)) if end else 0


def _engine(connection: Any) -> Findings:
    for (problem,) in connection.execute("PRAGMA integrity_check"):
        if problem != "ok":
            yield f"the file: {' '.join(problem.split())}"


def _foreign_keys(connection: Any) -> Findings:
    for table, _, parent, _ in connection.execute("PRAGMA foreign_key_check"):
        yield f"{table}: a row belongs to no row of {parent}"


def _tables_and_indexes(connection: Any) -> Findings:
    there = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    for name in sorted(schema.names_of_tables_and_indexes() - there):
        yield f"the schema: {name} is missing"


def _sequences(connection: Any) -> Findings:
    sql = """
        SELECT workflow_id, before, sequence, earlier, position FROM (
            SELECT *, LAG(sequence) OVER one AS before, LAG(position) OVER one AS earlier
            FROM events WINDOW one AS (PARTITION BY workflow_id ORDER BY sequence)
        ) WHERE sequence != before + 1 OR position <= earlier
    """
    for workflow, before, sequence, earlier, position in connection.execute(sql):
        if sequence != before + 1:
            yield f"workflow {workflow}: after the event with sequence {before} comes {sequence}"
        if position <= earlier:
            yield f"workflow {workflow}: sequence {sequence} has position {position}, the one before it {earlier}"


def _last_sequences(connection: Any) -> Findings:
    sql = f"""
        SELECT id, last_sequence, (SELECT MAX(sequence) FROM events WHERE workflow_id = workflows.id) AS largest
        FROM workflows WHERE largest IS NOT last_sequence AND (largest IS NOT NULL OR {_KEPT})
    """
    for workflow, last, largest in connection.execute(sql):
        newest = "it has no events" if largest is None else f"its newest event has {largest}"
        yield f"workflow {workflow}: last_sequence is {last}, but {newest}"


def _positions(connection: Any) -> Findings:
    for position, count in connection.execute("SELECT position, COUNT(*) FROM events GROUP BY 1 HAVING COUNT(*) > 1"):
        yield f"position {position}: {count} events have it"
    rows = connection.execute("SELECT id, value FROM event_position").fetchall()
    largest = connection.execute("SELECT COALESCE(MAX(position), 0) FROM events").fetchone()[0]
    if [number for number, _ in rows] != [1]:
        yield f"event_position: it has {len(rows)} rows in place of one"
    elif rows[0][1] < largest:
        yield f"event_position: it is {rows[0][1]}, but an event has position {largest}"


def _states(connection: Any) -> Findings:
    """A workflow's status is what the moves that its events tell of lead to, from the first event that is kept."""
    kinds = ", ".join(f"'{kind}'" for kind in (_CREATED, *_MOVES))
    sql = f"""
        SELECT w.id, w.status, e.sequence, e.event_type FROM events e JOIN workflows w ON w.id = e.workflow_id
        WHERE e.event_type IN ({kinds}) ORDER BY e.workflow_id, e.sequence
    """
    for (workflow, status), told in groupby(connection.execute(sql), itemgetter(0, 1)):
        yield from _replay(workflow, status, [row[2:] for row in told])
    silent = f"""
        SELECT id FROM workflows WHERE NOT EXISTS (
            SELECT 1 FROM events WHERE workflow_id = workflows.id AND sequence = 1 AND event_type = '{_CREATED}'
        ) AND EXISTS (SELECT 1 FROM events WHERE workflow_id = workflows.id AND sequence = 1)
    """
    for (workflow,) in connection.execute(silent):
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


def _ends(connection: Any) -> Findings:
    sql = f"SELECT id, status, completed_at FROM workflows WHERE (status IN {_FINAL}) != (completed_at IS NOT NULL)"
    for workflow, status, completed_at in connection.execute(sql):
        yield f"workflow {workflow}: it is {status}, but completed_at is {completed_at or 'null'}"


def _worktrees(connection: Any) -> Findings:
    active = f"SELECT host, worktree_path, COUNT(*) AS count FROM workflows WHERE status IN {_ACTIVE} GROUP BY 1, 2"
    sql = f"SELECT * FROM ({active}) WHERE count > 1"
    for host, path, count in connection.execute(sql):
        yield f"worktree {path} of host {host or 'none'}: {count} active workflows hold it"


def _open_stages(connection: Any) -> Findings:
    sql = """
        SELECT s.workflow_id, s.stage, s.sequence FROM open_stages s
        LEFT JOIN events e ON e.workflow_id = s.workflow_id AND e.sequence = s.sequence
        WHERE e.event_type IS NOT 'stage_started' AND (e.event_type IS NOT NULL
            OR s.sequence >= (SELECT MIN(sequence) FROM events WHERE workflow_id = s.workflow_id))
    """
    for workflow, stage, sequence in connection.execute(sql):
        yield f"workflow {workflow}: the stage {stage!r} is open since sequence {sequence}, which does not start it"


def _breakdowns(connection: Any) -> Findings:
    names = list(_SUMS)[:-1]
    sums = ", ".join(_SUMS[name] for name in names)
    kept = f"SELECT workflow_id, agent, model, first_day, {', '.join(names)} FROM usage_by_workflow"
    records = f"SELECT workflow_id, agent, model, MIN(day), {sums} FROM token_usage"
    where = f"WHERE workflow_{_KEPT}"
    return _unequal(
        connection,
        "usage_by_workflow",
        f"{kept} {where} ORDER BY 1, 2, 3",
        f"{records} {where} GROUP BY 1, 2, 3 ORDER BY 1, 2, 3",
        3,
        ("first_day", *names),
    )


def _totals(connection: Any) -> Findings:
    tokens = f"SUM({' + '.join(Counts._fields)})"
    return _unequal(
        connection,
        "workflows",
        "SELECT id, usage_count, usage_count, total_tokens, unpriced_tokens, cost_nano FROM workflows "
        f"WHERE usage_count > 0 AND {_KEPT} ORDER BY id",
        f"SELECT workflow_id, COUNT(*), MAX(number), {tokens}, {_SUMS['unpriced_tokens']}, {_SUMS['cost_nano']} "
        f"FROM token_usage WHERE workflow_{_KEPT} GROUP BY 1 ORDER BY 1",
        1,
        ("usage_count", "usage_count", "total_tokens", "unpriced_tokens", "cost_nano"),
    )


def _usage_by_day(connection: Any) -> Findings:
    return _unequal(
        connection,
        "usage_by_day",
        f"SELECT day, agent, model, {', '.join(_SUMS)} FROM usage_by_day ORDER BY 1, 2, 3",
        f"SELECT day, agent, model, {', '.join(_SUMS.values())} FROM token_usage GROUP BY 1, 2, 3 ORDER BY 1, 2, 3",
        3,
        tuple(_SUMS),
        outlives=True,
    )


_ENDED = f"status IN {_FINAL}"
_COUNTED = f"COUNT(*), SUM({_ENDED}), SUM(status = '{Status.COMPLETED}')"


def _workflows_by_day(connection: Any) -> Findings:
    lasted = f"CASE WHEN {_ENDED} AND started_at IS NOT NULL THEN milliseconds(started_at, completed_at) ELSE 0 END"
    names = ("workflows", "finished", "successful", "duration_ms")
    return _unequal(
        connection,
        "workflows_by_day",
        f"SELECT day, {', '.join(names)} FROM workflows_by_day ORDER BY 1",
        f"SELECT substr(created_at, 1, 10), {_COUNTED}, SUM({lasted}) FROM workflows GROUP BY 1 ORDER BY 1",
        1,
        names,
        outlives=True,
    )


def _models_by_day(connection: Any) -> Findings:
    names = ("workflows", "finished", "successful")
    first = "SELECT workflow_id AS id, model, MIN(first_day) AS day FROM usage_by_workflow GROUP BY 1, 2"
    return _unequal(
        connection,
        "models_by_day",
        f"SELECT day, model, {', '.join(names)} FROM models_by_day ORDER BY 1, 2",
        f"SELECT day, model, {_COUNTED} FROM ({first}) JOIN workflows USING (id) GROUP BY 1, 2 ORDER BY 1, 2",
        2,
        names,
        outlives=True,
    )


def _finished(connection: Any) -> Findings:
    return _unequal(
        connection,
        "finished_workflows",
        "SELECT status, workflows FROM finished_workflows ORDER BY 1",
        f"SELECT status, COUNT(*) FROM workflows WHERE {_ENDED} GROUP BY 1 ORDER BY 1",
        1,
        ("workflows",),
    )


def _unequal(
    connection: Any, table: str, kept: str, given: str, keys: int, names: tuple[str, ...], outlives: bool = False
) -> Findings:
    """Where what a table has differs from what its records give; both queries begin with the keys and go by them.

    A row that is missing counts as noughts. What `outlives` pruned workflows may be more than the records give.
    """
    pruned = outlives and connection.execute("SELECT EXISTS (SELECT 1 FROM pruned_workflows)").fetchone()[0]
    sides = (_tagged(connection.execute(sql), side, keys) for side, sql in enumerate((kept, given)))
    for key, rows in groupby(merge(*sides), itemgetter(0)):
        numbers = {side: row for _, side, row in rows}
        nothing = (0,) * len(names)
        for name, has, should in zip(names, numbers.get(0, nothing), numbers.get(1, nothing), strict=True):
            if has == should or (pruned and (name == "savings_nano" or has > should)):
                continue
            yield f"{table}, {', '.join(key)}: {name} is {has}, but its records give {should}"


def _tagged(rows: Iterator[Row], side: int, keys: int) -> Iterator[Row]:
    return ((row[:keys], side, row[keys:]) for row in rows)


CHECKS: tuple[Callable[[Any], Findings], ...] = (
    _engine,
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
