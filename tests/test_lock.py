"""The lock between processes: fair, bounded, and freed when its holder dies."""

from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest

from amelia_flask import schema
from amelia_flask.errors import DatabaseUnavailable
from amelia_flask.lock import FileLock
from amelia_flask.sqlite import SqliteEngine
from tests import programs
from tests.databases import Sqlite

TURNS = 1500
TAKE_TURNS = """
from amelia_flask.groups import Change
from amelia_flask.sqlite import SqliteEngine
from amelia_flask.writer import Writer
writer = Writer(SqliteEngine(path))

def add(tx):
    turn = tx.execute_sql("SELECT COUNT(*) FROM health_check").fetchone()[0]
    tx.execute_sql("INSERT INTO health_check VALUES (?, ?)", (turn, sys.argv[2]))
    return turn

print("here", flush=True)
input()
while writer.run(Change(add)) < int(sys.argv[3]):
    pass
writer.stop()
"""
HOLD = """
from amelia_flask.lock import FileLock
with FileLock(path).held(10):
    print("held", flush=True)
    input()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "amelia.db"


@pytest.fixture
def locks(path: Path) -> Iterator[tuple[FileLock, FileLock]]:
    """Two, which exclude each other as those of two processes do."""
    locks = FileLock(path), FileLock(path)
    yield locks
    for lock in locks:
        lock.close()


def is_free(path: Path) -> bool:
    lock = FileLock(path)
    try:
        with lock.held(0):
            return True
    except DatabaseUnavailable:
        return False
    finally:
        lock.close()


def test_two_processes_that_write_without_rest_get_their_turns(path: Path) -> None:
    schema.set_up(SqliteEngine(path))
    both = [programs.start(TAKE_TURNS, path, name, TURNS) for name in "ab"]
    for program in both:
        programs.wait_for_line(program, "here")
    programs.tell_all(both)
    for program in both:
        programs.finish(program)
    turns: dict[str, int] = dict(Sqlite(path).rows("SELECT checked_at, COUNT(*) FROM health_check GROUP BY 1"))
    # Half each on an idle machine; on a busy one the scheduler has a say. Without the lock one gets next to none.
    assert min(turns["a"], turns["b"]) >= TURNS / 5


def test_a_wait_ends_at_its_deadline(locks: tuple[FileLock, FileLock]) -> None:
    with locks[0].held(1):
        begun = monotonic()
        with pytest.raises(DatabaseUnavailable), locks[1].held(0.2):
            pass
        assert 0.2 <= monotonic() - begun < 2


def test_a_wait_that_was_given_up_leaves_nothing_behind(locks: tuple[FileLock, FileLock], path: Path) -> None:
    with locks[0].held():
        for _ in range(3):
            with pytest.raises(DatabaseUnavailable), locks[1].held(0.01):
                pass
    assert is_free(path)
    with locks[1].held(5):
        assert not is_free(path)
    assert is_free(path)


def test_the_lock_is_let_go_when_its_work_fails(path: Path, locks: tuple[FileLock, FileLock]) -> None:
    with pytest.raises(ZeroDivisionError), locks[0].held(1):
        raise ZeroDivisionError
    assert is_free(path)


def test_kill_9_frees_the_lock(path: Path, locks: tuple[FileLock, FileLock]) -> None:
    holder = programs.start(HOLD, path)
    programs.wait_for_line(holder, "held")
    with pytest.raises(DatabaseUnavailable), locks[0].held(0.05):
        pass
    holder.kill()
    holder.communicate()
    with locks[0].held(5):
        pass
