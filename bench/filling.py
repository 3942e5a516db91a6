"""Large databases, made by bulk SQL in the real schema: what years of use would leave, in a minute.

Ids are time-ordered, sequences and positions have no gaps, sums equal what they sum. Ten workflows run at a time, so
that over all events their positions alternate; all but the last ten have completed.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from peewee import sqlite3 as engine  # the engine that the service itself uses

from amelia_flask import clock, schema
from amelia_flask.sqlite import SqliteEngine

AT_A_TIME = 10
DAYS = 29  # over which the record is spread; the last event is of now

_WORKFLOW = """
INSERT INTO workflows (id, issue_id, worktree_path, worktree_name, status, created_at, started_at, completed_at,
    updated_at, last_sequence, digest)
VALUES (:workflow, :issue, '/bench/' || :workflow, 'bench', :status, :created_at, :started_at, :completed_at,
    :updated_at, :each, '')
"""
_MOMENT = "strftime('%Y-%m-%dT%H:%M:%S', micros / 1000000, 'unixepoch') || printf('.%06dZ', micros % 1000000)"
_ID = """printf('%08x-%04x-7%03x-8%03x-%012x', micros / 1000 >> 16, micros / 1000 & 65535, micros % 1000,
    random() & 4095, random() & 281474976710655)"""
_PLACED = """
WITH RECURSIVE
    number (n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM number WHERE n < :each),
    placed (n, position, micros) AS (
        SELECT n, :first + (n - 1) * :at_a_time, :start + (:first + (n - 1) * :at_a_time) * :step FROM number
    )
"""
_EVENTS = f"""
INSERT INTO events (workflow_id, sequence, id, position, timestamp, agent, event_type, message, data_json)
{_PLACED}
SELECT :workflow, n, {_ID}, position, {_MOMENT},
    CASE WHEN n <= 2 OR (n = :each AND :has_ended) THEN 'system' ELSE 'developer' END,
    CASE
        WHEN n = 1 THEN 'workflow_created'
        WHEN n = 2 THEN 'workflow_started'
        WHEN n = :each AND :has_ended THEN 'workflow_completed'
        ELSE 'tool_call'
    END,
    printf('Read: reading src/service/module_%d.py to find where the request is validated', n % 97),
    printf('{{"tool_name":"Read","input":{{"file_path":"/project/src/service/module_%d.py","offset":%d,"limit":200}},'
        || '"duration_ms":%d}}', n % 97, n, n % 300)
FROM placed
"""
_USAGE = f"""
INSERT INTO token_usage (id, workflow_id, number, agent, model, input_tokens, output_tokens, cache_read_tokens,
    cache_creation_tokens, cost_nano, savings_nano, cost_usd, cost_source, timestamp, day)
{_PLACED},
counted AS (
    SELECT *, 40 + n % 1000 AS plain, 200 + n % 700 AS output, 20000 + n AS reads, 1000 + n % 500 AS writes
    FROM placed
),
priced AS (SELECT *, plain * 3000 + output * 15000 + reads * 300 + writes * 3750 AS nano FROM counted)
SELECT {_ID}, :workflow, n, 'agent-' || (n % 4), 'model-' || (n / 4 % 3), plain, output, reads,
    writes, nano, reads * 2700, nano / 1e9, 'reported', {_MOMENT}, substr({_MOMENT}, 1, 10)
FROM priced
"""
_TOKENS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_creation_tokens", "cost_nano")
_SUMMED = ", ".join(f"SUM({name})" for name in _TOKENS)
_NUMBERED = (
    "INSERT INTO workflows_by_day (day, workflows, finished, successful, duration_ms) "
    "SELECT substr(created_at, 1, 10), COUNT(*), SUM(status = 'completed'), SUM(status = 'completed'), "
    "SUM((status = 'completed') * :duration_ms) FROM workflows GROUP BY 1",
    "INSERT INTO finished_workflows SELECT status, COUNT(*) FROM workflows WHERE status = 'completed' GROUP BY 1",
    "UPDATE event_position SET value = (SELECT MAX(position) FROM events)",
)
_ROLLED_UP = (
    f"INSERT INTO usage_by_day (day, agent, model, {', '.join(_TOKENS)}, savings_nano) "
    f"SELECT day, agent, model, {_SUMMED}, SUM(savings_nano) FROM token_usage GROUP BY 1, 2, 3",
    f"INSERT INTO usage_by_workflow (workflow_id, agent, model, first_day, {', '.join(_TOKENS)}) "
    f"SELECT workflow_id, agent, model, MIN(day), {_SUMMED} FROM token_usage GROUP BY 1, 2, 3",
    "INSERT INTO models_by_day (day, model, workflows, finished, successful) "
    "SELECT day, model, COUNT(*), SUM(status = 'completed'), SUM(status = 'completed') FROM ("
    "SELECT workflow_id, model, MIN(first_day) AS day FROM usage_by_workflow GROUP BY 1, 2"
    ") JOIN workflows ON workflows.id = workflow_id GROUP BY 1, 2",
    "UPDATE workflows SET usage_count = :records, (total_tokens, cost_nano) = ("
    "SELECT SUM(input_tokens + output_tokens + cache_read_tokens + cache_creation_tokens), SUM(cost_nano) "
    "FROM usage_by_workflow WHERE workflow_id = workflows.id)",
)


class Filled(NamedTuple):
    """What is in a database: its workflows in the order of their creation, so many events each."""

    workflows: list[str]
    each: int

    @property
    def active(self) -> list[str]:
        """Those that agents are writing to."""
        return self.workflows[-AT_A_TIME:]


def fill(path: Path, events: int, each: int = 1000) -> Filled:
    """A database with so many events, `each` in every workflow, fewer where that gives less than ten workflows."""
    each = min(each, events // AT_A_TIME)
    count = events // each
    shape = {"each": each, "at_a_time": AT_A_TIME, "step": DAYS * 86_400_000_000 // events}
    shape["start"] = time.time_ns() // 1000 - events * shape["step"]
    with _bulk(path) as connection:
        workflows = [_fill_workflow(connection, n, n < count - AT_A_TIME, shape) for n in range(count)]
        duration_ms = (each - 2) * AT_A_TIME * shape["step"] // 1000
        for sql in _NUMBERED:
            connection.execute(sql, {"duration_ms": duration_ms})
    return Filled(workflows, each)


def fill_usage(path: Path, records: int) -> Filled:
    """A database with so many usage records, a thousand for each of its workflows, and a few events."""
    each = min(1000, records // AT_A_TIME)
    filled = fill(path, 20 * records // each, 20)
    shape = {"each": each, "at_a_time": AT_A_TIME, "step": DAYS * 86_400_000_000 // records}
    shape["start"] = time.time_ns() // 1000 - records * shape["step"]
    with _bulk(path) as connection:
        for n, workflow in enumerate(filled.workflows):
            connection.execute(_USAGE, shape | {"workflow": workflow, "first": _first(n, each)})
        for sql in _ROLLED_UP:
            connection.execute(sql, {"records": each})
    return filled


def _fill_workflow(connection: Any, number: int, has_ended: bool, shape: dict[str, int]) -> str:
    first = _first(number, shape["each"])

    def moment(sequence: int) -> str:
        micros = shape["start"] + (first + (sequence - 1) * AT_A_TIME) * shape["step"]
        return clock.to_text(datetime.fromtimestamp(0, UTC) + timedelta(microseconds=micros))

    workflow = clock.new_id()
    values = {
        "workflow": workflow,
        "issue": f"BENCH-{number}",
        "status": "completed" if has_ended else "in_progress",
        "created_at": moment(1),
        "started_at": moment(2),
        "completed_at": moment(shape["each"]) if has_ended else None,
        "updated_at": moment(shape["each"]),
        "has_ended": has_ended,
        "first": first,
    }
    connection.execute(_WORKFLOW, shape | values)
    connection.execute(_EVENTS, shape | values)
    return workflow


def _first(number: int, each: int) -> int:
    """The position of the first of a workflow's rows: ten workflows take turns, then come the next ten."""
    return number // AT_A_TIME * AT_A_TIME * each + number % AT_A_TIME + 1


@contextmanager
def _bulk(path: Path) -> Iterator[Any]:
    """A connection that saves nothing for the case of a crash; in the end everything is on the disk."""
    schema.set_up(SqliteEngine(path))
    connection = engine.connect(path, isolation_level=None)
    try:
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -262144"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("BEGIN")
        yield connection
        connection.execute("COMMIT")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA journal_mode = WAL")
    finally:
        connection.close()
    settle(path)


def settle(path: Path, forget: bool = False) -> None:
    """Wait until a file is on the disk, so that nothing of it disturbs what is measured next.

    With `forget` no part of it is in memory afterwards. The file must not be open through SQLite in this process:
    closing it here would drop its locks.
    """
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
        if forget:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)
