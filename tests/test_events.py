"""The ledger of events, on a real database file through the real writer."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from amelia_flask import events, schema
from amelia_flask.database import open_readers, reading
from amelia_flask.errors import IdReused, NotFound
from amelia_flask.models import Workflow
from amelia_flask.writer import Writer

decoder = msgspec.json.Decoder(events.NewEvent)


def event(**members: object) -> events.NewEvent:
    return decoder.decode(msgspec.json.encode({"agent": "dev", "event_type": "note", "message": "m"} | members))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    schema.set_up(tmp_path / "a.db")
    return tmp_path / "a.db"


@pytest.fixture
def writer(path: Path) -> Iterator[Writer]:
    writer = Writer(path)
    values = {
        "issue_id": "i",
        "worktree_path": "/x",
        "worktree_name": "x",
        "created_at": "",
        "updated_at": "",
        "digest": "",
    }
    writer.run(lambda db: Workflow.insert(id="w", **values).execute(db))
    yield writer
    writer.stop()


def test_events_get_rising_numbers_in_the_order_sent(writer: Writer) -> None:
    answer = writer.run(lambda tx: events.append(tx, "w", [event(), event(), event()]))
    assert [(e.sequence, e.position) for e in answer.events] == [(1, 1), (2, 2), (3, 3)]
    assert answer.duplicates == 0


def test_the_same_id_with_the_same_content_is_stored_once(writer: Writer) -> None:
    first = event(id="e1", data={"a": 1, "b": 2})
    again = event(id="e1", data={"b": 2, "a": 1})
    writer.run(lambda tx: events.append(tx, "w", [first]))
    answer = writer.run(lambda tx: events.append(tx, "w", [again, event(id="e2"), event(id="e2")]))
    assert [e.sequence for e in answer.events] == [1, 2, 2]
    assert answer.duplicates == 2


@pytest.mark.parametrize("other", [{"message": "x"}, {"data": {"a": 1.0}}, {"level": "error"}, {"agent": "qa"}])
def test_the_same_id_with_other_content_is_refused_and_changes_nothing(
    writer: Writer, path: Path, other: dict[str, object]
) -> None:
    writer.run(lambda tx: events.append(tx, "w", [event(id="e1", data={"a": 1})]))
    with pytest.raises(IdReused):
        writer.run(lambda tx: events.append(tx, "w", [event(), event(**{"id": "e1", "data": {"a": 1}} | other)]))
    readers = open_readers(path, 1)
    with reading(readers) as db:
        assert [e.sequence for e in events.page(db, "w", events.Page()).events] == [1]
    readers.close_all()


def test_an_unknown_workflow_is_not_found(writer: Writer) -> None:
    with pytest.raises(NotFound):
        writer.run(lambda tx: events.append(tx, "nobody", [event()]))
