"""Single events on a disk that takes two milliseconds more for each sync."""

import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from bench import requests
from bench.figures import Row, alternate, at_least, at_most, compared, figures
from bench.ingest import load
from bench.load import LoadError
from bench.scale import Scale
from bench.servers import amelia, contender, raw, serving
from tests.load import create_workflows

SOURCE = Path(__file__).parent / "slow_fsync.c"
CONNECTIONS = 32
ADDED_MS = 2

_WHAT = "2 ms added to each sync, single events, 32 connections"
_TO_RAW = f"{_WHAT}: rate to the disk's raw commits", at_least(5)
_P99 = f"{_WHAT}: p99", at_most(50)
_TO_NAIVE = f"{_WHAT}: rate to naive's", at_least(8)


def run(scale: Scale, folder: Path) -> Iterator[Row]:
    """All three rows, or why there are none."""
    compiler = shutil.which("cc")
    if compiler is None:
        for (what, limit), unit in zip((_TO_RAW, _P99, _TO_NAIVE), ("x", "ms", "x"), strict=True):
            yield Row(what, unit, [], limit, note="there is no C compiler (cc)")
        return
    library = folder / "slow_fsync.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, SOURCE], check=True)
    yield from _measure(scale, folder, library)


def _measure(scale: Scale, folder: Path, library: Path) -> Iterator[Row]:
    ours = amelia(folder / "amelia.db").preload(library)
    naive = contender("naive", folder / "naive").preload(library)
    with serving(ours, naive):
        rounds = alternate(
            {
                "ours": load(ours, requests.singles(create_workflows(ours, requests.WORKFLOWS)), CONNECTIONS),
                "naive": load(naive, requests.singles(create_workflows(naive, requests.WORKFLOWS)), CONNECTIONS),
                "raw": partial(raw, folder / "raw.db", 1, preload=library),
            },
            scale,
        )
    if min(min(result.latencies) for result in rounds["raw"]) < ADDED_MS:
        raise LoadError("The syncs were not slowed down.")
    yield compared(_TO_RAW[0], rounds, "ours", "raw", limit=_TO_RAW[1])
    yield Row(_P99[0], "ms", [result.p99 for result in rounds["ours"]], _P99[1], {"ours": figures(rounds["ours"])})
    yield compared(_TO_NAIVE[0], rounds, "ours", "naive", limit=_TO_NAIVE[1])
