"""Retention: what goes, what stays, and that nobody is kept waiting."""

import random
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from amelia_flask import audit, clock, events, report, retention, timeline, workflows
from amelia_flask.database import RETENTION
from amelia_flask.errors import DatabaseUnavailable, IdReused, NotFound
from amelia_flask.ledger import Ledger
from amelia_flask.retention import PIECE, Pruned, Retention, prune, steps, survey
from tests import ledgers
from tests.databases import Database, database_of
from tests.ledgers import create, move, new_event, new_workflow, record
from tests.load import create_workflows, event
from tests.serving import serving, until
from tests.test_cli import TRANSCRIPTS, run

DAY = timedelta(days=1)
NOW = datetime(2026, 6, 30, 12, tzinfo=UTC)
ENDS: dict[str, tuple[str, dict[str, Any]]] = {
    "completed": ("complete", {}),
    "failed": ("fail", {"reason": "r"}),
    "cancelled": ("cancel", {}),
}
ledger = ledgers.ledger


def finished(ledger: Ledger, age: timedelta, status: str = "completed", notes: int = 3, **members: Any) -> str:
    """A workflow that ended so long before NOW, with events, usage of two models and an open stage."""
    ended = NOW - age
    workflow = create(ledger, ended - DAY, **members)
    move(ledger, workflow, "start", ended - DAY)
    append(ledger, workflow, notes)
    ledger.write(
        events.append, workflow, events.arrived([new_event(event_type="stage_started", data={"stage": "plan"})])
    )
    used = {"timestamp": clock.to_text(ended), "cost_usd": 0.25}
    record(ledger, workflow, used | {"model": "a"}, used | {"model": "b", "agent": "reviewer"})
    name, said = ENDS[status]
    move(ledger, workflow, name, ended, **said)
    return workflow


def append(ledger: Ledger, workflow: str, count: int) -> None:
    ledger.write(events.append, workflow, events.arrived([new_event() for _ in range(count)]))


def prune_at_once(ledger: Ledger, now: datetime = NOW) -> Pruned:
    return prune(ledger, now, wait=lambda _seconds: False)


def everything(ledger: Ledger) -> Any:
    """All reports on days before NOW."""
    periods = [(None, None), ("2026-05-01", "2026-06-29"), ("2026-01-01", "2026-12-31")]
    return [
        ledger.read(report.report, report.period("all" if start is None else None, start, end, NOW), NOW)
        for start, end in periods
    ]


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
def test_a_workflow_goes_when_it_ended_longer_ago_than_is_kept(ledger: Ledger, status: str) -> None:
    finished(ledger, 30 * DAY + timedelta(microseconds=1), status)
    kept = finished(ledger, 30 * DAY, status)
    taken = prune_at_once(ledger)
    assert taken == Pruned(workflows=1, events=7, usage_records=2)
    database = database_of(ledger)
    for table, column in {"workflows": "id", "events": "workflow_id", "token_usage": "workflow_id"}.items():
        assert {workflow for (workflow,) in database.rows(f"SELECT {column} FROM {table}")} == {kept}
    assert database.rows("SELECT DISTINCT workflow_id FROM usage_by_workflow") == [(kept,)]
    assert database.rows("SELECT DISTINCT workflow_id FROM open_stages") == [(kept,)]
    assert database.rows("SELECT status, workflows FROM finished_workflows WHERE workflows > 0") == [(status, 1)]
    assert list(audit.check(database.engine)) == []


def test_an_active_workflow_stays_however_old_it_is(ledger: Ledger) -> None:
    for name in ("pending", "in_progress", "blocked"):
        workflow = create(ledger, NOW - 1000 * DAY)
        if name != "pending":
            move(ledger, workflow, "start", NOW - 1000 * DAY)
        if name == "blocked":
            move(ledger, workflow, "block", NOW - 1000 * DAY)
    before = database_of(ledger).dump()
    assert prune_at_once(ledger) == Pruned()
    assert database_of(ledger).dump() == before


def test_reports_say_the_same_before_and_after(ledger: Ledger) -> None:
    for age in range(0, 60, 7):
        finished(ledger, age * DAY, random.choice(["completed", "failed", "cancelled"]))
    create(ledger, NOW - 50 * DAY)
    before = everything(ledger)
    assert prune_at_once(ledger).workflows == 4
    assert everything(ledger) == before
    assert before[0].summary.total_workflows == 10
    assert list(audit.check(ledger.engine)) == []


def test_the_oldest_events_above_a_number_go_and_readers_go_on(database: Database) -> None:
    with closing(database.ledger(log_retention_max_events=100)) as ledger:
        workflow, short = create(ledger), create(ledger)
        move(ledger, workflow, "start")
        append(ledger, workflow, 500)
        append(ledger, short, 99)
        assert survey(ledger, NOW) == Pruned(events=402)
        assert prune_at_once(ledger) == Pruned(events=402)
        page = ledger.read(timeline.page, workflow, timeline.Page(after=200, limit=1000))
        assert [one.sequence for one in page.events] == list(range(403, 503))
        assert ledger.read(timeline.page, short, timeline.Page(limit=1000)).events[0].sequence == 1
        append(ledger, workflow, 1)
        assert ledger.read(timeline.page, workflow, timeline.Page(after=502)).events[0].sequence == 503
        assert database_of(ledger).rows("SELECT last_sequence FROM workflows WHERE id = ?", workflow) == [(503,)]
        assert list(audit.check(ledger.engine)) == []


def test_what_a_health_check_left_behind_goes(ledger: Ledger) -> None:
    checks = [f"({n}, '{clock.to_text(NOW - timedelta(minutes=n))}')" for n in range(200)]
    database_of(ledger).execute(f"INSERT INTO health_check VALUES {', '.join(checks)}")
    assert survey(ledger, NOW) == prune_at_once(ledger) == Pruned(health_checks=200 - 61)


def test_a_second_run_finds_nothing_and_a_survey_takes_nothing(ledger: Ledger) -> None:
    for _ in range(5):
        finished(ledger, 40 * DAY, notes=200)
    before = database_of(ledger).dump()
    expected = survey(ledger, NOW)
    assert database_of(ledger).dump() == before
    assert expected == prune_at_once(ledger) == Pruned(workflows=5, events=5 * 204, usage_records=10)
    assert prune_at_once(ledger) == survey(ledger, NOW) == Pruned()


def test_a_number_of_days_beyond_the_calendar_keeps_everything(database: Database) -> None:
    with closing(database.ledger(log_retention_days=10**12)) as ledger:
        finished(ledger, 1000 * DAY)
        assert prune_at_once(ledger) == Pruned()


def half_pruned(ledger: Ledger) -> str:
    """A workflow that retention has begun to take when it was stopped."""
    workflow = finished(ledger, 40 * DAY, notes=100)
    ledger.write(lambda tx: next(retention._take_workflow(tx, workflow)))
    assert database_of(ledger).rows("SELECT COUNT(*) FROM events") == [(104 - PIECE,)]
    return workflow


def test_what_was_begun_is_ended_by_the_next_run(ledger: Ledger) -> None:
    workflow = half_pruned(ledger)
    before = everything(ledger)
    assert list(audit.check(ledger.engine)) == []
    assert prune_at_once(ledger) == Pruned(workflows=1, events=104 - PIECE, usage_records=2)
    assert everything(ledger) == before
    assert database_of(ledger).rows("SELECT * FROM pruned_workflows") == [(workflow,)]


def test_a_workflow_that_retention_has_begun_to_take_cannot_be_deleted_with_a_part_of_its_usage(
    ledger: Ledger,
) -> None:
    workflow = half_pruned(ledger)
    before = database_of(ledger).dump()
    with pytest.raises(NotFound):
        ledger.write(workflows.delete, workflow)
    assert database_of(ledger).dump() == before


def test_the_id_of_a_pruned_workflow_is_not_used_again(ledger: Ledger) -> None:
    new = new_workflow(id=clock.new_id())
    finished(ledger, 40 * DAY, id=str(new.id))
    prune_at_once(ledger)
    before = database_of(ledger).dump()
    with pytest.raises(IdReused, match="was pruned"):
        ledger.write(workflows.create, new)
    assert database_of(ledger).dump() == before


def test_transcripts_of_pruned_sessions_are_not_counted_again(database: Database) -> None:
    settings = {**database.settings, "AMELIA_LOG_RETENTION_DAYS": "1"}
    run("import", "claude-code", str(TRANSCRIPTS), **settings)
    sums = database.rows("SELECT * FROM usage_by_day"), database.rows("SELECT * FROM workflows_by_day")
    dry = run("prune", "--dry-run", **settings)
    assert dry.stdout.startswith("would take 4 workflows, ")
    done = run("prune", **settings)
    assert done.returncode == 0, done.stderr
    assert done.stdout == dry.stdout.replace("would take", "took")
    again = run("import", "claude-code", str(TRANSCRIPTS), **settings)
    assert "0 usage records new" in again.stdout
    assert database.rows("SELECT COUNT(*) FROM workflows") == [(0,)]
    assert (database.rows("SELECT * FROM usage_by_day"), database.rows("SELECT * FROM workflows_by_day")) == sums


def test_events_that_went_from_a_session_are_not_taken_in_again(database: Database) -> None:
    settings = {
        **database.settings,
        "AMELIA_LOG_RETENTION_DAYS": "100000",
        "AMELIA_LOG_RETENTION_MAX_EVENTS": "3",
    }
    run("import", "claude-code", str(TRANSCRIPTS), **settings)
    assert run("prune", **settings).returncode == 0
    before = database.dump()
    again = run("import", "claude-code", str(TRANSCRIPTS), **settings)
    assert "0 events new" in again.stdout
    assert database.dump() == before


def test_a_run_that_is_told_to_stop_ends_after_its_step(ledger: Ledger) -> None:
    for _ in range(3):
        finished(ledger, 40 * DAY, notes=3000)
    waits: list[float] = []

    def stop(seconds: float) -> bool:
        waits.append(seconds)
        return len(waits) == 3

    taken = prune(ledger, NOW, stop)
    assert len(waits) == 3
    assert 0 < taken.events < 9000
    assert all(seconds > 0 for seconds in waits)


def test_a_transaction_of_it_is_short_even_for_a_hundred_thousand_events(ledger: Ledger) -> None:
    workflow = finished(ledger, 40 * DAY)
    database = database_of(ledger)
    database.add_events(workflow, 100_000)
    lasted: list[float] = []
    waited = time.monotonic()
    for taken in steps(ledger, retention.limits(ledger, NOW)):
        lasted.append(time.monotonic() - waited)
        assert taken.events < 20_000
        waited = time.monotonic()
    assert database.rows("SELECT COUNT(*) FROM events") == [(0,)]
    lasted.sort()
    assert lasted[len(lasted) // 2] < 0.05
    assert len(lasted) > 10


def test_one_process_prunes_at_a_time(ledger: Ledger) -> None:
    finished(ledger, 400 * DAY)
    lock = ledger.engine.lock(RETENTION)
    with lock.held(0):
        Retention(ledger)._prune()
        assert database_of(ledger).rows("SELECT COUNT(*) FROM workflows") == [(1,)]
    lock.close()
    Retention(ledger)._prune()
    assert database_of(ledger).rows("SELECT COUNT(*) FROM workflows") == [(0,)]


def test_a_failure_is_logged_and_ends_nothing(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    finished(ledger, 400 * DAY)
    database_of(ledger).execute("ALTER TABLE pruned_workflows RENAME TO elsewhere")
    pruning = Retention(ledger)
    pruning._prune()
    assert "pruning failed" in caplog.text
    database_of(ledger).execute("ALTER TABLE elsewhere RENAME TO pruned_workflows")
    pruning._prune()
    assert database_of(ledger).rows("SELECT COUNT(*) FROM workflows") == [(0,)]


@pytest.mark.engines("sqlite")
def test_a_database_that_is_away_ends_prune_with_its_own_error(ledger: Ledger, path: Path) -> None:
    finished(ledger, 40 * DAY)
    path.unlink()
    with pytest.raises(DatabaseUnavailable):
        prune_at_once(ledger)


def test_a_server_prunes_by_itself_and_reports_stay(database: Database) -> None:
    with closing(database.ledger()) as ledger:
        finished(ledger, 400 * DAY, notes=5000)
        kept = create(ledger)
    sums = database.rows("SELECT * FROM usage_by_day")
    with serving(database, workers=2) as server:
        until(lambda: server.request("GET", "/api/workflows").json["total"] == 1)
        assert server.request("GET", f"/api/workflows/{kept}").status == 200
        assert server.stop() == 0
        assert "failed" not in server.log.read_text()
    assert database.rows("SELECT * FROM usage_by_day") == sums
    assert list(audit.check(database.engine)) == []


def test_a_server_stops_at_once_while_it_prunes(database: Database) -> None:
    with closing(database.ledger()) as ledger:
        workflow = finished(ledger, 400 * DAY)
        database.add_events(workflow, 150_000)
    with serving(database, workers=1) as server:
        workflow = create_workflows(server, 1)[0]
        until(lambda: database.rows("SELECT COUNT(*) FROM pruned_workflows") == [(1,)])
        assert server.request("POST", f"/api/workflows/{workflow}/events", event()).status == 201
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 5
    assert database.rows("SELECT COUNT(*) FROM events") > [(0,)]
    assert list(audit.check(database.engine)) == []
