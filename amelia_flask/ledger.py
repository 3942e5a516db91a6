"""The record as a process holds it: a pool of readers and the one writer."""

import os
import threading
from collections.abc import Callable, Collection, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

from amelia_flask import events
from amelia_flask.database import Listener, reading
from amelia_flask.engines import engine_of
from amelia_flask.groups import Change, JoinedChange
from amelia_flask.settings import Settings
from amelia_flask.writer import Writer

P = ParamSpec("P")
Result = TypeVar("Result")

# Beside the threads that answer requests a few others read: a shell, a probe, a follower.
SPARE_READERS = 4
# How soon a commit of another process is noticed where the engine does not tell of it, and how soon it is looked for
# in case that it was not told; those of this process are known at once.
POLL_SECONDS = 0.1
LOOK_SECONDS = 1.0


class Ledger:
    """Runs domain functions, whose first argument is the database that they are given here.

    Making one opens nothing: the first read and the first write of each process do. `stopping` is set when the
    process has been told to end: what waits should wait no longer.
    """

    def __init__(self, settings: Settings) -> None:
        """Raises SettingsError."""
        self.settings = settings
        self.engine = engine_of(settings)
        self.readers = self.engine.open_readers(settings.threads + SPARE_READERS)
        self.writer = Writer(self.engine, settings.waiting_writes)
        self.stopping = False
        self._listener: Listener | None = None
        self._listening = threading.Lock()
        self._pid = 0

    def read(self, function: Callable[Concatenate[Any, P], Result], *args: P.args, **kwargs: P.kwargs) -> Result:
        """Call `function` with a connection for one short read. Raises DatabaseUnavailable."""
        with reading(self.readers) as db:
            return function(db, *args, **kwargs)

    def write(self, change: Callable[Concatenate[Any, P], Result], *args: P.args, **kwargs: P.kwargs) -> Result:
        """Call `change` in a transaction; give its result once that is on disk. Raises DatabaseUnavailable.

        It may change any workflow, so on PostgreSQL it waits for all others who write, and they for it.
        """
        result: Result = self.writer.run(_change(None, change, *args, **kwargs))
        return result

    def write_to(
        self,
        workflows: Collection[str],
        change: Callable[Concatenate[Any, P], Result],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Result:
        """The same for a change that touches no workflow but those with these ids, as far as there are any."""
        result: Result = self.writer.run(_change(workflows, change, *args, **kwargs))
        return result

    def append(self, workflow_id: str, arrived: Sequence[events.Arrived]) -> events.AppendedEvents:
        """Append events, together with what others append at this moment. Raises what `events.append` raises."""
        change = JoinedChange(events.append_all, (workflow_id, arrived), (workflow_id,), len(arrived))
        appended: events.AppendedEvents = self.writer.run(change)
        return appended

    def wait_for_news(self, seen: int, seconds: float) -> int:
        """Wait for more news than `seen`, or for `seconds`, or until it is time to look; give the count of it."""
        with self._listening:
            if self._pid != os.getpid():
                self._pid = os.getpid()
                self._listener = self.engine.listen(self.writer.note_news)
        hears = self._listener is not None and self._listener.hears
        return self.writer.wait_for_news(seen, min(seconds, LOOK_SECONDS if hears else POLL_SECONDS))

    def submit_to(
        self,
        workflows: Collection[str],
        change: Callable[Concatenate[Any, P], Any],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> None:
        """The same without waiting for the result. Raises DatabaseUnavailable where no more is taken."""
        self.writer.submit(_change(workflows, change, *args, **kwargs))

    def close(self) -> None:
        """Finish what waits to be written, and close this process's connections."""
        self.stopping = True
        self.writer.stop()
        if self._listener is not None and self._pid == os.getpid():
            self._listener.stop()
        self.readers.close_all()


def _change(workflows: Collection[str] | None, carry_out: Callable[..., Any], *args: Any, **kwargs: Any) -> Change:
    """What writes as many rows as there are in the lists that it is given."""
    rows = sum(len(argument) for argument in args if isinstance(argument, list))
    return Change(lambda tx: carry_out(tx, *args, **kwargs), workflows, max(rows, 1))
