"""Brings a database to this version's schema, once, however many processes start together."""

from functools import cache
from pathlib import Path

import peewee
from peewee import sqlite3 as engine
from playhouse.migrations import Runner

from amelia_flask.database import FAULTS, SqliteExtDatabase, check_place, create_file, open_writer, peeking
from amelia_flask.errors import SchemaError
from amelia_flask.lock import FileLock
from amelia_flask.models import TABLES, EventPosition
from amelia_flask.progress import Unit, progress

MIGRATIONS = Path(__file__).parent / "migrations"
LOCK_SECONDS = 60.0
MIGRATION = Unit("migrations", 1)
STEPS_BETWEEN_SIGNS = 100_000


def set_up(path: Path) -> list[str]:
    """Make the database at `path`, or bring it up to date; answers with the migrations that it applied.

    Starting twice, or two processes at once, is harmless. Raises SchemaError for a file that is no database,
    belongs to another program, or was made by a newer version.
    """
    check_place(path)
    try:
        if path.exists():
            _check_owner(path)
        create_file(path)
        return _set_up(path)
    except FAULTS as error:
        raise SchemaError(f"The database {path} cannot be set up: {_cause(error)}.") from error


def is_current(db: SqliteExtDatabase) -> bool:
    """Whether exactly this version's migrations have been applied."""
    rows = db.connection().execute("SELECT name FROM schema_version").fetchall()
    return {name for (name,) in rows} == _names()


def applied(path: Path) -> set[str]:
    """The names of the migrations that made the database at `path` what it is; nothing of it is changed.

    Raises SchemaError for what is no database of ours, and for one that was made by a newer version.
    """
    try:
        with peeking(path) as connection:
            names = {name for (name,) in connection.execute("SELECT name FROM schema_version").fetchall()}
    except FAULTS as error:
        raise SchemaError(f"{path} is no database of amelia-flask: {error}.") from error
    if min(_names()) not in names:
        raise SchemaError(f"{path} is no database of amelia-flask.")
    _refuse_newer(path, names)
    return names


def refuse_earlier(path: Path) -> None:
    """Raises SchemaError unless the database at `path` has exactly this version's schema."""
    if applied(path) != _names():
        raise SchemaError(f"The database {path} was made by an earlier version: `amelia-flask init-db` brings it on.")


@cache
def names_of_tables_and_indexes() -> frozenset[str]:
    """What a database of this version has."""
    db = peewee.SqliteDatabase(":memory:")
    with db.connection_context(), db.bind_ctx(TABLES, bind_refs=False, bind_backrefs=False):
        db.create_tables(TABLES)
        return frozenset(name for (name,) in db.execute_sql("SELECT name FROM sqlite_master"))


def _cause(error: BaseException) -> BaseException:
    """What failed first: the rollback that follows fails too where the engine has made one by itself."""
    while isinstance(error.__context__, peewee.PeeweeException | engine.Error):
        error = error.__context__
    return error


def _check_owner(path: Path) -> None:
    """Refuse the database of another program before anything of it is changed."""
    with peeking(path) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master").fetchall()
        columns = connection.execute("SELECT name FROM pragma_table_info('schema_version')").fetchall()
    if tables and not {("name",), ("applied",)} <= set(columns):
        raise SchemaError(
            f"The database {path} belongs to another program: its tables are not those of amelia-flask."
        )


def _set_up(path: Path) -> list[str]:
    lock = FileLock(path)
    db = open_writer(path)
    try:
        with lock.held(LOCK_SECONDS), db.connection_context():
            return _bring_up_to_date(db)
    finally:
        db.close_all()
        lock.close()


def _bring_up_to_date(db: SqliteExtDatabase) -> list[str]:
    runner = Runner(db, str(MIGRATIONS), table_name="schema_version")
    _refuse_newer(db.path, set(runner.applied()))
    if db.get_tables():
        done = _migrate(db, runner)
        _create_tables(db)
        return done
    with db.atomic():
        _create_tables(db)
        runner.fake()
    return sorted(_names())


def _refuse_newer(path: Path, names: set[str]) -> None:
    newer = sorted(names - _names())
    if newer:
        raise SchemaError(f"The database {path} was made by a newer version of amelia-flask ({newer[-1]}).")


def _migrate(db: SqliteExtDatabase, runner: Runner) -> list[str]:
    """Apply what is pending, one after the other. On a large record one takes long: it is seen to go on."""
    pending = [migration.name for migration in runner.status() if not migration.applied]
    if not pending:
        return []
    with progress(f"Bringing {db.path.name} up to date", len(pending), MIGRATION) as step:
        db.connection().set_progress_handler(lambda: step(0), STEPS_BETWEEN_SIGNS)
        for name in pending:
            runner.up(name)
            step(1)
    return pending


def _create_tables(db: SqliteExtDatabase) -> None:
    with db.bind_ctx(TABLES, bind_refs=False, bind_backrefs=False):
        db.create_tables(TABLES, safe=True)
        EventPosition.insert(id=1, value=0).on_conflict_ignore().execute()


def _names() -> frozenset[str]:
    return _names_in(MIGRATIONS)


@cache
def _names_in(folder: Path) -> frozenset[str]:
    return frozenset(file.stem for file in folder.glob("[0-9]*.py"))
