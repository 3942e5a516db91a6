"""The writer: groups that commit together, changes that fail alone, and how it stops."""

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import peewee
import pytest
from peewee import sqlite3 as engine

from amelia_flask import events, groups
from amelia_flask import writer as writing
from amelia_flask.errors import AmeliaError, DatabaseUnavailable, InternalError, NotFound
from amelia_flask.lock import FileLock
from amelia_flask.models import EventPosition, Workflow
from amelia_flask.writer import Writer
from tests import ledgers, writers
from tests.databases import Database
from tests.serving import until
from tests.writers import MOMENT, add, busy, has_waiting, queue, run, send, stored

writer = writers.writer


def add_and(name: str, fail: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A change that stores a row and then does something else."""

    def change(tx: Any) -> Any:
        add(name)(tx)
        return fail(tx)

    return change


def raising(error: BaseException) -> Callable[[Any], Any]:
    def fail(_: Any) -> None:
        raise error

    return fail


def test_what_waits_is_committed_together_in_the_order_of_arrival(writer: Writer, database: Database) -> None:
    names = [f"{n:03}" for n in range(40)]
    with busy(writer) as first:
        futures = queue(writer, *(add(name) for name in names))
        before = writer.commits
    assert first.result(30) is None
    assert [future.result(30) for future in futures] == names
    assert writer.commits == before + 2
    assert stored(database) == names


def test_a_group_is_bounded(writer: Writer, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "MAX_GROUP", 4)
    with busy(writer):
        futures = queue(writer, *(add(str(n)) for n in range(9)))
        before = writer.commits
    assert [future.result(30) for future in futures] == list("012345678")
    assert writer.commits == before + 1 + 3
    assert len(stored(database)) == 9


TAKEN = f"INSERT INTO health_check VALUES ('taken', '{MOMENT}')"


class Oddity(BaseException):
    """An exception that is no Exception."""


@pytest.mark.parametrize(
    ("fail", "raised"),
    [
        (raising(NotFound()), NotFound),
        (raising(ValueError("x")), InternalError),
        (raising(MemoryError()), InternalError),
        (raising(RecursionError()), InternalError),
        (raising(KeyboardInterrupt()), InternalError),
        (raising(SystemExit()), InternalError),
        (raising(GeneratorExit()), InternalError),
        (raising(Oddity()), InternalError),
        (raising(OSError("x")), DatabaseUnavailable),
        (raising(peewee.OperationalError("x")), DatabaseUnavailable),
        (raising(engine.OperationalError("x")), DatabaseUnavailable),
        (add("taken"), InternalError),  # a constraint
        (lambda tx: tx.connection().execute(TAKEN), InternalError),
        (lambda tx: EventPosition.update(value=2**63).execute(tx), InternalError),
    ],
)
def test_a_change_that_fails_fails_alone(
    writer: Writer, database: Database, fail: Callable[[Any], Any], raised: type[AmeliaError]
) -> None:
    run(writer, add("taken"))
    with busy(writer):
        first, bad, last = queue(writer, add("a"), add_and("b", fail), add("c"))
        before = writer.commits
    assert (first.result(30), last.result(30)) == ("a", "c")
    assert type(bad.exception(30)) is raised
    assert writer.commits == before + 2
    assert stored(database) == ["a", "c", "taken"]
    assert (writer.failure is not None) == (raised is DatabaseUnavailable), "the connection may be at fault"
    assert run(writer, add("d")) == "d"


@pytest.mark.parametrize("end", ["ROLLBACK", "COMMIT"])
def test_nobody_is_told_of_success_when_the_transaction_is_gone(writer: Writer, database: Database, end: str) -> None:
    with busy(writer):
        first, bad, last = queue(writer, add("a"), lambda tx: tx.execute_sql(end), add("c"))
    assert {type(future.exception(30)) for future in (first, bad)} == {DatabaseUnavailable}
    assert last.result(30) == "c", "it goes with the next group"
    assert stored(database) == (["c"] if end == "ROLLBACK" else ["a", "c"])
    assert writer.failure is None


def test_the_log_tells_why_the_engine_gave_up_a_transaction(
    writer: Writer, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    def full(tx: Any) -> None:
        tx.execute_sql("ROLLBACK")  # as the engine itself may do when the disk is full
        raise peewee.OperationalError("database or disk is full")

    with pytest.raises(DatabaseUnavailable):
        run(writer, full)
    assert "disk is full" in caplog.text
    assert stored(database) == []


def test_a_cursor_that_was_not_read_fails_alone_and_does_not_hold_the_lock(
    writer: Writer, database: Database
) -> None:
    unread = "INSERT INTO health_check VALUES ('b', ''), ('bb', '') RETURNING id"
    with busy(writer):
        first, bad, last = queue(writer, add("a"), lambda tx: tx.execute_sql(unread), add("c"))
    assert (first.result(30), last.result(30)) == ("a", "c")
    assert isinstance(bad.exception(30), AmeliaError)
    with database.blocked():
        pass
    assert stored(database) == ["a", "c"]


def test_numbers_are_taken_inside_the_transaction_and_given_back_with_it(writer: Writer, database: Database) -> None:
    values = {"worktree_name": "x", "created_at": MOMENT, "updated_at": MOMENT, "digest": ""}
    run(writer, lambda tx: Workflow.insert(id="w", issue_id="i", worktree_path="/x", **values).execute(tx))

    def append(tx: Any) -> list[tuple[int, int]]:
        appended = events.append(tx, "w", events.arrived([ledgers.new_event(), ledgers.new_event()]))
        return [(event.sequence, event.position) for event in appended.events]

    def append_and_fail(tx: Any) -> None:
        append(tx)
        raise NotFound

    with busy(writer):
        first, bad, last = queue(writer, append, append_and_fail, append)
    assert first.result(30) + last.result(30) == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert isinstance(bad.exception(30), NotFound)
    assert database.rows("SELECT last_sequence FROM workflows") == [(4,)]


def test_a_change_that_was_given_up_while_it_waited_is_never_stored(
    writer: Writer, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with busy(writer):
        monkeypatch.setattr(writing, "WAIT_SECONDS", 0.05)
        with pytest.raises(DatabaseUnavailable) as refusal:
            run(writer, add("withdrawn"))
        monkeypatch.setattr(writing, "WAIT_SECONDS", 8.0)
    assert refusal.value.details == {}
    assert run(writer, add("later")) == "later"
    assert stored(database) == ["later"]


def test_the_outcome_of_a_change_that_is_being_carried_out_may_be_unknown(
    writer: Writer, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "WAIT_SECONDS", 0.05)
    monkeypatch.setattr(writing, "OUTCOME_SECONDS", 0.1)
    with busy(writer) as long:
        refusal = long.exception(30)
    assert isinstance(refusal, DatabaseUnavailable)
    assert refusal.details == {"outcome_unknown": True}
    monkeypatch.setattr(writing, "WAIT_SECONDS", 8.0)
    assert run(writer, add("later")) == "later"
    assert stored(database) == ["later"]


def test_a_full_queue_refuses_more(writer: Writer, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "MAX_WAITING", 3)
    with busy(writer):
        futures = queue(writer, add("a"), add("b"), add("c"))
        with pytest.raises(DatabaseUnavailable, match="Too many writes"):
            run(writer, add("d"))
    assert [future.result(30) for future in futures] == ["a", "b", "c"]
    assert stored(database) == ["a", "b", "c"]


def test_stopping_finishes_what_waits_and_refuses_what_comes_later(writer: Writer, database: Database) -> None:
    with busy(writer):
        futures = queue(writer, *(add(str(n)) for n in range(5)))
        stopping = threading.Thread(target=writer.stop)
        stopping.start()
        until(lambda: refuses(writer))
    stopping.join(30)
    assert [future.result(30) for future in futures] == list("01234")
    assert stored(database) == list("01234")
    assert refuses(writer)


def refuses(writer: Writer) -> bool:
    try:
        writer.ensure_running()
    except DatabaseUnavailable:
        return True
    return False


@pytest.mark.engines("sqlite")
def test_stopping_leaves_nothing_open_and_no_log_behind(writer: Writer, path: Path) -> None:
    run(writer, add("a"))
    assert path.with_name("amelia.db-wal").exists()
    writer.stop()
    assert sorted(file.name for file in path.parent.iterdir()) == ["amelia.db", "amelia.db.writer"]


def test_a_commit_wakes_those_who_wait_for_news(writer: Writer) -> None:
    seen = writer.news
    assert writer.wait_for_news(seen, 0) == seen
    waiting = threading.Thread(target=lambda: writer.wait_for_news(seen, 30))
    waiting.start()
    run(writer, add("a"))
    waiting.join(10)
    assert not waiting.is_alive()
    assert writer.wait_for_news(seen, 30) == seen + 1


@pytest.mark.engines("sqlite")
def test_what_comes_while_another_process_writes_goes_into_one_group(writer: Writer, path: Path) -> None:
    assert run(writer, add("first")) == "first"
    before, other = writer.commits, FileLock(path)
    with other.held():
        futures = [send(writer, add(name)) for name in "abc"]
        until(partial(has_waiting, writer, 2))  # the third is in the hands of the writer, which waits for the lock
    assert [future.result(30) for future in futures] == ["a", "b", "c"]
    other.close()
    assert writer.commits == before + 1


def test_a_group_that_has_been_at_work_for_long_leaves_the_rest_to_the_next(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "GROUP_SECONDS", 0)
    with busy(writer):
        futures = queue(writer, add("a"), add("b"), add("c"))
        before = writer.commits
    assert [future.result(30) for future in futures] == ["a", "b", "c"]
    assert writer.commits == before + 4, "the long change and each of these"
