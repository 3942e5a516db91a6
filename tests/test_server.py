"""The processes: how they start, stop, share and bear bad clients."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.databases import Database
from tests.load import Clients, check_record, create_workflows, mixed
from tests.serving import Server, serving, until

ROOT = Path(__file__).parent.parent


def processes(server: Server) -> list[psutil.Process]:
    """The processes that answer requests."""
    assert server.process is not None
    children: list[psutil.Process] = psutil.Process(server.process.pid).children()
    return children


def test_sigterm_under_load_answers_what_it_took_and_leaves(empty_database: Database) -> None:
    with serving(empty_database, workers=2) as server:
        clients = Clients(server, [mixed(create_workflows(server, 4), n) for n in range(8)]).start()
        clients.wait_for(200)
        assert server.stop() == 0
        clients.join()
    assert set(clients.statuses) <= {201, 503}
    check_record(server.database)
    stored = {row[0] for row in server.database.rows("SELECT id FROM events")}
    for _, answer in clients.acknowledged:
        assert {place["id"] for place in answer.get("events", [])} <= stored
    assert not list(server.database.folder.glob("*-wal")), "a clean stop leaves nothing to recover"


def test_a_reader_that_waits_is_let_go_at_sigterm(tmp_path: Path) -> None:
    with serving(tmp_path / "amelia.db", workers=1) as server, socket.socket() as reader:
        reader.connect(("127.0.0.1", server.port))
        reader.sendall(b"GET /api/events?after=0&wait=30 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        until(lambda: server.request("GET", "/api/health").json["websocket_connections"] == 1)
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 8
        assert b'"events":[]' in reader.recv(65536)


def test_a_connection_on_which_nothing_was_sent_does_not_hold_up_the_end(tmp_path: Path) -> None:
    with serving(tmp_path / "amelia.db", workers=1) as server, socket.create_connection(("127.0.0.1", server.port)):
        until(lambda: is_put_aside(server))
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 6


def is_put_aside(server: Server) -> bool:
    """Whether no thread of the server looks after a connection any more: its selector has gone with it."""
    with contextlib.suppress(FileNotFoundError):
        opened = [os.readlink(fd) for fd in Path(f"/proc/{processes(server)[0].pid}/fd").iterdir()]
        return opened.count("anon_inode:[eventpoll]") == 1
    return False


def test_a_worker_that_is_killed_is_replaced(tmp_path: Path) -> None:
    with serving(tmp_path / "amelia.db", workers=2) as server:
        first = processes(server)
        for process in first:
            process.kill()
        psutil.wait_procs(first, 10)
        until(lambda: len(set(processes(server)) - set(first)) == 2)
        assert server.request("GET", "/api/health").json["status"] == "healthy"


@pytest.mark.parametrize("pinned", ["on", "off"])
def test_pinned_workers_keep_to_one_core_each(tmp_path: Path, pinned: str) -> None:
    cores = os.sched_getaffinity(0)
    with serving(tmp_path / "amelia.db", workers=2, pin_workers=pinned) as server:
        expected = [cores, cores] if pinned == "off" else [{core} for core in pairs(cores)]
        until(lambda: affinities(server) == expected)


def pairs(cores: set[int]) -> list[int]:
    """The cores of the first and the second process."""
    ordered = sorted(cores)
    return [ordered[0], ordered[1 % len(ordered)]]


def affinities(server: Server) -> list[set[int]]:
    return sorted((os.sched_getaffinity(process.pid) for process in processes(server)), key=sorted)


def test_nothing_of_the_database_is_open_before_the_fork(tmp_path: Path) -> None:
    with serving(tmp_path / "amelia.db", workers=2) as server:
        assert server.process is not None
        opened = [file.path for file in psutil.Process(server.process.pid).open_files()]
        assert not [path for path in opened if Path(path).name in {"amelia.db", "amelia.db-wal", "amelia.db-shm"}]


def test_gunicorn_with_wsgi_serves_the_same(empty_database: Database) -> None:
    server = Server(empty_database, workers=2)
    command = [sys.executable, "-m", "gunicorn", "wsgi:app"]
    with server.log.open("ab") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=server.environment, stdout=log, stderr=log)
    server.process = process
    try:
        server.wait_until_ready()
        until(lambda: len(processes(server)) == 2)
        created = server.request("POST", "/api/workflows", {"issue_id": "G-1", "worktree_path": "/g"})
        assert created.status == 201
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0, server.log.read_text()
    assert server.database.rows("SELECT issue_id FROM workflows") == [("G-1",)]


def test_an_engine_with_the_wal_reset_bug_gets_one_process(tmp_path: Path) -> None:
    # A package that hides pysqlite3 stands for a platform without it: the engine of the system is used.
    hidden = tmp_path / "pysqlite3"
    hidden.mkdir()
    (hidden / "__init__.py").write_text("raise ImportError")
    code = (
        "from amelia_flask import engines, server, settings, sqlite\n"
        "def workers(given): return server.workers(given, engines.engine_of(given))\n"
        "one = workers(settings.from_environment({}))\n"
        "try: many = workers(settings.from_environment({'AMELIA_WORKERS': '3'}))\n"
        "except settings.SettingsError as error: many = error.message\n"
        "print(sqlite.engine_version(), sqlite.engine_is_mended(), one, many, sep='|')"
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    output = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    version, is_mended, one, many = output.stdout.strip().split("|")
    if is_mended == "True":
        assert many == "3"
    else:
        assert one == "1"
        assert many == f"AMELIA_WORKERS=3, but SQLite {version} can lose rows with more than one process."
