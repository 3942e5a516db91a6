"""The files that a database consists of, and the place for them."""

import os
from pathlib import Path
from typing import NamedTuple

from amelia_flask.errors import SchemaError

File = tuple[int, int] | None  # device and inode, None where there is none


class Files(NamedTuple):
    """What a database consists of while it is in use: itself, its log, and what its users share."""

    database: File
    log: File
    shared: File


def files_of(path: str) -> Files:
    """What is there now. As little as can be: every group of writes begins with it."""
    return Files(identity(path), identity(path + "-wal"), identity(path + "-shm"))


def displaced(opened: Files, found: Files) -> str | None:
    """What another program has done to files that are in use, where they do not belong together any more.

    A database that was replaced together with its log is none of these cases.
    """
    if found == opened or None in opened:
        return None
    if found.database == opened.database:
        return "The log of the database was taken away or replaced by another program: restart the service."
    if found.log == opened.log:
        return (
            "The database was moved or replaced by another program, but not its log: stop the service to mend that."
        )
    return None


def identity(path: str) -> File:
    """Which file is there."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def check_place(path: Path) -> None:
    """Raises SchemaError, with a sentence, where there can be no database at `path`; makes its folder, if need be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        problem = _problem_of_place(path)
    except OSError as error:
        problem = f"the folder {path.parent} cannot be made or entered ({error.strerror})"
    if problem:
        raise SchemaError(f"The database {path} cannot be set up: {problem}.")


def _problem_of_place(path: Path) -> str | None:
    if path.is_dir():
        return "it is a folder"
    if path.exists() and not path.is_file():
        return "it is no regular file"
    for needed in (path.parent, path):
        if needed.exists() and not os.access(needed, os.R_OK | os.W_OK):
            return f"{needed} cannot be written by this user (uid {os.geteuid()})"
    return None


def create_file(path: Path) -> None:
    """Make the database file, readable by its owner alone; an existing one is narrowed to that.

    An existing one is never opened here: closing a plain file descriptor would drop SQLite's locks.
    """
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        path.chmod(0o600)
