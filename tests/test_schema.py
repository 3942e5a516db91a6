"""The schema on either engine: what it refuses, how it gets into a database, and what it leaves alone."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peewee
import pytest
from peewee import sqlite3

from amelia_flask import schema
from amelia_flask.database import reading
from amelia_flask.errors import SchemaError
from tests import programs
from tests.databases import Database, Row, Sqlite
from tests.writers import MOMENT

BROKEN = tuple(driver.IntegrityError for driver in (sqlite3, peewee.psycopg) if driver)
ACTIVE = ("pending", "in_progress", "blocked")
FINAL = ("completed", "failed", "cancelled")
NAMES = [file.stem for file in sorted(schema.MIGRATIONS.glob("0*.py"))]
INDEXES = """
    SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = current_schema()
    UNION ALL SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
    WHERE connamespace = current_schema()::regnamespace ORDER BY 1, 2, 3
"""
MASTER = "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER BY 1, 2"


@contextmanager
def strict(database: Database) -> Iterator[Any]:
    """Inserts by another program, which holds to the keys between tables."""
    is_sqlite = isinstance(database, Sqlite)
    keep = "PRAGMA foreign_keys = ON" if is_sqlite else "SET session_replication_role = origin"
    with database.connected() as connection:
        connection.execute(keep)
        yield connection
        if not is_sqlite:
            connection.execute("SET session_replication_role = replica")


def insert(connection: Any, table: str, **values: object) -> None:
    mark = "?" if isinstance(connection, sqlite3.Connection) else "%s"
    marks = ", ".join([mark] * len(values))
    connection.execute(f"INSERT INTO {table} ({', '.join(values)}) VALUES ({marks})", tuple(values.values()))


def workflow(connection: Any, name: str, **values: object) -> None:
    given = {"id": name, "issue_id": "i", "worktree_path": f"/{name}", "worktree_name": "w", "digest": ""}
    insert(connection, "workflows", **given | {"created_at": MOMENT, "updated_at": MOMENT} | values)


def event(connection: Any, name: str, **values: object) -> None:
    given = {"id": name, "workflow_id": "w", "sequence": 1, "position": 1, "timestamp": MOMENT, "agent": "a"}
    insert(connection, "events", **given | {"event_type": "note", "message": ""} | values)


def used(connection: Any, name: str, **values: object) -> None:
    given = {"id": name, "workflow_id": "w", "number": 1, "agent": "a", "model": "m", "timestamp": MOMENT, "day": ""}
    insert(
        connection,
        "token_usage",
        **given | {"input_tokens": 1, "output_tokens": 1, "cost_source": "unpriced"} | values,
    )


def structure(database: Database) -> tuple[dict[str, list[str]], list[Row]]:
    """Tables with their columns, indexes and rules."""
    return database.columns(), database.rows(MASTER if isinstance(database, Sqlite) else INDEXES)


@pytest.mark.parametrize("table", ["events", "token_usage"])
def test_what_belongs_to_a_workflow_goes_with_it(database: Database, table: str) -> None:
    with strict(database) as connection:
        workflow(connection, "w")
        {"events": event, "token_usage": used}[table](connection, "x")
        connection.execute("DELETE FROM workflows")
    assert database.rows(f"SELECT * FROM {table}") == []


@pytest.mark.parametrize("add", [event, used])
def test_nothing_belongs_to_a_workflow_that_is_not_there(database: Database, add: Any) -> None:
    with strict(database) as connection, pytest.raises(BROKEN, match=r"(?i)foreign key"):
        add(connection, "x")


@pytest.mark.parametrize("first", ACTIVE)
@pytest.mark.parametrize("second", ACTIVE)
def test_a_second_active_workflow_of_a_worktree_is_refused(database: Database, first: str, second: str) -> None:
    with strict(database) as connection:
        workflow(connection, "a", worktree_path="/w", status=first)
        with pytest.raises(BROKEN, match=r"(?i)unique"):
            workflow(connection, "b", worktree_path="/w", status=second)
        workflow(connection, "c", worktree_path="/w", status=second, host="elsewhere")


@pytest.mark.parametrize("status", FINAL)
def test_a_worktree_may_have_any_number_of_finished_workflows(database: Database, status: str) -> None:
    with strict(database) as connection:
        for name in ("a", "b", "c"):
            workflow(connection, name, worktree_path="/w", status=status)
        workflow(connection, "d", worktree_path="/w")


@pytest.mark.parametrize(
    ("add", "values"),
    [
        (workflow, {"status": "planning"}),
        (workflow, {"total_tokens": 2**62 + 1}),
        (workflow, {"cost_nano": -1}),
        (event, {"level": "fatal"}),
        (event, {"sequence": 7}),
        (event, {"position": 7}),
        (event, {"id": "taken"}),
        (used, {"cost_source": "guessed"}),
        (used, {"number": 7}),
    ],
)
def test_a_row_against_the_rules_is_refused(database: Database, add: Any, values: dict[str, object]) -> None:
    with strict(database) as connection:
        workflow(connection, "w")
        event(connection, "taken", sequence=7, position=7)
        used(connection, "u", number=7)
        with pytest.raises(BROKEN):
            add(connection, "x", **values)


def test_setting_up_tells_what_it_applied_and_twice_is_harmless(empty_database: Database) -> None:
    assert schema.set_up(empty_database.engine) == NAMES
    before = empty_database.dump()
    assert schema.set_up(empty_database.engine) == []
    assert empty_database.dump() == before
    assert [name for (name,) in empty_database.rows("SELECT name FROM schema_version ORDER BY id")] == NAMES
    assert empty_database.rows("SELECT * FROM event_position") == [(1, 0)]


def test_setting_up_makes_again_what_is_missing(database: Database) -> None:
    before = structure(database)
    database.execute("DROP INDEX idx_events_type", "DROP TABLE health_check")
    assert structure(database) != before
    schema.set_up(database.engine)
    assert structure(database) == before


def test_ten_processes_may_set_up_at_once(empty_database: Database, database: Database) -> None:
    code = """
    from amelia_flask import schema
    from amelia_flask.engines import engine_of
    from amelia_flask.settings import from_environment
    print('here', flush=True)
    input()
    print(schema.set_up(engine_of(from_environment())))
    """
    starting = [programs.start(code, **empty_database.settings) for _ in range(10)]
    for program in starting:
        programs.wait_for_line(program, "here")
    programs.tell_all(starting)
    assert Counter(programs.finish(program).strip() for program in starting) == {str(NAMES): 1, "[]": 9}
    assert structure(empty_database) == structure(database)


def add_version(database: Database, name: str) -> None:
    database.execute(f"INSERT INTO schema_version (name, applied) VALUES ('{name}', '2026-01-01 00:00:00')")


def test_a_database_of_a_newer_version_is_refused(database: Database) -> None:
    add_version(database, "9999_future")
    before = database.dump()
    with pytest.raises(SchemaError, match=r"made by a newer version .*9999_future"):
        schema.set_up(database.engine)
    assert database.dump() == before


def test_readiness_can_tell_a_schema_that_is_behind_or_ahead(database: Database) -> None:
    readers = database.engine.open_readers(1)

    def is_current() -> bool:
        with reading(readers) as db:
            return schema.is_current(db)

    assert is_current()
    add_version(database, "9999_future")
    assert not is_current()
    database.execute("DELETE FROM schema_version")
    assert not is_current()
    readers.close_all()


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE notes (x TEXT)",
        "CREATE TABLE schema_version (version INTEGER PRIMARY KEY)",
        "CREATE TABLE workflows (id TEXT PRIMARY KEY)",
    ],
)
def test_the_database_of_another_program_is_refused_and_not_touched(empty_database: Database, statement: str) -> None:
    empty_database.execute(statement)
    before = structure(empty_database)
    with pytest.raises(SchemaError, match="belongs to another program"):
        schema.set_up(empty_database.engine)
    assert structure(empty_database) == before


@pytest.fixture
def later_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of migrations of a later version, empty but for the released ones."""
    folder = tmp_path / "migrations"
    folder.mkdir()
    for file in schema.MIGRATIONS.glob("0*.py"):
        (folder / file.name).write_text(file.read_text())
    monkeypatch.setattr(schema, "MIGRATIONS", folder)
    return folder


def migration(folder: Path, name: str, *statements: str) -> None:
    body = "".join(f"    db.execute_sql({statement!r})\n" for statement in statements)
    (folder / f"{name}.py").write_text(f"def up(migrator, db):\n{body}")


def test_a_later_version_brings_an_existing_database_up_to_date(database: Database, later_version: Path) -> None:
    migration(later_version, "0900_more", "CREATE TABLE more (x INTEGER)")
    migration(later_version, "0901_most", "INSERT INTO more VALUES (1)")
    assert schema.set_up(database.engine) == ["0900_more", "0901_most"]
    assert schema.set_up(database.engine) == []
    assert database.rows("SELECT * FROM more") == [(1,)]


def test_a_migration_that_fails_leaves_no_trace(database: Database, later_version: Path) -> None:
    before = database.dump(), structure(database)
    more = "CREATE TABLE more (x INTEGER)"
    migration(later_version, "0900_more", more, "DELETE FROM event_position", "SELECT no_such_thing")
    with pytest.raises(SchemaError, match="no_such_thing"):
        schema.set_up(database.engine)
    assert (database.dump(), structure(database)) == before
    migration(later_version, "0900_more", more)
    assert schema.set_up(database.engine) == ["0900_more"]
