"""The schema of a database file: what other programs find there, and files that are left alone."""

import shutil
import sqlite3
import stat
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from playhouse.migrations import Runner
from playhouse.schema_diff import diff_models

from amelia_flask import schema
from amelia_flask.errors import SchemaError
from amelia_flask.models import TABLES
from amelia_flask.progress import progress
from amelia_flask.sqlite import SqliteEngine
from tests import test_schema
from tests.databases import Sqlite
from tests.test_schema import MASTER, insert, migration, workflow

pytestmark = pytest.mark.engines("sqlite")
later_version = test_schema.later_version

# Table, and its columns with type and default; more columns may be there.
COLUMNS: dict[str, dict[str, tuple[str, str | None]]] = {
    "workflows": {
        **dict.fromkeys(("id", "issue_id", "worktree_path", "worktree_name"), ("TEXT", None)),
        "status": ("TEXT", "'pending'"),
        **dict.fromkeys(("started_at", "completed_at", "failure_reason", "state_json"), ("TEXT", None)),
        **dict.fromkeys(("created_at", "updated_at", "profile"), ("TEXT", None)),
        "host": ("TEXT", "''"),
        "last_sequence": ("INTEGER", "0"),
        "version": ("INTEGER", "1"),
    },
    "events": {
        **dict.fromkeys(("id", "workflow_id", "timestamp", "agent", "event_type", "message"), ("TEXT", None)),
        **dict.fromkeys(("data_json", "correlation_id"), ("TEXT", None)),
        **dict.fromkeys(("sequence", "position"), ("INTEGER", None)),
        "level": ("TEXT", "'info'"),
    },
    "token_usage": {
        **dict.fromkeys(("id", "workflow_id", "agent", "model", "timestamp"), ("TEXT", None)),
        **dict.fromkeys(("cost_source", "request_id", "source"), ("TEXT", None)),
        **dict.fromkeys(("input_tokens", "output_tokens"), ("INTEGER", None)),
        **dict.fromkeys(("cache_read_tokens", "cache_creation_tokens"), ("INTEGER", "0")),
        "cost_usd": ("REAL", None),
    },
    "health_check": dict.fromkeys(("id", "checked_at"), ("TEXT", None)),
}
KEYS = {
    "workflows": ["id"],
    "events": ["workflow_id", "sequence"],
    "token_usage": ["id"],
    "health_check": ["id"],
}
# Index, its table, the columns with which it begins (- is descending), and whether it is unique.
INDEXES = [
    ("idx_workflows_issue_id", "workflows", ["issue_id"], False),
    ("idx_workflows_status", "workflows", ["status"], False),
    ("idx_workflows_worktree", "workflows", ["worktree_path"], False),
    ("idx_workflows_started_at", "workflows", ["-started_at"], False),
    ("idx_workflows_active_worktree", "workflows", ["host", "worktree_path"], True),
    ("idx_events_workflow", "events", ["workflow_id", "timestamp"], False),
    ("idx_events_type", "events", ["event_type"], False),
    ("idx_tokens_workflow", "token_usage", ["workflow_id"], None),
    ("idx_tokens_agent", "token_usage", ["agent"], False),
]


@pytest.mark.parametrize("table", COLUMNS)
def test_a_table_has_the_columns_that_other_programs_know(path: Path, table: str) -> None:
    found = Sqlite(path).rows("SELECT name, type, dflt_value FROM pragma_table_info(?)", table)
    assert {(name, (kind, default)) for name, kind, default in found} >= set(COLUMNS[table].items())


@pytest.mark.parametrize("table", KEYS)
def test_a_table_has_its_primary_key(path: Path, table: str) -> None:
    found = Sqlite(path).rows("SELECT name FROM pragma_table_info(?) WHERE pk > 0 ORDER BY pk", table)
    assert [name for (name,) in found] == KEYS[table]


def test_the_events_table_is_clustered(path: Path) -> None:
    assert Sqlite(path).rows("SELECT wr FROM pragma_table_list WHERE name = 'events'") == [(1,)]


@pytest.mark.parametrize(("name", "table", "columns", "unique"), INDEXES)
def test_an_index_is_there_by_its_name(
    path: Path, name: str, table: str, columns: list[str], unique: bool | None
) -> None:
    sql = 'SELECT il."unique" FROM pragma_index_list(?) il WHERE il.name = ?'
    found = Sqlite(path).rows(sql, table, name)
    assert found
    assert unique in (None, found[0][0])
    order = 'SELECT name, "desc" FROM pragma_index_xinfo(?) WHERE key ORDER BY seqno'
    indexed = [("-" if descending else "") + str(column) for column, descending in Sqlite(path).rows(order, name)]
    assert indexed[: len(columns)] == columns


def test_a_migrated_database_is_like_a_new_one_and_like_the_models(path: Path, tmp_path: Path) -> None:
    migrated = tmp_path / "migrated.db"
    migrated.touch()
    db = SqliteEngine(migrated).open_writer()
    with db.connection_context():
        Runner(db, str(schema.MIGRATIONS), table_name="schema_version").up()
        with db.bind_ctx(TABLES, bind_refs=False, bind_backrefs=False):
            assert not diff_models(db, TABLES)
    db.close_all()
    assert Sqlite(migrated).rows(MASTER) == Sqlite(path).rows(MASTER)
    assert Sqlite(migrated).rows("SELECT * FROM event_position") == Sqlite(path).rows("SELECT * FROM event_position")


def test_a_record_of_the_first_version_keeps_its_sums_and_counts_what_has_ended(tmp_path: Path) -> None:
    path, first = tmp_path / "amelia.db", tmp_path / "first"
    first.mkdir()
    (first / "0001_initial.py").write_text((schema.MIGRATIONS / "0001_initial.py").read_text())
    path.touch()
    db = SqliteEngine(path).open_writer()
    with db.connection_context():
        Runner(db, str(first), table_name="schema_version").up()
    db.close_all()
    with Sqlite(path).connected() as connection:
        for name, status in (("a", "completed"), ("b", "completed"), ("c", "failed"), ("d", "blocked")):
            workflow(connection, name, status=status)
        for agent, model in (("x", "n"), ("x", "m"), ("y", "m")):
            insert(
                connection, "usage_by_day", day="2026-01-01", agent=agent, model=model, cost_nano=len(agent + model)
            )
    sums = "SELECT day, agent, model, cost_nano FROM usage_by_day ORDER BY 1, 2, 3"
    before = Sqlite(path).rows(sums)
    assert schema.set_up(SqliteEngine(path))[0] == "0002_lists_and_filters"
    assert Sqlite(path).rows(sums) == before
    assert Sqlite(path).rows("SELECT * FROM finished_workflows ORDER BY 1") == [("completed", 2), ("failed", 1)]


def test_what_another_program_left_in_its_log_is_not_touched(tmp_path: Path) -> None:
    running, path = tmp_path / "running.db", tmp_path / "crashed.db"
    with closing(sqlite3.connect(running)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE notes (x)")
        shutil.copy(running, path)
        shutil.copy(f"{running}-wal", f"{path}-wal")
    files = path, path.with_name("crashed.db-wal")
    before = [file.read_bytes() for file in files]
    with pytest.raises(SchemaError, match="belongs to another program"):
        schema.set_up(SqliteEngine(path))
    assert [file.read_bytes() for file in files] == before


def test_a_file_that_is_no_database_is_refused_and_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "letter.txt"
    path.write_text("Dear reader, " * 1000)
    refuse_untouched(path, "not a database")


def refuse_untouched(path: Path, reason: str) -> None:
    """Setting up fails for this reason and leaves the file and its folder as they were."""
    path.chmod(0o644)
    before = path.read_bytes()
    with pytest.raises(SchemaError, match=reason):
        schema.set_up(SqliteEngine(path))
    assert path.read_bytes() == before
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_in_the_place_of_the_database_is_refused_and_not_touched(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(SchemaError, match="cannot be set up"):
        schema.set_up(SqliteEngine(tmp_path))
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def test_a_path_below_a_file_is_refused_with_a_sentence(path: Path) -> None:
    with pytest.raises(SchemaError, match="cannot be set up"):
        schema.set_up(SqliteEngine(path / "amelia.db"))


def test_a_long_migration_is_seen_to_go_on(
    path: Path, later_version: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    count = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 100000) SELECT COUNT(*) FROM n"
    migration(later_version, "0900_more", f"CREATE TABLE more AS {count}")
    migration(later_version, "0901_most", "INSERT INTO more VALUES (1)")
    monkeypatch.setattr(schema, "progress", partial(progress, every=0))
    schema.set_up(SqliteEngine(path))
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith(f"Bringing {path} up to date: 0 of 2 migrations")
    assert told[-1].startswith(f"Bringing {path} up to date: 2 of 2 migrations")
    assert len(told) > 2, "it is told of within a migration too"
