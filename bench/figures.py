"""What was measured, as rows of a table: a value for each round, what it should reach, and the rates behind it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from bench.load import Result
from bench.scale import Scale

Measure = Callable[[float], Result]  # is given seconds
Rounds = Mapping[str, Sequence[Result]]  # by contender, one for each round


@dataclass(frozen=True)
class Limit:
    """What a value should reach."""

    value: float
    is_least: bool

    def holds(self, value: float) -> bool:
        """Whether it does."""
        return value >= self.value if self.is_least else value <= self.value

    def __str__(self) -> str:
        return f"{'>=' if self.is_least else '<='} {self.value:g}"


def at_least(value: float) -> Limit:
    """A value that should not be smaller."""
    return Limit(value, True)


def at_most(value: float) -> Limit:
    """A value that should not be larger."""
    return Limit(value, False)


@dataclass(frozen=True)
class Row:
    """A figure. Without values it could not be measured here, and `note` says why."""

    what: str
    unit: str  # "x" for a ratio
    values: Sequence[float]
    limit: Limit | None = None
    rates: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    note: str = ""

    @property
    def verdict(self) -> str:
        """Whether the median reached what it should."""
        if not self.values:
            return "skipped"
        if self.limit is None:
            return ""
        return "ok" if self.limit.holds(median(self.values)) else "NOT REACHED"

    def as_json(self) -> dict[str, Any]:
        """Everything that is known of it."""
        known: dict[str, Any] = {"what": self.what, "unit": self.unit, "values": self.values, "verdict": self.verdict}
        if self.values:
            known |= {"median": median(self.values), "min": min(self.values), "max": max(self.values)}
        limit = str(self.limit) if self.limit else None
        return known | {"threshold": limit, "rates": self.rates, "note": self.note}

    def cells(self) -> tuple[str, ...]:
        """As the table shows it."""
        value = f"{_short(median(self.values))} {self.unit}" if self.values else "-"
        spread = f"{_short(min(self.values))}-{_short(max(self.values))}" if len(self.values) > 1 else ""
        behind = "; ".join(
            [_behind(name, figures) for name, figures in self.rates.items()] + [self.note] * bool(self.note)
        )
        return self.what, value, spread, str(self.limit or ""), self.verdict, behind


HEADS = ("what", "median", "min-max", "threshold", "", "behind it: rate, p50/p99")


def table(rows: Sequence[Row]) -> str:
    """All rows, in Markdown."""
    cells = [HEADS, *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [" | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in cells]
    rule = " | ".join("-" * width for width in widths)
    return "\n".join(f"| {line} |" for line in (lines[0], rule, *lines[1:]))


def rate(result: Result) -> float:
    """How many a second."""
    return result.rate


def p50(result: Result) -> float:
    """The median of the milliseconds."""
    return result.p50


def p99(result: Result) -> float:
    """The milliseconds that one of a hundred exceeds."""
    return result.p99


def compared(
    what: str,
    rounds: Rounds,
    one: str,
    other: str,
    measure: Callable[[Result], float] = rate,
    limit: Limit | None = None,
) -> Row:
    """The ratio of two contenders in each round."""
    values = [measure(a) / measure(b) for a, b in zip(rounds[one], rounds[other], strict=True)]
    return Row(what, "x", values, limit, {name: figures(rounds[name]) for name in (one, other)})


def figures(results: Sequence[Result]) -> dict[str, float]:
    """Medians over the rounds; of the generator, the share of a core that it took itself."""
    return {
        "rate": median(map(rate, results)),
        "p50_ms": median(map(p50, results)),
        "p99_ms": median(map(p99, results)),
        "generator": median(result.own_share for result in results),
    }


def alternate(contenders: Mapping[str, Measure], scale: Scale) -> dict[str, list[Result]]:
    """Measure each in each round, every second round in the opposite order, after a warm-up that is not counted."""
    if scale.warm_up_seconds:
        for measure in contenders.values():
            measure(scale.warm_up_seconds)
    results: dict[str, list[Result]] = {name: [] for name in contenders}
    for number in range(scale.rounds):
        for name in _order(list(contenders), number):
            results[name].append(contenders[name](scale.seconds))
    return results


def _order(names: list[str], number: int) -> Iterator[str]:
    return reversed(names) if number % 2 else iter(names)


def _behind(name: str, figures: Mapping[str, float]) -> str:
    return f"{name} {figures['rate']:.0f}/s {_short(figures['p50_ms'])}/{_short(figures['p99_ms'])} ms"


def _short(value: float) -> str:
    """Three digits that tell something."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
