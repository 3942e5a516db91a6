"""A crowd: 128 connections on two processes, and what the record looks like afterwards."""

from collections.abc import Iterator
from pathlib import Path

from bench import requests
from bench.figures import Row, at_most, figures
from bench.load import LoadError, drive
from bench.scale import Scale
from bench.servers import amelia, serving
from tests.load import check_record, create_workflows

CONNECTIONS = 128


def run(scale: Scale, folder: Path) -> Iterator[Row]:
    """Raises LoadError or AssertionError for an event that was lost or stored twice, a gap, and a lock."""
    server = amelia(folder / "amelia.db")
    with serving(server):
        workflows = create_workflows(server, requests.WORKFLOWS)
        result = drive(server.port, [requests.singles(workflows)] * CONNECTIONS, scale.crowd_seconds)
    check_record(server.database)
    stored = server.database.rows("SELECT COUNT(*) FROM events WHERE event_type = 'tool_call'")[0][0]
    if stored != len(result.latencies):
        raise LoadError(f"{len(result.latencies)} events were acknowledged and {stored} are stored.")
    if "locked" in server.log.read_text():
        raise LoadError(f"The database was locked: {server.log.read_text()[-2000:]}")
    rates = {"ours": figures([result])}
    yield Row("128 connections: p99", "ms", [result.p99], at_most(150), rates)
    note = f"{stored} events"
    yield Row("128 connections: refusals, gaps, repeats and locks", "", [0], at_most(0), note=note)
