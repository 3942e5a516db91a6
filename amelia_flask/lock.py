"""A lock between processes on one machine, freed by the kernel when its holder dies."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from amelia_flask.database import WRITER, Lock
from amelia_flask.errors import DatabaseUnavailable

POLL_SECONDS = 0.05


class FileLock(Lock):
    """`flock` on a side file of the database, one file for each purpose; those who wait are woken in their turn."""

    def __init__(self, database: Path, purpose: str = WRITER) -> None:
        self._path = database.with_name(f"{database.name}.{purpose}")
        self._file: int | None = None

    @contextmanager
    def held(self, seconds: float | None = None) -> Iterator[None]:
        """Hold the lock, however long it takes to get it.

        With `seconds` it raises DatabaseUnavailable when it was not to be had within them.
        """
        if seconds is None:
            fcntl.flock(self._descriptor(), fcntl.LOCK_EX)
        else:
            self._try_until(time.monotonic() + seconds)
        try:
            yield
        finally:
            fcntl.flock(self._descriptor(), fcntl.LOCK_UN)

    def share(self) -> None:
        """Hold the lock beside others who share it, until `close`, or until this process and its children have ended.

        Raises DatabaseUnavailable while somebody holds it alone.
        """
        self._take(fcntl.LOCK_SH)

    def keep(self) -> None:
        """Hold the lock alone for as long. Raises DatabaseUnavailable while somebody else holds it."""
        self._take(fcntl.LOCK_EX)

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _descriptor(self) -> int:
        if self._file is None:
            self._file = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        return self._file

    def _take(self, kind: int) -> None:
        try:
            fcntl.flock(self._descriptor(), kind | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DatabaseUnavailable from None

    def _try_until(self, deadline: float) -> None:
        while True:
            try:
                return fcntl.flock(self._descriptor(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise DatabaseUnavailable from None
            time.sleep(POLL_SECONDS)  # flock has no time-out of its own
