"""What the engine alone takes: rows of events by `executemany`, so many a transaction, from one process.

`python -m bench.contenders.raw DATABASE ROWS SECONDS` prints the milliseconds of each transaction as JSON. The
schema and the pragmas are those of the service. Only transactions are timed: the rows are there before.
"""

import json
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any

from amelia_flask import clock, schema
from amelia_flask.sqlite import SqliteEngine, SqliteExtDatabase
from bench.requests import WORKFLOWS, event

_NEW_WORKFLOW = (
    "INSERT INTO workflows (id, issue_id, worktree_path, worktree_name, created_at, updated_at, digest) "
    "VALUES (?, 'RAW-1', ?, 'raw', ?, ?, '')"
)
_NEW_EVENT = (
    "INSERT INTO events (id, workflow_id, sequence, position, timestamp, agent, event_type, message, data_json) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


def measure(path: Path, rows: int, seconds: float) -> list[float]:
    """The milliseconds of each transaction, one at least."""
    schema.set_up(SqliteEngine(path))
    database = SqliteEngine(path).open_writer()
    database.connect()
    workflows = _workflows(database)
    position = database.execute_sql("SELECT COALESCE(MAX(position), 0) FROM events").fetchone()[0]
    taken: list[float] = []
    started = time.perf_counter()
    for batch in count():
        one = workflows[batch % len(workflows)]
        values = [
            row(one, batch // len(workflows) * rows + n, position + batch * rows + n) for n in range(1, rows + 1)
        ]
        taken.append(_commit(database.connection(), values))
        if time.perf_counter() - started >= seconds:
            break
    database.close_all()
    return taken


def _workflows(database: SqliteExtDatabase) -> list[str]:
    now = clock.to_text(clock.now())
    ids = [clock.new_id() for _ in range(WORKFLOWS)]
    with database.atomic():
        for one in ids:
            database.execute_sql(_NEW_WORKFLOW, (one, f"/raw/{one}", now, now))
    return ids


def row(workflow: str, sequence: int, position: int) -> tuple[Any, ...]:
    """An event as the columns of its table hold it."""
    said = event(position)
    return (
        *(clock.new_id(), workflow, sequence, position, clock.to_text(clock.now())),
        *(said["agent"], said["event_type"], said["message"], json.dumps(said["data"], separators=(",", ":"))),
    )


def _commit(connection: Any, rows: list[tuple[Any, ...]]) -> float:
    started = time.perf_counter()
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany(_NEW_EVENT, rows)
    connection.execute("COMMIT")
    return (time.perf_counter() - started) * 1000


if __name__ == "__main__":
    json.dump(measure(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])), sys.stdout)
