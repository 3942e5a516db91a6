"""What is measured, each in processes of its own: the service and what it is compared with."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from bench.load import LoadError, Result
from tests.databases import Database
from tests.serving import STOP_SECONDS, Server, until

ROOT = Path(__file__).parent.parent
# The same for all of them, whatever their defaults.
PROCESSES: dict[str, object] = {"workers": 2, "threads": 16}
RESTING_SECONDS = 0.2


class Process(Server):
    """A server that a Python module starts, with the settings of the service in its environment."""

    def __init__(self, module: Sequence[str], database: Path | Database, **settings: object) -> None:
        super().__init__(database, None, **(PROCESSES | settings))
        self._command = [sys.executable, "-m", *module]

    def launch(self) -> None:
        """Start it and do not wait."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, cwd=ROOT, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def start(self) -> "Process":
        """Start it and wait until it is ready."""
        self.launch()
        self.wait_until_ready()
        return self

    def preload(self, library: Path) -> "Process":
        """Have it load this shared library before all others."""
        self.environment["LD_PRELOAD"] = str(library)
        return self

    def rest(self) -> None:
        """Wait until none of its processes has anything to do: all have started by then."""
        before = None
        while (used := [sum(one.cpu_times()[:2]) for one in self._processes()]) != before:
            before = used
            time.sleep(RESTING_SECONDS)  # between two looks

    def resident(self) -> list[float]:
        """Megabytes that each of its processes has in memory, the one that started the others first."""
        return [one.memory_info().rss / 1e6 for one in self._processes()]

    def is_complete(self) -> bool:
        """Whether every process is there and at rest: the first alone would take all connections of a load."""
        before = [one.cpu_times()[:2] for one in self._processes()[1:]]
        time.sleep(0.1)  # between two looks
        after = [one.cpu_times()[:2] for one in self._processes()[1:]]
        return len(before) == PROCESSES["workers"] and before == after

    def bytes_read(self) -> int:
        """What its processes have read from the disk."""
        return sum(one.io_counters().read_bytes for one in self._processes())

    def _processes(self) -> list[psutil.Process]:
        assert self.process is not None
        master = psutil.Process(self.process.pid)
        return [master, *master.children()]


def amelia(database: Path | Database, **settings: object) -> Process:
    """The service."""
    return Process(["amelia_flask", "serve"], database, **settings)


def without_upkeep(database: Path) -> Process:
    """The service without the sums of usage by day."""
    return Process(["bench.contenders.without_upkeep"], database)


def contender(name: str, folder: Path) -> Process:
    """Another application, under the same settings of gunicorn; it may keep a database in `folder`."""
    folder.mkdir(exist_ok=True)
    return Process(["bench.contenders.serve", name], folder / "contender.db")


@contextmanager
def serving(*servers: Process) -> Iterator[None]:
    """Start all of them together; stop them afterwards. Raises LoadError where one does not end well."""
    try:
        for server in servers:
            server.launch()
        for server in servers:
            server.wait_until_ready()
            until(server.is_complete)
        yield
        statuses = _stop(servers)
        if any(statuses):
            raise LoadError(f"Servers ended with the statuses {statuses}: {_logs(servers)}")
    finally:
        for server in servers:
            if server.process is not None and server.process.poll() is None:
                server.kill()


def _stop(servers: Sequence[Process]) -> list[int]:
    """Ask all of them to stop; give their statuses when they have."""
    processes = [server.process for server in servers if server.process is not None]
    for process in processes:
        process.terminate()
    return [process.wait(STOP_SECONDS) for process in processes]


def raw(database: Path, rows: int, seconds: float, preload: Path | None = None) -> Result:
    """Commit `rows` events at a time straight through the engine, in a process of its own."""
    command = [sys.executable, "-m", "bench.contenders.raw", str(database), str(rows), str(seconds)]
    environment: Mapping[str, str] = os.environ | ({"LD_PRELOAD": str(preload)} if preload else {})
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LoadError(f"The engine alone failed: {done.stderr}")
    latencies: list[float] = json.loads(done.stdout)
    return Result(sum(latencies) / 1000, len(latencies), latencies=latencies, each=rows)


def _logs(servers: Sequence[Process]) -> str:
    return "\n".join(server.log.read_text()[-2000:] for server in servers)
