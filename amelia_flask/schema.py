"""Brings a database to this version's schema, once, however many processes start together."""

from functools import cache
from pathlib import Path
from typing import Any

import peewee
from playhouse.migrations import Runner

from amelia_flask.database import FAULTS, WRITER, Engine
from amelia_flask.errors import SchemaError
from amelia_flask.models import TABLES, EventPosition
from amelia_flask.progress import Unit, progress

MIGRATIONS = Path(__file__).parent / "migrations"
LOCK_SECONDS = 60.0
MIGRATION = Unit("migrations", 1)
# Stands among the names of migrations while a database is made the copy of another, so that no version serves it.
UNFINISHED_COPY = "unfinished-copy"


def set_up(engine: Engine) -> list[str]:
    """Make the database, or bring it up to date; answers with the migrations that it applied.

    Starting twice, or several processes at once, is harmless. Raises SchemaError for what is no database, belongs to
    another program, or was made by a newer version.
    """
    engine.check_place()
    try:
        if engine.exists():
            _check_owner(engine)
        engine.create()
        return _set_up(engine)
    except FAULTS as error:
        reason = str(_cause(error)).partition("\n")[0]  # the lines after it show statements
        raise SchemaError(f"The database {engine} cannot be set up: {reason}.") from error


def is_current(db: Any) -> bool:
    """Whether exactly this version's migrations have been applied."""
    rows = db.connection().execute("SELECT name FROM schema_version").fetchall()
    return {name for (name,) in rows} == _names()


def applied(engine: Engine) -> set[str]:
    """The names of the migrations that made the database what it is; nothing of it is changed.

    Raises SchemaError for what is no database of ours, and for one that was made by a newer version.
    """
    try:
        with engine.peeking() as connection:
            names = {name for (name,) in connection.execute("SELECT name FROM schema_version").fetchall()}
    except FAULTS as error:
        raise SchemaError(f"{engine} is no database of amelia-flask: {error}.") from error
    if min(_names()) not in names:
        raise SchemaError(f"{engine} is no database of amelia-flask.")
    _refuse_newer(engine, names)
    return names


def refuse_earlier(engine: Engine) -> None:
    """Raises SchemaError unless the database has exactly this version's schema."""
    if applied(engine) != _names():
        raise SchemaError(
            f"The database {engine} was made by an earlier version: `amelia-flask init-db` brings it on."
        )


def history(db: Any) -> dict[str, str]:
    """The names of the migrations that were applied, with the moments. No two records have the same."""
    rows = db.connection().execute("SELECT name, applied FROM schema_version ORDER BY id").fetchall()
    return {name: str(applied) for name, applied in rows}


def set_history(db: Any, history: dict[str, str]) -> None:
    """Have it be this one; to be called in a transaction."""
    db.connection().execute("DELETE FROM schema_version")
    sql = f"INSERT INTO schema_version (name, applied) VALUES ({db.param}, {db.param})"  # noqa: S608 - two signs
    for row in history.items():
        db.connection().execute(sql, row)


def is_unfinished_copy(engine: Engine) -> bool:
    """Whether this is a database that is being made the copy of another."""
    with engine.peeking() as connection:
        if not engine.columns(connection, "schema_version"):
            return False
        names = {name for (name,) in connection.execute("SELECT name FROM schema_version").fetchall()}
    return UNFINISHED_COPY in names


@cache
def names_of_tables_and_indexes() -> frozenset[str]:
    """What a database of this version has, whichever engine keeps it."""
    names = {model._meta.table_name for model in TABLES}
    db = peewee.SqliteDatabase(":memory:")
    with db.connection_context(), db.bind_ctx(TABLES, bind_refs=False, bind_backrefs=False):
        db.create_tables(TABLES)
        indexes = db.execute_sql("SELECT name FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL")
        return frozenset(names | {name for (name,) in indexes})


def _cause(error: BaseException) -> BaseException:
    """What failed first: the rollback that follows fails too where the engine has made one by itself."""
    while isinstance(error.__context__, FAULTS):
        error = error.__context__
    return error


def _check_owner(engine: Engine) -> None:
    """Refuse the database of another program before anything of it is changed."""
    with engine.peeking() as connection:
        tables = engine.names(connection)
        columns = engine.columns(connection, "schema_version")
    if tables and not {"name", "applied"} <= columns:
        raise SchemaError(
            f"The database {engine} belongs to another program: its tables are not those of amelia-flask."
        )


def _set_up(engine: Engine) -> list[str]:
    lock = engine.lock(WRITER)
    db = engine.open_writer()
    try:
        with lock.held(LOCK_SECONDS), db.connection_context():
            return _bring_up_to_date(engine, db)
    finally:
        db.close_all()
        lock.close()


def _bring_up_to_date(engine: Engine, db: Any) -> list[str]:
    runner = Runner(db, str(MIGRATIONS), table_name="schema_version")
    _refuse_newer(engine, set(runner.applied()))
    if db.get_tables():
        done = _migrate(engine, db, runner)
        _create_tables(db)
        return done
    with db.atomic():
        _create_tables(db)
        runner.fake()
    return sorted(_names())


def _refuse_newer(engine: Engine, names: set[str]) -> None:
    if UNFINISHED_COPY in names:
        raise SchemaError(f"The database {engine} is an unfinished copy: repeat `amelia-flask copy`.")
    newer = sorted(names - _names())
    if newer:
        raise SchemaError(f"The database {engine} was made by a newer version of amelia-flask ({newer[-1]}).")


def _migrate(engine: Engine, db: Any, runner: Runner) -> list[str]:
    """Apply what is pending, one after the other. On a large record one takes long: it is seen to go on."""
    pending = [migration.name for migration in runner.status() if not migration.applied]
    if not pending:
        return []
    with progress(f"Bringing {engine} up to date", len(pending), MIGRATION) as step:
        db.show_work(lambda: step(0))
        for name in pending:
            runner.up(name)
            step(1)
    return pending


def _create_tables(db: Any) -> None:
    with db.bind_ctx(TABLES, bind_refs=False, bind_backrefs=False):
        db.create_tables(TABLES, safe=True)
        EventPosition.insert(id=1, value=0).on_conflict_ignore().execute()


def _names() -> frozenset[str]:
    return _names_in(MIGRATIONS)


@cache
def _names_in(folder: Path) -> frozenset[str]:
    return frozenset(file.stem for file in folder.glob("[0-9]*.py"))
