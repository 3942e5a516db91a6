"""What happens to a running service when another program takes its files away, or puts others in their places."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from amelia_flask import audit
from tests import ledgers, programs
from tests.databases import Sqlite
from tests.load import Clients, check_acknowledged, check_record, create_workflows, event, mixed
from tests.serving import Server, serving, until

NOTICED_SECONDS = 5.0


def part(database: Path, suffix: str) -> Path:
    return database.with_name(f"{database.name}{suffix}")


def remove(*suffixes: str) -> Callable[[Path], None]:
    def do(database: Path) -> None:
        for suffix in suffixes:
            part(database, suffix).unlink()

    return do


def move_log_away(database: Path) -> None:
    part(database, "-wal").rename(part(database, "-away"))


def replace_database(database: Path) -> None:
    """By another record, as a careless restore would."""
    other = part(database, "-other")
    ledger = Sqlite(other).set_up().ledger()
    ledgers.create(ledger)
    ledger.close()
    other.rename(database)


def check_refused(server: Server, workflow: str, sentence: str) -> None:
    """In every process writes are refused; the state and readiness say why."""
    for _ in range(8):
        refused = server.request("POST", f"/api/workflows/{workflow}/events", event())
        assert (refused.status, refused.json["code"]) == (503, "DATABASE_UNAVAILABLE"), refused
        state = server.request("GET", "/api/health").json
        assert (state["status"], sentence in state["database"]["error"]) == ("degraded", True), state
        unready = server.request("GET", "/api/health/ready")
        assert (unready.status, sentence in unready.json["reason"]) == (503, True), unready
        assert server.request("GET", "/api/health/live").status == 200


def is_noticed(server: Server) -> bool:
    return {server.request("GET", "/api/health/ready").status for _ in range(8)} == {503}


@pytest.mark.parametrize("end", ["kill", "stop"])
@pytest.mark.parametrize(
    "do", [remove("-wal"), remove("-shm"), remove("-wal", "-shm"), move_log_away], ids=["wal", "shm", "both", "moved"]
)
def test_a_log_that_was_taken_away_is_noticed_and_nothing_in_it_is_lost(
    tmp_path: Path, do: Callable[[Path], None], end: str
) -> None:
    with serving(tmp_path / "amelia.db", workers=2) as server:
        workflows = create_workflows(server, 4)
        clients = Clients(server, [mixed(workflows, n) for n in range(6)]).start()
        clients.wait_for(200)
        do(server.file)
        until(lambda: clients.statuses[503] >= 20, NOTICED_SECONDS)
        until(lambda: is_noticed(server), NOTICED_SECONDS)
        check_refused(server, workflows[0], "The log of the database was taken away or replaced")
        server.kill() if end == "kill" else server.stop()
        clients.join()
        server.start()
        check_healthy(server, workflows[0])
        assert server.stop() == 0
    check_acknowledged(server.database, clients.acknowledged)
    check_record(server.database)


def check_healthy(server: Server, workflow: str) -> None:
    assert server.request("POST", f"/api/workflows/{workflow}/events", event()).status == 201
    assert server.request("GET", "/api/health").json["status"] == "healthy"


def test_a_log_that_is_taken_away_while_nobody_writes_is_rescued(tmp_path: Path) -> None:
    with serving(tmp_path / "amelia.db", workers=2) as server:
        workflows = create_workflows(server, 20)
        remove("-wal", "-shm")(server.file)
        until(lambda: is_noticed(server), NOTICED_SECONDS)
        # A copy of the file alone, which no process has open, shows what it holds by itself.
        copy = tmp_path / "copy" / "amelia.db"
        copy.parent.mkdir()
        until(lambda: holds(server.file, copy, set(workflows)), NOTICED_SECONDS)
        server.kill()
        server.start()
        assert server.request("GET", "/api/workflows").json["total"] == 20
        assert server.stop() == 0


READ = """
from peewee import sqlite3
connection = sqlite3.connect(path, isolation_level=None)
connection.execute("BEGIN")
connection.execute("SELECT COUNT(*) FROM workflows").fetchall()
print("reading", flush=True)
input()
connection.execute("ROLLBACK")
"""


def test_a_reader_that_keeps_the_log_from_being_saved_holds_that_up_and_no_more(tmp_path: Path) -> None:
    with serving(tmp_path / "amelia.db", workers=1) as server:
        workflows = create_workflows(server, 2)
        reader = programs.start(READ, server.file)
        programs.wait_for_line(reader, "reading")
        workflows += create_workflows(server, 2)
        remove("-wal")(server.file)
        until(lambda: "keeps the log" in str(server.request("GET", "/api/health").json["database"]["error"]))
        programs.finish(reader, "\n")
        copy = tmp_path / "copy" / "amelia.db"
        copy.parent.mkdir()
        until(lambda: holds(server.file, copy, set(workflows)))
        server.kill()
        server.start()
        assert server.request("GET", "/api/workflows").json["total"] == 4
        assert server.stop() == 0


def holds(database: Path, copy: Path, workflows: set[str]) -> bool:
    for old in copy.parent.iterdir():
        old.unlink()
    shutil.copyfile(database, copy)
    return {name for (name,) in Sqlite(copy).rows("SELECT id FROM workflows")} == workflows


@pytest.mark.parametrize("do", [remove(""), replace_database], ids=["removed", "replaced"])
def test_a_database_that_was_taken_away_or_replaced_without_its_log_is_not_written(
    tmp_path: Path, do: Callable[[Path], None]
) -> None:
    with serving(tmp_path / "amelia.db", workers=2) as server:
        workflows = create_workflows(server, 4)
        clients = Clients(server, [mixed(workflows, n) for n in range(6)]).start()
        clients.wait_for(200)
        kept = tmp_path / "kept.db"
        os.link(server.file, kept)  # as somebody may have moved it
        do(server.file)
        until(lambda: clients.statuses[503] >= 20, NOTICED_SECONDS)
        until(lambda: is_noticed(server), NOTICED_SECONDS)
        there = server.file.exists()
        check_refused(server, workflows[0], "moved or replaced by another program, but not its log")
        assert server.file.exists() == there, "no empty record takes its place"
        assert server.stop() == 0
        clients.join()
    log = part(server.file, "-wal")
    assert not log.exists() or log.stat().st_size == 0, "the log of one record is not left beside another"
    check_acknowledged(Sqlite(kept), clients.acknowledged)
    check_record(Sqlite(kept))
    if there:
        assert list(audit.check(server.database.engine)) == []
        assert server.database.rows("SELECT COUNT(*) FROM workflows") == [(1,)]


def test_a_database_that_was_moved_away_and_back_goes_on(tmp_path: Path) -> None:
    with serving(tmp_path / "amelia.db", workers=2) as server:
        workflows = create_workflows(server, 4)
        clients = Clients(server, [mixed(workflows, n) for n in range(6)]).start()
        clients.wait_for(100)
        server.file.rename(tmp_path / "away.db")
        until(lambda: clients.statuses[503] >= 20, NOTICED_SECONDS)
        (tmp_path / "away.db").rename(server.file)
        until(lambda: not is_noticed(server), NOTICED_SECONDS)
        clients.wait_for(len(clients.acknowledged) + 100)
        check_healthy(server, workflows[0])
        assert server.stop() == 0
        clients.join()
    check_acknowledged(server.database, clients.acknowledged)
    check_record(server.database)
