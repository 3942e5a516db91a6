"""What a process of the service takes without HTTP: threads that append events, one by one or in batches.

`python -m bench.contenders.appender ROWS SECONDS` on the database of the environment prints the milliseconds of each
append as JSON.
"""

import json
import sys
import threading
import time

import msgspec

from amelia_flask import clock, events, workflows
from amelia_flask.ledger import Ledger
from amelia_flask.settings import from_environment
from bench.requests import event

WORKFLOWS = 32


def measure(rows: int, seconds: float) -> list[float]:
    """The milliseconds of each append of so many events, by as many threads as a process has."""
    ledger = Ledger(from_environment())
    ids = [new_workflow(ledger) for _ in range(WORKFLOWS)]
    taken: list[float] = []
    deadline = time.perf_counter() + seconds

    def append() -> None:
        new = msgspec.json.decode(msgspec.json.encode([event(n) for n in range(rows)]), type=list[events.NewEvent])
        while (started := time.perf_counter()) < deadline:
            ledger.append(ids[len(taken) % WORKFLOWS], events.arrived(new, redacts=False))
            taken.append((time.perf_counter() - started) * 1000)

    threads = [threading.Thread(target=append) for _ in range(ledger.settings.threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledger.close()
    return taken


def new_workflow(ledger: Ledger) -> str:
    new = workflows.NewWorkflow(issue_id="BENCH-1", worktree_path=f"/bench/{clock.new_id()}")
    return ledger.write_to((), workflows.create, new)[0].id


if __name__ == "__main__":
    json.dump(measure(int(sys.argv[1]), float(sys.argv[2])), sys.stdout)
