"""Follow events as they come: readers that wait for what is not there yet. No HTTP."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock

from amelia_flask.counters import Gauge
from amelia_flask.errors import TooManyStreams
from amelia_flask.ledger import Ledger
from amelia_flask.timeline import EventPage


class OpenReaders:
    """Counts the readers that wait, in this process and in all that were forked from the one that made this."""

    def __init__(self) -> None:
        self._count = Gauge()
        self._lock = Lock()

    @property
    def here(self) -> int:
        """How many wait in this process."""
        return int(self._count.here)

    @property
    def everywhere(self) -> int:
        """How many wait in all processes."""
        return int(self._count.total)

    @contextmanager
    def one(self, most_here: int, most_everywhere: int | None) -> Iterator[None]:
        """Count a reader while it waits. Raises TooManyStreams."""
        with self._lock:
            if self.here >= most_here or (most_everywhere is not None and self.everywhere >= most_everywhere):
                raise TooManyStreams
            self._count.set(self.here + 1)
        try:
            yield
        finally:
            with self._lock:
                self._count.set(self.here - 1)


# Made when the module is imported, which a server does before it forks: only so the processes share it.
open_readers = OpenReaders()


def page_or_wait(ledger: Ledger, read: Callable[[], EventPage], seconds: float) -> EventPage:
    """What `read` gives; where that is empty, wait up to `seconds` for something to come.

    Raises TooManyStreams where half the threads of this process wait already.
    """
    deadline = time.monotonic() + seconds
    seen = ledger.writer.news
    page = read()
    if page.events or seconds <= 0:
        return page
    settings = ledger.settings
    with open_readers.one(settings.waiting_readers, settings.max_streams):
        while not page.events and not ledger.stopping and (left := deadline - time.monotonic()) > 0:
            seen = ledger.wait_for_news(seen, left)
            page = read()
    return page
