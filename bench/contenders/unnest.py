"""What PostgreSQL alone takes: rows of events by `INSERT … SELECT FROM unnest`, so many a transaction, one process.

`python -m bench.contenders.unnest URL ROWS SECONDS` prints the milliseconds of each transaction as JSON. The schema
is that of the service, and only transactions are timed.
"""

import json
import sys
import time
from itertools import count
from typing import Any

import psycopg

from bench.contenders.raw import row
from bench.requests import WORKFLOWS

NEW_WORKFLOWS = f"""
    INSERT INTO workflows (id, issue_id, worktree_path, worktree_name, status, created_at, updated_at, digest)
    SELECT 'raw-' || n, 'RAW-1', '/raw', 'raw', 'completed', now(), now(), '' FROM generate_series(1, {WORKFLOWS}) n
    ON CONFLICT DO NOTHING
"""
# Above all positions and sequences that the service gives.
NEW_NUMBERS = "CREATE SEQUENCE IF NOT EXISTS raw_numbers START 1000000000000 CACHE 1000"
_NEW_EVENTS = """
    INSERT INTO events (id, workflow_id, sequence, position, timestamp, agent, event_type, message, data_json)
    SELECT * FROM unnest(%s::text[], %s::text[], %s::bigint[], %s::bigint[], %s::timestamptz[], %s::text[],
        %s::text[], %s::text[], %s::text[])
"""


def measure(url: str, rows: int, seconds: float) -> list[float]:
    """The milliseconds of each transaction, one at least."""
    taken: list[float] = []
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(NEW_WORKFLOWS)
        connection.execute(NEW_NUMBERS)
        started = time.perf_counter()
        for batch in count():
            query = "SELECT nextval('raw_numbers') FROM generate_series(1, %s)"
            numbers = [number for (number,) in connection.execute(query, (rows,))]
            values = [row(f"raw-{batch % WORKFLOWS + 1}", number, number) for number in numbers]
            taken.append(_commit(connection, values))
            if time.perf_counter() - started >= seconds:
                return taken
    raise AssertionError


def _commit(connection: "psycopg.Connection[Any]", rows: list[tuple[Any, ...]]) -> float:
    columns = [list(column) for column in zip(*rows, strict=True)]
    started = time.perf_counter()
    connection.execute("BEGIN")
    connection.execute(_NEW_EVENTS, columns)
    connection.execute("COMMIT")
    return (time.perf_counter() - started) * 1000


if __name__ == "__main__":
    json.dump(measure(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])), sys.stdout)
