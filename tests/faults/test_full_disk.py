"""A disk on which there is no room left, and a limit on the size of files: writes are refused, all else goes on."""

import contextlib
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import psutil
import pytest

from tests.load import Clients, check_acknowledged, check_record, create_workflows, event, mixed
from tests.serving import Server, serving, until

HEALING_SECONDS = 1.0
REFUSALS = 20
ROOM = 24 * 2**20


class Limit(Protocol):
    """What can take the room away, and give it back."""

    def fill(self, server: Server) -> None: ...

    def free(self, server: Server) -> None: ...


class Ballast:
    """A file that takes all the room there is on a small disk."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "ballast"

    def fill(self, _server: Server) -> None:
        with self._file.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    def free(self, _server: Server) -> None:
        self._file.unlink()


class FileSize:
    """A limit that the kernel sets to the size of the files of each process."""

    def fill(self, server: Server) -> None:
        log = server.file.with_name(f"{server.file.name}-wal")
        self._set(server, os.stat(log).st_size + 50_000)

    def free(self, server: Server) -> None:
        self._set(server, resource.RLIM_INFINITY)

    def _set(self, server: Server, size: int) -> None:
        assert server.process is not None
        for process in psutil.Process(server.process.pid).children():
            process.rlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest.fixture(params=["disk", "limit"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, Limit]]:
    """A folder, and what takes its room away."""
    if request.param == "limit":
        yield tmp_path, FileSize()
        return
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "none", tmp_path], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root can mount a small disk, and not everywhere")
    try:
        yield tmp_path, Ballast(tmp_path)
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)


def test_without_room_writes_are_refused_and_with_room_they_are_not(place: tuple[Path, Limit]) -> None:
    folder, limit = place
    with serving(folder / "amelia.db", workers=2) as server:
        workflows = create_workflows(server, 4)
        clients = Clients(server, [mixed(workflows, n) for n in range(6)]).start()
        clients.wait_for(50)
        limit.fill(server)
        until(lambda: clients.statuses[503] >= REFUSALS)
        check_degraded(server, workflows[0])
        limit.free(server)
        until(lambda: write(server, workflows[0]) == 201, HEALING_SECONDS)
        clients.wait_for(len(clients.acknowledged) + 20)
        until(lambda: server.request("GET", "/api/health").json["status"] == "healthy", HEALING_SECONDS)
        assert server.stop() == 0
        clients.join()
        assert set(clients.statuses) == {201, 503}
        check_acknowledged(server.database, clients.acknowledged)
        check_record(server.database)
        assert "Traceback" not in server.log.read_text()


def write(server: Server, workflow: str) -> int:
    return server.request("POST", f"/api/workflows/{workflow}/events", event(message="m" * 50_000)).status


def check_degraded(server: Server, workflow: str) -> None:
    """Reads go on in both processes, and it is said what is wrong."""
    for _ in range(10):
        refused = server.request("POST", f"/api/workflows/{workflow}/events", event(message="m" * 60_000))
        assert (refused.status, refused.json["code"]) == (503, "DATABASE_UNAVAILABLE")
        assert int(refused.headers["Retry-After"]) > 0
        paths = (f"/api/workflows/{workflow}/events", "/api/workflows", "/api/usage", "/api/health/live")
        assert {server.request("GET", path).status for path in paths} == {200}
    until(lambda: server.request("GET", "/api/health").json["status"] == "degraded")
