"""A database made the copy of another, between engines: exactly, however often, and whatever came in between."""

import signal
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from amelia_flask import audit, events, repricing, schema, summaries, tokens, workflows
from amelia_flask.errors import DatabaseUnavailable, SchemaError
from amelia_flask.ledger import Ledger
from amelia_flask.transfer import copying, tables, writing
from amelia_flask.transfer.tables import CopyRefused
from tests import ledgers
from tests.databases import Database, Databases, Files, Sqlite
from tests.histories import histories, make, prune
from tests.ledgers import create, move, new_event, record
from tests.serving import serving, until
from tests.test_cli import run

NOW = datetime(2026, 6, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def others(databases: Databases, cluster: Databases, tmp_path_factory: pytest.TempPathFactory) -> Databases:
    """Databases on the engine that the others are not on."""
    return Files(tmp_path_factory.mktemp("template")) if databases is cluster else cluster


@pytest.fixture
def target(others: Databases, tmp_path: Path) -> Iterator[Database]:
    """An empty database on the other engine than `database`."""
    with others.lend(tmp_path / "target", is_empty=True) as target:
        yield target


@pytest.fixture
def ledger(database: Database) -> Iterator[Ledger]:
    """The record that is copied."""
    with closing(database.ledger()) as ledger:
        yield ledger


def copied(
    source: Database, target: Database, step: Callable[[int], None] = lambda _: None, **options: bool
) -> list[str]:
    """What the two differ in, once one was made the copy of the other."""
    return copying.copy(source.engine, target.engine, step, **options).different


def once(action: Callable[[], object]) -> Callable[[int], None]:
    """What does this at the first step, in the middle of a copy."""
    actions = [action]

    def step(_rows: int) -> None:
        while actions:
            actions.pop()()

    return step


def content(database: Database) -> dict[str, list[Any]]:
    """Every row, as any other program finds it."""
    found = database.dump()
    found["schema_version"] = database.rows("SELECT name FROM schema_version ORDER BY name")
    return found


def exported(database: Database) -> bytes:
    with closing(database.ledger()) as ledger:
        return b"".join(writing.export(ledger, writing.Selection(), lambda _: None))


def busy_record(ledger: Ledger) -> dict[str, str]:
    """Workflows in several statuses with all that belongs to them, and one that retention has taken."""
    ids = {name: create(ledger, NOW, worktree_path=f"/{name}") for name in ("old", "done", "active", "broken")}
    for workflow in ids.values():
        move(ledger, workflow, "start", NOW)
        stage = new_event(event_type="stage_started", data={"stage": "plan é", "n": 1.50})
        ledger.append(workflow, events.arrived([new_event(message='"\\\n\t\\N {}'), stage, new_event()]))
        record(
            ledger, workflow, {"model": "claude-haiku-4-5"}, {"cost_usd": 0.1, "timestamp": "0001-01-01T00:00:00Z"}
        )
    move(ledger, ids["old"], "complete", NOW)
    prune(ledger)
    move(ledger, ids["done"], "complete", NOW)
    ledger.write(tokens.create, "agents", "write")
    return ids


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(history=histories)
def test_any_record_is_the_same_there_and_back(databases: Databases, others: Databases, history: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        lent = enumerate((databases, others, databases))
        one, two, three = (
            stack.enter_context(engine.lend(Path(folder) / str(n), is_empty=True)) for n, engine in lent
        )
        with closing(one.set_up().ledger()) as ledger:
            make(ledger, history)
        assert copied(one, two) == copied(two, three) == []
        assert content(one) == content(two) == content(three)
        assert exported(one) == exported(two) == exported(three)
        is_whole = not one.rows("SELECT 1 FROM workflows WHERE id IN (SELECT id FROM pruned_workflows)")
        assert [list(audit.check(each.engine)) for each in (one, two)] == [[], []] or not is_whole


def test_the_copy_is_as_good_as_what_it_was_made_of(database: Database, ledger: Ledger, target: Database) -> None:
    ids = busy_record(ledger)
    assert copied(database, target) == []
    assert content(target) == content(database)
    assert list(audit.check(target.engine)) == []
    with closing(target.ledger()) as other:
        detail, there = (one.read(summaries.detail, ids["done"]) for one in (ledger, other))
        assert detail == there
        again = new_event()
        positions = [one.append(ids["active"], events.arrived([again])).events[0].position for one in (ledger, other)]
        assert positions[0] == positions[1]
        assert schema.set_up(target.engine) == []


def change_everything(ledger: Ledger, ids: dict[str, str]) -> None:
    """Whatever may happen to a record between two copies."""
    prune(ledger, max_events=2)
    again = {"id": ids["broken"], "worktree_path": "/done"}
    move(ledger, ids["broken"], "fail", reason="r")
    ledger.write(workflows.delete, ids["broken"])
    create(ledger, **again)
    move(ledger, ids["active"], "cancel")
    create(ledger, worktree_path="/active")
    ledger.write(workflows.patch, ids["active"], ledgers.decode(workflows.Patch, state={"n": 1}))
    ledger.write(tokens.revoke, "agents")
    ledger.write(tokens.create, "people", "read")


def test_a_second_copy_brings_over_what_has_changed(database: Database, ledger: Ledger, target: Database) -> None:
    ids = busy_record(ledger)
    assert copied(database, target) == []
    change_everything(ledger, ids)
    assert copied(database, target) == []
    assert content(target) == content(database)


def test_the_way_back_leads_to_where_the_record_came_from(
    database: Database, ledger: Ledger, target: Database
) -> None:
    ids = busy_record(ledger)
    ledger.close()
    assert copied(database, target) == []
    with closing(target.ledger()) as other:
        change_everything(other, ids)
    assert copied(target, database) == []
    assert content(target) == content(database)


@pytest.mark.parametrize("rows", [1, 1000])
def test_what_is_in_the_place_of_something_else_is_copied(
    database: Database, ledger: Ledger, target: Database, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids, numbers and worktrees that were free again, however many rows a transaction has."""
    monkeypatch.setattr(tables, "MOST_ROWS", rows)
    low, high, again = (f"{digit * 8}-0000-7000-8000-000000000000" for digit in "0f5")

    def begin(workflow: str, path: str, order: int) -> None:
        create(ledger, id=workflow, worktree_path=path)
        move(ledger, workflow, "start")
        ledger.append(workflow, events.arrived([new_event(id=f"event-{n}") for n in (1, 2)[::order]]))
        record(ledger, workflow, *({"id": f"usage-{n}"} for n in (1, 2)[::order]))

    begin(again, "/again", 1)
    create(ledger, id=high, worktree_path="/held")
    assert copied(database, target) == []
    move(ledger, again, "cancel")
    ledger.write(workflows.delete, again)
    begin(again, "/again", -1)
    move(ledger, high, "cancel")
    create(ledger, id=low, worktree_path="/held")
    assert copied(database, target) == []
    assert content(target) == content(database)


def test_a_record_that_was_repriced_is_copied_again(database: Database, ledger: Ledger, target: Database) -> None:
    record(ledger, create(ledger), {"model": "claude-haiku-4-5"}, {"model": "no-such-model"})
    cheap = "UPDATE token_usage SET cost_nano = NULL, cost_usd = NULL, cost_source = 'unpriced'"
    sums = "SET cost_nano = 0, unpriced_tokens = 22"
    database.execute(
        cheap,
        f"UPDATE workflows {sums}",
        *(f"UPDATE {name} {sums[:-2]}11" for name in ("usage_by_workflow", "usage_by_day")),
    )
    assert copied(database, target) == []
    assert repricing.reprice(ledger, lambda _: None).priced
    assert copied(database, target) == []
    assert content(target) == content(database)


def test_what_is_there_already_is_not_written_again(database: Database, ledger: Ledger, target: Database) -> None:
    busy_record(ledger)
    copied(database, target)
    version = "SELECT id, xmin FROM events" if not isinstance(target, Sqlite) else "PRAGMA page_count"
    before = target.rows(version.replace("xmin", "xmin::text"))
    assert copied(database, target) == []
    assert target.rows(version.replace("xmin", "xmin::text")) == before


def test_a_source_that_is_written_to_meanwhile_is_told_of(
    database: Database, ledger: Ledger, target: Database
) -> None:
    workflow = busy_record(ledger)["active"]
    different = copied(database, target, once(lambda: ledger.append(workflow, events.arrived([new_event()]))))
    assert different == ["workflows", "events", "event_position"]
    with pytest.raises(SchemaError, match="is an unfinished copy: repeat"):
        schema.set_up(target.engine)
    with pytest.raises(SchemaError, match="is an unfinished copy"):
        copied(target, database)
    assert copied(database, target) == []
    assert content(target) == content(database)


def test_a_copy_of_one_moment_is_compared_with_that_moment(
    database: Database, ledger: Ledger, target: Database
) -> None:
    workflow = busy_record(ledger)["active"]
    before = content(database)
    step = once(lambda: ledger.append(workflow, events.arrived([new_event()])))
    assert copied(database, target, step, is_still=True) == []
    assert content(target) == before != content(database)


def refused(source: Database, target: Database, reason: str, must_be_new: bool = False) -> None:
    """The copy is refused with a sentence, and nothing has changed."""
    before = content(target)
    with pytest.raises((CopyRefused, SchemaError), match=reason):
        copied(source, target, must_be_new=must_be_new)
    assert content(target) == before


def test_a_target_with_another_record_is_refused(database: Database, ledger: Ledger, target: Database) -> None:
    busy_record(ledger)
    with closing(target.set_up().ledger()) as other:
        create(other)
    refused(database, target, "holds another record")


def test_an_unfinished_copy_of_another_record_is_refused(
    database: Database, ledger: Ledger, target: Database, tmp_path: Path
) -> None:
    busy_record(ledger)
    assert copied(database, target, once(lambda: create(ledger))) != []
    another = Sqlite(tmp_path / "another.db").set_up()
    refused(another, target, "holds another record")


@pytest.mark.parametrize("goes_on", [True, False])
@pytest.mark.parametrize(
    "write",
    [
        lambda ledger, ids: ledger.append(ids["active"], events.arrived([new_event()])),
        lambda ledger, _: create(ledger),
        lambda ledger, ids: record(ledger, ids["done"], {}),
        lambda ledger, ids: ledger.write(
            workflows.patch, ids["active"], ledgers.decode(workflows.Patch, state={"n": 1})
        ),
    ],
    ids=["event", "workflow", "usage", "state"],
)
def test_a_copy_that_somebody_has_written_to_is_refused(
    database: Database,
    ledger: Ledger,
    target: Database,
    write: Callable[[Ledger, dict[str, str]], None],
    goes_on: bool,
) -> None:
    ids = busy_record(ledger)
    assert copied(database, target) == []
    with closing(target.ledger()) as other:
        write(other, ids)
    if goes_on:
        ledger.append(ids["done"], events.arrived([new_event()]))
    refused(database, target, "was written to since it was copied")


def test_a_target_of_another_program_or_version_is_refused(database: Database, target: Database) -> None:
    target.execute("CREATE TABLE notes (x TEXT)")
    with pytest.raises(SchemaError, match="no database of amelia-flask"):
        copied(database, target)
    target.execute("DROP TABLE notes")
    target.set_up()
    moment = "2026-01-01 00:00:00"
    target.execute(f"INSERT INTO schema_version (name, applied) VALUES ('9999_future', '{moment}')")
    refused(database, target, "made by a newer version")
    target.execute("DELETE FROM schema_version WHERE name IN ('9999_future', '0004_retention')")
    refused(database, target, "made by an earlier version")


def test_a_finished_copy_is_not_new(database: Database, ledger: Ledger, target: Database) -> None:
    busy_record(ledger)
    assert copied(database, target, must_be_new=True) == []
    refused(database, target, "is not empty", must_be_new=True)


def test_a_database_is_not_copied_to_itself(database: Database, ledger: Ledger) -> None:
    busy_record(ledger)
    refused(database, database, "is the database itself")


def test_no_server_runs_on_the_target(database: Database, target: Database) -> None:
    with serving(target) as server:
        refused(database, target, "A server or another program is using")
        assert server.stop() == 0
    assert copied(database, target) == []


@pytest.mark.engines("sqlite")  # the target is on a server
def test_nobody_writes_to_the_target_meanwhile(database: Database, ledger: Ledger, target: Database) -> None:
    busy_record(ledger)
    refusals: list[str] = []

    def write() -> None:
        with closing(target.ledger()) as other, pytest.raises(DatabaseUnavailable) as refusal:
            create(other)
        refusals.append(str(refusal.value))

    assert copied(database, target, once(write)) == []
    assert len(refusals) == 1


def test_a_copy_that_was_killed_goes_on(database: Database, ledger: Ledger, target: Database) -> None:
    workflow = busy_record(ledger)["active"]
    database.add_events(workflow, 30_000)
    url = target.settings.get("AMELIA_DATABASE_URL", target.settings["AMELIA_DATABASE_PATH"])
    command = [sys.executable, "-m", "amelia_flask", "copy", "--to", url]
    with subprocess.Popen(command, env=dict(database.settings), stderr=subprocess.PIPE) as copy:
        until(lambda: _count(target) > 1000)
        copy.send_signal(signal.SIGKILL)
    there = _count(target)
    assert there < 30_000
    with pytest.raises(SchemaError, match="is an unfinished copy"):
        schema.set_up(target.engine)
    assert copied(database, target) == []
    assert content(target) == content(database)


def _count(database: Database) -> int:
    if "events" not in database.columns():
        return 0
    return int(database.rows("SELECT COUNT(*) FROM events")[0][0])


def test_a_copy_needs_little_memory(database: Database, ledger: Ledger, target: Database) -> None:
    database.add_events(busy_record(ledger)["active"], 30_000)  # which are 10 MB
    tracemalloc.start()
    try:
        assert copied(database, target) == []
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def test_the_command_says_what_is_the_same(database: Database, ledger: Ledger, target: Database) -> None:
    busy_record(ledger)
    url = target.settings.get("AMELIA_DATABASE_URL", f"sqlite://{target.settings['AMELIA_DATABASE_PATH']}")
    done = run("copy", "--to", url, **database.settings)
    assert (done.returncode, done.stderr) == (0, "")
    header, *tables, usage, verdict = done.stdout.splitlines()
    assert header.split() == ["TABLE", "ROWS", "SHA-256"]
    assert {line.split()[0]: int(line.split()[1]) for line in tables} == {
        name: len(found) for name, found in content(database).items()
    }
    assert usage.startswith("Usage over all time: ")
    assert verdict == f"{target.engine}: the same as {database.engine}, table by table"
    assert run("check", **target.settings).stdout == f"{target.engine}: sound\n"


@pytest.mark.engines("sqlite")
def test_the_command_refuses_what_it_cannot_do(path: Path, tmp_path: Path) -> None:
    settings = {"AMELIA_DATABASE_PATH": str(path)}
    for arguments, sentence in {
        ("--to", "mysql://host/db"): "mysql://host/db is neither postgresql://… nor sqlite:///absolute/path.",
        ("--to", str(path)): f"{path} is the database itself.",
    }.items():
        done = run("copy", *arguments, **settings)
        assert (done.returncode, done.stderr) == (1, f"Error: {sentence}\n")
    nowhere = tmp_path / "none.db"
    done = run("copy", "--to", str(tmp_path / "new.db"), AMELIA_DATABASE_PATH=str(nowhere))
    assert done.stderr == f"Error: There is no database at {nowhere}.\n"
    assert not (tmp_path / "new.db").exists()
