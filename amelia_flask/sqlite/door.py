"""How a process writes to a database file: when it is its turn, and only to files that are in their places."""

import logging
from collections.abc import Collection
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from amelia_flask.database import FAULTS, Door
from amelia_flask.errors import DatabaseUnavailable
from amelia_flask.lock import FileLock
from amelia_flask.sqlite.database import open_writer
from amelia_flask.sqlite.files import Files, displaced, files_of

log = logging.getLogger(__name__)


class SqliteDoor(Door):
    """The connection that writes. The files it opened are watched: what is written to others would be lost."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._name = str(path)
        self._lock = FileLock(path)
        self._files: Files | None = None  # that are open
        self.db = open_writer(self._path)

    def exclusive(self) -> AbstractContextManager[None]:
        """Wait for the turn of this process."""
        return self._lock.held()

    def open(self) -> None:
        """Have a connection to the file that is in its place now."""
        if self._files and not self.db.is_closed():
            found = files_of(self._name)
            if problem := displaced(self._files, found):
                self._rescue()
                raise DatabaseUnavailable(problem)
            if found.database != self._files.database:
                self.close()
        if self.db.is_closed():
            self.db.connect()
            self._files = self.db.files

    def close(self) -> None:
        """Let go of the connection."""
        self._files = None
        try:
            if not self.db.is_closed():
                self.db.manual_close()
        except FAULTS:
            log.warning("closing the writer's connection failed", exc_info=True)
            self.db = open_writer(self._path)

    def finish(self) -> None:
        """Let go of the connection and of the file of the lock."""
        self.close()
        self._lock.close()

    def begin(self, workflows: Collection[str] | None, is_mixed: bool) -> None:  # noqa: ARG002 - one lock is for all
        """Begin a transaction."""
        self.db.execute_sql("BEGIN IMMEDIATE")

    @property
    def is_open(self) -> bool:
        """Whether there is a transaction: the engine rolls one back by itself where it cannot go on."""
        return bool(self.db.connection().in_transaction)

    is_sound = is_open

    @property
    def written(self) -> int:
        """How many rows this connection has changed."""
        return int(self.db.connection().total_changes)

    @property
    def is_lost(self) -> bool:
        """Never: a COMMIT that fails has not happened."""
        return False

    def problem(self) -> str | None:
        """What another program has done to files that are in use here, which then are written no more."""
        files = self._files
        return displaced(files, files_of(self._name)) if files else None

    def look_after(self) -> None:
        """See whether the files are in their places, and save what is in the log where they are not."""
        if self.problem():
            with suppress(*FAULTS, DatabaseUnavailable), self._lock.held():
                self._rescue()

    def _rescue(self) -> None:
        """Bring what is in the log into the database, wherever these are now, while this process has them open.

        A log that lies beside another database than its own is emptied, because it would be taken for that one's.
        Raises what the database raises.
        """
        opened, found = self._files, files_of(self._name)
        is_alone = opened is not None and found[1:] == opened[1:]
        result = self.db.execute_sql(f"PRAGMA wal_checkpoint({'TRUNCATE' if is_alone else 'FULL'})").fetchone()
        if result[0]:
            raise DatabaseUnavailable("Another program keeps the log of the database from being saved.")
