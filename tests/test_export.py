"""Exports and imports as an operator meets them: parts, what retention took, files, a running server."""

import os
import stat
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from amelia_flask import clock, events, workflows
from amelia_flask.errors import NotFound
from amelia_flask.ledger import Ledger
from amelia_flask.transfer import reading, writing
from tests import ledgers
from tests.databases import Database, Sqlite, database_of
from tests.histories import check, prune
from tests.ledgers import create, move, new_event, record
from tests.load import check_record
from tests.serving import Server, serving
from tests.test_cli import run
from tests.test_transfer import content, exported, lines_of, reported, take_in

ledger = ledgers.ledger

START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def other(other_database: Database) -> Iterator[Ledger]:
    """A second database."""
    with closing(other_database.ledger()) as other:
        yield other


def used(ledger: Ledger, day: int = 0, **members: Any) -> str:
    """A workflow of that day of January 2026 that has used something and has ended."""
    moment = START + timedelta(days=day)
    workflow = create(ledger, moment)
    move(ledger, workflow, "start", moment)
    record(ledger, workflow, {"cost_usd": 0.25, "timestamp": clock.to_text(moment)} | members)
    move(ledger, workflow, "complete", moment + timedelta(hours=1))
    return workflow


def chosen(raw: bytes) -> list[str]:
    return [line["id"] for line in lines_of(raw, "workflow")]


def test_a_part_of_the_record_is_chosen_by_id_and_by_the_time_of_creation(ledger: Ledger) -> None:
    ids = [used(ledger, day) for day in range(4)]
    assert chosen(exported(ledger)) == ids
    assert chosen(exported(ledger, ids=(ids[2], ids[0]))) == [ids[0], ids[2]]
    second, third = START + timedelta(days=1), START + timedelta(days=2)
    assert chosen(exported(ledger, since=second)) == ids[1:]
    assert chosen(exported(ledger, until=third)) == ids[:2]
    assert chosen(exported(ledger, since=second, until=third)) == [ids[1]]
    assert chosen(exported(ledger, since=second, until=second)) == []
    assert chosen(exported(ledger, ids=tuple(ids), since=third)) == ids[2:]


def test_a_part_has_all_that_belongs_to_its_workflows_and_nothing_else(ledger: Ledger, other: Ledger) -> None:
    _, wanted, _ = (used(ledger, day) for day in range(3))
    raw = exported(ledger, ids=(wanted,))
    take_in(other, raw)
    assert exported(other) == exported(other, ids=(wanted,)) == raw
    for table in ("events", "token_usage"):
        query = f"SELECT * FROM {table} WHERE workflow_id = ? ORDER BY id"
        assert database_of(other).rows(query, wanted) == database_of(ledger).rows(query, wanted)
    assert database_of(other).rows("SELECT COUNT(*) FROM workflows") == [(1,)]


def test_a_workflow_that_is_not_there_is_named(ledger: Ledger) -> None:
    missing = clock.new_id()
    with pytest.raises(NotFound, match=missing):
        exported(ledger, ids=(missing,))


def test_an_export_is_of_one_moment(ledger: Ledger) -> None:
    first = used(ledger)
    whole = exported(ledger)
    lines = writing.export(ledger, writing.Selection(), lambda _: None)
    begun = next(lines)
    used(ledger)
    ledger.write(workflows.delete, first)
    assert begun + b"".join(lines) == whole


def test_an_export_that_is_given_up_lets_go_of_the_database(ledger: Ledger) -> None:
    lines = writing.export(ledger, writing.Selection(), lambda _: None)
    next(lines)
    lines.close()
    used(ledger)
    database = database_of(ledger)
    if isinstance(database, Sqlite):
        assert database.rows("PRAGMA wal_checkpoint(TRUNCATE)") == [(0, 0, 0)]
    else:
        begun = "datname = current_database() AND state LIKE 'idle in transaction%'"
        assert database.rows(f"SELECT 1 FROM pg_stat_activity WHERE {begun}") == []


def test_progress_of_an_export_ends_with_the_newest_position(ledger: Ledger) -> None:
    used(ledger)
    passed: list[int] = []
    b"".join(writing.export(ledger, writing.Selection(), passed.append))
    assert sum(passed) == writing.newest_position(ledger) == 3


def test_reports_on_what_retention_took_move_along(ledger: Ledger, other: Ledger) -> None:
    used(ledger, 0, model="claude-haiku-4-5")
    used(ledger, 1)
    create(ledger, START)
    prune(ledger)
    used(ledger, 2)
    raw = exported(ledger)
    [pruned] = lines_of(raw, "pruned")
    assert (len(pruned["workflows"]), [day["day"] for day in pruned["days"]]) == (2, ["2026-01-01", "2026-01-02"])
    take_in(other, raw)
    assert reported(other) == reported(ledger)
    assert reported(other).summary.total_cost_usd == 0.75
    take_in(other, raw)
    assert content(other) == content(ledger)


def test_what_retention_took_is_not_counted_again_when_it_comes_back(ledger: Ledger) -> None:
    used(ledger)
    raw = exported(ledger)
    prune(ledger)
    before = content(ledger)
    taken = take_in(ledger, raw)
    assert (taken.workflows, taken.pruned_workflows, taken.events, taken.refused) == (0, 1, 0, [])
    assert content(ledger) == before


def test_what_was_taken_elsewhere_and_is_still_here_counts_once(ledger: Ledger, other: Ledger) -> None:
    used(ledger)
    take_in(other, exported(ledger))
    prune(ledger)
    used(ledger, 1)
    assert take_in(other, exported(ledger)).refused == []
    assert reported(other) == reported(ledger)


def test_the_sums_of_two_records_that_were_pruned_add_up(ledger: Ledger, other: Ledger) -> None:
    for one in (ledger, other):
        used(one)
        prune(one)
    take_in(other, exported(ledger))
    assert reported(other).summary.total_cost_usd == 0.5
    assert reported(other).summary.total_workflows == 2
    check(database_of(other))


def test_sums_that_would_count_some_workflows_twice_are_left_out_and_named(ledger: Ledger, other: Ledger) -> None:
    first = used(ledger)
    take_in(other, exported(ledger))
    used(ledger, 1)
    prune(ledger)
    before = reported(other)
    [sentence] = take_in(other, exported(ledger)).refused
    assert sentence == (
        f"The sums of 2 pruned workflows are left out: 1 of them are counted here already, {first} for one."
    )
    assert reported(other) == before


def test_a_part_of_the_record_is_without_the_sums_of_what_retention_took(ledger: Ledger) -> None:
    used(ledger)
    prune(ledger)
    assert lines_of(exported(ledger, since=START), "pruned") == []


@pytest.mark.parametrize("direction", ["out", "in"])
def test_memory_does_not_grow_with_the_record(ledger: Ledger, other: Ledger, tmp_path: Path, direction: str) -> None:
    for _ in range(4):
        workflow = used(ledger)
        new = [new_event(message="x" * 2000) for _ in range(1000)]
        ledger.write(events.append, workflow, events.arrived(new))
    file = tmp_path / "record.ndjson"
    file.write_bytes(exported(ledger))
    with file.open("rb") as lines:
        tracemalloc.start()
        if direction == "out":
            assert sum(map(len, writing.export(ledger, writing.Selection(), lambda _: None))) == file.stat().st_size
        else:
            assert reading.take_in(other, lines, lambda _: None).events == 4012
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < file.stat().st_size / 2


@pytest.mark.engines("sqlite")
def test_an_export_holds_no_sorted_copy_of_the_events(ledger: Ledger) -> None:
    for wanted in (writing.Selection(), writing.Selection(ids=(clock.new_id(),)), writing.Selection(since=START)):
        query, values = ledger.readers.get_sql_context().sql(writing._events(wanted)).query()
        with ledger.readers.connection_context():
            plan = ledger.readers.connection().execute(f"EXPLAIN QUERY PLAN {query}", values).fetchall()
        assert plan[0][3] == "SCAN t1 USING INDEX events_position"
        assert not any("TEMP B-TREE" in row[3] for row in plan)


def test_files_are_new_private_and_whole(ledger: Ledger, tmp_path: Path) -> None:
    used(ledger)
    file = tmp_path / "out" / "record.ndjson"
    file.parent.mkdir()
    setting = dict(database_of(ledger).settings)
    assert run("export", str(file), **setting).returncode == 0
    assert file.read_bytes() == exported(ledger)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    again = run("export", str(file), **setting)
    assert (again.returncode, len(again.stderr.splitlines())) == (1, 1)
    assert str(file) in again.stderr
    missing = run("export", "--workflow", clock.new_id(), str(file.with_name("b")), **setting)
    assert (missing.returncode, "There is no workflow" in missing.stderr) == (1, True)
    assert [one.name for one in file.parent.iterdir()] == ["record.ndjson"]


def test_lines_go_from_standard_output_to_standard_input(ledger: Ledger, tmp_path: Path) -> None:
    used(ledger)
    out = run("export", "-", **database_of(ledger).settings)
    assert (out.returncode, out.stderr, out.stdout.encode()) == (0, "", exported(ledger))
    setting = {"AMELIA_DATABASE_PATH": str(tmp_path / "b.db")}
    for new in (1, 0):
        done = run("import", "ndjson", "-", stdin=out.stdout, **setting)
        assert done.returncode == 0
        assert f"-: {new} workflows new, {1 - new} known, 0 pruned" in done.stdout
    assert run("export", "-", **setting).stdout == out.stdout


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--since", "2026-01-02"], 1),
        (["--until", "2026-01-02"], 1),
        (["--since", "2026-01-01T00:00:00Z", "--until", "2026-01-03T00:00:00+14:00"], 2),
        (["--since", "2026-01-02T01:00:00+01:00"], 1),
        (["--since", "2026-01-02T00:00:01Z"], 0),
    ],
)
def test_times_are_days_or_have_an_offset(ledger: Ledger, options: list[str], found: int) -> None:
    for day in range(2):
        used(ledger, day)
    done = run("export", *options, "-", **database_of(ledger).settings)
    assert len(chosen(done.stdout.encode())) == found


@pytest.mark.parametrize("text", ["2026-01-01T00:00:00", "tomorrow", "2026-02-30", "0001-01-01T00:00:00+14:00"])
def test_other_times_are_refused(text: str, tmp_path: Path) -> None:
    done = run("export", "--since", text, "-", AMELIA_DATABASE_PATH=str(tmp_path / "a.db"))
    assert done.returncode == 2
    assert f"{text} is neither a day nor a time with an offset" in done.stderr


def test_an_export_makes_no_database(tmp_path: Path) -> None:
    done = run("export", "-", AMELIA_DATABASE_PATH=str(tmp_path / "a.db"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "There is no database" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_import_names_the_line_and_what_is_refused(ledger: Ledger, tmp_path: Path) -> None:
    workflow = used(ledger)
    file = tmp_path / "record.ndjson"
    file.write_bytes(exported(ledger))
    setting = dict(database_of(ledger).settings)
    ledger.write(events.append, workflow, events.arrived([new_event()]))
    done = run("import", "ndjson", str(file), **setting)
    assert done.returncode == 1
    assert f"Workflow {workflow} is left out: it exists with other content." in done.stderr
    file.write_text("what\n")
    done = run("import", "ndjson", str(file), **setting)
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: {file}: Line 1: The body is not JSON")


def test_a_server_goes_on_while_its_record_moves(tmp_path: Path, ledger: Ledger, other_database: Database) -> None:
    for _ in range(3):
        workflow = used(ledger)
        ledger.write(events.append, workflow, events.arrived([new_event() for _ in range(700)]))
    file = tmp_path / "record.ndjson"
    file.write_bytes(exported(ledger))
    with serving(other_database, workers=2) as server:
        program = start(server, "import", "ndjson", str(file))
        added = 0
        while program.poll() is None or added < 20:
            add(server)
            added += 1
        assert program.wait() == 0
        out = run("export", "-", **server.database.settings)
        assert len(chosen(out.stdout.encode())) == 3 + added
        check_record(server.database)
        check(server.database)
        assert server.stop() == 0


def start(server: Server, *arguments: str) -> "subprocess.Popen[bytes]":
    environment = os.environ | dict(server.database.settings)
    command = [sys.executable, "-m", "amelia_flask", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)


def add(server: Server) -> None:
    body = {"issue_id": "LIVE-1", "worktree_path": f"/live/{clock.new_id()}"}
    assert server.request("POST", "/api/workflows", body).status == 201
