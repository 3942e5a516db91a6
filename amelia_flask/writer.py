"""The one door for writes: a thread that commits what is waiting as one transaction (group commit).

There is no timer. When quiet, a group is one change and nobody waits; when busy, the group grows while the
previous commit runs, so that many callers share one sync to disk.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from itertools import chain
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from amelia_flask.counters import Counter, Gauge, Histogram
from amelia_flask.database import (
    FAULTS,
    MISTAKES,
    Files,
    SqliteExtDatabase,
    displaced,
    files_of,
    open_writer,
)
from amelia_flask.errors import AmeliaError, DatabaseUnavailable, InternalError
from amelia_flask.lock import FileLock
from amelia_flask.logs import request_id

log = logging.getLogger(__name__)

Result = TypeVar("Result")
Change = Callable[[SqliteExtDatabase], Result]

MAX_GROUP = 128
MAX_WAITING = 1000
GROUP_SECONDS = 0.05
# A caller gives up after this many seconds if its change is still waiting; one that is being carried out is
# waited for, because its outcome would be unknown.
WAIT_SECONDS = 8.0
OUTCOME_SECONDS = 12.0
# Only some callers may wait for longer than this, or at all once nothing has been committed for as long: the others
# hold threads that can be of use.
SOON_SECONDS = 3.0

# How often it is looked, while nothing is written, whether the database and its log are in their places.
LOOK_SECONDS = 1.0

# Over all processes of a server.
queue_length = Gauge()
group_sizes = Histogram(1, 2, 4, 8, 16, 32, 64, MAX_GROUP)
commit_seconds = Histogram(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
failures = Counter()


class _Item:
    """A change on its way: the future's own states tell whether it can still be withdrawn."""

    def __init__(self, change: Change[Any]) -> None:
        self.change = change
        self.future: Future[Any] = Future()
        self.request_id = request_id.get()


_Result = tuple[Any, AmeliaError | None]
_Outcome = tuple[_Item, Any, AmeliaError | None]


class Writer:
    """Carries out changes in the order in which they arrive; made before a fork, it runs in each process apart."""

    def __init__(self, path: Path, patient: int = 4) -> None:
        """`patient`: how many callers may wait for a commit that does not come soon."""
        self._path = path
        self._name = str(path)
        self._patient = patient
        self._door = threading.Lock()
        self._committed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._stopping = False
        self._fresh()

    def _fresh(self) -> None:
        self._queue: SimpleQueue[_Item | None] = SimpleQueue()
        self._db = open_writer(self._path)
        self._lock = FileLock(self._path)
        self.commits = 0
        self.failure: str | None = None
        self._patience = threading.Semaphore(self._patient)
        self._at_work_since: float | None = None  # until something is committed, or nothing waits
        self._files: Files | None = None  # that are open

    def run(self, change: Change[Result]) -> Result:
        """Carry out `change` in a transaction and give its result once that is committed and synced.

        An AmeliaError that `change` raises is raised here, any other mistake of it as InternalError, and then
        nothing of it is stored. Raises DatabaseUnavailable when the database cannot be written now; its details
        say `outcome_unknown` in the rare case in which the change may yet be stored, to be settled by calling
        again with the same ids.
        """
        result: Result = self._outcome(self.submit(change))
        return result

    def submit(self, change: Change[Any]) -> Future[Any]:
        """Queue `change`; how it ends stands in the future, and in the log where that is a fault.

        Raises DatabaseUnavailable where no more is taken.
        """
        item = _Item(change)
        with self._door:
            self._ensure_running()
            if self._queue.qsize() >= MAX_WAITING:
                raise DatabaseUnavailable("Too many writes are waiting; try again.")
            self._queue.put(item)
            queue_length.set(self._queue.qsize())
        return item.future

    def ensure_running(self) -> None:
        """Start the thread where it does not run: at first, after a fork, or after it died."""
        with self._door:
            self._ensure_running()

    def _ensure_running(self) -> None:
        if self._stopping:
            raise DatabaseUnavailable("The service is shutting down.")
        if self._pid != os.getpid():
            self._fresh()
            self._pid = os.getpid()
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._work, name="writer", daemon=True)
            self._thread.start()

    @property
    def waiting(self) -> int:
        """How many changes wait to be taken into a group."""
        return self._queue.qsize()

    def wait_for_commit(self, seen: int, seconds: float) -> int:
        """Wait until this process has committed more than `seen` groups, or for `seconds`; give the count."""
        with self._committed:
            self._committed.wait_for(lambda: self.commits != seen or self._stopping, seconds)
            return self.commits

    def stop(self) -> None:
        """Finish what waits, then close. Later changes are refused."""
        with self._door:
            self._stopping = True
            self._queue.put(None)
        with self._committed:
            self._committed.notify_all()
        if self._thread is not None and self._pid == os.getpid():
            self._thread.join(OUTCOME_SECONDS)
            self._lock.close()

    def _outcome(self, future: Future[Any]) -> Any:
        with suppress(TimeoutError):
            return future.result(0 if self._is_stalled() else SOON_SECONDS)
        if not self._patience.acquire(blocking=False):
            withdrawn = {} if future.cancel() else {"outcome_unknown": True}
            raise DatabaseUnavailable("Too many writes wait for the database; try again.", **withdrawn)
        try:
            return self._outcome_in_the_end(future)
        finally:
            self._patience.release()

    def _outcome_in_the_end(self, future: Future[Any]) -> Any:
        with suppress(TimeoutError):
            return future.result(WAIT_SECONDS - SOON_SECONDS)
        if future.cancel():
            raise DatabaseUnavailable
        with suppress(TimeoutError):
            return future.result(OUTCOME_SECONDS - WAIT_SECONDS)
        raise DatabaseUnavailable(outcome_unknown=True)

    def _is_stalled(self) -> bool:
        """Whether the writer has been at work for long, with callers all the time, and without a commit."""
        since = self._at_work_since
        return since is not None and time.monotonic() - since > SOON_SECONDS

    def problem(self) -> str | None:
        """What another program has done to files that are in use here, which then are written no more."""
        files = self._files
        return displaced(files, files_of(self._name)) if files else None

    def _work(self) -> None:
        try:
            with suppress(*FAULTS, AmeliaError):
                self._connect()  # from now on it is noticed what happens to the files
            while (first := self._next()) is not None:
                self._carry_out(first)
        finally:
            self._close()  # however the thread ends: no other could, and what it left open would hold the lock

    def _next(self) -> _Item | None:
        """What came first, however long it takes; meanwhile it is looked whether the files are in their places."""
        while True:
            with suppress(Empty):
                return self._queue.get(timeout=LOOK_SECONDS)
            self._at_work_since = None
            if self.problem():
                with suppress(*FAULTS, AmeliaError), self._lock.held():
                    self._rescue()

    def _rescue(self) -> None:
        """Bring what is in the log into the database, wherever these are now, while this process has them open.

        A log that lies beside another database than its own is emptied, because it would be taken for that one's.
        Raises what the database raises.
        """
        opened, found = self._files, files_of(self._name)
        is_alone = opened is not None and found[1:] == opened[1:]
        result = self._db.execute_sql(f"PRAGMA wal_checkpoint({'TRUNCATE' if is_alone else 'FULL'})").fetchone()
        if result[0]:
            raise DatabaseUnavailable("Another program keeps the log of the database from being saved.")

    def _carry_out(self, first: _Item) -> None:
        group: list[_Item] = []
        self._at_work_since = self._at_work_since or time.monotonic()
        try:
            with self._lock.held():
                outcomes = self._transact(first, group)
            self._look_after(outcomes)
        except BaseException as error:
            self._recover(error)
            outcomes = [(item, None, _refusal(error)) for item in group or self._waiting(first, group)]
        with self._door:  # or a caller who has just counted the queue could say so after this
            queue_length.set(self._queue.qsize())
        for item, result, failure in outcomes:
            if failure is None:
                item.future.set_result(result)
            else:
                item.future.set_exception(failure)

    def _look_after(self, outcomes: list[_Outcome]) -> None:
        """Open a new connection after a change that met a fault of the database, which may be this connection's."""
        faults = [failure for _, _, failure in outcomes if isinstance(failure, DatabaseUnavailable)]
        if faults:
            self._recover(faults[0])

    def _waiting(self, first: _Item, group: list[_Item]) -> Iterator[_Item]:
        """`first` and what waits behind it, without what its callers have given up on, each noted in `group` as it
        is taken. What is still waiting after GROUP_SECONDS is left to the next group.
        """
        deadline = time.monotonic() + GROUP_SECONDS
        for number in range(min(MAX_GROUP, 1 + self._queue.qsize())):
            item = self._queue.get() if number else first
            if item is None:
                return self._queue.put(None)  # stop after this group
            if item.future.set_running_or_notify_cancel():
                group.append(item)
                yield item
            if time.monotonic() > deadline:
                return

    def _transact(self, first: _Item, group: list[_Item]) -> list[_Outcome]:
        self._connect()
        waiting = self._waiting(first, group)
        outcomes = self._attempt_all(waiting)
        if outcomes is None:
            outcomes = self._commit(chain(list(group), waiting), self._savepoint)
        with self._committed:
            self.commits += 1
            self.failure = None
            self._at_work_since = None
            self._committed.notify_all()
        return outcomes

    def _attempt_all(self, items: Iterable[_Item]) -> list[_Outcome] | None:
        """The outcomes; None, and nothing stored, where one change must be undone apart from its neighbours."""
        try:
            return self._commit(items, self._attempt)
        except BaseException:
            if not self._db.connection().in_transaction:
                raise
        # Outside the handler, because a cursor that was left open lives as long as the error that left it.
        self._db.execute_sql("ROLLBACK")
        return None

    def _commit(self, items: Iterable[_Item], carry_out: Callable[[_Item], _Result]) -> list[_Outcome]:
        self._db.execute_sql("BEGIN IMMEDIATE")
        outcomes = [(item, *carry_out(item)) for item in items]
        started = time.perf_counter()
        self._db.execute_sql("COMMIT")
        commit_seconds.observe(time.perf_counter() - started)
        group_sizes.observe(len(outcomes))
        return outcomes

    def _attempt(self, item: _Item) -> _Result:
        """Carry out one change without a savepoint, which costs as much as a small change does.

        Raises what the change raises where it had written by then: the group is done over, with savepoints.
        """
        connection = self._db.connection()
        written = connection.total_changes
        request_id.set(item.request_id)
        try:
            result = item.change(self._db)
        except BaseException as error:
            if not connection.in_transaction or connection.total_changes != written:
                raise
            return None, _refusal(error)
        if not connection.in_transaction:
            raise DatabaseUnavailable
        return result, None

    def _connect(self) -> None:
        if self._files and not self._db.is_closed():
            found = files_of(self._name)
            if problem := displaced(self._files, found):
                self._rescue()
                raise DatabaseUnavailable(problem)
            if found.database != self._files.database:
                self._close()
        if self._db.is_closed():
            self._db.connect()
            self._files = self._db.files

    def _savepoint(self, item: _Item) -> _Result:
        """Carry out one change so that its failure leaves its neighbours in the group alone."""
        self._db.execute_sql("SAVEPOINT one_change")
        request_id.set(item.request_id)
        result = None
        try:
            result = item.change(self._db)
            self._db.execute_sql("RELEASE one_change")
            return result, None
        except BaseException as error:
            if not self._db.connection().in_transaction:
                raise  # the engine has rolled back the whole group
            del result  # a cursor that was not read to its end would keep the savepoint
            self._db.execute_sql("ROLLBACK TO one_change")
            self._db.execute_sql("RELEASE one_change")
            return None, _refusal(error)

    def _recover(self, error: BaseException) -> None:
        """Leave no open transaction behind; the next group opens a new connection."""
        self.failure = type(error).__name__
        failures.add()
        request_id.set(None)
        log.warning("a group of writes failed: %s", error)
        if not self.problem():
            self._close()

    def _close(self) -> None:
        self._files = None
        try:
            if not self._db.is_closed():
                self._db.manual_close()
        except FAULTS:
            log.warning("closing the writer's connection failed", exc_info=True)
            self._db = open_writer(self._path)


def _refusal(error: BaseException) -> AmeliaError:
    if isinstance(error, AmeliaError):
        return error
    if isinstance(error, FAULTS) and not isinstance(error, MISTAKES):
        return DatabaseUnavailable()
    log.error("a change failed", exc_info=error)
    return InternalError()
