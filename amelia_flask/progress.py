"""How far a long command has come, on standard error: a bar on a terminal, elsewhere a line every few seconds."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

import click

BAR_SECONDS = 0.1
LINE_SECONDS = 5.0

Step = Callable[[int], None]  # is told how much more is done


class Unit(NamedTuple):
    """In what a progress is told: its name, and how many of the things counted make one."""

    name: str
    size: int


MEGABYTES = Unit("MB", 1_000_000)


class _Meter:
    """Counts what is done, and shows it at most once in `every` seconds."""

    def __init__(self, every: float, show: Callable[["_Meter"], None]) -> None:
        self.done = 0
        self._every, self._show = every, show
        self._started = self._shown = time.monotonic()

    def step(self, more: int) -> None:
        self.done += more
        now = time.monotonic()
        if now - self._shown >= self._every:
            self._shown = now
            self._show(self)

    @property
    def rate(self) -> float:
        """How much was done in a second, from the beginning on."""
        return self.done / max(time.monotonic() - self._started, 1e-9)


@contextmanager
def progress(label: str, length: int, unit: Unit = MEGABYTES, every: float = LINE_SECONDS) -> Iterator[Step]:
    """Show how much of `length` is done, with rate and time left, while the body calls what it is given.

    Off a terminal nothing is said in the first `every` seconds, so that a short command stays silent.
    """
    if not sys.stderr.isatty():
        yield _Meter(every, lambda meter: click.echo(_line(label, meter, length, unit), err=True)).step
        return
    with click.progressbar(
        length=length, label=label, file=sys.stderr, item_show_func=lambda rate: rate and f"{rate} {unit.name}/s"
    ) as bar:
        meter = _Meter(BAR_SECONDS, lambda meter: bar.update(meter.done - bar.pos, _in(unit, meter.rate)))
        yield meter.step
        bar.update(meter.done - bar.pos, _in(unit, meter.rate))


def _line(label: str, meter: _Meter, length: int, unit: Unit) -> str:
    left = timedelta(seconds=round(max(0, length - meter.done) / meter.rate)) if meter.done else "unknown time"
    done = f"{_in(unit, meter.done)} of {_in(unit, length)} {unit.name}"
    return f"{label}: {done}, {_in(unit, meter.rate)} {unit.name}/s, {left} left"


def _in(unit: Unit, amount: float) -> str:
    return f"{amount / unit.size:.{1 if unit.size > 1 else 0}f}"
