"""Takes in what an export wrote: streaming, in transactions that are short, on a database that may be in use.

An import that was cut off goes on when the same file is taken in again, and taking in again what is there changes
nothing.
"""

from collections.abc import Iterator
from typing import IO

from amelia_flask.ledger import Ledger
from amelia_flask.progress import Step
from amelia_flask.transfer.lines import Malformed, WorkflowLine, read
from amelia_flask.transfer.placing import Batch, Open, Taken, place

# What one transaction takes in at most: others who write wait for a few hundredths of a second.
MOST_LINES = 500
MOST_BYTES = 1024 * 1024


def take_in(ledger: Ledger, file: IO[bytes], step: Step) -> Taken:
    """Take in the lines of an export; `step` is given bytes as they are read.

    What exists with other content, or cannot be here beside what is, is left out and named. Raises Malformed with the
    number of the line, and DatabaseUnavailable: what was taken in by then stays.
    """
    taken = Taken()
    standing: dict[str, Open] = {}
    for batch in _batches(file, step):
        done = ledger.write(place, batch, standing)
        standing = done.standing
        _add(taken, done.taken)
    return taken


def _add(taken: Taken, more: Taken) -> None:
    for name, count in vars(more).items():
        setattr(taken, name, getattr(taken, name) + count)


def _batches(file: IO[bytes], step: Step) -> Iterator[Batch]:
    """The lines in parts, one for each transaction. Where one is at fault, those before it come first."""
    batch: Batch = []
    size = 0
    try:
        for number, length, line in read(file):
            batch.append((number, line))
            size += length
            step(length)
            if (len(batch) >= MOST_LINES or size >= MOST_BYTES) and not _is_bare(batch):
                yield batch
                batch, size = [], 0
    except Malformed:
        if batch := batch[:-1] if _is_bare(batch) else batch:
            yield batch
        raise
    if batch:
        yield batch


def _is_bare(batch: Batch) -> bool:
    """Whether the first event of the last workflow is not among the lines: without one there is no workflow."""
    return bool(batch) and isinstance(batch[-1][1], WorkflowLine)
