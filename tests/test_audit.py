"""The check of a record: a sound one has no findings, and every way to damage it is found and named."""

import re
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from amelia_flask import audit, events, retention
from amelia_flask.errors import SchemaError
from amelia_flask.ledger import Ledger
from tests.databases import Database, Databases
from tests.ledgers import create, move, new_event, record
from tests.load import Clients, create_workflows, mixed
from tests.serving import serving
from tests.test_cli import run

NOW = datetime(2026, 6, 30, 12, tzinfo=UTC)
# Fixed ids, so that a row of the table of damages can name them.
IDS = [f"00000000-0000-7000-8000-00000000000{n}" for n in range(7)]
PENDING, RUNNING, BLOCKED, DONE, FAILED, CANCELLED, OLD = IDS


def fill(ledger: Ledger) -> None:
    """Workflows in every status, with stages and usage on two days; the newest position is of the last event."""
    for n, workflow in enumerate(IDS[:-1]):
        create(ledger, NOW, id=workflow, worktree_path=f"/w/{n}")
        if workflow != PENDING:
            move(ledger, workflow, "start", NOW)
        stage = new_event(event_type="stage_started", data={"stage": "plan"})
        ledger.write(events.append, workflow, events.arrived([new_event(), stage, new_event()]))
        for day in ("2026-06-29", "2026-06-30"):
            said = {"timestamp": f"{day}T10:00:00Z", "agent": "dev"}
            record(ledger, workflow, said | {"model": "m", "cost_usd": 0.5}, said | {"model": "no-such-model"})
    move(ledger, BLOCKED, "block", NOW)
    move(ledger, DONE, "complete", NOW + timedelta(seconds=90))
    move(ledger, FAILED, "fail", NOW + timedelta(seconds=5), reason="r")
    move(ledger, CANCELLED, "cancel", NOW + timedelta(seconds=5))


@pytest.fixture(scope="module")
def sound(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    with databases.lend(tmp_path_factory.mktemp("audit")) as database:
        with closing(database.ledger()) as ledger:
            fill(ledger)
        yield database


@pytest.fixture
def database(databases: Databases, sound: Database, tmp_path: Path) -> Iterator[Database]:
    """A copy of a sound database that nobody is using."""
    with databases.lend(tmp_path, like=sound) as database:
        yield database


def test_a_sound_record_has_no_findings_and_is_not_changed(database: Database) -> None:
    before = database.dump()
    made: list[int] = []
    assert list(audit.check(database.engine, made.append)) == []
    assert sum(made) == len(audit.CHECKS)
    assert database.dump() == before


DELETE_EVENT = f"DELETE FROM events WHERE workflow_id = '{RUNNING}' AND sequence = "
# What was done to the record, and the findings, in their order; a pattern for the whole line.
DAMAGES: list[tuple[str, list[str], list[str]]] = [
    (
        "an event is missing",
        [DELETE_EVENT + "3"],
        [f"workflow {RUNNING}: after the event with sequence 2 comes 4"],
    ),
    (
        "the newest event is missing",
        [DELETE_EVENT + "5", f"DELETE FROM open_stages WHERE workflow_id = '{RUNNING}'"],
        [f"workflow {RUNNING}: last_sequence is 5, but its newest event has 4"],
    ),
    (
        "all events of a workflow are missing",
        [f"DELETE FROM events WHERE workflow_id = '{RUNNING}'"],
        [f"workflow {RUNNING}: last_sequence is 5, but it has no events"],
    ),
    (
        "positions fall",
        [
            f"UPDATE events SET position = 9000 WHERE workflow_id = '{PENDING}' AND sequence = 2",
            "UPDATE event_position SET value = 9000",
        ],
        [rf"workflow {PENDING}: sequence 3 has position \d+, the one before it 9000"],
    ),
    (
        "a position is taken twice",
        [
            "DROP INDEX events_position",
            f"UPDATE events SET position = 1 WHERE workflow_id = '{RUNNING}' AND sequence = 1",
        ],
        ["the schema: events_position is missing", "position 1: 2 events have it"],
    ),
    (
        "the counter of positions is behind",
        ["UPDATE event_position SET value = 3"],
        [r"event_position: it is 3, but an event has position \d+"],
    ),
    (
        "the counter of positions is gone",
        ["DELETE FROM event_position"],
        ["event_position: it has 0 rows in place of one"],
    ),
    (
        "a status is not what the events tell",
        [f"UPDATE workflows SET status = 'in_progress' WHERE id = '{BLOCKED}'"],
        [f"workflow {BLOCKED}: it is in_progress, but its events lead to blocked"],
    ),
    (
        "a move was not allowed",
        [
            f"UPDATE events SET event_type = 'approval_granted' WHERE workflow_id = '{RUNNING}' AND sequence = 3",
        ],
        [f"workflow {RUNNING}: sequence 3 tells of approval_granted while it was in_progress"],
    ),
    (
        "a creation is told nowhere",
        [f"UPDATE events SET event_type = 'note' WHERE workflow_id = '{RUNNING}' AND sequence = 1"],
        [f"workflow {RUNNING}: its first event does not tell of its creation"],
    ),
    (
        "an end has no time",
        [
            f"UPDATE workflows SET completed_at = NULL WHERE id = '{DONE}'",
            "UPDATE workflows_by_day SET duration_ms = duration_ms - 90000",
        ],
        [f"workflow {DONE}: it is completed, but completed_at is null"],
    ),
    (
        "a time of an end has no end",
        [f"UPDATE workflows SET completed_at = '2026-06-30T12:00:00.000000Z' WHERE id = '{PENDING}'"],
        [f"workflow {PENDING}: it is pending, but completed_at is 2026-06-30T12:00:00.000000Z"],
    ),
    (
        "two active workflows hold a worktree",
        [
            "DROP INDEX idx_workflows_active_worktree",
            "UPDATE workflows SET worktree_path = '/w' WHERE id < '" + DONE + "'",
        ],
        [
            "the schema: idx_workflows_active_worktree is missing",
            "worktree /w of host none: 3 active workflows hold it",
        ],
    ),
    (
        "an open stage was never started",
        [f"UPDATE open_stages SET sequence = 2 WHERE workflow_id = '{RUNNING}'"],
        [f"workflow {RUNNING}: the stage 'plan' is open since sequence 2, which does not start it"],
    ),
    (
        "rows belong to nobody",
        ["INSERT INTO open_stages VALUES ('nobody', 's', 1)"],
        ["open_stages: a row belongs to no row of workflows"],
    ),
    (
        "a sum of a workflow is wrong",
        [f"UPDATE usage_by_workflow SET cost_nano = 7 WHERE workflow_id = '{DONE}' AND model = 'm'"],
        [f"usage_by_workflow, {DONE}, dev, m: cost_nano is 7, but its records give 1000000000"],
    ),
    (
        "a first day is wrong",
        [f"UPDATE usage_by_workflow SET first_day = '2026-06-30' WHERE workflow_id = '{DONE}' AND model = 'm'"],
        [
            f"usage_by_workflow, {DONE}, dev, m: first_day is 2026-06-30, but its records give 2026-06-29",
            "models_by_day, 2026-06-29, m: workflows is 6, but its records give 5",
            "models_by_day, 2026-06-29, m: finished is 3, but its records give 2",
            "models_by_day, 2026-06-29, m: successful is 1, but its records give 0",
            "models_by_day, 2026-06-30, m: workflows is 0, but its records give 1",
            "models_by_day, 2026-06-30, m: finished is 0, but its records give 1",
            "models_by_day, 2026-06-30, m: successful is 0, but its records give 1",
        ],
    ),
    (
        "totals of a workflow are wrong",
        [f"UPDATE workflows SET usage_count = 3, total_tokens = 1, cost_nano = 2 WHERE id = '{DONE}'"],
        [
            f"workflows, {DONE}: usage_count is 3, but its records give 4",
            f"workflows, {DONE}: usage_count is 3, but its records give 4",
            f"workflows, {DONE}: total_tokens is 1, but its records give 44",
            f"workflows, {DONE}: cost_nano is 2, but its records give 1000000000",
        ],
    ),
    (
        "a sum of a day is wrong",
        ["UPDATE usage_by_day SET input_tokens = 61, savings_nano = 1 WHERE day = '2026-06-29' AND model = 'm'"],
        [
            "usage_by_day, 2026-06-29, dev, m: input_tokens is 61, but its records give 60",
            "usage_by_day, 2026-06-29, dev, m: savings_nano is 1, but its records give 0",
        ],
    ),
    (
        "the sum of a day is gone",
        ["DELETE FROM usage_by_day WHERE day = '2026-06-29' AND model = 'm'"],
        [
            "usage_by_day, 2026-06-29, dev, m: input_tokens is 0, but its records give 60",
            "usage_by_day, 2026-06-29, dev, m: output_tokens is 0, but its records give 6",
            "usage_by_day, 2026-06-29, dev, m: cost_nano is 0, but its records give 3000000000",
        ],
    ),
    (
        "the workflows of a day are counted wrongly",
        ["UPDATE workflows_by_day SET workflows = 7, finished = 2, duration_ms = 1"],
        [
            "workflows_by_day, 2026-06-30: workflows is 7, but its records give 6",
            "workflows_by_day, 2026-06-30: finished is 2, but its records give 3",
            "workflows_by_day, 2026-06-30: duration_ms is 1, but its records give 100000",
        ],
    ),
    (
        "the finished workflows are counted wrongly",
        ["UPDATE finished_workflows SET workflows = 2 WHERE status = 'failed'"],
        ["finished_workflows, failed: workflows is 2, but its records give 1"],
    ),
    (
        "a table is missing",
        ["DROP TABLE finished_workflows"],
        [
            "the schema: finished_workflows is missing",
            "the database: finished could not be checked: .*finished_workflows.*",
        ],
    ),
]


@pytest.mark.parametrize(("statements", "findings"), [row[1:] for row in DAMAGES], ids=[row[0] for row in DAMAGES])
def test_what_was_damaged_is_named(database: Database, statements: list[str], findings: list[str]) -> None:
    database.execute(*statements)
    found = list(audit.check(database.engine))
    assert len(found) == len(findings), found
    for line, pattern in zip(found, findings, strict=True):
        assert re.fullmatch(pattern, line), line


@pytest.mark.engines("sqlite")
def test_a_page_that_is_damaged_is_found(database: Database, path: Path) -> None:
    page = database.rows("SELECT rootpage FROM sqlite_master WHERE name = 'idx_events_type'")[0][0]
    with path.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 4096)
    found = list(audit.check(database.engine))
    assert found
    assert found[0].startswith("the database: ")


@pytest.mark.engines("sqlite")
def test_an_index_that_lacks_a_row_is_found(database: Database) -> None:
    other = "SELECT rootpage FROM sqlite_master WHERE name = 'idx_workflows_host'"
    move_index = f"UPDATE sqlite_master SET rootpage = ({other}) WHERE name = 'idx_tokens_agent'"
    database.execute("PRAGMA writable_schema = ON", move_index)
    assert any("idx_tokens_agent" in line for line in audit.check(database.engine))


@pytest.mark.engines("postgresql")
def test_an_index_and_a_constraint_that_may_not_hold_are_found(database: Database) -> None:
    database.execute(
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'idx_events_type'::regclass",
        "ALTER TABLE workflows ADD CONSTRAINT named CHECK (issue_id = '') NOT VALID",
    )
    assert list(audit.check(database.engine)) == [
        "the database: the index idx_events_type is not whole",
        "the database: the constraint named may not hold",
    ]


@pytest.fixture
def pruned(database: Database) -> Database:
    """A record of which retention has taken one workflow and the beginning of another."""
    with closing(database.ledger()) as ledger:
        create(ledger, NOW - timedelta(days=50), id=OLD)
        record(ledger, OLD, {"model": "m", "agent": "dev", "cost_usd": 1.0, "timestamp": "2026-06-29T10:00:00Z"})
        move(ledger, OLD, "cancel", NOW - timedelta(days=49))
        assert retention.prune(ledger, NOW).workflows == 1
        ledger.write(lambda tx: list(retention._take_surplus(tx, RUNNING, 2)))
    return database


def test_a_pruned_record_is_sound(pruned: Database) -> None:
    assert list(audit.check(pruned.engine)) == []


@pytest.mark.parametrize(
    ("statement", "finding"),
    [
        ("UPDATE usage_by_day SET cost_nano = 1 WHERE day = '2026-06-29' AND model = 'm'", "cost_nano is 1, but"),
        ("UPDATE workflows_by_day SET workflows = 5 WHERE day = '2026-06-30'", "workflows is 5, but"),
        ("UPDATE models_by_day SET workflows = 5 WHERE model = 'm'", "workflows is 5, but"),
        (f"DELETE FROM events WHERE workflow_id = '{DONE}' AND sequence = 3", "after the event with sequence 2"),
        (f"UPDATE workflows SET total_tokens = 1 WHERE id = '{DONE}'", "total_tokens is 1, but"),
        ("UPDATE finished_workflows SET workflows = 2 WHERE status = 'cancelled'", "workflows is 2, but"),
    ],
)
def test_what_is_less_than_the_records_give_is_found_in_a_pruned_record_too(
    pruned: Database, statement: str, finding: str
) -> None:
    pruned.execute(statement)
    found = list(audit.check(pruned.engine))
    assert len(found) == 1, found
    assert finding in found[0]


@pytest.mark.parametrize(
    ("statements", "reason"),
    [
        (["DROP TABLE schema_version"], "no database of amelia-flask"),
        (["DELETE FROM schema_version WHERE name = '0004_retention'"], "made by an earlier version"),
        (
            ["INSERT INTO schema_version (name, applied) VALUES ('9999_future', '2026-01-01')"],
            "made by a newer version",
        ),
    ],
)
def test_a_database_of_another_version_or_program_is_refused(
    database: Database, statements: list[str], reason: str
) -> None:
    database.execute(*statements)
    with pytest.raises(SchemaError, match=reason):
        list(audit.check(database.engine))


def test_a_server_goes_on_while_its_record_is_checked_at_one_moment(database: Database) -> None:
    with serving(database, workers=2) as server:
        clients = Clients(server, [mixed(create_workflows(server, 4), n) for n in range(4)]).start()
        clients.wait_for(100)
        for _ in range(3):
            assert list(audit.check(server.database.engine)) == []
        before = len(clients.acknowledged)
        clients.wait_for(before + 20)
        assert server.stop() == 0
        clients.join()
    assert list(audit.check(server.database.engine)) == []


def test_the_command_ends_with_what_it_found(database: Database) -> None:
    done = run("check", **database.settings)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{database.engine}: sound\n", "")
    database.execute("UPDATE event_position SET value = 3", DELETE_EVENT + "3")
    done = run("check", **database.settings)
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 2
    assert done.stderr == f"Error: {database.engine}: 2 findings.\n"


@pytest.mark.engines("sqlite")
def test_the_command_checks_a_file_that_it_is_given_and_makes_none(
    database: Database, path: Path, tmp_path: Path
) -> None:
    database.execute("UPDATE event_position SET value = 3")
    elsewhere = {"AMELIA_DATABASE_PATH": str(tmp_path / "none.db")}
    assert run("check", str(path), **elsewhere).stderr == f"Error: {path}: 1 findings.\n"
    assert run("check", **elsewhere).stderr == f"Error: There is no database at {tmp_path / 'none.db'}.\n"
    assert not (tmp_path / "none.db").exists()
