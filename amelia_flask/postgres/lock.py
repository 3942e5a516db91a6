"""Locks between the processes of all hosts."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from psycopg import errors

from amelia_flask.database import FAULTS, SERVING, Lock
from amelia_flask.errors import DatabaseUnavailable
from amelia_flask.postgres.database import PostgresDatabase


def _number(purpose: str) -> str:
    return f"hashtextextended('amelia-flask:' || current_schema() || ':{purpose}', 0)"


# For a session that writes: it keeps away what replaces the record as long as it lasts, and fails while that is done.
SHARE_SERVING = f"""
    DO $$ BEGIN
        IF NOT pg_try_advisory_lock_shared({_number(SERVING)}) THEN
            RAISE lock_not_available USING MESSAGE = 'the record is being replaced';
        END IF;
    END $$
"""


class AdvisoryLock(Lock):
    """The server's lock for a purpose, in this database and schema; it ends with the session that holds it."""

    def __init__(self, db: PostgresDatabase, purpose: str) -> None:
        self._db = db
        self._purpose = purpose

    @contextmanager
    def held(self, seconds: float | None = None) -> Iterator[None]:
        """Hold the lock, however long it takes to get it.

        With `seconds` it raises DatabaseUnavailable when it was not to be had within them.
        """
        try:
            self._execute(f"SET lock_timeout = {round((seconds or 0) * 1000)}")
            self._ask("pg_advisory_lock")
        except errors.LockNotAvailable:
            raise DatabaseUnavailable from None
        try:
            yield
        finally:
            self.close()

    def keep(self) -> None:
        """Hold the lock alone until `close`. Raises DatabaseUnavailable while somebody else holds it."""
        try:
            is_ours = self._ask("pg_try_advisory_lock")
        except FAULTS as error:
            raise DatabaseUnavailable from error
        if not is_ours:
            raise DatabaseUnavailable

    def close(self) -> None:
        """Let go of it."""
        self._db.close_all()

    def _ask(self, function: str) -> Any:
        return self._execute(f"SELECT {function}({_number(self._purpose)})").fetchone()[0]

    def _execute(self, sql: str) -> Any:
        self._db.connect(reuse_if_open=True)
        return self._db.connection().execute(sql)
