"""Many hosts that start at once on one PostgreSQL: one of them makes the schema, or brings it on."""

from collections import Counter
from pathlib import Path

import pytest

from amelia_flask import schema
from amelia_flask.database import WRITER
from amelia_flask.errors import DatabaseUnavailable
from amelia_flask.postgres import PostgresEngine
from tests import programs
from tests.postgres.clusters import Cluster
from tests.postgres.hosts import check_sound

HOSTS = 10
SET_UP = """
from amelia_flask import schema
from amelia_flask.errors import SchemaError
from amelia_flask.postgres import PostgresEngine
schema.MIGRATIONS = path
print("here", flush=True)
input()
try:
    print(schema.set_up(PostgresEngine(sys.argv[2])))
except SchemaError as error:
    print(error)
"""


def set_up_at_once(cluster: Cluster, database: str, migrations: Path) -> Counter[str]:
    """What so many hosts say, which all begin at one moment."""
    starting = [programs.start(SET_UP, migrations, cluster.url(database)) for _ in range(HOSTS)]
    for program in starting:
        programs.wait_for_line(program, "here")
    programs.tell_all(starting)
    return Counter(programs.finish(program).strip() for program in starting)


def tables(cluster: Cluster, database: str) -> list[tuple[str, ...]]:
    """What the schema is, column by column."""
    sql = """
        SELECT table_name, column_name, data_type, is_nullable FROM information_schema.columns
        WHERE table_schema = 'public' ORDER BY 1, 2
    """
    return cluster.run(sql, database=database)


@pytest.fixture
def later(tmp_path: Path) -> Path:
    """The migrations of a later version: so far those that were released."""
    folder = tmp_path / "migrations"
    folder.mkdir()
    for file in schema.MIGRATIONS.glob("0*.py"):
        (folder / file.name).write_text(file.read_text())
    return folder


def migration(folder: Path, name: str, *statements: str) -> None:
    body = "".join(f"    db.execute_sql({statement!r})\n" for statement in statements)
    (folder / f"{name}.py").write_text(f"def up(migrator, db):\n{body}")


def test_one_of_ten_makes_the_schema(cluster: Cluster, database: str) -> None:
    names = str(sorted(file.stem for file in schema.MIGRATIONS.glob("0*.py")))
    assert set_up_at_once(cluster, database, schema.MIGRATIONS) == {names: 1, "[]": HOSTS - 1}
    assert cluster.run("SELECT value FROM event_position", database=database) == [(0,)]
    check_sound(cluster, database)


def test_one_of_ten_brings_it_on(cluster: Cluster, database: str, later: Path) -> None:
    schema.set_up(PostgresEngine(cluster.url(database)))
    wait = "SELECT pg_sleep(0.5)"  # so that all others wait for the one
    migration(later, "0900_more", "CREATE TABLE more (x INT)", wait)
    migration(later, "0901_most", "INSERT INTO more VALUES (1)")
    assert set_up_at_once(cluster, database, later) == {"['0900_more', '0901_most']": 1, "[]": HOSTS - 1}
    assert cluster.run("SELECT x FROM more", database=database) == [(1,)]


def test_the_one_that_does_it_is_waited_for_with_an_end(
    cluster: Cluster, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "LOCK_SECONDS", 0.2)
    engine = PostgresEngine(cluster.url(database))
    with engine.lock(WRITER).held(), pytest.raises(DatabaseUnavailable):
        schema.set_up(engine)
    assert tables(cluster, database) == []
    assert schema.set_up(engine) != []


def test_a_migration_that_fails_leaves_no_trace_however_often_it_is_tried(
    cluster: Cluster, database: str, later: Path
) -> None:
    schema.set_up(PostgresEngine(cluster.url(database)))
    before = tables(cluster, database)
    migration(later, "0900_more", "CREATE TABLE more (x INT)", "DELETE FROM event_position", "SELECT no_such_thing")
    said = set_up_at_once(cluster, database, later)
    assert said.total() == HOSTS
    assert all("cannot be set up" in text and "no_such_thing" in text for text in said)
    assert tables(cluster, database) == before
    assert cluster.run("SELECT value FROM event_position", database=database) == [(0,)]
    check_sound(cluster, database)
