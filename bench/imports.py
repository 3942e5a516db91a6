"""Taking in what agents left on disk, with the program that a user runs."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bench.figures import Row, at_least
from bench.load import LoadError
from bench.scale import Scale
from bench.servers import ROOT
from bench.transcripts import write


def run(scale: Scale, folder: Path) -> Iterator[Row]:
    """Each time into a new database."""
    corpus = folder / "projects"
    size = write(corpus, scale.corpus_bytes) / 1e6
    rates = []
    for number in range(scale.imports):
        started = time.perf_counter()
        said = _take_in(corpus, folder / f"{number}.db")
        rates.append(size / (time.perf_counter() - started))
    yield Row("import of Claude Code transcripts, end to end", "MB/s", rates, at_least(20), note=said)


def _take_in(corpus: Path, database: Path) -> str:
    """What the command said, in one line. Raises LoadError where not everything was taken in."""
    command = [sys.executable, "-m", "amelia_flask", "import", "claude-code", str(corpus)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AMELIA_")}
    environment = clean | {"AMELIA_DATABASE_PATH": str(database)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode or ", 0 malformed" not in done.stdout:
        raise LoadError(f"The import failed: {done.stdout} {done.stderr}")
    return ", ".join(done.stdout.split("\n")[:3])
