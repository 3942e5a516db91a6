"""Backups of a service that runs, and databases put back from them."""

import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from peewee import sqlite3 as engine

from amelia_flask import audit, backup, schema
from amelia_flask.backup import back_up, restore
from amelia_flask.database import SERVING
from amelia_flask.errors import DatabaseUnavailable, FileRefused, SchemaError
from amelia_flask.files import new_file
from amelia_flask.lock import FileLock
from amelia_flask.sqlite import SqliteEngine
from tests.databases import Sqlite
from tests.ledgers import create
from tests.load import Clients, check_record, create_workflows, mixed
from tests.serving import serving
from tests.test_cli import run

NOW = datetime(2026, 6, 30, 12, tzinfo=UTC)


def nothing(_bytes: int) -> None:
    """A step that nobody looks at."""


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A database with one workflow in a folder of its own, and nobody has it open."""
    path = tmp_path / "live" / "amelia.db"
    path.parent.mkdir()
    with closing(Sqlite(path).set_up().ledger()) as ledger:
        create(ledger)
    return path


@pytest.fixture
def saved(database: Path, tmp_path: Path) -> Path:
    """A backup of `database`, which has one workflow more by now."""
    back_up(database, tmp_path / "saved.db", nothing, NOW)
    with closing(Sqlite(database).set_up().ledger()) as ledger:
        create(ledger)
    return tmp_path / "saved.db"


def count(path: Path) -> int:
    found: int = Sqlite(path).rows("SELECT COUNT(*) FROM workflows")[0][0]
    return found


def test_a_backup_is_one_private_file_that_holds_everything(database: Path, tmp_path: Path) -> None:
    saved = tmp_path / "folder" / "saved.db"
    saved.parent.mkdir()
    back_up(database, saved, nothing)
    assert list(saved.parent.iterdir()) == [saved]
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600
    assert Sqlite(saved).dump() == Sqlite(database).dump()
    assert Sqlite(saved).rows("PRAGMA journal_mode") == [("delete",)]
    assert list(audit.check(SqliteEngine(saved))) == []


def test_a_backup_is_complete_as_of_its_start(database: Path, tmp_path: Path) -> None:
    with closing(Sqlite(database).set_up().ledger()) as ledger:
        workflow = create(ledger)
        Sqlite(database).add_events(workflow, 20_000)
        before = Sqlite(database).dump()
        steps: list[int] = []

        def write_meanwhile(copied: int) -> None:
            if len(steps) < 5:
                create(ledger)
            steps.append(copied)

        back_up(database, tmp_path / "saved.db", write_meanwhile)
    assert len(steps) >= 5
    assert Sqlite(tmp_path / "saved.db").dump() == before


@pytest.mark.parametrize(
    "take", [Path.touch, Path.mkdir, lambda path: path.symlink_to("nowhere")], ids=["file", "folder", "link"]
)
def test_what_is_there_is_never_overwritten(database: Path, tmp_path: Path, take: Callable[[Path], None]) -> None:
    target = tmp_path / "taken"
    take(target)
    with pytest.raises(FileExistsError):
        back_up(database, target, nothing)
    assert backup.last(database) is None
    assert not list(tmp_path.glob(".*"))


def test_a_file_that_comes_up_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "new"

    def make() -> None:
        with new_file(path) as temporary:
            temporary.write_text("ours")
            path.write_text("theirs")

    with pytest.raises(FileExistsError):
        make()
    assert path.read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [path]


def test_a_backup_that_fails_leaves_nothing_and_is_not_remembered(database: Path, tmp_path: Path) -> None:
    def fail(_bytes: int) -> None:
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        back_up(database, tmp_path / "saved.db", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["live"]
    assert backup.last(database) is None


def test_when_the_last_backup_was_made_is_remembered(database: Path, tmp_path: Path) -> None:
    assert backup.last(database) is None
    for n in range(2):
        moment = NOW.replace(day=n + 1)
        back_up(database, tmp_path / str(n), nothing, moment)
        assert backup.last(database) == moment
    database.with_name("amelia.db.backup").write_text("long ago")
    assert backup.last(database) is None


def damaged(path: Path) -> Path:
    """The database with a page in its middle overwritten."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2 // 4096 * 4096)
        file.write(b"\xff" * 4096)
    return path


def test_a_backup_of_a_damaged_database_is_refused(database: Path, tmp_path: Path) -> None:
    damaged(database)
    with pytest.raises(FileRefused, match="is damaged"):
        back_up(database, tmp_path / "saved.db", nothing)
    assert not (tmp_path / "saved.db").exists()


def test_a_database_whose_server_was_killed_is_backed_up_whole(tmp_path: Path) -> None:
    with serving(tmp_path / "amelia.db") as server:
        clients = Clients(server, [mixed(create_workflows(server, 4), n) for n in range(4)]).start()
        clients.wait_for(100)
        server.kill()
        clients.join()
    back_up(server.file, tmp_path / "saved.db", nothing)
    check_record(Sqlite(tmp_path / "saved.db"))
    stored = {row[0] for row in Sqlite(tmp_path / "saved.db").rows("SELECT id FROM events")}
    for _, answer in clients.acknowledged:
        assert {place["id"] for place in answer.get("events", [])} <= stored


def test_a_server_goes_on_writing_while_it_is_backed_up(tmp_path: Path) -> None:
    with serving(tmp_path / "amelia.db", workers=2) as server:
        workflows = create_workflows(server, 4)
        server.database.add_events(workflows[0], 30_000)
        clients = Clients(server, [mixed(workflows[1:], n) for n in range(4)]).start()
        clients.wait_for(50)
        before = len(clients.acknowledged)
        done = run("backup", str(tmp_path / "saved.db"), AMELIA_DATABASE_PATH=str(server.file))
        during = len(clients.acknowledged) - before
        assert done.returncode == 0, done.stderr
        assert "verified" in done.stdout
        assert server.stop() == 0
        clients.join()
    assert during > 20
    assert set(clients.statuses) <= {201, 503}
    assert list(audit.check(SqliteEngine(tmp_path / "saved.db"))) == []
    assert list(audit.check(server.database.engine)) == []
    newest = "SELECT MAX(position) FROM events"
    saved, live = (Sqlite(path).rows(newest)[0][0] for path in (tmp_path / "saved.db", server.file))
    assert 30_000 < saved < live


def test_a_restored_database_is_the_backup_and_the_old_one_is_kept(database: Path, saved: Path) -> None:
    expected, old = Sqlite(saved).dump(), Sqlite(database).dump()
    kept = restore(database, saved, nothing, replace=True, now=NOW)
    assert Sqlite(database).dump() == expected == Sqlite(saved).dump()
    assert kept == database.with_name("amelia.db.replaced-20260630T120000.000000Z")
    assert Sqlite(kept).dump() == old
    assert stat.S_IMODE(database.stat().st_mode) == 0o600
    assert not list(database.parent.glob(".*"))
    with serving(database) as server:
        assert server.request("GET", "/api/workflows").json["total"] == 1
        create_workflows(server, 1)
        assert server.stop() == 0
    assert count(database) == 2


def test_a_backup_is_restored_where_nothing_is(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "new" / "place" / "amelia.db"
    assert restore(path, saved, nothing) is None
    assert Sqlite(path).dump() == Sqlite(saved).dump()


def test_what_stands_in_the_log_of_the_old_one_is_kept_with_it(database: Path, saved: Path) -> None:
    code = (
        "from contextlib import ExitStack\nimport os\nfrom tests import ledgers\nfrom tests.databases import Sqlite\n"
        "ledger = Sqlite(path).set_up().ledger()\nledgers.create(ledger)\nos.kill(os.getpid(), 9)"
    )
    program = f"import sys\nfrom pathlib import Path\npath = Path(sys.argv[1])\n{code}"
    subprocess.run([sys.executable, "-c", program, str(database)], cwd=Path(__file__).parent.parent, check=False)
    assert database.with_name("amelia.db-wal").stat().st_size > 0
    kept = restore(database, saved, nothing, replace=True)
    assert kept is not None
    assert (count(kept), count(database)) == (3, 1)
    assert not database.with_name("amelia.db-wal").exists()


def test_a_database_that_is_too_damaged_to_open_is_replaced_and_kept_with_its_log(
    database: Path, saved: Path
) -> None:
    database.write_bytes(b"no database at all " * 1000)
    for suffix in ("-wal", "-shm"):
        database.with_name(database.name + suffix).write_bytes(b"left behind")
    kept = restore(database, saved, nothing, replace=True)
    assert kept is not None
    assert kept.read_bytes().startswith(b"no database at all")
    assert kept.with_name(kept.name + "-wal").read_bytes() == b"left behind"
    assert Sqlite(database).dump() == Sqlite(saved).dump()


def refused(database: Path, source: Path, error: type[Exception], reason: str, replace: bool = True) -> None:
    """Restoring is refused with a sentence, and nothing has changed."""
    before = Sqlite(database).dump()
    names = sorted(database.parent.iterdir())
    with pytest.raises(error, match=reason):
        restore(database, source, nothing, replace)
    assert Sqlite(database).dump() == before
    assert [name for name in sorted(database.parent.iterdir()) if name.suffix not in {".writer", ".serving"}] == [
        name for name in names if name.suffix not in {".writer", ".serving"}
    ]


def test_a_database_is_replaced_only_where_that_is_asked_for(database: Path, saved: Path) -> None:
    refused(database, saved, FileRefused, "with --yes it is replaced", replace=False)


def test_a_damaged_backup_is_refused(database: Path, saved: Path) -> None:
    refused(database, damaged(saved), FileRefused, "is damaged")


def test_a_file_that_is_no_database_is_refused(database: Path, tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("Dear reader, " * 1000)
    refused(database, tmp_path / "letter", SchemaError, "no database of amelia-flask: file is not a database")
    (tmp_path / "empty").touch()
    refused(database, tmp_path / "empty", SchemaError, "no database of amelia-flask")
    refused(database, tmp_path / "none", FileRefused, "There is no file")


@pytest.mark.parametrize("table", ["notes (x)", "schema_version (name, applied)"])
def test_a_database_of_another_program_is_refused(database: Path, tmp_path: Path, table: str) -> None:
    Sqlite(tmp_path / "other.db").execute(f"CREATE TABLE {table}")
    refused(database, tmp_path / "other.db", SchemaError, "no database of amelia-flask")


def test_a_backup_of_a_newer_version_is_refused(database: Path, saved: Path) -> None:
    Sqlite(saved).execute("INSERT INTO schema_version (name, applied) VALUES ('9999_future', '')")
    refused(database, saved, SchemaError, "made by a newer version .*9999_future")


def test_a_backup_of_an_earlier_version_is_restored_and_brought_up_to_date(database: Path, saved: Path) -> None:
    Sqlite(saved).execute("DELETE FROM schema_version WHERE name = '0004_retention'")
    Sqlite(saved).execute("DROP TABLE pruned_workflows", "DROP INDEX idx_workflows_completed_at")
    restore(database, saved, nothing, replace=True)
    assert schema.set_up(SqliteEngine(database)) == ["0004_retention"]
    assert list(audit.check(SqliteEngine(database))) == []


def test_the_database_is_not_restored_from_itself(database: Path) -> None:
    refused(database, database, FileRefused, "is the database itself")


def test_a_database_is_not_replaced_under_a_server(database: Path, saved: Path) -> None:
    with serving(database) as server:
        done = run("restore", str(saved), "--yes", AMELIA_DATABASE_PATH=str(database))
        assert done.returncode == 1
        assert done.stderr == f"Error: A server or another program is using {database}: stop it first.\n"
        assert server.request("GET", "/api/workflows").json["total"] == 2
        with closing(FileLock(database, SERVING)) as held, pytest.raises(DatabaseUnavailable):
            held.keep()
        server.kill()
    done = run("restore", str(saved), "--yes", AMELIA_DATABASE_PATH=str(database))
    assert done.returncode == 0, done.stderr
    assert count(database) == 1


def test_a_database_is_not_replaced_under_a_program_that_only_reads(database: Path, saved: Path) -> None:
    with closing(engine.connect(database)) as reader:
        reader.execute("SELECT * FROM workflows").fetchall()
        refused(database, saved, FileRefused, "another program is using")
    restore(database, saved, nothing, replace=True)


def test_no_server_starts_while_a_database_is_replaced(database: Path, saved: Path) -> None:
    held = FileLock(database, SERVING)
    tried: list[str] = []

    def try_to_share(_bytes: int) -> None:
        with pytest.raises(DatabaseUnavailable):
            held.share()
        tried.append("refused")

    restore(database, saved, try_to_share, replace=True)
    assert tried
    held.share()
    held.close()


def test_the_commands_say_what_they_did(database: Path, tmp_path: Path) -> None:
    settings = {"AMELIA_DATABASE_PATH": str(database)}
    target = tmp_path / "saved.db"
    first, again = (run("backup", str(target), **settings) for _ in range(2))
    assert (first.returncode, first.stdout) == (0, f"{target}: {target.stat().st_size} bytes, verified\n")
    assert (again.returncode, again.stderr) == (1, f"Error: There is a file {target} already.\n")
    asked = run("restore", str(target), **settings)
    assert asked.returncode == 1
    assert "with --yes" in asked.stderr
    done = run("restore", str(target), "--yes", **settings)
    assert done.returncode == 0, done.stderr
    assert f"{database}: restored from {target}" in done.stdout
    assert "what was there before" in done.stdout
    nowhere = tmp_path / "none.db"
    done = run("backup", str(tmp_path / "new.db"), AMELIA_DATABASE_PATH=str(nowhere))
    assert done.stderr == f"Error: There is no database at {nowhere}.\n"
