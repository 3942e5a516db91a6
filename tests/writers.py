"""A writer on a database of its own, changes for it, and the means to keep it busy."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from amelia_flask.errors import AmeliaError
from amelia_flask.groups import Change
from amelia_flask.models import HealthCheck
from amelia_flask.writer import Writer
from tests.databases import Database
from tests.serving import until

MOMENT = "2026-01-01T00:00:00.000000Z"


@pytest.fixture
def writer(database: Database) -> Iterator[Writer]:
    writer = Writer(database.engine)
    yield writer
    writer.stop()


def add(name: str) -> Callable[[Any], str]:
    """A change that stores a row and gives its name."""

    def change(tx: Any) -> str:
        HealthCheck.insert(id=name, checked_at=MOMENT).execute(tx)
        return name

    return change


def stored(database: Database) -> list[str]:
    return [name for (name,) in database.rows("SELECT id FROM health_check ORDER BY id")]


def run(writer: Writer, change: Callable[[Any], Any]) -> Any:
    """Carry out a change that may write anything."""
    return writer.run(Change(change))


def send(writer: Writer, change: Callable[[Any], Any]) -> "Future[Any]":
    """Run a change on a thread of its own."""
    future: Future[Any] = Future()

    def wait() -> None:
        try:
            future.set_result(run(writer, change))
        except AmeliaError as error:
            future.set_exception(error)

    threading.Thread(target=wait).start()
    return future


@contextmanager
def busy(writer: Writer) -> Iterator["Future[Any]"]:
    """While the writer carries out one long change, so that what is sent meanwhile becomes the next group."""
    begun, released = threading.Event(), threading.Event()

    def wait(_: Any) -> None:
        begun.set()
        assert released.wait(30)

    long = send(writer, wait)
    assert begun.wait(30)
    try:
        yield long
    finally:
        released.set()


def queue(writer: Writer, *changes: Callable[[Any], Any]) -> "list[Future[Any]]":
    """Put changes into the queue of a busy writer, one after the other."""
    futures = []
    for count, change in enumerate(changes, writer.waiting + 1):
        futures.append(send(writer, change))
        until(partial(has_waiting, writer, count))
    return futures


def has_waiting(writer: Writer, count: int) -> bool:
    return writer.waiting == count
