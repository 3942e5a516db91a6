"""Backups of a record that a PostgreSQL server keeps, and databases put back from them."""

import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from amelia_flask import audit, events, schema
from amelia_flask.errors import FileRefused, SchemaError
from amelia_flask.ledger import Ledger
from amelia_flask.transfer.backups import back_up, restore
from amelia_flask.transfer.tables import CopyRefused
from tests.databases import Database, Databases, Sqlite
from tests.ledgers import create, new_event
from tests.load import Clients, create_workflows, mixed
from tests.serving import serving
from tests.test_cli import run
from tests.test_copy import busy_record, content, once

pytestmark = pytest.mark.engines("postgresql")


def nothing(_rows: int) -> None:
    """Show no progress."""


@pytest.fixture
def ledger(database: Database) -> Iterator[Ledger]:
    """The record that is saved."""
    with closing(database.ledger()) as ledger:
        busy_record(ledger)
        yield ledger


@pytest.fixture
def saved(database: Database, ledger: Ledger, tmp_path: Path) -> Path:  # noqa: ARG001 - which has filled the database
    """A backup."""
    back_up(database.engine, tmp_path / "saved.db", nothing)
    return tmp_path / "saved.db"


@pytest.fixture
def empty(databases: Databases, tmp_path: Path) -> Iterator[Database]:
    """An empty database on the server."""
    with databases.lend(tmp_path / "empty", is_empty=True) as empty:
        yield empty


def files(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


@pytest.mark.usefixtures("ledger")
def test_a_backup_is_a_sound_database_in_one_file(database: Database, tmp_path: Path) -> None:
    before = files(tmp_path)
    saved = Sqlite(tmp_path / "saved.db")
    back_up(database.engine, saved.path, nothing)
    assert files(tmp_path) - before == {"saved.db"}
    assert stat.S_IMODE(saved.path.stat().st_mode) == 0o600
    assert saved.rows("PRAGMA journal_mode") == [("delete",)]
    assert content(saved) == content(database)
    assert list(audit.check(saved.engine)) == []
    with pytest.raises(FileExistsError):
        back_up(database.engine, saved.path, nothing)


def test_a_backup_is_of_one_moment(database: Database, ledger: Ledger, tmp_path: Path) -> None:
    workflow = create(ledger)
    expected = content(database)
    step = once(lambda: ledger.append(workflow, events.arrived([new_event()])))
    back_up(database.engine, tmp_path / "saved.db", step)
    assert content(Sqlite(tmp_path / "saved.db")) == expected != content(database)


@pytest.mark.usefixtures("ledger")
def test_a_backup_that_fails_leaves_nothing_behind(database: Database, tmp_path: Path) -> None:
    before = files(tmp_path)

    def fail(_rows: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        back_up(database.engine, tmp_path / "saved.db", fail)
    assert files(tmp_path) == before


def test_a_server_goes_on_writing_while_it_is_backed_up(database: Database, tmp_path: Path) -> None:
    with serving(database, workers=2) as server:
        clients = Clients(server, [mixed(create_workflows(server, 4), n) for n in range(4)]).start()
        clients.wait_for(100)
        done = run("backup", str(tmp_path / "saved.db"), **database.settings)
        assert done.returncode == 0, done.stderr
        clients.wait_for(len(clients.acknowledged) + 20)
        assert server.stop() == 0
        clients.join()
    assert list(audit.check(Sqlite(tmp_path / "saved.db").engine)) == []
    assert list(audit.check(database.engine)) == []


def test_a_backup_is_restored_into_an_empty_database_alone(database: Database, empty: Database, saved: Path) -> None:
    raw, before = saved.read_bytes(), files(saved.parent)
    restore(empty.engine, saved, nothing)
    assert content(empty) == content(database)
    assert list(audit.check(empty.engine)) == []
    with pytest.raises(CopyRefused, match="is not empty"):
        restore(empty.engine, saved, nothing)
    assert (saved.read_bytes(), files(saved.parent)) == (raw, before)


def test_a_restore_that_was_cut_off_goes_on(database: Database, empty: Database, saved: Path) -> None:
    steps = iter(range(10))

    def fail(_rows: int) -> None:
        if next(steps, None) is None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore(empty.engine, saved, fail)
    with pytest.raises(SchemaError, match="is an unfinished copy"):
        schema.set_up(empty.engine)
    restore(empty.engine, saved, nothing)
    assert content(empty) == content(database)


def test_what_is_no_sound_backup_is_refused(empty: Database, saved: Path) -> None:
    page = Sqlite(saved).rows("SELECT rootpage FROM sqlite_master WHERE name = 'idx_events_type'")[0][0]
    with saved.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 4096)
    with pytest.raises(FileRefused, match="is damaged"):
        restore(empty.engine, saved, nothing)
    saved.write_text("Dear reader, " * 1000)
    with pytest.raises(SchemaError, match="no database of amelia-flask"):
        restore(empty.engine, saved, nothing)
    assert empty.columns() == {}


@pytest.mark.usefixtures("ledger")
def test_the_commands_say_what_they_did(database: Database, empty: Database, tmp_path: Path) -> None:
    saved = tmp_path / "saved.db"
    done = run("backup", str(saved), **database.settings)
    assert (done.returncode, done.stdout) == (0, f"{saved}: {saved.stat().st_size} bytes, verified\n")
    assert run("check", str(saved)).stdout == f"{saved}: sound\n"
    done = run("restore", str(saved), **empty.settings)
    assert (done.returncode, done.stdout) == (0, f"{empty.engine}: restored from {saved}\n")
    again = run("restore", str(saved), "--yes", **empty.settings)
    assert again.returncode == 1
    assert again.stderr.startswith(f"Error: {empty.engine} is not empty: make an empty database")
    assert run("check", **empty.settings).stdout == f"{empty.engine}: sound\n"
