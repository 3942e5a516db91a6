"""What a large record costs: writes and pages beside those of a small one, a cold file, the report and its upkeep."""

import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median

import msgspec

from amelia_flask import report
from amelia_flask.sqlite import SqliteEngine, SqliteExtDatabase
from bench import requests
from bench.figures import Measure, Rounds, Row, alternate, at_least, at_most, compared, figures, p50
from bench.filling import Filled, fill, fill_usage, settle
from bench.ingest import load
from bench.load import LoadError, Result, drive
from bench.scale import Scale
from bench.servers import Process, amelia, serving, without_upkeep
from tests.databases import Sqlite

SIZES = ("smallest", "middle", "largest")
PAGES = 2000
REPORTS = 20

_GROUPED = (
    "SELECT day, agent, model, SUM(input_tokens), SUM(output_tokens), SUM(cache_read_tokens), "
    "SUM(cache_creation_tokens), SUM(cost_nano), SUM(savings_nano) FROM token_usage GROUP BY 1, 2, 3"
)


def run(scale: Scale, folder: Path) -> Iterator[Row]:
    """Events, then usage."""
    middle, largest = (folder / f"{size}.db" for size in SIZES[1:])
    filled = [fill(path, count) for path, count in zip((middle, largest), scale.events[1:], strict=True)]
    yield from _events(scale, folder, middle, largest, filled)
    yield _cold(scale, largest, filled[-1])
    for path in (middle, largest):
        path.unlink()
    yield from _usage(scale, folder)


def _events(scale: Scale, folder: Path, middle: Path, largest: Path, filled: list[Filled]) -> Iterator[Row]:
    """The smallest record is made anew for each round: it would not stay small."""
    results: dict[str, list[Result]] = {}
    servers = [amelia(middle), amelia(largest)]
    with serving(*servers):
        for number in range(scale.rounds):
            path = folder / f"smallest-{number}.db"
            records = [fill(path, scale.events[0]), *filled]
            smallest = amelia(path)
            with serving(smallest):
                sized = list(zip(SIZES, [smallest, *servers], records, strict=True))
                contenders = dict(_contenders(sized if number % 2 else sized[::-1]))
                for name, measured in alternate(contenders, replace(scale, rounds=1)).items():
                    results.setdefault(name, []).extend(measured)
    for size in SIZES[1:]:
        yield from _beside_smallest(size, results)


def _beside_smallest(size: str, results: Rounds) -> Iterator[Row]:
    what = f"{size} record to the smallest"
    is_judged = size == "largest"
    for name, least in (("batches of 100", 0.95), ("single events", 0.9)):
        limit = at_least(least) if is_judged else None
        yield compared(f"{name}, {what}: rate", results, f"{name}, {size}", f"{name}, smallest", limit=limit)
    limit = at_most(1.2) if is_judged else None
    yield compared(f"warm page of 100, {what}: p50", results, f"page, {size}", "page, smallest", p50, limit)


def _contenders(sized: list[tuple[str, Process, Filled]]) -> Iterator[tuple[str, Measure]]:
    for size, server, filled in sized:
        yield f"single events, {size}", load(server, requests.singles(filled.active), 32)
    for size, server, filled in sized:
        yield f"page, {size}", load(server, requests.gets(*_pages(filled)), 1)
    for size, server, filled in sized:
        yield f"batches of 100, {size}", load(server, requests.batches(filled.active, 100), 4, 100)


def _pages(filled: Filled) -> list[str]:
    """Pages of a hundred events anywhere in the record."""
    chance = random.Random(PAGES)
    places = ((chance.choice(filled.workflows), chance.randrange(filled.each - 100)) for _ in range(PAGES))
    return [f"/api/workflows/{workflow}/events?after={after}&limit=100" for workflow, after in places]


def _cold(scale: Scale, path: Path, filled: Filled) -> Row:
    """A new server for each round; before each page the file is put out of memory."""
    pages = iter(_pages(filled))
    values, read = [], []
    for _ in range(scale.rounds):
        server = amelia(path)
        with serving(server):
            before = server.bytes_read()
            values.append(median(_cold_page(server, next(pages)) for _ in range(scale.cold_pages)))
            read.append((server.bytes_read() - before) / scale.cold_pages / 1000)
    note = f"{median(read):.0f} kB read from the disk for a page" if any(read) else "the file is not on a disk"
    return Row("page of 100 from a cold file, largest record", "ms", values, at_most(3), note=note)


def _cold_page(server: Process, path: str) -> float:
    settle(server.file, forget=True)
    return drive(server.port, [requests.gets(path)], 0, most=1).p50


def _usage(scale: Scale, folder: Path) -> Iterator[Row]:
    kept, not_kept = folder / "kept.db", folder / "not-kept.db"
    filled = fill_usage(kept, scale.usage_records)
    shutil.copy(kept, not_kept)
    settle(not_kept)
    yield from _report(scale, kept)
    yield from _upkeep(scale, kept, not_kept, filled)


def _report(scale: Scale, path: Path) -> Iterator[Row]:
    """The report of 30 days, which cover all records, in this process; what a server adds to it is HTTP."""
    readers = SqliteEngine(path).open_readers(1)
    with readers.connection_context():
        reports = [_milliseconds(lambda: _encoded_report(readers), REPORTS) for _ in range(scale.rounds)]
        grouped = [_milliseconds(lambda: readers.execute_sql(_GROUPED).fetchall(), 1) for _ in range(scale.rounds)]
    readers.close_all()
    yield Row("usage report over all records, in the server", "ms", reports, at_most(5))
    ratios = [slow / fast for slow, fast in zip(grouped, reports, strict=True)]
    note = f"GROUP BY {median(grouped):.0f} ms"
    yield Row("plain GROUP BY over the records: time to the report's", "x", ratios, at_least(500), note=note)


def _encoded_report(readers: SqliteExtDatabase) -> bytes:
    return msgspec.json.encode(report.report(readers, report.period(None, None, None)))


def _milliseconds(call: Callable[[], object], times: int) -> float:
    def once() -> float:
        started = time.perf_counter()
        call()
        return (time.perf_counter() - started) * 1000

    return median(once() for _ in range(times))


def _upkeep(scale: Scale, kept: Path, not_kept: Path, filled: Filled) -> Iterator[Row]:
    """How much faster usage is recorded when its sums by day are not kept."""
    days = Sqlite(not_kept).rows("SELECT * FROM usage_by_day")
    ours, without = amelia(kept), without_upkeep(not_kept)
    with serving(ours, without):
        results = alternate(
            {
                "ours": load(ours, requests.usages(filled.active), 32),
                "without": load(without, requests.usages(filled.active), 32),
                "report": load(ours, requests.gets("/api/usage"), 1),
            },
            scale,
        )
    if Sqlite(not_kept).rows("SELECT * FROM usage_by_day") != days:
        raise LoadError("The upkeep of the sums by day was not taken out.")
    shares = [1 - a.rate / b.rate for a, b in zip(results["ours"], results["without"], strict=True)]
    rates = {name: figures(results[name]) for name in ("ours", "without")}
    yield Row("single usage records: share of the rate that the sums by day cost", "x", shares, at_most(0.15), rates)
    answers = [result.p50 for result in results["report"]]
    yield Row(
        "usage report over HTTP, 1 connection: p50", "ms", answers, rates={"report": figures(results["report"])}
    )
