"""A start in vain says in one sentence what is in the way, ends at once, and leaves alone what it found."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from peewee import sqlite3 as engine

from amelia_flask import schema
from amelia_flask.database import SERVING
from amelia_flask.lock import FileLock
from amelia_flask.sqlite import SqliteEngine
from tests.serving import free_port

ROOT = Path(__file__).parent.parent
SECONDS = 4.0  # gunicorn alone tries for five
NOBODY = 65534
TOKEN = "a-token-of-these-tests"

PROGRAMS = {
    "serve": "from amelia_flask.cli import main; main(['serve'])",
    "gunicorn": "sys.argv = ['gunicorn', 'wsgi:app']; from gunicorn.app.wsgiapp import run; run()",
}
# What is done in the new process before it is one of these; the modules come first, nobody may read them.
AS_NOBODY = f"""
import amelia_flask.server, gunicorn.app.wsgiapp
if os.geteuid() == 0:
    os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
"""
NO_ROOM = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))"


@pytest.fixture(params=sorted(PROGRAMS))
def program(request: pytest.FixtureRequest) -> str:
    code: str = PROGRAMS[request.param]
    return code


@pytest.fixture
def common() -> Iterator[Path]:
    """A folder that every user may enter, as those of pytest are not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def refusal(program: str, database: Path, before: str = "", **settings: object) -> str:
    """The one sentence on standard error of a start that ended at once with status 1 and said nothing else."""
    given = {"database_path": database, "port": free_port(), "log_level": "warning"} | settings
    environment = os.environ | {f"AMELIA_{name.upper()}": str(value) for name, value in given.items()}
    code = f"import os, sys\n{before}\n{program}"
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert time.monotonic() - started < SECONDS
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("Error: ")
    assert lines[0].endswith(".")
    return lines[0].removeprefix("Error: ")


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_port_that_is_taken(program: str, family: int, host: str, tmp_path: Path) -> None:
    with socket.socket(family) as holder:
        holder.bind((host, 0))
        holder.listen()
        port = holder.getsockname()[1]
        said = refusal(program, tmp_path / "new" / "amelia.db", host=host, port=port)
    assert said == f"Port {port} of {host} is in use by another program: stop that, or set AMELIA_PORT."
    assert list(tmp_path.iterdir()) == [], "nothing was made for a service that cannot be"


def test_a_port_from_which_an_answer_is_still_on_its_way_is_not_taken(tmp_path: Path) -> None:
    """What was closed by the side that listened waits a minute for stragglers: a restart does not."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            listener.accept()[0].close()
    said = refusal(PROGRAMS["serve"], tmp_path, port=port)
    assert "it is a folder" in said, "the port was let pass"


@pytest.mark.parametrize("host", ["192.0.2.7", "2001:db8::7", "no-such-name.invalid", "a..b"])
def test_an_address_that_is_not_of_this_machine(program: str, host: str, tmp_path: Path) -> None:
    said = refusal(program, tmp_path / "amelia.db", host=host, api_token=TOKEN)
    assert said == f"{host} is not an address of this machine: set AMELIA_HOST to one that is."


@pytest.mark.parametrize("port", ["0", "65536", "http"])
def test_a_malformed_setting(program: str, port: str, tmp_path: Path) -> None:
    assert refusal(program, tmp_path / "amelia.db", port=port).startswith("AMELIA_PORT is malformed: ")


@pytest.mark.parametrize("path", ["/proc/none/amelia.db", "/proc/version/amelia.db"])
def test_a_folder_that_cannot_be_made(program: str, path: str) -> None:
    said = refusal(program, Path(path))
    assert f"The database {path} cannot be set up: the folder {Path(path).parent} cannot be made" in said


def test_a_folder_of_another_user(program: str, common: Path) -> None:
    path = common / "amelia.db"
    common.chmod(0o555)
    said = refusal(program, path, AS_NOBODY)
    assert said.startswith(f"The database {path} cannot be set up: {common} cannot be written by this user (uid ")


def test_a_folder_that_this_user_may_not_enter(program: str, common: Path) -> None:
    inner = common / "closed" / "inner"
    inner.mkdir(parents=True)
    inner.parent.chmod(0)
    said = refusal(program, inner / "amelia.db", AS_NOBODY)
    inner.parent.chmod(0o700)
    assert f"the folder {inner} cannot be made or entered (Permission denied)" in said


def test_a_file_that_may_only_be_read(program: str, common: Path) -> None:
    path = common / "amelia.db"
    schema.set_up(SqliteEngine(path))
    give_away(common, *common.iterdir())
    path.chmod(0o400)
    said = refusal(program, path, AS_NOBODY)
    assert said.startswith(f"The database {path} cannot be set up: {path} cannot be written by this user (uid ")
    assert path.stat().st_mode & 0o777 == 0o400


def test_a_lock_that_another_user_has_left(program: str, common: Path) -> None:
    path = common / "amelia.db"
    schema.set_up(SqliteEngine(path))
    give_away(common, *common.iterdir())
    lock = common / "amelia.db.serving"
    lock.touch()
    lock.chmod(0)
    said = refusal(program, path, AS_NOBODY)
    assert said == f"The file {lock} cannot be opened: Permission denied."


def give_away(*paths: Path) -> None:
    if os.geteuid() == 0:
        for path in paths:
            os.chown(path, NOBODY, NOBODY)


def folder(path: Path) -> None:
    path.mkdir()


def device(path: Path) -> None:
    os.mkfifo(path, 0o644)


def letter(path: Path) -> None:
    path.write_text("Dear reader, " * 1000)


def truncated(path: Path) -> None:
    schema.set_up(SqliteEngine(path))
    os.truncate(path, 3 * 4096)


def overwritten(path: Path) -> None:
    schema.set_up(SqliteEngine(path))
    content = path.read_bytes()
    path.write_bytes(content[:100] + b"\xff" * 8192 + content[8292:])


def newer(path: Path) -> None:
    schema.set_up(SqliteEngine(path))
    change(path, "INSERT INTO schema_version (name, applied) VALUES ('9999_future', '')")


def foreign(path: Path) -> None:
    change(path, "CREATE TABLE notes (x)")


def change(path: Path, statement: str) -> None:
    with closing(engine.connect(path)) as connection, connection:
        connection.execute(statement)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (folder, "cannot be set up: it is a folder"),
        (device, "cannot be set up: it is no regular file"),
        (letter, "cannot be set up: file is not a database"),
        (truncated, "cannot be set up: database disk image is malformed"),
        (overwritten, "cannot be set up: database disk image is malformed"),
        (newer, "was made by a newer version of amelia-flask (9999_future)"),
        (foreign, "belongs to another program: its tables are not those of amelia-flask"),
    ],
)
def test_what_is_no_database_of_ours(program: str, make: Callable[[Path], None], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "amelia.db"
    make(path)
    before = as_it_is(path)
    assert refusal(program, path) == f"The database {path} {reason}."
    assert as_it_is(path) == before


def as_it_is(path: Path) -> Any:
    """What a refusal must leave alone."""
    return path.stat().st_mode, path.read_bytes() if path.is_file() else None


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own with room for files, but not for what is in them."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a small disk")
    (disk / "taken").write_bytes(bytes(64 * 1024))
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_full(program: str, full_disk: Path) -> None:
    path = full_disk / "amelia.db"
    assert refusal(program, path) == f"The database {path} cannot be set up: database or disk is full."


@pytest.mark.parametrize("is_new", [True, False])
def test_a_disk_that_takes_no_more(program: str, is_new: bool, tmp_path: Path) -> None:
    path = tmp_path / "amelia.db"
    if not is_new:
        schema.set_up(SqliteEngine(path))
    assert refusal(program, path, NO_ROOM) == f"The database {path} cannot be set up: disk I/O error."
    schema.set_up(SqliteEngine(path))  # when there is room again it needs no help


def test_a_database_that_is_being_restored(program: str, tmp_path: Path) -> None:
    path = tmp_path / "amelia.db"
    with closing(FileLock(path, SERVING)) as restoring:
        restoring.keep()
        said = refusal(program, path)
    assert said.startswith(f"The database {path} is in use by what needs it alone: a restore, or a server on ")
    assert not path.exists()


def test_a_network_without_a_token(program: str, tmp_path: Path) -> None:
    assert "there is no token" in refusal(program, tmp_path / "amelia.db", host="0.0.0.0")


def test_sockets_that_somebody_else_has_opened_are_no_obstacle(tmp_path: Path) -> None:
    """As systemd does it: the port is taken, but for this service."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        inherit = (
            f"os.dup2({listener.fileno()}, 3); os.environ |= {{'LISTEN_FDS': '1', 'LISTEN_PID': str(os.getpid())}}"
        )
        environment = os.environ | {
            "AMELIA_DATABASE_PATH": str(tmp_path / "amelia.db"),
            "AMELIA_PORT": str(listener.getsockname()[1]),
        }
        code = f"import os, sys\n{inherit}\n{PROGRAMS['serve']}"
        process = subprocess.Popen(
            [sys.executable, "-c", code], env=environment, pass_fds=[listener.fileno()], stderr=subprocess.DEVNULL
        )
        try:
            with socket.create_connection(listener.getsockname(), 30) as client:
                client.sendall(b"GET /api/health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                assert client.recv(65536).startswith(b"HTTP/1.1 200")
        finally:
            process.terminate()
            assert process.wait(15) == 0
