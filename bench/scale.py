"""How long and how large: a full run, or one that only shows that everything works."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """A full run by default."""

    rounds: int = 3
    seconds: float = 3.0  # of each contender in each round
    warm_up_seconds: float = 0.3
    events: tuple[int, int, int] = (10_000, 1_000_000, 5_000_000)
    cold_pages: int = 20
    usage_records: int = 1_000_000
    lines: int = 10_000
    crowd_seconds: float = 60.0
    minute: float = 60.0
    minutes: int = 2
    most_requests: int | None = None
    starts: int = 5
    imports: int = 2
    corpus_bytes: int = 100_000_000


FULL = Scale()
LONG = Scale(minutes=11, most_requests=3_000_000)
QUICK = Scale(
    rounds=1,
    seconds=0.05,
    warm_up_seconds=0,
    events=(2_000, 4_000, 6_000),
    cold_pages=2,
    usage_records=10_000,
    lines=200,
    crowd_seconds=0.3,
    minute=0.3,
    starts=1,
    imports=1,
    corpus_bytes=300_000,
)
