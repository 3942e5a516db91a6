"""A lock between processes on one machine, fair to those that wait and freed by the kernel when its holder dies."""

import fcntl
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from amelia_flask.errors import DatabaseUnavailable


class FileLock:
    """`flock` on a side file of the database, with a deadline.

    SQLite's own lock is not fair: a process that commits back to back can starve another for seconds. A
    blocking flock queues them; as it cannot time out by itself, a helper thread does the waiting. A wait that
    was given up on lets the lock go as soon as it has it.
    """

    def __init__(self, database: Path) -> None:
        self._path = database.with_name(database.name + ".writer")
        self._file: int | None = None
        self._helper = ThreadPoolExecutor(1, thread_name_prefix="lock")
        self._waiting: Future[None] | None = None
        self._wanted = False
        self._state = Lock()

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
        self._helper.shutdown(wait=False)
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _descriptor(self) -> int:
        if self._file is None:
            self._file = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        return self._file

    def _acquire(self, seconds: float) -> None:
        with self._state:
            self._wanted = True
            if self._waiting is None:
                try:
                    fcntl.flock(self._descriptor(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return
                except BlockingIOError:
                    self._waiting = self._helper.submit(self._wait)
        self._join(self._waiting, seconds)

    def _join(self, waiting: Future[None], seconds: float) -> None:
        try:
            waiting.result(seconds)
        except TimeoutError:
            with self._state:
                if not waiting.done():
                    self._wanted = False
                    raise DatabaseUnavailable from None
        self._waiting = None

    def _wait(self) -> None:
        fcntl.flock(self._descriptor(), fcntl.LOCK_EX)
        with self._state:
            if not self._wanted:
                fcntl.flock(self._descriptor(), fcntl.LOCK_UN)
                self._waiting = None
