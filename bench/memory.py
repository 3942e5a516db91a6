"""Resident memory under a mixed load, and whether it grows."""

from collections.abc import Iterator
from pathlib import Path

from bench import requests
from bench.figures import Row, at_most, figures
from bench.load import drive
from bench.scale import Scale
from bench.servers import amelia, serving

AGENTS, READERS = 16, 4


def run(scale: Scale, folder: Path) -> Iterator[Row]:
    """Workflows from their creation to their end, and people who look on. Growth is that after the first minute."""
    server = amelia(folder / "amelia.db")
    samples: list[float] = []
    with serving(server):

        def load(seconds: float, most: int | None = None) -> dict[str, float]:
            scripts = [requests.agent() for _ in range(AGENTS)] + [requests.reader() for _ in range(READERS)]
            result = drive(
                server.port, scripts, seconds, most=most, tick=lambda: samples.append(sum(server.resident()))
            )
            samples.append(sum(server.resident()))
            return figures([result])

        first = load(scale.minute)
        after_a_minute = samples[-1]
        samples.clear()
        rest = load(scale.minute * (scale.minutes - 1), scale.most_requests)
    what = "mixed load, all processes"
    yield Row(f"{what}: resident after a minute", "MB", [after_a_minute], at_most(250), {"first minute": first})
    growth = max(samples) / after_a_minute - 1
    note = f"at most {max(samples):.0f} MB"
    yield Row(f"{what}: growth after the first minute", "x", [growth], at_most(0.1), {"then": rest}, note)
