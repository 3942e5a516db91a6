"""`python -m bench [--quick | --long] [NAME…]`: measure, print a table, write it as JSON.

It ends with 0 when everything could be measured, whatever the figures; with 1 when something failed.
"""

import argparse
import importlib
import json
import os
import platform
import sys
import tempfile
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from amelia_flask.sqlite import engine_version
from bench.figures import Row, table
from bench.scale import FULL, LONG, QUICK, Scale

NAMES = ("startup", "ingest", "reads", "size", "slow_disk", "imports", "crowd", "memory", "postgres")
RESULTS = Path(__file__).parent / "results.json"


def main(arguments: list[str] | None = None) -> int:
    """Measure what the arguments name, everything by default; give the exit status."""
    wanted = _arguments(arguments)
    scale = QUICK if wanted.quick else LONG if wanted.long else FULL
    started = time.monotonic()
    rows: list[Row] = []
    failures: list[str] = []
    for name in wanted.names or NAMES:
        print(f"{name} …", file=sys.stderr, flush=True)
        try:
            rows += _measure(name, scale)
        except Exception as error:
            traceback.print_exc()
            failures.append(f"{name} failed: {str(error) or repr(error)}")
    print(table(rows), *failures, f"{time.monotonic() - started:.0f} s on {_machine()}", sep="\n\n")
    said = {"machine": _machine(), "at": datetime.now(UTC).isoformat(), "failures": failures}
    wanted.json.write_text(json.dumps(said | {"rows": [row.as_json() for row in rows]}, indent=1))
    return 1 if failures else 0


def _measure(name: str, scale: Scale) -> list[Row]:
    """The rows of one module; what it wrote is removed."""
    module: Any = importlib.import_module(f"bench.{name}")
    with tempfile.TemporaryDirectory(prefix="amelia-bench-") as folder:
        return list(module.run(scale, Path(folder)))


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m bench", description="Measure the service beside its contenders.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all by default")
    parser.add_argument("--quick", action="store_true", help="only show that everything works")
    parser.add_argument("--long", action="store_true", help="mixed load for ten minutes more or 3 million requests")
    parser.add_argument("--json", type=Path, default=RESULTS, metavar="FILE", help="where the rows are written")
    wanted = parser.parse_args(arguments)
    unknown = set(wanted.names) - set(NAMES)
    if unknown:
        parser.error(f"{min(unknown)} is none of {', '.join(NAMES)}")
    return wanted


def _machine() -> str:
    software = f"Python {platform.python_version()}, SQLite {engine_version()}"
    return f"{os.cpu_count()} cores, {platform.platform()}, {software}"


if __name__ == "__main__":
    sys.exit(main())
