"""Reads over HTTP beside a bare Flask application that says hello."""

import json
from collections.abc import Iterator
from pathlib import Path

from bench import requests
from bench.figures import Row, alternate, at_least, compared
from bench.ingest import load
from bench.load import drive
from bench.scale import Scale
from bench.servers import Process, amelia, contender, serving
from tests.load import create_workflows

CONNECTIONS = 8
EVENTS = 200  # of each workflow
USAGE = 50


def run(scale: Scale, folder: Path) -> Iterator[Row]:
    """Pages, lists, details, the report and the probes."""
    ours, bare = amelia(folder / "amelia.db"), contender("bare", folder / "bare")
    with serving(ours, bare):
        scripts = _scripts(_filled(ours))
        contenders = {name: load(ours, script, CONNECTIONS) for name, script in scripts.items()}
        contenders["hello"] = load(bare, requests.gets("/hello"), CONNECTIONS)
        rounds = alternate(contenders, scale)
    for name, limit in (("page", 0.25), ("list", 0.58), ("detail", None), ("report", None), ("live", 0.9)):
        threshold = None if limit is None else at_least(limit)
        yield compared(f"{_NAMES[name]}, 8 connections: rate to hello's", rounds, name, "hello", limit=threshold)
    yield compared("/api/health/ready, 8 connections: rate to live's", rounds, "ready", "live", limit=at_least(0.85))


_NAMES = {
    "page": "page of 100 events",
    "list": "list of 50 workflows with costs",
    "detail": "detail of a workflow",
    "report": "usage report of 30 days",
    "live": "/api/health/live",
}


def _filled(server: Process) -> list[str]:
    """Workflows that have started, with events and usage."""
    workflows = create_workflows(server, requests.WORKFLOWS)
    starts = iter([requests.post(f"/api/workflows/{one}/start") for one in workflows])
    for script in (starts, requests.batches(workflows, EVENTS), requests.usage_batches(workflows, USAGE)):
        drive(server.port, [script], 60, most=len(workflows))
    found = json.loads(server.request("GET", "/api/workflows?limit=50").raw)
    assert len(found["workflows"]) == 50
    assert all(one["last_sequence"] == EVENTS + 2 and one["total_cost_usd"] for one in found["workflows"]), found
    return workflows


def _scripts(workflows: list[str]) -> dict[str, Iterator[bytes]]:
    paths = [f"/api/workflows/{one}" for one in workflows]
    return {
        "page": requests.gets(*(f"{path}/events?after={n % 100}&limit=100" for n, path in enumerate(paths))),
        "list": requests.gets("/api/workflows?limit=50"),
        "detail": requests.gets(*paths),
        "report": requests.gets("/api/usage"),
        "live": requests.gets("/api/health/live"),
        "ready": requests.gets("/api/health/ready"),
    }
