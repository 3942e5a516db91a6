"""What the server tells of commits, on whichever host they were made."""

import threading
from collections.abc import Callable
from contextlib import suppress

from amelia_flask.database import FAULTS, Listener
from amelia_flask.errors import DatabaseUnavailable
from amelia_flask.postgres.database import PAUSE_SECONDS, PostgresDatabase

LISTEN_SECONDS = 0.5  # between two looks whether to go on


class PostgresListener(Listener):
    """A thread with a connection of its own, to which the server tells of every commit that stored events."""

    def __init__(self, db: PostgresDatabase, wake: Callable[[], None]) -> None:
        self._db = db
        self._wake = wake
        self._stopped = threading.Event()
        self._hears = False
        self._thread = threading.Thread(target=self._work, name="listener", daemon=True)
        self._thread.start()

    @property
    def hears(self) -> bool:
        """Whether the connection stands."""
        return self._hears

    def stop(self) -> None:
        """Hear no more; takes LISTEN_SECONDS at most."""
        self._stopped.set()
        self._thread.join(2 * LISTEN_SECONDS)

    def _work(self) -> None:
        while not self._stopped.is_set():
            with suppress(*FAULTS, DatabaseUnavailable):
                self._listen()
            self._hears = False
            self._db.close_all()
            self._stopped.wait(PAUSE_SECONDS)

    def _listen(self) -> None:
        self._db.connect()
        connection = self._db.connection()
        connection.execute("LISTEN amelia_flask_events")
        self._hears = True
        self._wake()  # what was stored before is not told of
        while not self._stopped.is_set():
            for _ in connection.notifies(timeout=LISTEN_SECONDS, stop_after=1):
                self._wake()
