"""New files that are there whole or not at all."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Lend the path of an empty file that becomes `path`, synced to disk, when the body has ended well.

    It is readable by its owner alone. Raises FileExistsError, before the body and after it, where there is something
    at `path`: nothing is ever overwritten. A body that fails leaves nothing behind.
    """
    _refuse_existing(path)
    with temporary_beside(path) as temporary:
        yield temporary
        sync(temporary)
        _give_name(temporary, path)
        sync(path.parent)


@contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """Lend the path of an empty file beside `path`, readable by its owner alone, and remove it afterwards."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".new", dir=path.parent)
    os.close(descriptor)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file, or what a folder lists, is on the disk. Never for a database that this process has open."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refuse_existing(path: Path) -> None:
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))


def _give_name(temporary: Path, path: Path) -> None:
    """By a second name, which is refused where a rename would replace; some disks know no second names."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:
        _refuse_existing(path)
        temporary.rename(path)
