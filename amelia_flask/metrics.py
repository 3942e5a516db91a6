"""What a monitoring system reads: counts of all processes of the server, and figures of the record. No HTTP.

Requests and writes are counted in shared memory by the process that serves them; what the database knows is read from
it when somebody asks, by whichever process answers. The names and their meaning: docs/metrics.md.
"""

import operator
import os
import platform
import shutil
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import peewee

from amelia_flask import __version__, backup, clock, groups, writer
from amelia_flask.counters import Histogram, Numbers, process_starts
from amelia_flask.database import Prepared, Row, param
from amelia_flask.errors import DatabaseUnavailable
from amelia_flask.ledger import Ledger
from amelia_flask.models import ACTIVE, EventPosition, FinishedWorkflows, Status, UsageByDay, Workflow
from amelia_flask.pricing import to_dollars
from amelia_flask.stream import open_readers

# The pairs of model and agent that have series of their own; all others are summed as one. Agents name themselves,
# and a series for every name that was ever given could fill the memory of the system that reads them.
MOST_PAIRS = 50
OTHER = "other"
FAULT = "500"

Labels = tuple[str, ...]
Samples = list[tuple[Labels, float]]
# The bounds, how many are in each bucket and above the last, and the sum of all.
Distribution = tuple[Labels, tuple[float, ...], list[float]]


class Metric(NamedTuple):
    """A name under which figures are given, one for each combination of its labels."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: Labels
    meaning: str


class Requests:
    """Counts requests by route, method and status, and how long their answers took.

    Routes have numbers, the same in every process; what leads to none of them, and a status that no answer has, are
    counted together, so that no client can make a new series.
    """

    STATUSES = (
        *(200, 201, 204, 206, 304, 400, 401, 403, 404, 405, 409, 412, 413, 414, 415, 416, 421, 422, 429, 431),
        *(500, 503),
    )
    SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
    MOST_ROUTES = 200

    def __init__(self) -> None:
        self._columns = {str(status): column for column, status in enumerate(self.STATUSES)}
        self._first_bucket = len(self.STATUSES) + 1
        self._width = self._first_bucket + len(self.SECONDS) + 2
        self._numbers = Numbers(self.MOST_ROUTES * self._width)
        self._routes: list[Labels] = []
        self._rows: dict[Labels, int] = {}

    def know(self, routes: Iterable[tuple[str, str]]) -> None:
        """Give a number to every route that there is, with its method. Called by each process.

        Raises ValueError for more of them than there is room for.
        """
        self._routes = [(OTHER, OTHER), *sorted(routes)]
        if len(self._routes) > self.MOST_ROUTES:
            raise ValueError(f"{len(self._routes)} routes are more than can be counted apart")
        self._rows = {route: number * self._width for number, route in enumerate(self._routes)}

    def count(self, route: str, method: str, status: str, seconds: float) -> None:
        """Count a request that was answered after so many seconds."""
        row = self._rows.get((route, method), 0)
        bucket = row + self._first_bucket
        self._numbers.add(
            (row + self._columns.get(status, len(self._columns)), 1),
            (bucket + bisect_left(self.SECONDS, seconds), 1),
            (bucket + len(self.SECONDS) + 1, seconds),
        )

    def read(self) -> tuple[Samples, list[Distribution]]:
        """How many there were, and how long they took, of what there was at all.

        Faults are told of where there were none too: of a series that begins with the first one, nobody could say
        that it rose.
        """
        sums = self._numbers.sums()
        statuses = [*map(str, self.STATUSES), OTHER]
        counts: Samples = []
        durations: list[Distribution] = []
        for number, route in enumerate(self._routes):
            row = sums[number * self._width : (number + 1) * self._width]
            by_status = zip(statuses, row, strict=False)
            counts += [((*route, status), count) for status, count in by_status if count or status == FAULT]
            if any(row):
                durations.append((route, self.SECONDS, row[self._first_bucket :]))
        return counts, durations


# Made when the module is imported, which a server does before it forks: only so the processes share it.
requests = Requests()

BUILD = Metric("amelia_build_info", "gauge", ("version", "python", "engine"), "Always 1; the labels say what runs.")
REQUESTS = Metric(
    "amelia_http_requests_total", "counter", ("route", "method", "status"), "Requests that were answered."
)
DURATIONS = Metric(
    "amelia_http_request_duration_seconds", "histogram", ("route", "method"), "From a request to its answer's head."
)
READERS = Metric("amelia_waiting_readers", "gauge", (), "Readers that wait for events.")
STARTS = Metric("amelia_process_starts_total", "counter", (), "Processes that began to serve.")
QUEUE = Metric("amelia_writer_queue_length", "gauge", (), "Writes that wait to be carried out.")
GROUPS = Metric("amelia_writer_group_size", "histogram", (), "Writes that were committed together.")
COMMITS = Metric("amelia_writer_commit_duration_seconds", "histogram", (), "COMMIT with its sync to disk.")
FAILURES = Metric("amelia_writer_failures_total", "counter", (), "Groups of writes that failed for a fault.")
SIZE = Metric("amelia_database_size_bytes", "gauge", ("file",), "Size of the database, by file.")
FREE = Metric("amelia_database_free_bytes", "gauge", (), "Free space where the database's files are.")
BACKUP = Metric("amelia_last_backup_timestamp_seconds", "gauge", (), "Of which moment the last backup is.")
UP = Metric("amelia_database_up", "gauge", (), "1 where the database could be read, else 0.")
WORKFLOWS = Metric("amelia_workflows", "gauge", ("status",), "Workflows that are stored.")
EVENTS = Metric("amelia_events_total", "counter", (), "Events that were ever stored.")
TOKENS = Metric("amelia_usage_today_tokens", "gauge", ("model", "agent", "kind"), "Tokens used today (UTC).")
UNPRICED = Metric(
    "amelia_usage_today_unpriced_tokens", "gauge", ("model", "agent"), "Of today's tokens those without a price."
)
COST = Metric("amelia_usage_today_cost_dollars", "gauge", ("model", "agent"), "Cost of today's usage in US dollars.")

KINDS = ("input", "output", "cache_read", "cache_creation")

_active = Prepared(
    lambda: (
        Workflow.select(Workflow.status, peewee.fn.COUNT(peewee.SQL("*")))
        .where(Workflow.status.in_([str(status) for status in ACTIVE]))
        .group_by(Workflow.status)
    )
)
_finished = Prepared(lambda: FinishedWorkflows.select(FinishedWorkflows.status, FinishedWorkflows.workflows))
_position = Prepared(lambda: EventPosition.select(EventPosition.value).where(EventPosition.id == 1))
_size = Prepared(
    lambda: peewee.Select(columns=[peewee.fn.pg_database_size(peewee.fn.current_database())])  # on PostgreSQL alone
)
_usage = Prepared(
    lambda: UsageByDay.select(
        UsageByDay.model,
        UsageByDay.agent,
        *(getattr(UsageByDay, f"{kind}_tokens") for kind in KINDS),
        UsageByDay.unpriced_tokens,
        UsageByDay.cost_nano,
    ).where(UsageByDay.day == param("day"))
)


class Stored(NamedTuple):
    """What the database knows: workflows by status, the newest position, today's usage by model and agent; and how
    many bytes it has, where no file tells it.
    """

    workflows: dict[str, int]
    position: int
    usage: dict[Labels, list[int]]
    size: int | None


def stored(db: Any, is_on_server: bool) -> Stored:
    """Read it; the cost does not grow with the record."""
    size = _size.run(db)[0][0] if is_on_server else None
    workflows = dict.fromkeys(map(str, Status), 0) | dict(_active.run(db)) | dict(_finished.run(db))
    position = _position.run(db)[0][0]
    return Stored(workflows, position, _bounded(_usage.run(db, day=clock.to_text(clock.now())[:10])), size)


def text(ledger: Ledger) -> str:
    """Every metric in Prometheus' text format, version 0.0.4."""
    return "".join(f"{line}\n" for metric, found in collect(ledger) for line in _lines(metric, found))


def collect(ledger: Ledger) -> Iterator[tuple[Metric, list[Any]]]:
    """Every metric with its samples; those of the database have none while that cannot be read."""
    is_on_server = ledger.engine.mode == "postgresql"
    found = _read(ledger, is_on_server)  # first: the engine's version is known when it has answered
    yield BUILD, [((__version__, platform.python_version(), ledger.engine.version()), 1)]
    counts, durations = requests.read()
    yield REQUESTS, counts
    yield DURATIONS, durations
    yield READERS, _plain(open_readers.everywhere)
    yield STARTS, _plain(process_starts.total)
    yield QUEUE, _plain(writer.queue_length.total)
    yield GROUPS, [_distribution(groups.group_sizes)]
    yield COMMITS, [_distribution(groups.commit_seconds)]
    yield FAILURES, _plain(writer.failures.total)
    yield from _server(found) if is_on_server else _disk(ledger.settings.database_path)
    yield from _record(found)


def _plain(value: float) -> Samples:
    return [((), value)]


def _distribution(histogram: Histogram) -> Distribution:
    return (), histogram.bounds, histogram.totals


def _disk(path: Path) -> Iterator[tuple[Metric, list[Any]]]:
    """Sizes, without opening a file: to close one again would drop SQLite's locks."""
    files = {"main": path, "wal": path.with_name(path.name + "-wal"), "shm": path.with_name(path.name + "-shm")}
    yield SIZE, [((name,), os.stat(file).st_size) for name, file in files.items() if file.exists()]
    yield FREE, _plain(shutil.disk_usage(path.parent).free) if path.parent.exists() else []
    moment = backup.last(path)
    yield BACKUP, [] if moment is None else _plain(moment.timestamp())


def _server(found: Stored | None) -> Iterator[tuple[Metric, list[Any]]]:
    """The size of the database; what disk it is on, and how it is saved, is not known here."""
    yield SIZE, [] if found is None else [(("main",), found.size)]
    yield from ((metric, []) for metric in (FREE, BACKUP))


def _read(ledger: Ledger, is_on_server: bool) -> Stored | None:
    try:
        return ledger.read(stored, is_on_server)
    except DatabaseUnavailable:
        return None


def _record(found: Stored | None) -> Iterator[tuple[Metric, list[Any]]]:
    if found is None:
        yield from ((metric, []) for metric in (WORKFLOWS, EVENTS, TOKENS, UNPRICED, COST))
        yield UP, _plain(0)
        return
    yield UP, _plain(1)
    yield WORKFLOWS, [((status,), count) for status, count in found.workflows.items()]
    yield EVENTS, _plain(found.position)
    usage = found.usage.items()
    yield TOKENS, [((*pair, kind), sums[n]) for pair, sums in usage for n, kind in enumerate(KINDS)]
    yield UNPRICED, [(pair, sums[-2]) for pair, sums in usage]
    yield COST, [(pair, to_dollars(sums[-1])) for pair, sums in usage]


def _bounded(rows: list[Row]) -> dict[Labels, list[int]]:
    """The sums by model and agent: of those that used the most tokens, and of all others together."""
    rows = sorted(rows, key=lambda row: (-sum(row[2:6]), row[:2]))
    usage = {tuple(row[:2]): list(row[2:]) for row in rows[:MOST_PAIRS]}
    for row in rows[MOST_PAIRS:]:
        usage[OTHER, OTHER] = [*map(operator.add, row[2:], usage.get((OTHER, OTHER), [0] * len(row)))]
    return usage


def _lines(metric: Metric, found: list[Any]) -> Iterator[str]:
    yield f"# HELP {metric.name} {metric.meaning}"
    yield f"# TYPE {metric.name} {metric.kind}"
    if metric.kind != "histogram":
        for labels, value in found:
            yield _line(metric.name, metric.labels, labels, value)
        return
    for labels, bounds, totals in found:
        yield from _buckets(metric, labels, bounds, totals)


def _buckets(metric: Metric, labels: Labels, bounds: tuple[float, ...], totals: list[float]) -> Iterator[str]:
    """A bucket counts all that is at or below its bound, those of the lower buckets too."""
    count = 0.0
    for bound, inside in zip([*map(_number, bounds), "+Inf"], totals, strict=False):
        count += inside
        yield _line(f"{metric.name}_bucket", (*metric.labels, "le"), (*labels, bound), count)
    yield _line(f"{metric.name}_sum", metric.labels, labels, totals[-1])
    yield _line(f"{metric.name}_count", metric.labels, labels, count)


def _line(name: str, labels: Labels, values: Labels, value: float) -> str:
    pairs = ",".join(f'{label}="{_escaped(text)}"' for label, text in zip(labels, values, strict=True))
    return f"{name}{{{pairs}}} {_number(value)}" if pairs else f"{name} {_number(value)}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
