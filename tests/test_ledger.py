"""The record as a process holds it: opened where it is used, closed when told."""

from pathlib import Path
from typing import Any

import pytest

from amelia_flask import audit
from amelia_flask.errors import DatabaseUnavailable
from amelia_flask.ledger import Ledger
from amelia_flask.models import HealthCheck
from tests import ledgers, programs
from tests.databases import Database
from tests.writers import MOMENT

ledger = ledgers.ledger


def add(tx: Any, name: str) -> str:
    HealthCheck.insert(id=name, checked_at=MOMENT).execute(tx)
    return name


def count(db: Any, most: int = 10) -> int:
    return min(int(db.execute_sql("SELECT COUNT(*) FROM health_check").fetchone()[0]), most)


def test_a_write_is_read_at_once(ledger: Ledger) -> None:
    assert ledger.read(count) == 0
    assert [ledger.write(add, name) for name in "ab"] == ["a", "b"]
    assert ledger.read(count) == 2
    assert ledger.read(count, most=1) == 1


@pytest.mark.engines("sqlite")
def test_making_one_opens_nothing_and_closing_one_leaves_nothing_open(
    database: Database, path: Path, tmp_path: Path
) -> None:
    ledger = database.ledger()
    assert programs.open_files(tmp_path) == set()
    ledger.write(add, "a")
    ledger.read(count)
    assert programs.open_files(tmp_path) >= {"amelia.db", "amelia.db-wal"}
    ledger.close()
    assert programs.open_files(tmp_path) == set()
    assert not path.with_name("amelia.db-wal").exists()


def test_closing_one_that_was_never_used_is_harmless(ledger: Ledger) -> None:
    ledger.close()
    with pytest.raises(DatabaseUnavailable, match="shutting down"):
        ledger.write(add, "a")
    assert ledger.stopping


def test_processes_forked_from_an_unused_one_each_have_their_own(database: Database) -> None:
    code = """
    import os
    from amelia_flask.ledger import Ledger
    from amelia_flask.settings import from_environment
    from tests.test_ledger import add

    def work():
        for n in range(50):
            ledger.write(add, f"{os.getpid()} {n}")
            assert ledger.read(lambda db: db.execute_sql("SELECT COUNT(*) FROM health_check").fetchone()[0]) > n
        ledger.close()

    ledger = Ledger(from_environment())
    children = []
    for _ in range(3):
        child = os.fork()
        if not child:
            status = 1
            try:
                work()
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    work()
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    """
    programs.run(code, **database.settings)
    assert database.rows("SELECT COUNT(*), COUNT(DISTINCT id) FROM health_check") == [(200, 200)]
    assert list(audit.check(database.engine)) == []
