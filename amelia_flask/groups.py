"""A group of changes, carried out in one transaction in which each of them may fail alone."""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future
from typing import Any

from amelia_flask.counters import Histogram
from amelia_flask.database import FAULTS, MISTAKES, Door
from amelia_flask.errors import AmeliaError, DatabaseUnavailable, InternalError
from amelia_flask.logs import request_id

log = logging.getLogger(__name__)

# A group begins no further change after this long, and holds changes of about so many rows.
GROUP_SECONDS = 0.05
MAX_GROUP = 128
MAX_ROWS = 4000
# So often a group is carried out that fails only because of others at the same time.
MOST_ATTEMPTS = 5
RIVAL_SECONDS = 0.01  # the others go first: who tries again at once may come before one that has just been woken

# Over all processes of a server.
group_sizes = Histogram(1, 2, 4, 8, 16, 32, 64, MAX_GROUP)
commit_seconds = Histogram(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

Together = Callable[[Any, list[Any]], list[Any]]


class Change:
    """Something to be done in a transaction. The future's own states tell whether it can still be withdrawn."""

    together: Together | None = None
    argument: Any = None

    def __init__(
        self, carry_out: Callable[[Any], Any], workflows: Collection[str] | None = None, rows: int = 1
    ) -> None:
        """`carry_out` is given the database and gives the result; `workflows` are the ids of those that it changes,
        where they are known before, and `rows` is about how much it writes.
        """
        self.carry_out = carry_out
        self.workflows = workflows
        self.rows = rows
        self.future: Future[Any] = Future()
        self.request_id = request_id.get()


class JoinedChange(Change):
    """A change that is carried out at once with all others of its kind in its group."""

    def __init__(self, together: Together, argument: Any, workflows: Collection[str], rows: int = 1) -> None:
        """`together` is given the database and the arguments of several changes, and gives the result of each, or the
        AmeliaError that refuses it; of a change that is refused it stores nothing. It changes these workflows alone,
        and takes positions after all else that another process may wait for.
        """
        super().__init__(lambda tx: _only(together(tx, [argument])), workflows, rows)
        self.together = together
        self.argument = argument


def _only(results: list[Any]) -> Any:
    (result,) = results
    if isinstance(result, AmeliaError):
        raise result
    return result


_Result = tuple[Any, AmeliaError | None]
Outcome = tuple[Change, Any, AmeliaError | None]


class Group:
    """Changes that are committed together; `left` are those for which there was no time."""

    def __init__(self, door: Door, changes: Iterable[Change]) -> None:
        self.left = deque(changes)
        self._door = door
        self._db = door.db
        self._deadline = time.monotonic() + GROUP_SECONDS
        self._begun: list[Change] = []
        self._is_committing = False

    def commit(self) -> list[Outcome]:
        """Carry the changes out; give the outcome of each that was not withdrawn, once they are on disk.

        Raises what the database raises; nothing is stored then, unless `is_unknown`.
        """
        for _ in range(MOST_ATTEMPTS - 1):
            try:
                return self._commit()
            except BaseException as error:
                if not self._door.is_rivalry(error):
                    raise
                log.info("a group of writes is tried again: %s", type(error).__name__)
            self._roll_back()
            time.sleep(RIVAL_SECONDS)  # nobody tells when the others are done
        return self._commit()

    @property
    def is_unknown(self) -> bool:
        """Whether the connection broke before it was told how the transaction ended."""
        return self._is_committing and self._door.is_lost

    def fail(self, failure: AmeliaError) -> list[Outcome]:
        """The outcome of what was begun, where the group has failed; of everything, where nothing was."""
        changes = self._begun or list(self._beginning(math.inf))
        return [(change, None, failure) for change in changes]

    def _commit(self) -> list[Outcome]:
        try:
            return self._transact(self._carry_out_at_once)
        except BaseException as error:
            if not self._door.is_open or self._door.is_rivalry(error):
                raise
        # Outside the handler, because a cursor that was left open lives as long as the error that left it.
        self._roll_back()
        return self._transact(self._carry_out_apart)

    def _roll_back(self) -> None:
        if self._door.is_open:
            self._db.execute_sql("ROLLBACK")

    def _transact(self, carry_out: Callable[[], list[Outcome]]) -> list[Outcome]:
        changes = [*self._begun, *self.left]
        self._door.begin(_workflows_of(changes), any(change.together is None for change in changes))
        self._is_committing = False
        outcomes = carry_out()
        started = time.perf_counter()
        self._is_committing = True
        self._db.execute_sql("COMMIT")
        self._is_committing = False
        commit_seconds.observe(time.perf_counter() - started)
        group_sizes.observe(len(outcomes))
        return outcomes

    def _beginning(self, deadline: float) -> Iterator[Change]:
        """What was begun before, then what waits, without what its callers have given up on, until the time is up."""
        yield from list(self._begun)
        while self.left and (not self._begun or time.monotonic() < deadline):
            change = self.left.popleft()
            if change.future.set_running_or_notify_cancel():
                self._begun.append(change)
                yield change

    def _carry_out_at_once(self) -> list[Outcome]:
        """Without savepoints, which cost as much as a small change does.

        Raises where one change must be undone apart from its neighbours: the group is done over then.
        """
        outcomes: list[Outcome] = []
        joined: dict[Together, list[Change]] = {}
        for change in self._beginning(self._deadline):
            if change.together is None:
                outcomes.append((change, *self._attempt(change)))
            else:
                joined.setdefault(change.together, []).append(change)
        for together, changes in joined.items():
            outcomes += self._join(together, changes)
        return outcomes

    def _carry_out_apart(self) -> list[Outcome]:
        return [(change, *self._savepoint(change)) for change in self._beginning(self._deadline)]

    def _attempt(self, change: Change) -> _Result:
        written = self._door.written
        request_id.set(change.request_id)
        try:
            result = change.carry_out(self._db)
        except BaseException as error:
            if not self._door.is_sound or self._door.written != written:
                raise
            return None, refusal(error)
        if not self._door.is_sound:
            raise DatabaseUnavailable
        return result, None

    def _join(self, together: Together, changes: list[Change]) -> list[Outcome]:
        request_id.set(None)
        results = together(self._db, [change.argument for change in changes])
        if not self._door.is_sound:
            raise DatabaseUnavailable
        return [
            (change, None, result) if isinstance(result, AmeliaError) else (change, result, None)
            for change, result in zip(changes, results, strict=True)
        ]

    def _savepoint(self, change: Change) -> _Result:
        """Carry out one change so that its failure leaves its neighbours in the group alone."""
        self._db.execute_sql("SAVEPOINT one_change")
        request_id.set(change.request_id)
        result = None
        try:
            result = change.carry_out(self._db)
            self._db.execute_sql("RELEASE SAVEPOINT one_change")
            return result, None
        except BaseException as error:
            if not self._door.is_open or self._door.is_rivalry(error):
                raise  # the engine has rolled back the whole group, or wants it tried again
            del result  # a cursor that was not read to its end would keep the savepoint
            self._db.execute_sql("ROLLBACK TO SAVEPOINT one_change")
            self._db.execute_sql("RELEASE SAVEPOINT one_change")
            return None, refusal(error)


def _workflows_of(changes: list[Change]) -> set[str] | None:
    """The ids of those that these may change; None for any."""
    if any(change.workflows is None for change in changes):
        return None
    return {workflow for change in changes for workflow in change.workflows or ()}


def refusal(error: BaseException) -> AmeliaError:
    """What the caller of a change is told that ended with this error."""
    if isinstance(error, AmeliaError):
        return error
    if isinstance(error, FAULTS) and not isinstance(error, MISTAKES):
        return DatabaseUnavailable()
    log.error("a change failed", exc_info=error)
    return InternalError()
