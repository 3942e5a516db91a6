"""Readers that wait for events: woken by commits, counted, bounded."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from time import monotonic

import pytest

from amelia_flask import events, stream, timeline
from amelia_flask import ledger as ledger_module
from amelia_flask.errors import NotFound, TooManyStreams
from amelia_flask.ledger import Ledger
from amelia_flask.stream import OpenReaders, page_or_wait
from amelia_flask.timeline import EventPage
from tests import ledgers, programs
from tests.databases import Database, database_of
from tests.serving import until

ledger = ledgers.ledger

APPEND = """
from amelia_flask import events
from amelia_flask.ledger import Ledger
from amelia_flask.settings import from_environment
from tests import ledgers
ledger = Ledger(from_environment())
print("here", flush=True)
input()
ledger.write(events.append, sys.argv[1], events.arrived([ledgers.new_event(message="from elsewhere")]))
ledger.close()
"""


@pytest.fixture
def workflow(ledger: Ledger) -> str:
    return ledgers.create(ledger)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as threads:
        yield threads


def reader(ledger: Ledger, workflow: str, after: int) -> Callable[[], EventPage]:
    return lambda: ledger.read(timeline.page, workflow, timeline.Page(after=after))


def append(ledger: Ledger, workflow: str, message: str = "m") -> None:
    ledger.write(events.append, workflow, events.arrived([ledgers.new_event(message=message)]))


def waiting(
    threads: ThreadPoolExecutor, ledger: Ledger, workflow: str, after: int, count: int = 1
) -> "list[Future[EventPage]]":
    """Readers that have begun to wait for what comes after `after`."""
    read = reader(ledger, workflow, after)
    futures = [threads.submit(page_or_wait, ledger, read, 20) for _ in range(count)]
    until(lambda: stream.open_readers.here == count)
    return futures


def test_what_is_there_is_given_at_once(ledger: Ledger, workflow: str) -> None:
    page = page_or_wait(ledger, reader(ledger, workflow, 0), 20)
    assert [event.event_type for event in page.events] == ["workflow_created"]


@pytest.mark.parametrize("seconds", [0, -1, 0.2])
def test_where_nothing_comes_the_wait_ends_at_its_time(ledger: Ledger, workflow: str, seconds: float) -> None:
    begun = monotonic()
    assert page_or_wait(ledger, reader(ledger, workflow, 1), seconds).events == []
    assert seconds <= monotonic() - begun < seconds + 2
    assert stream.open_readers.here == 0


def test_a_commit_of_this_process_wakes_every_reader_at_once(
    ledger: Ledger, workflow: str, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "POLL_SECONDS", 60)
    futures = waiting(threads, ledger, workflow, 1, count=3)
    append(ledger, workflow, "news")
    assert [[event.message for event in future.result(10).events] for future in futures] == [["news"]] * 3
    assert stream.open_readers.here == 0


def test_a_commit_that_brings_nothing_for_a_reader_leaves_it_waiting(
    ledger: Ledger, workflow: str, threads: ThreadPoolExecutor
) -> None:
    other = ledgers.create(ledger)
    future = waiting(threads, ledger, workflow, 1)[0]
    append(ledger, other)
    append(ledger, workflow, "mine")
    assert [event.message for event in future.result(10).events] == ["mine"]


def test_a_commit_of_another_process_is_noticed_soon(
    ledger: Ledger, workflow: str, threads: ThreadPoolExecutor
) -> None:
    other = programs.start(APPEND, workflow, **database_of(ledger).settings)
    programs.wait_for_line(other, "here")
    future = waiting(threads, ledger, workflow, 1)[0]
    programs.finish(other, "\n")
    ended = monotonic()
    assert [event.message for event in future.result(10).events] == ["from elsewhere"]
    assert monotonic() - ended < ledger_module.POLL_SECONDS + 1


def test_a_process_that_stops_lets_its_readers_go(
    ledger: Ledger, workflow: str, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "POLL_SECONDS", 60)
    future = waiting(threads, ledger, workflow, 1)[0]
    ledger.stopping = True
    ledger.writer.stop()
    assert future.result(10).events == []


def test_a_reader_whose_read_fails_is_no_longer_counted(ledger: Ledger) -> None:
    pages = [EventPage([], None, None, False)]

    def read() -> EventPage:
        if pages:
            return pages.pop()
        raise NotFound

    with pytest.raises(NotFound):
        page_or_wait(ledger, read, 5)
    assert stream.open_readers.here == 0


@pytest.mark.parametrize(("threads_", "max_streams", "most"), [(6, None, 3), (16, 2, 2), (2, 100, 1)])
def test_more_readers_than_may_wait_are_refused(
    database: Database, threads: ThreadPoolExecutor, threads_: int, max_streams: int | None, most: int
) -> None:
    limit = {} if max_streams is None else {"max_streams": max_streams}
    ledger = database.ledger(threads=threads_, **limit)
    workflow = ledgers.create(ledger)
    futures = waiting(threads, ledger, workflow, 1, count=most)
    with pytest.raises(TooManyStreams):
        page_or_wait(ledger, reader(ledger, workflow, 1), 5)
    assert page_or_wait(ledger, reader(ledger, workflow, 0), 5).events
    append(ledger, workflow)
    assert all(future.result(10).events for future in futures)
    ledger.close()


def test_readers_of_all_processes_count_together() -> None:
    code = """
    import os
    from amelia_flask import counters
    from amelia_flask.errors import TooManyStreams
    from amelia_flask.stream import OpenReaders
    readers, done, go = OpenReaders(), os.pipe(), os.pipe()
    children = []
    for slot in range(1, 4):
        child = os.fork()
        if not child:
            counters.begin_process(slot)
            with readers.one(10, None), readers.one(10, None):
                assert readers.here == 2
                os.write(done[1], b".")
                os.read(go[0], 1)
            os._exit(0)
        children.append(child)
        assert os.read(done[0], 1)
        print(readers.here, readers.everywhere)
    try:
        with readers.one(10, 6):
            print("not refused")
    except TooManyStreams:
        print("refused")
    os.kill(children[0], 9)
    os.waitpid(children[0], 0)
    counters.end_process(1)
    print(readers.everywhere)
    os.write(go[1], b"..")
    for child in children[1:]:
        os.waitpid(child, 0)
    print(readers.everywhere)
    """
    assert programs.run(code, ".").splitlines() == ["0 2", "0 4", "0 6", "refused", "4", "0"]


def test_counting_holds_when_many_come_and_go_at_once() -> None:
    readers, refused = OpenReaders(), []

    def come_and_go() -> None:
        for _ in range(300):
            try:
                with readers.one(4, 4):
                    assert 1 <= readers.here <= 4
            except TooManyStreams:
                refused.append(1)

    many = [threading.Thread(target=come_and_go) for _ in range(8)]
    for thread in many:
        thread.start()
    for thread in many:
        thread.join()
    assert readers.everywhere == 0
    with readers.one(1, 1), pytest.raises(TooManyStreams), readers.one(1, 1):
        pass
