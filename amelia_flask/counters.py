"""Counts that the processes of a server keep together: each writes a row of its own, and any of them reads the sums.

The rows lie in memory that is shared by all processes that are forked afterwards, so nothing is left behind on disk,
and what a process counted stays when it ends: its successor goes on in the same row. One count costs well below a
microsecond.
"""

import mmap
from bisect import bisect_left
from threading import Lock

MOST_PROCESSES = 256

_has_begun = mmap.mmap(-1, MOST_PROCESSES)
_gauges: list["Gauge"] = []
_slot = 0


def begin_process(slot: int) -> None:
    """Count in this row from now on: called in a new process, with a number that no other living one has."""
    global _slot
    _slot = slot
    _has_begun[slot] = 1
    process_starts.add()


def end_process(slot: int) -> None:
    """Forget what was so in a process that has ended. What it counted stays."""
    for gauge in _gauges:
        gauge.clear(slot)


class Numbers:
    """`length` numbers of this process, beside those of all others. Made before a fork, by an import."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._rows = memoryview(mmap.mmap(-1, MOST_PROCESSES * length * 8)).cast("d")
        self._lock = Lock()

    def add(self, *changes: tuple[int, float]) -> None:
        """Add to the numbers at these places."""
        row = _slot * self._length
        with self._lock:
            for place, amount in changes:
                self._rows[row + place] += amount

    def sums(self) -> list[float]:
        """Each number, added up over all processes."""
        begun = [slot * self._length for slot in range(MOST_PROCESSES) if _has_begun[slot]]
        return [sum(column) for column in zip(*(self._rows[row : row + self._length] for row in begun), strict=True)]


class Counter:
    """How often something has happened."""

    def __init__(self) -> None:
        self._numbers = Numbers(1)

    def add(self, amount: float = 1) -> None:
        """Count it."""
        self._numbers.add((0, amount))

    @property
    def total(self) -> float:
        """Over all processes, living and ended."""
        return self._numbers.sums()[0]


class Gauge:
    """How much of something there is now in each process."""

    def __init__(self) -> None:
        self._rows = memoryview(mmap.mmap(-1, MOST_PROCESSES * 8)).cast("d")
        _gauges.append(self)

    @property
    def here(self) -> float:
        """In this process."""
        return self._rows[_slot]

    def set(self, value: float) -> None:
        """Say how much there is in this process."""
        self._rows[_slot] = value

    def fewest(self, processes: int) -> float:
        """The least that there is in one of the processes with the first rows."""
        return min(self._rows[:processes])

    def clear(self, slot: int) -> None:
        """There is none any more in a process that has ended."""
        self._rows[slot] = 0

    @property
    def total(self) -> float:
        """Over all living processes."""
        return sum(self._rows)


class Histogram:
    """How large something was each time, sorted into buckets by their upper bounds."""

    def __init__(self, *bounds: float) -> None:
        self.bounds = bounds
        self._numbers = Numbers(len(bounds) + 2)

    def observe(self, value: float) -> None:
        """Sort one in."""
        self._numbers.add((bisect_left(self.bounds, value), 1), (len(self.bounds) + 1, value))

    @property
    def totals(self) -> list[float]:
        """How many are in each bucket, how many are above the last, and the sum of all, over all processes."""
        return self._numbers.sums()


# Where nothing is forked, the one process counts in the first row.
_has_begun[0] = 1
process_starts = Counter()
