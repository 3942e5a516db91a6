"""A lock between processes on one machine, fair to those that wait and freed by the kernel when its holder dies."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from threading import Condition, Thread

from amelia_flask.errors import DatabaseUnavailable


class FileLock:
    """`flock` on a side file of the database, with a deadline; one thread at a time may use it.

    SQLite's own lock is not fair: a process that commits back to back can starve another for seconds. A
    blocking flock queues them; as it cannot time out by itself, a helper thread does the waiting. A wait that
    was given up on lets the lock go as soon as it has it.
    """

    def __init__(self, database: Path) -> None:
        self._path = database.with_name(database.name + ".writer")
        self._file: int | None = None
        self._helper: Thread | None = None
        self._waits: SimpleQueue[int | None] = SimpleQueue()
        self._state = Condition()
        self._waiting = False
        self._wanted = False

    @contextmanager
    def held(self, seconds: float) -> Iterator[None]:
        """Hold the lock. Raises DatabaseUnavailable when it was not to be had within `seconds`."""
        self._acquire(seconds)
        try:
            yield
        finally:
            fcntl.flock(self._descriptor(), fcntl.LOCK_UN)

    def close(self) -> None:
        """Let go of the file and of the helper thread."""
        with self._state:
            self._waits.put(None)
            self._helper = None
            if self._file is not None and not self._waiting:  # who waits still needs the file, to let the lock go
                os.close(self._file)
                self._file = None

    def _descriptor(self) -> int:
        if self._file is None:
            self._file = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        return self._file

    def _acquire(self, seconds: float) -> None:
        with self._state:
            self._wanted = True
            if not self._waiting:
                try:
                    fcntl.flock(self._descriptor(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return
                except BlockingIOError:
                    self._begin_to_wait()
            if not self._state.wait_for(lambda: not self._waiting, seconds):
                self._wanted = False
                raise DatabaseUnavailable

    def _begin_to_wait(self) -> None:
        if self._helper is None:
            # A daemon: a process that ends does not wait for a lock that another one holds.
            self._helper = Thread(target=self._wait, name="lock", daemon=True)
            self._helper.start()
        self._waiting = True
        self._waits.put(self._descriptor())

    def _wait(self) -> None:
        while (file := self._waits.get()) is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
            with self._state:
                if not self._wanted:
                    fcntl.flock(file, fcntl.LOCK_UN)
                self._waiting = False
                self._state.notify()
