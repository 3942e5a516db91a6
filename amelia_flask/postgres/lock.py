"""Locks between the processes of all hosts."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from psycopg import errors

from amelia_flask.database import FAULTS, Lock
from amelia_flask.errors import DatabaseUnavailable
from amelia_flask.postgres.database import PostgresDatabase


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
        sql = f"SELECT {function}(hashtextextended('amelia-flask:' || current_schema() || ':' || %s, 0))"
        return self._execute(sql, (self._purpose,)).fetchone()[0]

    def _execute(self, sql: str, values: tuple[str, ...] | None = None) -> Any:
        self._db.connect(reuse_if_open=True)
        return self._db.connection().execute(sql, values)
