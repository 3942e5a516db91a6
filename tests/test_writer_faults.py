"""The writer when the database is locked, full or away, and when its own thread dies."""

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from peewee import sqlite3 as engine

from amelia_flask import schema
from amelia_flask import writer as writing
from amelia_flask.errors import DatabaseUnavailable
from amelia_flask.groups import Change
from amelia_flask.lock import FileLock
from amelia_flask.sqlite import SqliteEngine
from amelia_flask.sqlite import database as opening
from amelia_flask.writer import Writer
from tests import programs, writers
from tests.databases import Sqlite
from tests.writers import add, run, stored

pytestmark = pytest.mark.engines("sqlite")
writer = writers.writer


@contextmanager
def locked_by_another_program(path: Path) -> Iterator[Any]:
    with closing(engine.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield other


def test_a_write_waits_for_another_program_that_holds_the_lock_for_two_seconds(writer: Writer, path: Path) -> None:
    with locked_by_another_program(path) as other:
        timer = threading.Timer(2, lambda: other.execute("ROLLBACK"))
        timer.start()
        assert run(writer, add("a")) == "a"
        timer.join()
    assert stored(Sqlite(path)) == ["a"]


def short_busy_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "WRITER_PRAGMAS", (("busy_timeout", 50, 50), *opening.WRITER_PRAGMAS[1:]))


def test_a_database_locked_for_too_long_is_unavailable_and_heals(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short_busy_timeout(monkeypatch)
    writer = Writer(SqliteEngine(path))
    with locked_by_another_program(path):
        for name in ("a", "b"):
            with pytest.raises(DatabaseUnavailable):
                run(writer, add(name))
        assert writer.failure is not None
    assert run(writer, add("c")) == "c"
    assert writer.failure is None
    writer.stop()
    assert stored(Sqlite(path)) == ["c"]


def test_a_file_lock_held_for_too_long_is_unavailable_and_heals(
    writer: Writer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "WAIT_SECONDS", 0.05)
    other = FileLock(path)
    with other.held():
        for name in ("a", "b"):
            with pytest.raises(DatabaseUnavailable) as refusal:
                run(writer, add(name))
            assert refusal.value.details == {}, "it was withdrawn"
    other.close()
    monkeypatch.setattr(writing, "WAIT_SECONDS", 8.0)
    assert run(writer, add("c")) == "c"
    assert stored(Sqlite(path)) == ["c"]


def test_a_connection_that_met_a_fault_is_not_used_again(writer: Writer, path: Path) -> None:
    assert run(writer, add("a")) == "a"

    def close_to_writing(tx: Any) -> None:
        tx.execute_sql("PRAGMA query_only = 1")

    run(writer, close_to_writing)
    with pytest.raises(DatabaseUnavailable):
        run(writer, add("refused"))
    assert writer.failure is not None
    assert run(writer, add("b")) == "b"
    assert stored(Sqlite(path)) == ["a", "b"]


def test_a_table_that_is_missing_is_a_fault_of_the_database(writer: Writer, path: Path) -> None:
    with pytest.raises(DatabaseUnavailable):
        run(writer, lambda tx: tx.execute_sql("SELECT * FROM no_such_table"))
    assert run(writer, add("a")) == "a"
    assert stored(Sqlite(path)) == ["a"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_died_is_replaced(writer: Writer, path: Path) -> None:
    run(writer, add("a"))
    dying = writer._thread
    assert dying is not None
    # A caller's future that is settled by another is the one thing that the thread cannot bear.
    change = Change(lambda _: change.future.set_result(None))
    writer._queue.put(change)
    dying.join(30)
    assert not dying.is_alive()
    assert [run(writer, add(name)) for name in "bc"] == ["b", "c"]
    assert stored(Sqlite(path)) == ["a", "b", "c"]


FILL = """
import resource
from amelia_flask.errors import DatabaseUnavailable
from amelia_flask.groups import Change
from amelia_flask.writer import Writer
from amelia_flask.sqlite import SqliteEngine

def add(name):
    sql = "INSERT INTO health_check VALUES (?, ?)"
    writer.run(Change(lambda tx: tx.execute_sql(sql, (name, "x" * 20_000)).rowcount))
    print(name)

writer = Writer(SqliteEngine(path))
add("before")
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, most))
refused = 0
for n in range(30):
    try:
        add(f"full {n}")
    except DatabaseUnavailable:
        refused += 1
assert refused > 10, refused
assert writer.failure is not None
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
add("after")
assert writer.failure is None
writer.stop()
"""


def test_a_full_disk_is_unavailable_and_heals_once_there_is_room(path: Path) -> None:
    acknowledged = programs.run(FILL, path).splitlines()
    assert {"before", "after"} < set(acknowledged)
    assert stored(Sqlite(path)) == sorted(acknowledged)
    assert Sqlite(path).rows("PRAGMA integrity_check") == [("ok",)]


def test_a_database_that_is_away_is_unavailable_and_never_made_anew(writer: Writer, path: Path) -> None:
    run(writer, add("a"))
    away = path.rename(path.with_name("away.db"))
    for name in ("b", "c"):
        with pytest.raises(DatabaseUnavailable):
            run(writer, add(name))
    assert not path.exists()
    away.rename(path)
    assert run(writer, add("d")) == "d"
    assert stored(Sqlite(path)) == ["a", "d"]


def test_a_database_that_was_replaced_is_the_one_that_is_written(writer: Writer, path: Path, tmp_path: Path) -> None:
    run(writer, add("a"))
    old = tmp_path / "old"
    old.mkdir()
    for file in tmp_path.glob("amelia.db*"):
        file.rename(old / file.name)
    schema.set_up(SqliteEngine(path))
    assert run(writer, add("b")) == "b"
    assert stored(Sqlite(path)) == ["b"]
    assert stored(Sqlite(old / path.name)) == ["a"]
