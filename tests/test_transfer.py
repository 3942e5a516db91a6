"""The record moved from one database to another as lines: exactly, and however the way was interrupted."""

import io
import json
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from amelia_flask import events, moves, report, timeline, workflows
from amelia_flask import ledger as ledger_module
from amelia_flask.ledger import Ledger
from amelia_flask.stream import page_or_wait
from amelia_flask.transfer import reading, writing
from amelia_flask.transfer.lines import Malformed
from amelia_flask.transfer.placing import Taken
from tests import ledgers
from tests.databases import Database, Databases, database_of
from tests.histories import check, histories, hold, make, prune
from tests.ledgers import create, move, new_event, record
from tests.serving import until

ledger = ledgers.ledger

NOW = datetime(2026, 6, 1, tzinfo=UTC)


@pytest.fixture
def other(other_database: Database) -> Iterator[Ledger]:
    """A second database."""
    with closing(other_database.ledger()) as other:
        yield other


@contextmanager
def ledgers_on(databases: Databases, count: int) -> Iterator[list[Ledger]]:
    """New databases for one example."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        lent = [stack.enter_context(databases.lend(Path(folder) / str(n))) for n in range(count)]
        yield [stack.enter_context(closing(database.ledger())) for database in lent]


def exported(ledger: Ledger, **wanted: Any) -> bytes:
    return b"".join(writing.export(ledger, writing.Selection(**wanted), lambda _: None))


def take_in(ledger: Ledger, raw: bytes) -> Taken:
    return reading.take_in(ledger, io.BytesIO(raw), lambda _: None)


def content(ledger: Ledger) -> dict[str, list[tuple[Any, ...]]]:
    """Every row, but for when the schema was made and for sums of nothing."""
    found = database_of(ledger).dump()
    del found["schema_version"]
    for table in ("usage_by_day", "workflows_by_day", "models_by_day", "finished_workflows"):
        found[table] = [row for row in found[table] if any(isinstance(value, int) and value for value in row)]
    return found


def reported(ledger: Ledger) -> report.UsageReport:
    return ledger.read(report.report, report.period("all", None, None, NOW), NOW)


def lines_of(raw: bytes, kind: str) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, raw.splitlines()) if line["kind"] == kind]


class Watched(io.BytesIO):
    """Lines that are read one after the other, with a look at the database before each."""

    def __init__(self, raw: bytes, look: Callable[[], None]) -> None:
        super().__init__(raw)
        self._look = look

    def readline(self, size: int | None = -1, /) -> bytes:
        self._look()
        return super().readline(size)


def busy_record(ledger: Ledger) -> list[str]:
    """Workflows whose events alternate: one that has ended, one that waits, one that is pending."""
    done, waiting = (create(ledger, worktree_path=path) for path in ("/a", "/b"))
    for name in ("start", "block", "approve"):
        for workflow in (done, waiting):
            move(ledger, workflow, name)
    for workflow in (done, waiting):
        record(ledger, workflow, {"model": "claude-haiku-4-5", "id": f"usage-{workflow}"}, {"cost_usd": 0.1})
        ledger.write(events.append, workflow, events.arrived([new_event(data={"a": [1, "é"]}), new_event()]))
    move(ledger, waiting, "block", message="?")
    move(ledger, done, "complete")
    ledger.write(events.append, done, events.arrived([new_event(message="late"), new_event(message="later")]))
    return [done, waiting, create(ledger, worktree_path="/a")]


def test_any_record_is_the_same_after_an_export_and_an_import(databases: Databases) -> None:
    def moves_along(history: list[int]) -> None:
        with ledgers_on(databases, 2) as (one, two):
            make(one, history)
            raw = exported(one)
            assert take_in(two, raw).refused == []
            if not database_of(one).rows("SELECT 1 FROM workflows w JOIN pruned_workflows p ON p.id = w.id"):
                assert content(two) == content(one)  # elsewhere retention has begun what is done there
            assert reported(two) == reported(one)
            assert exported(two) == raw
            before = content(two)
            take_in(two, raw)
            assert content(two) == before

    hold(databases, histories, 60, moves_along)


def test_what_holds_of_a_record_holds_after_every_transaction_of_an_import(databases: Databases) -> None:
    def holds_meanwhile(history: list[int]) -> None:
        with ledgers_on(databases, 2) as (one, two), pytest.MonkeyPatch.context() as patch:
            make(one, history)
            create(two, worktree_path="/w/1")
            seen: list[int] = [0]

            def look() -> None:
                check(database_of(two))
                found = database_of(two).rows("SELECT position FROM events WHERE position > ?", seen[-1])
                assert len(found) + len(seen) - 1 == database_of(two).rows("SELECT COUNT(*) FROM events")[0][0]
                seen.extend(sorted(position for (position,) in found))

            patch.setattr(reading, "MOST_LINES", 2)
            reading.take_in(two, Watched(exported(one), look), lambda _: None)

    hold(databases, histories, 60, holds_meanwhile)


@pytest.mark.engines("postgresql")
def test_an_import_wakes_who_waits_for_events_elsewhere(
    ledger: Ledger, other: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "LOOK_SECONDS", 60.0)
    create(ledger)
    heard: list[bool] = []  # at each look

    with closing(database_of(other).ledger()) as elsewhere, ThreadPoolExecutor(1) as thread:

        def read() -> timeline.EventPage:
            heard.append(elsewhere._listener is not None and elsewhere._listener.hears)
            return elsewhere.read(timeline.page_of_all, timeline.Page(after=0))

        waiting = thread.submit(page_or_wait, elsewhere, read, 20)
        until(lambda: any(heard))
        take_in(other, exported(ledger))
        assert len(waiting.result(5).events) == 1


def test_new_positions_are_taken_in_the_order_of_the_old_ones(ledger: Ledger, other: Ledger) -> None:
    busy_record(ledger)
    create(other)
    raw = exported(ledger)
    take_in(other, raw)
    found = [event.id for event in other.read(timeline.page_of_all, timeline.Page(limit=1000)).events]
    assert found[1:] == [line["id"] for line in lines_of(raw, "event")]
    assert other.read(timeline.page_of_all, timeline.Page(after=1, limit=1)).events[0].position == 2


def test_a_position_that_was_given_is_not_given_again(ledger: Ledger, other: Ledger) -> None:
    kept, gone = create(ledger), create(ledger)
    move(ledger, gone, "cancel")
    ledger.write(workflows.delete, gone)
    take_in(other, exported(ledger))
    [place] = other.write(events.append, kept, events.arrived([new_event()])).events
    assert place.position == 4


def test_an_import_that_was_cut_off_anywhere_goes_on_when_it_is_repeated(
    ledger: Ledger, databases: Databases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy_record(ledger)
    prune(ledger, max_events=3)
    create(ledger, worktree_path="/c")
    raw = exported(ledger)
    monkeypatch.setattr(reading, "MOST_LINES", 1)
    for cut in range(0, len(raw), 97):
        with databases.lend(tmp_path / str(cut)) as database, closing(database.ledger()) as other:
            with pytest.raises(Malformed, match="cut off"):
                take_in(other, raw[:cut])
            check(database_of(other))
            take_in(other, raw)
            assert content(other) == content(ledger)


def test_an_import_that_was_cut_off_is_exported_as_it_stands(
    ledger: Ledger, other: Ledger, databases: Databases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy_record(ledger)
    raw = exported(ledger)
    monkeypatch.setattr(reading, "MOST_LINES", 1)
    for count in (3, 6, 9):
        with pytest.raises(Malformed):
            take_in(other, b"".join(raw.splitlines(keepends=True)[:count]))
        half = exported(other)
        assert lines_of(half, "workflow")
        with databases.lend(tmp_path / str(count)) as database, closing(database.ledger()) as third:
            take_in(third, half)
            assert exported(third) == half
            take_in(third, raw)
            assert exported(third) == raw


def test_while_it_is_taken_in_what_has_ended_keeps_nobody_from_its_worktree(
    ledger: Ledger, other: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, waiting, _ = busy_record(ledger)
    raw = exported(ledger, ids=(done, waiting))
    monkeypatch.setattr(reading, "MOST_LINES", 1)
    with pytest.raises(Malformed):
        take_in(other, raw[: len(raw) // 2])
    stored = database_of(other).rows("SELECT id, worktree_path FROM workflows")
    assert dict(stored) == {done: f"/importing/{done}", waiting: "/b"}
    create(other, worktree_path="/a")
    take_in(other, raw)
    assert database_of(other).rows("SELECT worktree_path, status FROM workflows WHERE id = ?", done) == [
        ("/a", "completed")
    ]


CHANGES: dict[str, Callable[[Any, str], Any]] = {
    "moved": lambda tx, one: moves.carry_out(tx, one, "cancel", moves.Decision()),
    "patched": lambda tx, one: workflows.patch(tx, one, ledgers.decode(workflows.Patch, state={"b": 1})),
    "told more of": lambda tx, one: events.append(tx, one, events.arrived([new_event()])),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_workflow_with_other_content_is_named_and_left_alone(
    ledger: Ledger, other: Ledger, change: Callable[[Any, str], Any]
) -> None:
    _, waiting, _ = busy_record(ledger)
    take_in(other, exported(ledger))
    other.write(change, waiting)
    before = content(other)
    create(ledger)
    taken = take_in(other, exported(ledger))
    assert taken.refused == [f"Workflow {waiting} is left out: it exists with other content."]
    assert (taken.workflows, taken.known_workflows) == (1, 2)
    assert [row for row in content(other)["workflows"] if row in before["workflows"]] == before["workflows"]
    assert set(before["events"]) < set(content(other)["events"])


def edited(raw: bytes, kind: str, number: int, **members: Any) -> bytes:
    """The lines with other members in one of this kind."""
    lines = [json.loads(line) for line in raw.splitlines()]
    [line for line in lines if line["kind"] == kind][number].update(members)
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


@pytest.mark.parametrize(
    ("kind", "members", "reason"),
    [
        ("event", {"message": "other"}, "its event {id} exists with other content"),
        ("token_usage", {"cost_nano": 5}, "its usage record {id} exists with other content"),
        ("token_usage", {"id": "new"}, "it exists with other usage records"),
    ],
)
def test_what_belongs_to_a_workflow_is_compared_too(
    ledger: Ledger, kind: str, members: dict[str, Any], reason: str
) -> None:
    busy_record(ledger)
    raw = exported(ledger)
    before = content(ledger)
    line = lines_of(raw, kind)[0]
    taken = take_in(ledger, edited(raw, kind, 0, **members))
    assert taken.refused == [f"Workflow {line['workflow_id']} is left out: {reason.format(**line)}."]
    assert content(ledger) == before


@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize("kind", ["event", "token_usage"])
def test_a_workflow_whose_ids_are_taken_leaves_nothing_behind(
    ledger: Ledger, other: Ledger, kind: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MOST_LINES", size)
    done, waiting, pending = busy_record(ledger)
    mine = create(other)
    other.write(events.append, mine, events.arrived([new_event(id="taken")]))
    record(other, mine, {"id": "taken"})
    before = content(other)
    last = max(n for n, line in enumerate(lines_of(exported(ledger), kind)) if line["workflow_id"] == done)
    taken = take_in(other, edited(exported(ledger), kind, last, id="taken"))
    assert [sentence[: len(f"Workflow {done}")] for sentence in taken.refused] == [f"Workflow {done}"]
    check(database_of(other))
    after = content(other)
    assert {row[0] for row in after["workflows"]} == {mine, waiting, pending}
    assert {row[0] for row in after["events"]} == {mine, waiting, pending}
    for workflow in (waiting, pending):
        move(other, workflow, "cancel")
        other.write(workflows.delete, workflow)
    after = content(other)
    del before["event_position"], after["event_position"]
    assert after == before


def test_an_active_workflow_whose_worktree_is_held_is_named_and_left_out(ledger: Ledger, other: Ledger) -> None:
    done, waiting, pending = busy_record(ledger)
    holder = create(other, worktree_path="/b")
    taken = take_in(other, exported(ledger))
    assert taken.refused == [
        f"Workflow {waiting} is left out: its worktree /b is held by the active workflow {holder}."
    ]
    assert {row[0] for row in content(other)["workflows"]} == {done, pending, holder}
    move(other, holder, "cancel")
    assert take_in(other, exported(ledger)).refused == []
    check(database_of(other))


HEADER = b'{"kind":"header","format":"amelia-flask","version":1}\n'


def changed(**members: Any) -> Callable[[bytes], bytes]:
    """The export with members changed: of its first line of that kind."""
    kind = members.pop("kind")
    return lambda raw: edited(raw, kind, 0, **members)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda _: b"", "Line 1: The file was cut off"),
        (lambda _: HEADER, "Line 2: The file was cut off"),
        (lambda raw: raw + HEADER, "nothing follows the end"),
        (lambda raw: raw.replace(HEADER, b""), "Line 1: A header comes first"),
        (lambda raw: raw.replace(HEADER, HEADER * 2), "Line 2: A header comes first"),
        (lambda raw: raw.replace(HEADER, HEADER + b"what\n"), "Line 2: The body is not JSON"),
        (lambda raw: raw.replace(HEADER, HEADER + b'{"kind":"x"}\n'), "Line 2: "),
        (lambda raw: raw.replace(HEADER, HEADER + b'{"kind":"end","kind":"end"}\n'), "Line 2: "),
        (lambda raw: raw.replace(b'"version":1}', b'"version":2}'), "Line 1: The export has format version 2"),
        (lambda raw: HEADER + lines(raw, "event") + lines(raw, "end"), "Line 2: The workflow .* must come before"),
        (lambda raw: HEADER + lines(raw, "workflow") * 2 + lines(raw, "end"), "for the second time"),
        (changed(kind="event", sequence=2), "Line 3: The event before this one is missing"),
        (changed(kind="event", colour="red"), "Line 3: colour: There is no such member here"),
        (changed(kind="event", timestamp="2026-13-01T00:00:00.000000Z"), "Line 3: month"),
        (changed(kind="event", data_json="{"), "Line 3: "),
        (changed(kind="event", data_json="[]"), "Line 3: "),
        (changed(kind="event", data_json='{"a":1,"a":2}'), "Line 3: .* same member twice"),
        (changed(kind="workflow", worktree_path="/a/../b"), "Line 2: Expected a path without"),
        (changed(kind="workflow", worktree_path="/a/"), "Line 2: The worktree path has another spelling"),
        (changed(kind="workflow", host="a\u0085"), "Line 2: `host`"),
        (changed(kind="workflow", status="completed"), "Line 2: A workflow has a time of completion"),
        (changed(kind="workflow", status="blocked"), "is blocked in the file, but its events tell in_progress"),
        (changed(kind="workflow", first_sequence=9), "Line 2: The first event"),
        (changed(kind="token_usage", cost_source="unpriced"), "Line 4: A record is unpriced"),
        (changed(kind="token_usage", input_tokens=-1), "Line 4: input_tokens: Expected `int` >= 0"),
        (lambda raw: raw.replace(lines(raw, "token_usage"), lines(raw, "token_usage") * 2), "contradict"),
    ],
)
def test_a_line_that_no_export_writes_is_refused_with_its_number(
    ledger: Ledger, other: Ledger, change: Callable[[bytes], bytes], sentence: str
) -> None:
    workflow = create(ledger)
    move(ledger, workflow, "start")
    record(ledger, workflow, {"cost_usd": 1})
    with pytest.raises(Malformed, match=sentence):
        take_in(other, change(exported(ledger)))
    check(database_of(other))
    take_in(other, exported(ledger))
    assert content(other) == content(ledger)


def lines(raw: bytes, kind: str) -> bytes:
    """The lines of one kind."""
    return b"".join(line for line in raw.splitlines(keepends=True) if f'"kind":"{kind}"'.encode() in line)
