"""How the service is: figures of this process, and a database that is really written and read."""

import time
from datetime import timedelta
from typing import Any, Literal

import psutil
from msgspec import Struct

from amelia_flask import __version__, clock, schema, summaries
from amelia_flask.database import Prepared, param
from amelia_flask.errors import AmeliaError, DatabaseUnavailable, NotReady
from amelia_flask.ledger import Ledger
from amelia_flask.models import HealthCheck
from amelia_flask.stream import open_readers

# A row that a check left behind when it was killed is removed by a later one.
LEFT_BEHIND = timedelta(minutes=1)


_Status = Literal["healthy", "degraded", "unhealthy"]


class Alive(Struct):
    """The process answers."""

    status: Literal["alive"] = "alive"


class Ready(Struct):
    """The service takes requests."""

    status: Literal["ready"] = "ready"


class WriterHealth(Struct):
    """The writer of the process that answers: changes that wait, groups committed, the kind of the last failure."""

    waiting: int
    commits: int
    failure: str | None


class DatabaseHealth(Struct, kw_only=True):
    """Healthy: written, read back and deleted. Degraded: can be read alone. Unhealthy: neither."""

    status: _Status
    mode: Literal["wal", "postgresql"]
    error: str | None
    engine: str
    engine_is_mended: bool
    writer: WriterHealth


class Health(Struct):
    """The service as a whole; uptime, memory and load are those of the process that answers.

    `memory_mb` is resident memory in units of 2^20 bytes; `cpu_percent` is of one core, since the last time it
    was asked for; `websocket_connections` counts the readers that wait for events in all processes;
    `active_workflows` is null while the database cannot be read.
    """

    status: Literal["healthy", "degraded"]
    version: str
    uptime_seconds: float
    active_workflows: int | None
    websocket_connections: int
    memory_mb: float
    cpu_percent: float
    database: DatabaseHealth


_insert = Prepared(
    lambda: HealthCheck.insert_many([(param("id"), param("now"))], fields=[HealthCheck.id, HealthCheck.checked_at])
)
_read = Prepared(lambda: HealthCheck.select(HealthCheck.id).where(HealthCheck.id == param("id")))
_delete = Prepared(
    lambda: HealthCheck.delete().where((HealthCheck.id == param("id")) | (HealthCheck.checked_at < param("before")))
)


class Vitals:
    """What a process can tell about itself, from the moment this is made in it."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._process = psutil.Process()
        self._process.cpu_percent()  # the first call only sets the point from which the next one measures

    @property
    def uptime_seconds(self) -> float:
        """Since this was made."""
        return round(time.monotonic() - self._started, 3)

    @property
    def memory_mb(self) -> float:
        """Resident memory."""
        return round(self._process.memory_info().rss / 2**20, 1)

    @property
    def cpu_percent(self) -> float:
        """Of one core, since it was last asked for."""
        return float(self._process.cpu_percent())


def check(ledger: Ledger, vitals: Vitals) -> Health:
    """Write, read back and delete a row, and measure everything else."""
    active = _active_workflows(ledger)
    database = _check_database(ledger, can_read=active is not None)
    return Health(
        status="healthy" if database.status == "healthy" else "degraded",
        version=__version__,
        uptime_seconds=vitals.uptime_seconds,
        active_workflows=active,
        websocket_connections=open_readers.everywhere,
        memory_mb=vitals.memory_mb,
        cpu_percent=vitals.cpu_percent,
        database=database,
    )


def check_readiness(ledger: Ledger) -> Ready:
    """Raises NotReady, with the reason, where requests cannot be served now."""
    if ledger.stopping:
        raise NotReady("The service is shutting down.")
    try:
        ledger.writer.ensure_running()
        if problem := ledger.writer.problem():
            raise NotReady(problem)
        is_current = ledger.read(schema.is_current)
    except DatabaseUnavailable as error:
        raise NotReady(error.message) from None
    if not is_current:
        raise NotReady("The schema of the database is not that of this version.")
    return Ready()


def _check_database(ledger: Ledger, can_read: bool) -> DatabaseHealth:
    status, error = _try_database(ledger) if can_read else ("unhealthy", _why_not(ledger))
    writer = ledger.writer
    return DatabaseHealth(
        status=status,
        mode=ledger.engine.mode,
        error=error,
        engine=ledger.engine.version(),
        engine_is_mended=ledger.engine.is_mended(),
        writer=WriterHealth(writer.waiting, writer.commits, writer.failure),
    )


def _why_not(ledger: Ledger) -> str:
    return ledger.writer.problem() or DatabaseUnavailable().message


def _try_database(ledger: Ledger) -> tuple[_Status, str | None]:
    try:
        _write_read_delete(ledger)
    except AmeliaError as error:
        return "degraded", error.message
    return "healthy", None


def _write_read_delete(ledger: Ledger) -> None:
    now, check_id = clock.now(), clock.new_id()
    ledger.write_to((), _run, _insert, id=check_id, now=clock.to_text(now))
    if not ledger.read(_run, _read, id=check_id):
        raise DatabaseUnavailable("A row that was committed cannot be read back.")
    ledger.write_to((), _run, _delete, id=check_id, before=clock.to_text(now - LEFT_BEHIND))


def _run(db: Any, /, query: Prepared, **values: Any) -> int:
    return len(query.run(db, **values))


def _active_workflows(ledger: Ledger) -> int | None:
    try:
        return ledger.read(summaries.count_active)
    except DatabaseUnavailable:
        return None
