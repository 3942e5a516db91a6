"""How long the service takes to be ready, and what it holds when nobody asks anything."""

import time
from collections.abc import Iterator
from pathlib import Path

from bench.figures import Row, at_most
from bench.scale import Scale
from bench.servers import amelia, serving


def run(scale: Scale, folder: Path) -> Iterator[Row]:
    """Each start on a new database, then on the one that is there."""
    new: list[float] = []
    existing: list[float] = []
    workers, everything = [], []
    for number in range(scale.starts):
        for seconds in (new, existing):
            server = amelia(folder / f"{number}.db")
            started = time.perf_counter()
            with serving(server):
                seconds.append(time.perf_counter() - started)
                server.rest()
                resident = server.resident()
        workers.append(max(resident[1:]))
        everything.append(sum(resident))
    yield Row("from exec to ready, new database", "s", new, at_most(2))
    yield Row("from exec to ready, existing database", "s", existing, at_most(2))
    yield Row("an idle process: resident", "MB", workers)
    yield Row("all processes, idle: resident", "MB", everything)
