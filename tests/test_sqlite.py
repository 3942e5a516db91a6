"""Connections to the database: how they are set, what they refuse, and when there are none."""

import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from peewee import sqlite3 as engine

from amelia_flask import schema
from amelia_flask.database import reading
from amelia_flask.errors import DatabaseUnavailable, SchemaError
from amelia_flask.sqlite import SqliteEngine, SqliteExtDatabase, engine_is_mended, engine_version
from amelia_flask.sqlite import database as opening
from tests import programs
from tests.databases import Sqlite

PRAGMAS = {
    "journal_mode": "wal",
    "foreign_keys": 1,
    "busy_timeout": 5000,
    "journal_size_limit": 67108864,
    "synchronous": 2,  # FULL
}
INSERT = "INSERT INTO health_check VALUES (?, '')"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    schema.set_up(SqliteEngine(tmp_path / "amelia.db"))
    return tmp_path / "amelia.db"


@contextmanager
def using(db: SqliteExtDatabase) -> Iterator[SqliteExtDatabase]:
    """A database whose connections are closed afterwards."""
    try:
        yield db
    finally:
        db.close_all()


@pytest.fixture
def readers(path: Path) -> Iterator[SqliteExtDatabase]:
    with using(SqliteEngine(path).open_readers(2)) as readers:
        yield readers


def one(db: SqliteExtDatabase, sql: str) -> Any:
    """The only value of the only row."""
    with reading(db):
        return db.execute_sql(sql).fetchone()[0]


def reader(path: Path) -> SqliteExtDatabase:
    return SqliteEngine(path).open_readers(1)


def writer(path: Path) -> SqliteExtDatabase:
    return SqliteEngine(path).open_writer()


@pytest.mark.parametrize("name", PRAGMAS)
@pytest.mark.parametrize("opened", [reader, writer])
def test_every_connection_is_set_as_promised(
    path: Path, opened: Callable[[Path], SqliteExtDatabase], name: str
) -> None:
    with using(opened(path)) as db:
        assert one(db, f"PRAGMA {name}") == PRAGMAS[name]


def test_a_transaction_of_the_writers_connection_takes_the_write_lock_at_once(path: Path) -> None:
    with (
        using(SqliteEngine(path).open_writer()) as db,
        db.connection_context(),
        db.atomic(),
        closing(engine.connect(path)) as other,
    ):
        other.execute("PRAGMA busy_timeout = 0")
        with pytest.raises(engine.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")


def test_a_reader_cannot_write(path: Path, readers: SqliteExtDatabase) -> None:
    with pytest.raises(DatabaseUnavailable), reading(readers):
        readers.execute_sql(INSERT, ("x",))
    assert Sqlite(path).rows("SELECT * FROM health_check") == []


def test_a_connection_whose_pragma_does_not_take_is_refused(path: Path) -> None:
    with using(SqliteExtDatabase(path, (("journal_mode", "delete", "wal"),), 1)) as db:
        with pytest.raises(SchemaError, match="journal_mode"):
            db.connect()
        assert programs.open_files(path.parent) == set()


def test_a_file_that_another_program_keeps_out_of_wal_mode_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "held.db"
    with closing(engine.connect(path, isolation_level=None)) as holder:
        holder.execute("PRAGMA locking_mode = EXCLUSIVE")
        holder.execute("CREATE TABLE t (x)")
        pragmas = (("busy_timeout", 1, 1), ("journal_mode", "wal", "wal"))
        with using(SqliteExtDatabase(path, pragmas, 1)) as db, pytest.raises(DatabaseUnavailable), reading(db):
            pass


def test_nothing_is_opened_before_the_first_use(path: Path) -> None:
    with using(SqliteEngine(path).open_readers(2)) as readers, using(SqliteEngine(path).open_writer()) as writer:
        assert programs.open_files(path.parent) == set()
        one(readers, "SELECT 1")
        one(writer, "SELECT 1")
        assert path.name in programs.open_files(path.parent)
    assert programs.open_files(path.parent) == set()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_only_the_owner_may_read_the_files(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "new" / "folder" / "amelia.db"
    before = os.umask(umask)
    try:
        schema.set_up(SqliteEngine(path))
        with using(SqliteEngine(path).open_writer()) as db, db.connection_context():
            db.execute_sql(INSERT, ("x",))
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    finally:
        os.umask(before)
    assert modes == {f"amelia.db{end}": 0o600 for end in ("", "-wal", "-shm", ".writer")}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_an_existing_file_is_narrowed_to_its_owner(path: Path) -> None:
    path.chmod(0o644)
    schema.set_up(SqliteEngine(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_vanished_is_an_error_and_never_a_new_empty_one(path: Path, readers: SqliteExtDatabase) -> None:
    assert one(readers, "SELECT COUNT(*) FROM workflows") == 0
    away = path.rename(path.with_name("away.db"))
    for _ in range(2):
        with pytest.raises(DatabaseUnavailable), reading(readers):
            pass
    assert not path.exists()
    away.rename(path)
    assert one(readers, "SELECT COUNT(*) FROM workflows") == 0


def test_a_connection_to_a_file_that_was_replaced_is_not_lent_again(path: Path, readers: SqliteExtDatabase) -> None:
    assert one(readers, "SELECT COUNT(*) FROM health_check") == 0
    other = path.with_name("other.db")
    schema.set_up(SqliteEngine(other))
    with using(SqliteEngine(other).open_writer()) as db, db.connection_context():
        db.execute_sql(INSERT, ("x",))
    other.replace(path)
    assert one(readers, "SELECT COUNT(*) FROM health_check") == 1


def test_a_connection_on_which_something_failed_is_thrown_away(path: Path, readers: SqliteExtDatabase) -> None:
    with pytest.raises(DatabaseUnavailable), reading(readers):
        readers.execute_sql("SELECT * FROM no_such_table")
    assert programs.open_files(path.parent) == set()
    assert one(readers, "SELECT 1") == 1


def test_a_reader_that_fails_for_a_reason_of_its_own_gives_its_connection_back(readers: SqliteExtDatabase) -> None:
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), reading(readers):
            raise ZeroDivisionError


def test_a_read_sees_one_moment_whatever_is_written_meanwhile(path: Path, readers: SqliteExtDatabase) -> None:
    count = "SELECT COUNT(*) FROM health_check"
    with reading(readers) as db:
        before = db.execute_sql(count).fetchone()
        with closing(engine.connect(path)) as other, other:
            other.execute("INSERT INTO health_check VALUES ('a', '')")
        assert db.execute_sql(count).fetchone() == before == (0,)
    with reading(readers) as db:
        assert db.execute_sql(count).fetchone() == (1,)


def test_a_read_that_takes_too_long_is_ended(readers: SqliteExtDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    without_end = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT COUNT(*) FROM n"
    monkeypatch.setattr(opening, "READ_SECONDS", 0.05)
    with pytest.raises(DatabaseUnavailable), reading(readers) as db:
        db.execute_sql(without_end).fetchone()
    with reading(readers) as db:
        assert db.execute_sql("SELECT 1").fetchone() == (1,)


def test_more_readers_than_connections_wait_for_their_turn(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "POOL_WAIT_SECONDS", 0.1)
    with using(SqliteEngine(path).open_readers(1)) as readers, reading(readers):
        outcomes: list[BaseException | int] = []
        in_a_thread(lambda: outcomes.append(attempt(readers)))
    in_a_thread(lambda: outcomes.append(attempt(readers)))
    readers.close_all()
    assert isinstance(outcomes[0], DatabaseUnavailable)
    assert outcomes[1] == 1


def attempt(db: SqliteExtDatabase) -> BaseException | int:
    """What a read gives, or how it fails."""
    try:
        return int(one(db, "SELECT 1"))
    except DatabaseUnavailable as error:
        return error


def in_a_thread(call: Callable[[], None]) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


@pytest.mark.parametrize(
    ("version", "mended"),
    [
        ("3.40.1", False),
        ("3.44.5", False),
        ("3.44.6", True),
        ("3.44.10", True),
        ("3.45.0", False),
        ("3.50.6", False),
        ("3.50.7", True),
        ("3.51.0", False),
        ("3.51.2", False),
        ("3.51.3", True),
        ("3.52.0", True),
        ("3.53.4", True),
        ("4.0.0", True),
    ],
)
def test_the_engines_that_can_lose_rows_are_known(version: str, mended: bool) -> None:
    assert engine_is_mended(version) is mended


def test_the_engine_in_use_is_a_mended_one() -> None:
    assert engine_version() == engine.sqlite_version
    assert engine_is_mended()
