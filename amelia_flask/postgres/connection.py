"""A connection of the driver: times and sums as the domain has them, and no wait without an end."""

import time
from typing import Any

import psycopg
from peewee import Psycopg3Adapter
from psycopg.adapt import Loader
from psycopg.types.numeric import Int8Dumper

CONNECT_SECONDS = 3
BEGIN_SECONDS = 2  # less than any caller waits: BEGIN is no work, so no answer to it tells of a connection that broke


class _TimeLoader(Loader):
    """A timestamptz as the text that `clock.to_text` makes of it."""

    def load(self, data: Any) -> str:
        """From `2026-01-31 12:00:00.5+00`: the server leaves noughts at the end out."""
        text = str(data, "ascii")
        time_of_day = text[11:-3]
        fraction = time_of_day.ljust(15, "0") if len(time_of_day) > 8 else f"{time_of_day}.000000"
        return f"{text[:10]}T{fraction}Z"


class _SumLoader(Loader):
    """A numeric as a whole number: in queries of ours it is the sum of such."""

    def load(self, data: Any) -> int:
        """From its digits."""
        return int(bytes(data))


class Connection(psycopg.Connection[Any]):
    """A connection that is given up when an answer does not come within `patience` seconds."""

    patience: float | None = CONNECT_SECONDS  # as long as it is introduced

    def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
        """Called by psycopg for each statement. Raises OperationalError."""
        if self.patience is None:
            return super().wait(gen, *args, **kwargs)
        try:
            return super().wait(_bounded(gen, time.monotonic() + self.patience), *args, **kwargs)
        except _Silence:
            self.close()
            raise psycopg.OperationalError("The server does not answer.") from None


class _Silence(Exception):
    """No answer came in time."""


def _bounded(gen: Any, deadline: float) -> Any:
    """The generator of psycopg's, which is told ten times a second that nothing has come, until the deadline."""
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if not ready and time.monotonic() > deadline:
                raise _Silence
            wanted = gen.send(ready)
    except StopIteration as end:
        return end.value


class Adapter(Psycopg3Adapter):
    """Peewee's way to another class of connections."""

    def connect(self, _db: Any, **params: Any) -> Connection:
        return Connection.connect(**params)


class Cursor(psycopg.Cursor[Any]):
    """A cursor whose connection counts what may have written."""

    def execute(self, query: Any, *args: Any, **kwargs: Any) -> "Cursor":
        """Run a statement."""
        if not query.startswith("SELECT"):
            self.connection.written += 1  # type: ignore[attr-defined]  # set where connections are made
        return super().execute(query, *args, **kwargs)


def introduce(conn: Any, session: str, patience: float | None) -> None:
    """Tell a new connection what it is for, and from then on wait for answers no longer than `patience`."""
    conn.written = 0
    conn.adapters.register_loader("timestamptz", _TimeLoader)
    conn.adapters.register_loader("numeric", _SumLoader)
    conn.adapters.register_dumper(int, Int8Dumper)  # one statement to prepare, however large a number is
    conn.execute(session)
    conn.patience = patience
