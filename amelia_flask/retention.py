"""Retention: what is old goes in transactions so short that nobody waits for them.

Finished workflows go with their events and usage records some days after their end; of any workflow the oldest events
above a number. The sums by day stay, so a report on past days never changes. The id of a workflow that went is kept:
what is told of it again would be counted twice.
"""

import logging
import operator
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import peewee

from amelia_flask import clock, rollups
from amelia_flask.database import FAULTS, RETENTION, Prepared, param
from amelia_flask.errors import AmeliaError, DatabaseUnavailable
from amelia_flask.ledger import Ledger
from amelia_flask.models import Event, HealthCheck, OpenStage, PrunedWorkflow, TokenUsage, Workflow
from amelia_flask.progress import Step, Unit

log = logging.getLogger(__name__)

ROWS = Unit("rows", 1)

# A transaction takes pieces of so many rows until its time is up; what it holds up is that, the last piece and the
# sync to disk.
PIECE = 16
STEP_SECONDS = 0.01
PAGE = 500

FIRST_SECONDS = 5.0
EVERY_SECONDS = 3600.0
AGAIN_SECONDS = 30.0  # where another process prunes, which may be killed before it is done
STOP_SECONDS = 2.0
# A health check deletes its own row; what is older was left behind by one that was killed.
OLD_CHECK = timedelta(hours=1)


class Pruned(NamedTuple):
    """What was taken."""

    workflows: int = 0
    events: int = 0
    usage_records: int = 0
    health_checks: int = 0

    @property
    def rows(self) -> int:
        """All together."""
        return sum(self)

    def plus(self, other: "Pruned") -> "Pruned":
        """The sum of both."""
        return Pruned(*map(operator.add, self, other))

    def __str__(self) -> str:
        return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in self._asdict().items())


class Limits(NamedTuple):
    """What stays: workflows that have not ended or not `before` this moment, and so many events of each."""

    before: str
    max_events: int
    old_check: str


_Place = tuple[str, str]  # when a workflow ended, and its id

_workflow = Workflow.id == param("workflow")
_first_place: _Place = (clock.FIRST, "")
_ended = Prepared(
    lambda: (
        Workflow.select(Workflow.completed_at, Workflow.id)
        .where(
            peewee.EnclosedNodeList([Workflow.completed_at, Workflow.id])
            > peewee.EnclosedNodeList([param("completed_at"), param("workflow")]),
            Workflow.completed_at < param("before"),
        )
        .order_by(Workflow.completed_at, Workflow.id)
        .limit(PAGE)
    )
)


def _surplus(max_events: Any) -> Any:
    """The events of a workflow beyond the newest `max_events`."""
    return (Event.workflow == Workflow.id) & (Event.sequence <= Workflow.last_sequence - max_events)


_lengths = Prepared(
    lambda: (
        Workflow.select(
            Workflow.id,
            (Workflow.last_sequence > param("max_events"))
            & peewee.fn.EXISTS(Event.select(Event.sequence).where(_surplus(param("max_events")))),
        )
        .where(Workflow.id > param("after"))
        .order_by(Workflow.id)
        .limit(PAGE)
    )
)


def _some_of(model: Any, key: Any, rows: Any) -> Prepared:
    """Delete the first PIECE of these rows of a workflow, and name them."""
    belongs = model.workflow == param("workflow")
    some = rows.order_by(key).limit(PIECE)
    return Prepared(lambda: model.delete().where(belongs & key.in_(some)).returning(key))


def _rows(model: Any, key: Any) -> Any:
    return model.select(key).where(model.workflow == param("workflow"))


_some_events = _some_of(Event, Event.sequence, _rows(Event, Event.sequence))
_some_usage = _some_of(TokenUsage, TokenUsage.number, _rows(TokenUsage, TokenUsage.number))
_some_stages = _some_of(OpenStage, OpenStage.stage, _rows(OpenStage, OpenStage.stage))
_limit = Workflow.select(Workflow.last_sequence - param("max_events")).where(_workflow)
_some_surplus = _some_of(Event, Event.sequence, _rows(Event, Event.sequence).where(Event.sequence <= _limit))
_old_checks = HealthCheck.checked_at < param("before")
_some_checks = Prepared(
    lambda: (
        HealthCheck.delete()
        .where(HealthCheck.id.in_(HealthCheck.select(HealthCheck.id).where(_old_checks).limit(PIECE)))
        .returning(HealthCheck.id)
    )
)
_oldest = Prepared(
    lambda: (
        Event.select(Event.sequence, Event.timestamp)
        .where(Event.workflow == param("workflow"))
        .order_by(Event.sequence)
        .limit(1)
    )
)
_is_there = Prepared(lambda: Workflow.select(Workflow.id).where(_workflow))
_note = Prepared(lambda: PrunedWorkflow.insert(id=param("workflow")).on_conflict_ignore())
_remove = Prepared(lambda: Workflow.delete().where(_workflow))

_count = peewee.fn.COUNT(peewee.SQL("*"))
_count_events = Prepared(lambda: Event.select(_count).where(Event.workflow == param("workflow")))
_count_usage = Prepared(lambda: TokenUsage.select(_count).where(TokenUsage.workflow == param("workflow")))
_count_checks = Prepared(lambda: HealthCheck.select(_count).where(_old_checks))


def limits(ledger: Ledger, now: datetime) -> Limits:
    """What the settings keep at the moment `now`."""
    settings = ledger.settings
    days = min(settings.log_retention_days, now.toordinal() - 1)  # the calendar has no more
    return Limits(
        clock.to_text(now - timedelta(days=days)), settings.log_retention_max_events, clock.to_text(now - OLD_CHECK)
    )


def steps(ledger: Ledger, kept: Limits) -> Iterator[Pruned]:
    """Take all that is beyond the limits: each step is one short transaction, or a read, and says what it took."""
    for page in _pages_of_ended(ledger, kept):
        yield Pruned()
        yield from _in_steps(ledger, _take_workflow, page)
    for page in _pages_of_long(ledger, kept):
        yield Pruned()
        yield from _in_steps(ledger, lambda tx, workflow: _take_surplus(tx, workflow, kept.max_events), page)
    while (checks := len(ledger.write_to((), _some_checks.run, before=kept.old_check))) > 0:
        yield Pruned(health_checks=checks)


def prune(
    ledger: Ledger, now: datetime, wait: Callable[[float], object] = time.sleep, step: Step = lambda _rows: None
) -> Pruned:
    """Take all that is beyond the limits at `now`, and say what that was.

    After each step `wait` is called with the seconds that it took, so that others may write for as long; where
    it answers True the rest is left for another time. `step` is given the rows that were taken. Raises
    DatabaseUnavailable.
    """
    total = Pruned()
    with _checkpoints(ledger) as checkpoint:
        started = time.monotonic()
        for pruned in steps(ledger, limits(ledger, now)):
            total = total.plus(pruned)
            if pruned.rows:
                step(pruned.rows)
                checkpoint()
            if wait(time.monotonic() - started):
                break
            started = time.monotonic()
    return total


def survey(ledger: Ledger, now: datetime) -> Pruned:
    """What `prune` would take at `now`. Raises DatabaseUnavailable."""
    kept = limits(ledger, now)
    total = Pruned(health_checks=ledger.read(_count_checks.run, before=kept.old_check)[0][0])
    ended: set[str] = set()
    for page in _pages_of_ended(ledger, kept):
        ended |= set(page)
        for workflow in page:
            events, records = (ledger.read(_counted, query, workflow) for query in (_count_events, _count_usage))
            total = total.plus(Pruned(1, events, records))
    for page in _pages_of_long(ledger, kept):
        surplus = (ledger.read(_counted, _count_events, workflow) for workflow in page if workflow not in ended)
        total = total.plus(Pruned(events=sum(count - kept.max_events for count in surplus)))
    return total


def oldest_kept(db: Any, workflow: str) -> str | None:
    """The time of the first event that a workflow still has; None where none before it was taken."""
    rows = _oldest.run(db, workflow=workflow)
    return rows[0][1] if rows and rows[0][0] > 1 else None


class Retention:
    """Prunes by itself, on a thread: soon after the start of a process and then every hour.

    Of several processes, on however many hosts, one prunes at a time; the others look after it when that one has
    ended, in whichever way. A failure is logged, and the next hour tries again.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="retention", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Begin to end: what is being carried out ends after its step. Takes no time."""
        self._stopped.set()

    def close(self) -> None:
        """End, and wait for the step that is being made."""
        self.stop()
        self._thread.join(STOP_SECONDS)

    def _work(self) -> None:
        seconds = FIRST_SECONDS
        while not self._stopped.wait(seconds):
            seconds = EVERY_SECONDS if self._prune() else AGAIN_SECONDS

    def _prune(self) -> bool:
        """Whether this process had its turn."""
        with closing(self._ledger.engine.lock(RETENTION)) as lock:
            try:
                lock.keep()
            except DatabaseUnavailable:
                log.debug("another process prunes")
                return False
            self._prune_alone()
        return True

    def _prune_alone(self) -> None:
        try:
            pruned = prune(self._ledger, clock.now(), self._stopped.wait)
            if pruned.rows:
                log.info("pruned %s", pruned)
        except Exception as error:
            if not self._stopped.is_set():
                log.warning("pruning failed: %s", error, exc_info=not isinstance(error, AmeliaError))


@contextmanager
def _checkpoints(ledger: Ledger) -> Iterator[Callable[[], None]]:
    """Lend what moves the log's pages into the database without holding a lock on either.

    Pruning changes so many pages that the transaction that reaches the checkpoint's bound would take long.
    """
    db = ledger.engine.open_writer()

    def checkpoint() -> None:
        if ledger.engine.is_mended():  # otherwise one connection alone may checkpoint
            db.connect(reuse_if_open=True)
            db.checkpoint()

    try:
        yield checkpoint
    except FAULTS as error:
        raise DatabaseUnavailable from error
    finally:
        db.close_all()


def _pages_of_ended(ledger: Ledger, kept: Limits) -> Iterator[list[str]]:
    """The ids of the workflows that ended too long ago, the oldest end first."""
    place = _first_place
    while rows := ledger.read(_ended.run, completed_at=place[0], workflow=place[1], before=kept.before):
        yield [workflow for _, workflow in rows]
        place = rows[-1]


def _pages_of_long(ledger: Ledger, kept: Limits) -> Iterator[list[str]]:
    """The ids of the workflows that have too many events, in pages that may be empty."""
    after = ""
    while rows := ledger.read(_lengths.run, after=after, max_events=kept.max_events):
        yield [workflow for workflow, is_long in rows if is_long]
        after = rows[-1][0]


def _in_steps(ledger: Ledger, take: Callable[[Any, str], Iterator[Pruned]], workflows: list[str]) -> Iterator[Pruned]:
    """Take from one workflow after the other, in transactions that end when their time is up."""
    while workflows:
        pruned, done = ledger.write_to(workflows, _step, take, workflows)
        workflows = workflows[done:]
        yield pruned


def _step(tx: Any, take: Callable[[Any, str], Iterator[Pruned]], workflows: list[str]) -> tuple[Pruned, int]:
    """What was taken until the time was up, and of how many workflows all that there is to take."""
    deadline = time.monotonic() + STEP_SECONDS
    total = Pruned()
    for done, workflow in enumerate(workflows):
        for pruned in take(tx, workflow):
            total = total.plus(pruned)
            if time.monotonic() >= deadline and not pruned.workflows:
                return total, done
        if time.monotonic() >= deadline:
            return total, done + 1
    return total, len(workflows)


def _take_workflow(tx: Any, workflow: str) -> Iterator[Pruned]:
    """Empty a finished workflow in pieces, then take its row; its usage stays in the sums by day."""
    if not _is_there.run(tx, workflow=workflow):
        return  # deleted since it was found
    _note.run(tx, workflow=workflow)
    while events := len(_some_events.run(tx, workflow=workflow)):
        yield Pruned(events=events)
    while records := len(_some_usage.run(tx, workflow=workflow)):
        yield Pruned(usage_records=records)
    while _some_stages.run(tx, workflow=workflow):
        yield Pruned()
    rollups.release(tx, workflow)
    _remove.run(tx, workflow=workflow)
    yield Pruned(workflows=1)


def _take_surplus(tx: Any, workflow: str, max_events: int) -> Iterator[Pruned]:
    while events := len(_some_surplus.run(tx, workflow=workflow, max_events=max_events)):
        yield Pruned(events=events)


def _counted(db: Any, query: Prepared, workflow: str) -> int:
    count: int = query.run(db, workflow=workflow)[0][0]
    return count
