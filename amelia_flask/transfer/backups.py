"""Backups of a record that a server keeps: copied into a database file, and back into a database that is empty."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from amelia_flask import backup
from amelia_flask.database import Engine
from amelia_flask.files import new_file
from amelia_flask.progress import Step
from amelia_flask.sqlite import SqliteEngine, SqliteExtDatabase
from amelia_flask.transfer import copying
from amelia_flask.transfer.tables import CopyRefused


class _File(SqliteEngine):
    """A backup, which is read without being brought into the mode of a database in use."""

    def open_readers(self, connections: int) -> SqliteExtDatabase:
        """A pool of at most `connections` that can read and nothing else."""
        return SqliteExtDatabase(self.path, (("query_only", 1, 1), ("temp_store", "memory", 2)), connections)


def back_up(source: Engine, target: Path, step: Step) -> None:
    """Copy the record as it is at this moment into the new database file `target`, and verify that.

    `step` is told what it is told by a copy. Raises FileExistsError, FileRefused, CopyRefused and SchemaError, and
    then there is no `target`.
    """
    with new_file(target) as file, _folder_beside(target) as folder:
        path = folder / target.name
        _refuse_different(copying.copy(source, SqliteEngine(path), step, is_still=True))
        backup.fold(path)
        os.replace(path, file)
        backup.verify(file)


def restore(target: Engine, source: Path, step: Step) -> None:
    """Copy the backup `source`, once it is verified, into the target, which is empty but for what a restore that was
    cut off has left.

    `step` is told what it is told by a copy. Raises FileRefused, CopyRefused and SchemaError.
    """
    backup.verify(source)
    _refuse_different(copying.copy(_File(source), target, step, must_be_new=True, is_still=True))


def length(source: Path) -> int:
    """How many steps a restore of this backup takes. Raises CopyRefused and SchemaError."""
    return copying.length(_File(source))


def _refuse_different(found: copying.Comparison) -> None:
    if found.different:
        raise CopyRefused(f"The copy differs in {', '.join(found.different)}: somebody else has written to it.")


@contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        yield Path(folder)
