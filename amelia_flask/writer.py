"""The one door for writes: a thread that commits what is waiting as one transaction (group commit).

There is no timer. When quiet, a group is one change and nobody waits; when busy, the group grows while the
previous commit runs, so that many callers share one sync to disk.
"""

import logging
import os
import threading
import time
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

from amelia_flask.counters import Counter, Gauge
from amelia_flask.database import FAULTS, Engine
from amelia_flask.errors import AmeliaError, DatabaseUnavailable
from amelia_flask.groups import MAX_GROUP, MAX_ROWS, Change, Group, Outcome, refusal
from amelia_flask.logs import request_id

log = logging.getLogger(__name__)

MAX_WAITING = 1000
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
failures = Counter()


class Writer:
    """Carries out changes in the order in which they arrive; made before a fork, it runs in each process apart."""

    def __init__(self, engine: Engine, patient: int = 4) -> None:
        """`patient`: how many callers may wait for a commit that does not come soon."""
        self._engine = engine
        self._patient = patient
        self._entering = threading.Lock()
        self._committed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._stopping = False
        self._fresh()

    def _fresh(self) -> None:
        self._queue: SimpleQueue[Change | None] = SimpleQueue()
        self._left: deque[Change] = deque()  # that a group had no time for
        self._door = self._engine.open_door()
        self.commits = self.news = 0
        self.failure: str | None = None
        self._patience = threading.Semaphore(self._patient)
        self._at_work_since: float | None = None  # until something is committed, or nothing waits

    def run(self, change: Change) -> Any:
        """Carry out `change` in a transaction and give its result once that is committed and synced.

        An AmeliaError that it raises is raised here, any other mistake of it as InternalError, and then nothing of
        it is stored. Raises DatabaseUnavailable when the database cannot be written now; its details
        say `outcome_unknown` in the rare case in which the change may yet be stored, to be settled by calling
        again with the same ids.
        """
        return self._outcome(self.submit(change))

    def submit(self, change: Change) -> Future[Any]:
        """Queue `change`; how it ends stands in the future, and in the log where that is a fault.

        Raises DatabaseUnavailable where no more is taken.
        """
        with self._entering:
            self._ensure_running()
            if self.waiting >= MAX_WAITING:
                raise DatabaseUnavailable("Too many writes are waiting; try again.")
            self._queue.put(change)
            queue_length.set(self.waiting)
        return change.future

    def ensure_running(self) -> None:
        """Start the thread where it does not run: at first, after a fork, or after it died."""
        with self._entering:
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
        return self._queue.qsize() + len(self._left)

    def wait_for_news(self, seen: int, seconds: float) -> int:
        """Wait until there is more news than `seen`, which are commits here and elsewhere; give the count of it.

        After `seconds` it waits no longer.
        """
        with self._committed:
            self._committed.wait_for(lambda: self.news != seen or self._stopping, seconds)
            return self.news

    def note_news(self) -> None:
        """Wake those that wait: another process has committed something."""
        with self._committed:
            self.news += 1
            self._committed.notify_all()

    def stop(self) -> None:
        """Finish what waits, then close. Later changes are refused."""
        with self._entering:
            self._stopping = True
            self._queue.put(None)
        with self._committed:
            self._committed.notify_all()
        if self._thread is not None and self._pid == os.getpid():
            self._thread.join(OUTCOME_SECONDS)

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
        """What another program has done to the database, which then is written no more."""
        return self._door.problem()

    def _work(self) -> None:
        try:
            with suppress(*FAULTS, AmeliaError):
                self._door.open()  # from now on it is noticed what happens to the database
            while (first := self._next()) is not None:
                self._carry_out(first)
        finally:
            self._door.finish()  # however the thread ends: no other could, and it would hold what it had locked

    def _next(self) -> Change | None:
        """What came first, however long it takes; meanwhile it is looked whether the database is in its place."""
        if self._left:
            return self._left.popleft()
        while True:
            with suppress(Empty):
                return self._queue.get(timeout=LOOK_SECONDS)
            self._at_work_since = None
            self._door.look_after()

    def _taken(self, first: Change) -> list[Change]:
        """`first` and what waits behind it, as much as may be in one group."""
        changes, rows = [first], first.rows
        while len(changes) < MAX_GROUP and rows < MAX_ROWS:
            if self._left:
                change: Change | None = self._left.popleft()
            elif self._queue.qsize():
                change = self._queue.get()
            else:
                break
            if change is None:
                self._queue.put(None)  # stop after this group
                break
            changes.append(change)
            rows += change.rows
        return changes

    def _carry_out(self, first: Change) -> None:
        self._at_work_since = self._at_work_since or time.monotonic()
        group = None
        try:
            with self._door.exclusive():  # what comes meanwhile is taken too
                self._door.open()
                group = Group(self._door, self._taken(first))
                outcomes = group.commit()
            self._note_commit()
            self._look_at(outcomes)
        except BaseException as error:
            failure = refusal(error)
            if group is not None and group.is_unknown:
                failure = DatabaseUnavailable(outcome_unknown=True)
            self._recover(error)
            group = group or Group(self._door, self._taken(first))
            outcomes = group.fail(failure)
        self._left = group.left + self._left
        with self._entering:  # or a caller who has just counted the queue could say so after this
            queue_length.set(self.waiting)
        _answer(outcomes)

    def _note_commit(self) -> None:
        with self._committed:
            self.commits += 1
            self.news += 1
            self.failure = None
            self._at_work_since = None
            self._committed.notify_all()

    def _look_at(self, outcomes: list[Outcome]) -> None:
        """Open a new connection after a change that met a fault of the database, which may be this connection's."""
        faults = [failure for _, _, failure in outcomes if isinstance(failure, DatabaseUnavailable)]
        if faults:
            self._recover(faults[0])

    def _recover(self, error: BaseException) -> None:
        """Leave no open transaction behind; the next group opens a new connection.

        But one whose database another program has moved away keeps what is in its log.
        """
        self.failure = type(error).__name__
        failures.add()
        request_id.set(None)
        log.warning("a group of writes failed: %s", error)
        if not self._door.problem():
            self._door.close()


def _answer(outcomes: list[Outcome]) -> None:
    for change, result, failure in outcomes:
        if failure is None:
            change.future.set_result(result)
        else:
            change.future.set_exception(failure)
