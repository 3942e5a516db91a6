"""How a process writes to a server.

Group after group is committed by each process, and what keeps them apart over all hosts is the server's: the rows of
the workflows, then the row with the newest position. Every transaction takes them in this order, and the workflows in
that of their ids, so that no two wait for one another; holding the position's row until the commit makes the order of
positions that of commits.
"""

from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext, suppress

from psycopg import errors
from psycopg.pq import TransactionStatus

from amelia_flask.database import FAULTS, Door
from amelia_flask.postgres.database import PostgresDatabase

_lock_workflows = "SELECT 1 FROM workflows WHERE id = ANY(%s::text[]) ORDER BY id FOR NO KEY UPDATE"
# Of all others who write nobody holds a row then, or waits for another.
_lock_all_workflows = "LOCK TABLE workflows IN EXCLUSIVE MODE"
_lock_position = "SELECT 1 FROM event_position FOR NO KEY UPDATE"


class PostgresDoor(Door):
    """The connection that writes."""

    def __init__(self, db: PostgresDatabase) -> None:
        self.db = db

    def exclusive(self) -> AbstractContextManager[None]:
        """Nothing: the server keeps the processes of all hosts apart."""
        return nullcontext()

    def open(self) -> None:
        """Have a connection."""
        if self.db.is_closed():
            self.db.connect()
        elif self.db.connection().closed:
            self.db.renew()

    def close(self) -> None:
        """Let go of the connection, whatever state it is in."""
        if not self.db.is_closed():
            with suppress(*FAULTS):
                self.db.manual_close()

    def begin(self, workflows: Collection[str] | None, is_mixed: bool) -> None:
        """Begin a transaction, and wait for those that change the same workflows.

        What is mixed waits for the row of the newest position too, before it waits for anything else.
        """
        self.db.begin_anew("BEGIN")
        if workflows is None:
            self.db.connection().execute(_lock_all_workflows)
        elif workflows:
            self.db.connection().execute(_lock_workflows, (list(workflows),))
        if is_mixed:
            self.db.connection().execute(_lock_position)

    @property
    def _status(self) -> TransactionStatus:
        if self.db.is_closed():  # to ask it would open a connection
            return TransactionStatus.UNKNOWN
        return self.db.connection().info.transaction_status  # type: ignore[no-any-return]  # Peewee has no types

    @property
    def is_open(self) -> bool:
        """Whether there is a transaction, sound or not."""
        return self._status in (TransactionStatus.INTRANS, TransactionStatus.INERROR)

    @property
    def is_sound(self) -> bool:
        """Whether there is a transaction in which another statement may follow."""
        return self._status == TransactionStatus.INTRANS

    @property
    def written(self) -> int:
        """How many statements this connection was given that may have written."""
        return int(self.db.connection().written)

    @property
    def is_lost(self) -> bool:
        """Whether the connection broke."""
        return self.db.is_closed() or bool(self.db.connection().closed)

    def is_rivalry(self, error: BaseException) -> bool:
        """Whether the server ended the transaction for the sake of another one."""
        return isinstance(error, errors.SerializationFailure | errors.DeadlockDetected) and not self.is_lost
