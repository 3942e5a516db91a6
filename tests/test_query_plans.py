"""Costs that do not grow: every statement of every call searches an index, and none sorts at size."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from itertools import combinations, product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from peewee import sqlite3 as engine

from amelia_flask import clock, moves, usage
from amelia_flask.ledger import Ledger
from amelia_flask.models import ACTIVE, Status
from tests.api import Api, sent
from tests.calls import WAYS
from tests.ledgers import create, move, new_usage, new_workflow, rows

FINAL = tuple(status for status in Status if status not in ACTIVE)
NOW = datetime.now(UTC)
LEVELS = ("info", "error")
HOLDER = "00000000-0000-7000-8000-000000000000"  # the newest of those that are filled in
FILTERS = {"status": "completed", "worktree": "/worktrees/3", "issue_id": "ISSUE-3", "host": "host-3"}
EVENT_FILTERS = {"event_type": "type_3", "agent": "agent-3", "level": "error"}

# Part of a statement, what its plan says, and why it may. Anything else that scans or sorts is refused.
EXCEPTIONS = (
    ('"workflows"', "SCAN t1 USING INDEX idx_workflows_created_at", "a page without filters stops at its limit"),
    ('"finished_workflows"', "SCAN t1", "has three rows"),
    ('"health_check"', "SCAN health_check", "holds the checks that are under way"),
    ("schema_version", "SCAN schema_version", "has a row for each migration"),
    ("('pending', 'in_progress', 'blocked')", "USE TEMP B-TREE FOR ORDER BY", "sorts what it gives, all of it"),
    ('GROUP BY "t1"."agent"', "USE TEMP B-TREE FOR GROUP BY", "sorts the sums of days, no records"),
    ('FROM "token_usage"', "USE TEMP B-TREE FOR GROUP BY", "sorts what is deleted in the same transaction"),
)


def some(filters: dict[str, str]) -> Iterator[dict[str, str]]:
    """Every choice among the filters, none and all of them included."""
    for count in range(len(filters) + 1):
        for names in combinations(filters, count):
            yield {name: filters[name] for name in names}


def ids(count: int) -> list[str]:
    """The ids of the workflows that are filled in."""
    return [f"{HOLDER[:-6]}{n:06}" for n in range(count)]


INSERTS = (
    "INSERT INTO workflows (id, issue_id, worktree_path, worktree_name, status, host, created_at, started_at,"
    " completed_at, updated_at, digest) VALUES (?, ?, ?, 'w', ?, ?, ?6, ?6, ?6, ?6, '')",
    "INSERT INTO events (workflow_id, sequence, id, position, timestamp, agent, event_type, level, message)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'm')",
    "INSERT INTO token_usage (workflow_id, number, id, agent, model, timestamp, day, input_tokens, output_tokens,"
    " cost_source) VALUES (?, ?, ?, ?, ?, ?6, substr(?6, 1, 10), 1, 1, 'unpriced')",
)
SUMS = (
    "INSERT INTO finished_workflows SELECT status, COUNT(*) FROM workflows GROUP BY 1",
    "INSERT INTO usage_by_day (day, agent, model, input_tokens, output_tokens, unpriced_tokens)"
    " SELECT day, agent, model, COUNT(*), COUNT(*), 2 * COUNT(*) FROM token_usage GROUP BY 1, 2, 3",
    "INSERT INTO usage_by_workflow (workflow_id, agent, model, first_day, input_tokens, output_tokens,"
    " unpriced_tokens) SELECT workflow_id, agent, model, MIN(day), COUNT(*), COUNT(*), 2 * COUNT(*) FROM token_usage"
    " GROUP BY 1, 2, 3",
    "UPDATE event_position SET value = (SELECT MAX(position) FROM events)",
    "UPDATE workflows SET last_sequence = (SELECT COUNT(*) FROM events WHERE workflow_id = workflows.id),"
    " usage_count = (SELECT COUNT(*) FROM token_usage WHERE workflow_id = workflows.id)",
)


def fill(path: Path, count: int) -> None:
    """So many finished workflows, events and records of usage; those of twenty workflows, in turn."""
    names, moments = ids(count), [clock.to_text(NOW - timedelta(minutes=n)) for n in range(count)]
    numbered = [(n, names[n % 20], n // 20 + 1, moment) for n, moment in enumerate(moments)]
    filled = (
        [
            (names[n], f"ISSUE-{n % 40}", f"/worktrees/{n % 20}", FINAL[n % 4 and n % 3], f"host-{n % 4}", moment)
            for n, moment in enumerate(moments)
        ],
        [
            (name, sequence, f"event-{n}", n + 1, moment, f"agent-{n % 5}", f"type_{n % 7}", LEVELS[n < 200])
            for n, name, sequence, moment in numbered
        ],
        [
            (name, number, f"usage-{n}", f"agent-{n % 5}", f"model-{n % 3}", moment)
            for n, name, number, moment in numbered
        ],
    )
    with closing(engine.connect(path)) as connection, connection:
        for statement, values in zip(INSERTS, filled, strict=True):
            connection.executemany(statement, values)
        for statement in SUMS:
            connection.execute(statement)


def reads(workflow: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every address that can be read, with every choice of its parameters."""
    one = f"/api/workflows/{workflow}"
    probes = ("/api/health/live", "/api/health/ready", "/api/health", "/metrics")
    for address in (*probes, "/api/openapi.json", "/api/docs", one):
        yield address, {}
    for chosen in some(FILTERS):
        yield "/api/workflows", {"limit": 5} | chosen
    yield "/api/workflows", {"status": "blocked"}
    for worktree in ({}, {"worktree": "/worktrees/3"}):
        yield "/api/workflows/active", worktree
    for chosen, before, order in product(some(EVENT_FILTERS), ({}, {"before": 900}), ("asc", "desc")):
        for address in (f"{one}/events", "/api/events"):
            yield address, {"after": 1, "order": order} | before | chosen
    for after in ({}, {"after": "100"}):
        yield f"{one}/token-usage", after
    for period in ({"preset": "30d"}, {"preset": "all"}, {"start": "2026-01-01", "end": "2026-01-31"}):
        yield "/api/usage", period


def writes(active: str) -> Iterator[tuple[str, str, Any]]:
    """Every way to change a workflow that is pending; a repeat is looked up where a first time is not."""
    one, event, record = (
        f"/api/workflows/{active}",
        {"agent": "a", "message": "m"},
        {"agent": "a", "model": "model-1"},
    )
    for name in ("stage_started", "stage_completed", "note", "note"):
        yield "POST", f"{one}/events", event | {"event_type": name, "id": name, "data": {"stage": "plan"}}
    for day in ("03", "02", "02"):
        counts = {"input_tokens": 1, "output_tokens": 1, "id": day, "timestamp": f"2026-01-{day}T00:00:00Z"}
        yield "POST", f"{one}/token-usage", record | counts
    yield "PATCH", one, {"state": {"a": 1}}
    for name, said in (
        *(("start", {"event_id": "s"}), ("start", {"event_id": "s"}), ("block", {}), ("approve", {}), ("block", {})),
        *(("reject", {"feedback": "f"}),),
    ):
        yield "POST", f"{one}/{name}", said
    yield "DELETE", one, None


@contextmanager
def noted(ledger: Ledger) -> Iterator[list[str]]:
    """The statements that this thread's reader and the writer carry out meanwhile."""
    found: list[str] = []

    def trace(callback: Callable[[str], None] | None) -> None:
        ledger.read(lambda db: db.connection().set_trace_callback(callback))
        ledger.write(lambda tx: tx.connection().set_trace_callback(callback))

    trace(lambda sql: found.append(sql) if sql.startswith(("SELECT", "INSERT", "UPDATE", "DELETE")) else None)
    try:
        yield found
    finally:
        trace(None)


def call_everything(api: Api) -> set[tuple[str, str]]:
    """Call every operation on a workflow that is filled and on new ones; give the method and rule of each call."""
    called = []
    client, match = api.app.test_client(), api.app.url_map.bind("localhost").match

    def call(method: str, address: str, **request: Any) -> Any:
        response = client.open(address, method=method, **request)
        assert response.status_code < 300, response.text
        called.append((method, str(match(address, method, return_rule=True)[0].rule)))
        return response.json

    for address, query in reads(HOLDER):
        page = call("GET", address, query_string=query)
        if page and page.get("cursor"):
            call("GET", address, query_string=query | {"cursor": page["cursor"]})
    body = {"issue_id": "ISSUE-1", "worktree_path": "/worktrees/active", "id": "00000000-0000-7000-8000-00000000000a"}
    for _ in range(2):  # the second one is told that it exists
        active = call("POST", "/api/workflows", **sent(body))["id"]
    for method, address, said in writes(active):
        call(method, address, **(sent(said) if said is not None else {}))
    for name, said in (("complete", {}), ("fail", {"reason": "r"}), ("cancel", {})):
        other = create(api.ledger)
        if name != "cancel":
            move(api.ledger, other, "start")
        call("POST", f"/api/workflows/{other}/{name}", **sent(said))
    call("DELETE", f"/api/workflows/{HOLDER}")
    return set(called)


def import_something(ledger: Ledger) -> None:
    """What only an import does: store what is over already, and let records grow."""
    workflow = ledger.write(moves.create_completed, new_workflow(), NOW, NOW, lambda _: None)
    for tokens in (1, 2):
        ledger.write(usage.record_or_grow, workflow, usage.priced([new_usage(id="grows", output_tokens=tokens)]))


@contextmanager
def filled(path: Path, count: int) -> Iterator[Api]:
    """An application on a database with so many of everything."""
    api = Api(path)
    fill(path, count)
    yield api
    api.ledger.close()


class Watched(NamedTuple):
    """What can be called, what was, and what was said to the database for it."""

    operations: set[tuple[str, str]]
    called: set[tuple[str, str]]
    statements: set[str]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    with filled(tmp_path_factory.mktemp("watched") / "amelia.db", 2000) as api, noted(api.ledger) as statements:
        called = call_everything(api)
        import_something(api.ledger)
        rules = [rule for rule in api.app.url_map.iter_rules() if rule.rule.startswith("/api")]
        return Watched(
            {(method, rule.rule) for rule in rules for method in rule.methods or ()}, called, set(statements)
        )


def test_every_operation_is_watched(watched: Watched) -> None:
    operations = {(method, rule) for method, rule in watched.operations if method not in ("HEAD", "OPTIONS")}
    assert operations - watched.called == {("GET", "/api/docs/<name>")}


@pytest.mark.parametrize("statistics", [False, True], ids=["without_statistics", "with_statistics"])
def test_every_statement_searches_an_index_and_none_sorts_at_size(
    watched: Watched, tmp_path: Path, statistics: bool
) -> None:
    with filled(tmp_path / "amelia.db", 2000) as api, closing(engine.connect(api.path)) as connection:
        if statistics:
            connection.execute("ANALYZE")
        used = set()
        for sql in watched.statements:
            for *_, step in connection.execute(f"EXPLAIN QUERY PLAN {sql}"):
                if step.startswith(("SCAN", "USE TEMP B-TREE")):
                    reasons = {reason for part, allowed, reason in EXCEPTIONS if part in sql and step == allowed}
                    assert reasons, f"{step}: {sql}"
                    used |= reasons
    assert used == {reason for *_, reason in EXCEPTIONS}


def test_what_belongs_to_a_workflow_is_found_by_an_index(tmp_path: Path) -> None:
    with filled(tmp_path / "amelia.db", 20) as api, closing(engine.connect(api.path)) as connection:
        tables = connection.execute(
            "SELECT t.name, f.\"from\" FROM sqlite_master t, pragma_foreign_key_list(t.name) f WHERE t.type = 'table'"
        ).fetchall()
        assert {table for table, _ in tables} == {"events", "token_usage", "open_stages", "usage_by_workflow"}
        for table, column in tables:
            ((*_, step),) = connection.execute(f"EXPLAIN QUERY PLAN DELETE FROM {table} WHERE {column} = ?", [None])
            assert step.startswith(f"SEARCH {table} USING"), step


def steps(api: Api, address: str, query: dict[str, Any]) -> int:
    """How many steps of SQLite's machine the answer takes."""
    taken = []
    api.ledger.read(lambda db: db.connection().set_progress_handler(lambda: taken.append(1), 1))
    try:
        api.get(address, **query)
    finally:
        api.ledger.read(lambda db: db.connection().set_progress_handler(None, 0))
    return len(taken)


@pytest.fixture(scope="module")
def small_and_large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Api, Api]]:
    """Two databases, of which the second has five times as much in it, and as much that is active."""
    folder = tmp_path_factory.mktemp("growing")
    with filled(folder / "small.db", 2000) as small, filled(folder / "large.db", 10_000) as large:
        for api in (small, large):
            for n in range(3):
                move(api.ledger, create(api.ledger, worktree_path=f"/active/{n}"), "start")
        yield small, large


@pytest.mark.parametrize(
    ("address", "query"),
    [
        ("/api/health/ready", {}),
        ("/metrics", {}),
        ("/api/workflows", {"limit": 50}),
        ("/api/workflows", {"status": "completed"}),
        ("/api/workflows", {"status": "in_progress"}),
        ("/api/workflows", {"status": "failed", "host": "host-0"}),
        ("/api/workflows", FILTERS | {"issue_id": "none"}),
        ("/api/workflows", {"status": "completed", "host": "host-3", "worktree": "/none"}),
        ("/api/workflows/active", {}),
        (f"/api/workflows/{HOLDER}", {}),
        (f"/api/workflows/{HOLDER}/events", {"after": 50, "limit": 10}),
        (f"/api/workflows/{HOLDER}/token-usage", {"after": "50", "limit": 10}),
        ("/api/events", {"order": "desc"}),
        ("/api/events", {"after": 1000, "event_type": "nothing"}),
        ("/api/events", {"after": 1000, "event_type": "type_3"}),
        ("/api/events", {"agent": "nobody"}),
        ("/api/events", {"level": "error", "order": "desc"}),
        ("/api/events", {"agent": "agent-3", "order": "desc"}),
        ("/api/events", {"agent": "agent-3", "event_type": "nothing"}),
        ("/api/usage", {"start": "2020-01-01", "end": "2020-01-31"}),
    ],
    ids=str,
)
def test_an_answer_of_the_same_length_takes_as_much_work_when_there_is_more(
    small_and_large: tuple[Api, Api], address: str, query: dict[str, Any]
) -> None:
    small, large = (steps(api, address, query) for api in small_and_large)
    assert 0 < large <= small * 1.1 + 50


def test_counting_what_is_active_is_no_more_work_when_more_is_finished(small_and_large: tuple[Api, Api]) -> None:
    for api in small_and_large:
        assert steps(api, "/api/health", {}) < 200


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("/api/workflows?limit=1", 2),
        ("/api/workflows?limit=50", 2),
        ("/api/workflows?limit=100&status=completed", 2),
        ("/api/workflows?limit=50&host=host-3&status=failed", 2),
        ("/api/workflows/active", 1),
        (f"/api/workflows/{HOLDER}", 3),
        (f"/api/workflows/{HOLDER}/events?limit=1000", 1),
        ("/api/events?limit=1000", 1),
        (f"/api/workflows/{HOLDER}/token-usage?limit=1000", 3),
    ],
)
def test_an_answer_takes_as_many_queries_however_long_it_is(
    small_and_large: tuple[Api, Api], address: str, expected: int
) -> None:
    api = small_and_large[0]
    with noted(api.ledger) as statements:
        assert api.app.test_client().get(address).status_code == 200
    assert len(statements) == expected


def test_a_report_reads_the_sums_and_no_record(small_and_large: tuple[Api, Api]) -> None:
    api = small_and_large[0]
    with noted(api.ledger) as statements:
        api.get("/api/usage", preset="30d")
    assert 0 < len(statements) < 8
    assert not any("token_usage" in sql or '"events"' in sql for sql in statements)


@pytest.mark.parametrize("wanted", [*some(FILTERS), {"status": "pending"}, {"status": "in_progress"}], ids=str)
def test_totals_are_those_of_a_count(small_and_large: tuple[Api, Api], wanted: dict[str, str]) -> None:
    api = small_and_large[0]
    columns = {name.replace("worktree", "worktree_path"): value for name, value in wanted.items()}
    clauses = "".join(f" AND {column} = ?" for column in columns)
    counted = rows(api.path, f"SELECT COUNT(*) FROM workflows WHERE 1{clauses}", *columns.values())
    assert [(api.get("/api/workflows", **wanted)["total"],)] == counted
    assert counted != [(0,)] or wanted == {"status": "pending"}


def test_totals_follow_every_move_and_deletion(tmp_path: Path) -> None:
    with filled(tmp_path / "amelia.db", 60) as api:

        def check() -> None:
            for status in Status:
                counted = rows(api.path, "SELECT COUNT(*) FROM workflows WHERE status = ?", str(status))
                assert [(api.get("/api/workflows", status=str(status))["total"],)] == counted
            assert [(api.get("/api/workflows")["total"],)] == rows(api.path, "SELECT COUNT(*) FROM workflows")

        check()
        for ways in WAYS.values():
            workflow = create(api.ledger)
            check()
            for name, said in ways:
                move(api.ledger, workflow, name, **said)
                check()
        import_something(api.ledger)
        check()
        for workflow in ids(5):
            assert api.app.test_client().delete(f"/api/workflows/{workflow}").status_code == 204
            check()
