"""Durable events over HTTP, one by one and in batches."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from bench import requests
from bench.figures import Limit, Measure, Rounds, Row, alternate, at_least, at_most, compared, p99
from bench.load import Script, drive
from bench.scale import Scale
from bench.servers import Process, amelia, contender, raw, serving
from tests.load import create_workflows

CONNECTIONS = (1, 8, 32, 128)
JUDGED = 32  # the number of connections for which thresholds are set
BATCH_CONNECTIONS = 4
RAW_ROWS = 100


def run(scale: Scale, folder: Path) -> Iterator[Row]:
    """Single events, then batches."""
    yield from _singles(scale, folder)
    yield from _batches(scale, folder)


def load(server: Process, script: Script, connections: int, each: int = 1) -> Measure:
    """A load of so many connections that share a script, to be carried out for some seconds."""
    return partial(drive, server.port, [script] * connections, each=each)


def _singles(scale: Scale, folder: Path) -> Iterator[Row]:
    ours, logging = amelia(folder / "amelia.db"), amelia(folder / "logging.db", log_level="info")
    naive, echo = contender("naive", folder / "naive"), contender("bare", folder / "bare")
    with serving(ours, logging, naive, echo):
        loads = {
            "ours": (ours, _prepared(ours)),
            "naive": (naive, _prepared(naive)),
            "echo": (echo, requests.echoes()),
        }
        for connections in CONNECTIONS:
            contenders = {name: load(server, script, connections) for name, (server, script) in loads.items()}
            yield from _beside_others(connections, alternate(contenders, scale))
        variants = {
            "without": load(*loads["ours"], JUDGED),
            "with ids": load(ours, requests.singles_with_ids(create_workflows(ours, requests.WORKFLOWS)), JUDGED),
            "with log": load(logging, _prepared(logging), JUDGED),
        }
        rounds = alternate(variants, scale)
    yield compared("single events with ids of the agent's: rate to those without", rounds, "with ids", "without")
    yield compared("single events with a log line each: rate to those without", rounds, "with log", "without")


def _prepared(server: Process) -> Script:
    return requests.singles(create_workflows(server, requests.WORKFLOWS))


def _beside_others(connections: int, rounds: Rounds) -> Iterator[Row]:
    what = f"single events, {connections} connection{'s' * (connections > 1)}"
    yield compared(f"{what}: rate to naive's", rounds, "ours", "naive", limit=_judged(connections, at_least(3.5)))
    yield compared(f"{what}: p99 to naive's", rounds, "ours", "naive", p99, _judged(connections, at_most(0.1)))
    yield compared(f"{what}: rate to echo's", rounds, "ours", "echo", limit=_judged(connections, at_least(0.4)))


def _judged(connections: int, limit: Limit) -> Limit | None:
    return limit if connections == JUDGED else None


def _batches(scale: Scale, folder: Path) -> Iterator[Row]:
    ours = amelia(folder / "batches.db")
    with serving(ours):
        workflows = create_workflows(ours, requests.WORKFLOWS)

        def batches(script: Script, size: int) -> Measure:
            return load(ours, script, BATCH_CONNECTIONS, size)

        rounds = alternate(
            {
                "raw": partial(raw, folder / "raw.db", RAW_ROWS),
                "batches of 100": batches(requests.batches(workflows, 100), 100),
                "batches of 1000": batches(requests.batches(workflows, 1000), 1000),
                "NDJSON": batches(requests.lines(workflows, scale.lines), scale.lines),
            },
            scale,
        )
    what = "events a second to raw executemany's of 100"
    yield compared(f"batches of 100, 4 connections: {what}", rounds, "batches of 100", "raw", limit=at_least(0.6))
    yield compared(f"batches of 1000, 4 connections: {what}", rounds, "batches of 1000", "raw", limit=at_least(1.0))
    yield compared(f"NDJSON, 4 connections: {what}", rounds, "NDJSON", "raw")
