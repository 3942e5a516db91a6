"""Backups while the service runs, and a database put back from one while it does not.

The database is read through the engine alone: whoever opens the file otherwise, in a process that has it open, drops
the engine's locks. A backup is a database of its own in one file, without a log beside it.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import datetime
from pathlib import Path

from peewee import sqlite3 as engine

from amelia_flask import clock, schema
from amelia_flask.database import FAULTS, SERVING
from amelia_flask.errors import DatabaseUnavailable, FileRefused
from amelia_flask.files import new_file, sync, temporary_beside
from amelia_flask.lock import FileLock
from amelia_flask.progress import Step
from amelia_flask.sqlite import SqliteEngine

# So many pages are copied and synced at once; then others have the disk for so many times as long. Larger parts
# without a pause hold up the syncs of writers for a tenth of a second.
PAGES = 256
PAUSE = 3
WRITER_SECONDS = 5.0


def back_up(database: Path, target: Path, step: Step, now: datetime | None = None) -> None:
    """Copy the database as it is at this moment to the new file `target`, and verify that; writers go on meanwhile.

    `step` is given the bytes as they are copied. Raises FileExistsError, FileRefused and SchemaError, and then there
    is no `target`.
    """
    _refuse_missing(database)
    schema.applied(SqliteEngine(database))
    moment = now or clock.now()
    with new_file(target) as copy:
        _copy(database, copy, step)
        verify(copy)
    _remember(database, moment)


def last(database: Path) -> datetime | None:
    """Of which moment the last backup of this database is; None where there was none. Opens no database."""
    try:
        return clock.from_text(_memory(database).read_text())
    except (FileNotFoundError, ValueError):
        return None


def verify(path: Path) -> None:
    """Raises SchemaError or FileRefused unless this is a sound database of this version or an earlier one."""
    schema.applied(SqliteEngine(path))
    try:
        with SqliteEngine(path).peeking() as connection:
            found = [str(problem) for (problem,) in connection.execute("PRAGMA integrity_check(1)")]
    except FAULTS as error:
        found = [str(error)]
    if found != ["ok"]:
        raise FileRefused(f"{path} is damaged: {' '.join(found[0].split())}.")


def restore(
    database: Path, source: Path, step: Step, replace: bool = False, now: datetime | None = None
) -> Path | None:
    """Put a verified copy of the backup `source` in the place of the database; give the path of the old one, if any.

    At every moment one of the two is at `database`. Raises FileRefused while a server or another program uses the
    database, where there is one and not `replace`, and for a damaged backup; SchemaError for a database of another
    program or of a newer version.
    """
    _refuse_missing(source)
    schema.applied(SqliteEngine(source))
    _refuse_unasked(database, source, replace)
    database.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _alone(database), temporary_beside(database) as copy:
        _copy(source, copy, step)
        verify(copy)
        sync(copy)
        kept = _keep(database, now or clock.now()) if database.exists() else None
        os.replace(copy, database)
        sync(database.parent)
    return kept


def _copy(source: Path, target: Path, step: Step) -> None:
    """Copy what is in `source` at this moment. Raises FileRefused."""
    try:
        _copy_pages(source, target, step)
    except engine.Error as error:
        raise FileRefused(f"{source} cannot be copied: {error}.") from error


def _copy_pages(source: Path, target: Path, step: Step) -> None:
    """In one transaction that reads: without it the engine would begin again after each write."""
    with SqliteEngine(source).peeking() as reader, closing(engine.connect(target, isolation_level=None)) as copy:
        size = reader.execute("PRAGMA page_size").fetchone()[0]
        copy.execute("PRAGMA journal_mode = OFF")
        copy.execute("PRAGMA synchronous = OFF")
        reader.execute("BEGIN")
        reader.execute("SELECT COUNT(*) FROM sqlite_master").fetchall()
        with _giving_way(target) as give_way:

            def progress(_status: int, _left: int, _all: int) -> None:
                give_way()
                step(PAGES * size)

            reader.backup(copy, pages=PAGES, progress=progress)
        copy.execute("PRAGMA journal_mode = DELETE").fetchall()


@contextmanager
def _giving_way(target: Path) -> Iterator[Callable[[], None]]:
    """Lend what syncs the part that was copied since the last time, and then leaves the disk to others a while."""
    descriptor = os.open(target, os.O_RDONLY)
    began = time.monotonic()

    def give_way() -> None:
        nonlocal began
        os.fdatasync(descriptor)
        time.sleep(PAUSE * (time.monotonic() - began))  # the disk is for others meanwhile
        began = time.monotonic()

    try:
        yield give_way
    finally:
        os.close(descriptor)


@contextmanager
def _alone(database: Path) -> Iterator[None]:
    """Keep every server and every other writer away from the database. Raises FileRefused while there are any."""
    with ExitStack() as stack:
        locks = [(FileLock(database, SERVING), 0.0), (FileLock(database), WRITER_SECONDS)]
        for lock, seconds in locks:
            stack.callback(lock.close)
            try:
                stack.enter_context(lock.held(seconds))
            except DatabaseUnavailable:
                raise _in_use(database) from None
        yield


def _keep(database: Path, now: datetime) -> Path:
    """Give the database a second name beside it: complete in one file, or with its log where it is damaged.

    No log is left that would meet the new one.
    """
    stamp = clock.to_text(now).replace(":", "").replace("-", "")
    kept = database.with_name(f"{database.name}.replaced-{stamp}")
    os.link(database, kept)
    log, kept_log = (path.with_name(f"{path.name}-wal") for path in (database, kept))
    if log.exists():
        os.link(log, kept_log)  # first: of a damaged database the engine may throw it away
    try:
        is_folded = fold(database)
    except FileRefused:
        kept.unlink()
        kept_log.unlink(missing_ok=True)
        raise
    if is_folded:
        kept_log.unlink(missing_ok=True)
    for suffix in ("-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)
    return kept


def fold(database: Path) -> bool:
    """Bring the log into the file, which the engine does where nobody else has it open; tell whether it could.

    Raises FileRefused where somebody has.
    """
    try:
        with closing(engine.connect(database, timeout=1, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = DELETE").fetchall()
    except engine.Error as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == engine.SQLITE_BUSY:
            raise _in_use(database) from None
        return False
    return True


def _in_use(database: Path) -> FileRefused:
    return FileRefused(f"A server or another program is using {database}: stop it first.")


def _refuse_missing(path: Path) -> None:
    if not path.is_file():
        raise FileRefused(f"There is no file {path}.")


def _refuse_unasked(database: Path, source: Path, replace: bool) -> None:
    if not database.exists():
        return
    if database.samefile(source):
        raise FileRefused(f"{source} is the database itself.")
    if not replace:
        raise FileRefused(f"There is a database at {database}: with --yes it is replaced, and kept beside.")


def _memory(database: Path) -> Path:
    return database.with_name(f"{database.name}.backup")


def _remember(database: Path, moment: datetime) -> None:
    memory = _memory(database)
    with temporary_beside(memory) as new:
        new.write_text(clock.to_text(moment))
        sync(new)
        os.replace(new, memory)
