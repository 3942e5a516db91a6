"""The record as a process holds it: a pool of readers and the one writer."""

from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from amelia_flask.database import SqliteExtDatabase, open_readers, reading
from amelia_flask.settings import Settings
from amelia_flask.writer import Writer

P = ParamSpec("P")
Result = TypeVar("Result")

# Beside the threads that answer requests a few others read: a shell, a probe, a follower.
SPARE_READERS = 4


class Ledger:
    """Runs domain functions, whose first argument is the database that they are given here.

    Making one opens nothing: the first read and the first write of each process do. `stopping` is set when the
    process has been told to end: what waits should wait no longer.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.readers: SqliteExtDatabase = open_readers(settings.database_path, settings.threads + SPARE_READERS)
        self.writer = Writer(settings.database_path, settings.waiting_writes)
        self.stopping = False

    def read(self, function: Callable[Concatenate[Any, P], Result], *args: P.args, **kwargs: P.kwargs) -> Result:
        """Call `function` with a connection for one short read. Raises DatabaseUnavailable."""
        with reading(self.readers) as db:
            return function(db, *args, **kwargs)

    def write(self, change: Callable[Concatenate[Any, P], Result], *args: P.args, **kwargs: P.kwargs) -> Result:
        """Call `change` in a transaction; give its result once that is on disk. Raises DatabaseUnavailable."""
        return self.writer.run(lambda tx: change(tx, *args, **kwargs))

    def submit(self, change: Callable[Concatenate[Any, P], Any], *args: P.args, **kwargs: P.kwargs) -> None:
        """Have `change` written in its turn; nobody waits for it. Raises DatabaseUnavailable where none is taken."""
        self.writer.submit(lambda tx: change(tx, *args, **kwargs))

    def close(self) -> None:
        """Finish what is being written and let go of every connection."""
        self.stopping = True
        self.writer.stop()
        self.readers.close_all()
