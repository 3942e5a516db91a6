"""How a server ends, and what happens to its processes on the way: nothing that was acknowledged is lost."""

import contextlib
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from amelia_flask.sqlite import engine_is_mended
from tests.databases import Database, Sqlite
from tests.load import Clients, check_record, create_workflows, mixed
from tests.serving import Server, serving, until

ROOT = Path(__file__).parent.parent
COMMANDS = {"serve": ["amelia_flask", "serve"], "gunicorn": ["gunicorn", "wsgi:app"]}
QUICK_SECONDS = 3.0
LEAVE_SECONDS = 10.0


@contextlib.contextmanager
def starting(database: Path, command: str = "serve", **environment: str) -> Iterator[Server]:
    """A server that has just been started: nothing of it has been waited for."""
    server = Server(database)
    server.environment |= environment
    with server.log.open("ab") as log:
        server.process = subprocess.Popen(
            [sys.executable, "-m", *COMMANDS[command]],
            cwd=ROOT,
            env=server.environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.kill()


def stop(server: Server) -> tuple[int, float]:
    """The exit status and the seconds that the end took."""
    began = time.monotonic()
    status = server.stop()
    return status, time.monotonic() - began


def children(server: Server) -> list[psutil.Process]:
    assert server.process is not None
    found: list[psutil.Process] = psutil.Process(server.process.pid).children()
    return found


@pytest.mark.parametrize("moment", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.3, 1.6, 2.0])
def test_a_stop_soon_after_the_start_is_quick(tmp_path: Path, moment: float) -> None:
    with starting(tmp_path / "amelia.db", AMELIA_WORKERS="2") as server:
        time.sleep(moment)  # what is tested is this moment
        begun = (tmp_path / "amelia.db.serving").exists()
        status, seconds = stop(server)
        assert seconds < QUICK_SECONDS
        # Before the program has come to its first line, the kernel ends it for this signal.
        assert status == 0 or (status == -signal.SIGTERM and not begun), server.log.read_text()
    if server.file.exists():
        assert server.database.rows("PRAGMA integrity_check") == [("ok",)]


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_a_process_that_is_being_born_hears_of_the_stop(tmp_path: Path, command: str) -> None:
    with starting(tmp_path / "amelia.db", command, AMELIA_WORKERS="2") as server:
        server.wait_until_ready()
        until(lambda: len(children(server)) == 2)
        for _ in range(10):
            replaced, newborn = replace_one(server)
            newborn.terminate()  # within the first millisecond of its life
            assert not psutil.wait_procs([replaced, newborn], QUICK_SECONDS)[1]
            until(lambda: len(children(server)) == 2)
        assert stop(server)[0] == 0


def replace_one(server: Server) -> tuple[psutil.Process, psutil.Process]:
    """A process of the server that was killed, and the one that is just taking its place."""
    assert server.process is not None
    list_of_children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    before = set(list_of_children.read_text().split())
    replaced = psutil.Process(int(min(before)))
    replaced.kill()
    deadline = time.monotonic() + LEAVE_SECONDS
    while not (new := set(list_of_children.read_text().split()) - before):
        assert time.monotonic() < deadline
    return replaced, psutil.Process(int(new.pop()))


def test_a_process_that_is_told_again_and_again_to_stop_ends_none_the_later(tmp_path: Path) -> None:
    """As when a supervisor tells all processes at once, and gunicorn's master tells its own once more."""
    with serving(tmp_path / "amelia.db", workers=2) as server:
        for _ in range(4):
            told = children(server)
            for process in told * 200:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.terminate()
            assert not psutil.wait_procs(told, QUICK_SECONDS)[1]
            until(lambda: len(children(server)) == 2)
        assert stop(server)[0] == 0


def kill_one(server: Server) -> list[psutil.Process]:
    killed = children(server)[0]
    killed.kill()
    return [killed]


def reload(server: Server) -> list[psutil.Process]:
    assert server.process is not None
    old = children(server)
    server.process.send_signal(signal.SIGHUP)
    return old


def nothing(_server: Server) -> list[psutil.Process]:
    return []


@pytest.mark.parametrize("disturb", [kill_one, reload, nothing])
def test_nothing_acknowledged_is_lost_and_the_end_comes_in_time(
    tmp_path: Path, disturb: Callable[[Server], list[psutil.Process]]
) -> None:
    with serving(tmp_path / "amelia.db", workers=2) as server:
        workflows = create_workflows(server, 4)
        before = Clients(server, [mixed(workflows, n) for n in range(6)]).start()
        before.wait_for(100)
        old = disturb(server)
        assert not psutil.wait_procs(old, LEAVE_SECONDS)[1]
        until(lambda: len(children(server)) == 2)
        after = Clients(server, [mixed(workflows, n) for n in range(6)]).start()
        after.wait_for(100)
        status, seconds = stop(server)
        assert (status, seconds < LEAVE_SECONDS) == (0, True), (seconds, server.log.read_text())
        before.join()
        after.join()
    check_kept(server.database, before, after)


def test_two_servers_may_share_a_database(tmp_path: Path) -> None:
    path = tmp_path / "amelia.db"
    with serving(path, workers=1) as one, serving(path, workers=2) as two:
        workflows = create_workflows(one, 4)
        both = [Clients(server, [mixed(workflows, n) for n in range(4)]).start() for server in (one, two)]
        for clients in both:
            clients.wait_for(100)
        one.kill()
        both[1].wait_for(len(both[1].acknowledged) + 100)
        assert two.request("GET", "/api/health").json["status"] == "healthy"
        assert two.stop() == 0
        for clients in both:
            clients.join()
    check_kept(Sqlite(path), *both)


def check_kept(database: Database, *clients: Clients) -> None:
    """Every acknowledged record is there, and the record is sound."""
    check_record(database)
    stored = {row[0] for row in database.rows("SELECT id FROM events UNION SELECT id FROM token_usage")}
    for each in clients:
        assert set(each.statuses) <= {201, 503}
        for _, answer in each.acknowledged:
            assert {one["id"] for one in answer.get("events", []) + answer.get("token_usage", [])} <= stored


def test_an_engine_that_bears_no_second_process_refuses_a_second_server(tmp_path: Path) -> None:
    # A package that hides pysqlite3 stands for a platform without it: the engine of the system is used.
    hidden = tmp_path / "path" / "pysqlite3"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ImportError")
    if engine_is_mended(sqlite3.sqlite_version):
        pytest.skip("the system's SQLite bears several processes")
    path, old = tmp_path / "amelia.db", str(hidden.parent)
    with starting(path, PYTHONPATH=old) as server:
        server.wait_until_ready()
        assert f"another server or a restore, and SQLite {sqlite3.sqlite_version} can lose" in refused(path, old)
        assert "in use by what needs it alone" in refused(path, "")
        assert server.stop() == 0
    with serving(path) as server:
        assert "another server or a restore" in refused(path, old)


def refused(database: Path, path: str) -> str:
    """What a start says that fails on this database, with this PYTHONPATH."""
    environment = Server(database).environment | {"PYTHONPATH": path}
    command = [sys.executable, "-m", *COMMANDS["serve"]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    return done.stderr
