"""Transcripts on disk: what an import of files stores."""

import json
import tracemalloc
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from amelia_flask import summaries, usage
from amelia_flask.events import StoredEvent
from amelia_flask.intake import claude_code, transcripts
from amelia_flask.intake.transcripts import Format, Stored, Survey
from amelia_flask.ledger import Ledger
from amelia_flask.timeline import Page, page
from tests import ledgers
from tests.databases import database_of
from tests.transcripts import answer, line, write

ledger = ledgers.ledger

DATA = Path(__file__).parent / "data" / "claude-code"
FORMAT = Format(claude_code.SOURCE, claude_code.parse)
NOW = datetime(2025, 6, 14, 12, 30, tzinfo=UTC)
LONG_AFTER = NOW + timedelta(days=1)


def survey(*files: Path) -> Survey:
    return transcripts.survey(FORMAT, list(files), lambda _: None)


def store(ledger: Ledger, found: Survey, now: datetime = LONG_AFTER) -> Stored:
    return transcripts.store(ledger, found, lambda _: None, now)


def take_in(ledger: Ledger, *files: Path, now: datetime = LONG_AFTER) -> Stored:
    return store(ledger, survey(*files), now)


def timeline(ledger: Ledger, workflow_id: str) -> list[StoredEvent]:
    return ledger.read(page, workflow_id, Page(limit=1000)).events


def records(ledger: Ledger, workflow_id: str) -> list[usage.StoredUsage]:
    return ledger.read(usage.page, workflow_id, None, 1000).token_usage


def test_the_cost_that_older_versions_wrote_is_kept_as_reported(ledger: Ledger, tmp_path: Path) -> None:
    [workflow] = take_in(ledger, write(tmp_path / "a.jsonl", answer("m1", "r1", 5, costUSD=0.25))).workflows
    [record] = records(ledger, workflow)
    assert (record.cost_usd, record.cost_source) == (0.25, "reported")


def test_real_transcripts_become_completed_workflows_with_their_own_times(ledger: Ledger) -> None:
    files = transcripts.files_of([DATA], ".jsonl")
    found_lines = survey(*files)
    assert (found_lines.lines, found_lines.skipped) == (34, 2)
    taken = store(ledger, found_lines)
    assert (taken.new_events, taken.new_records) == (26, 10)
    assert len(taken.workflows) == 4
    for workflow_id in taken.workflows:
        found = ledger.read(summaries.summary, workflow_id)
        assert (found.status, found.worktree_path, found.unpriced_tokens) == ("completed", "/tmp", 0)
        kinds = [event.event_type for event in timeline(ledger, workflow_id)]
        assert kinds[:2] + kinds[-1:] == ["workflow_created", "workflow_started", "workflow_completed"]
    page = ledger.read(summaries.page, summaries.Filter(issue_id="claude-code/test_session"), 20)
    [session] = page.workflows
    assert (session.started_at, session.completed_at) == (
        "2025-06-14T10:00:00.000000Z",
        "2025-06-14T10:04:00.000000Z",
    )
    assert (session.total_tokens, session.total_cost_usd) == (663, 0.007329)


def test_malformed_lines_are_named() -> None:
    file = DATA / "edge_cases.jsonl"
    named = [line.split(": ")[0] for line in survey(file).malformed]
    assert named == [f"{file}:{number}" for number in (10, 11, 13, 14, 15, 16, 18)]


def test_a_second_import_changes_nothing(ledger: Ledger) -> None:
    files = transcripts.files_of([DATA], ".jsonl")
    take_in(ledger, *files)
    before = database_of(ledger).dump()
    again = take_in(ledger, *files)
    assert (again.new_events, again.known_events, again.new_records, again.grown_records) == (0, 26, 0, 0)
    assert database_of(ledger).dump() == before


def test_a_transcript_that_has_grown_adds_what_is_new(ledger: Ledger, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", line(), answer("m1", "r1", 5))
    [workflow] = take_in(ledger, file).workflows
    write(file, line(), answer("m1", "r1", 5), answer("m1", "r1", 8), answer("m2", "r2", 3))
    taken = take_in(ledger, file)
    assert (taken.workflows, taken.new_events, taken.known_events) == ({workflow}, 2, 2)
    assert (taken.new_records, taken.grown_records) == (1, 1)
    assert [record.output_tokens for record in records(ledger, workflow)] == [8, 3]
    found = ledger.read(summaries.detail, workflow)[0]
    assert found.total_tokens == 10 + 8 + 10 + 3
    assert found.token_usage is not None
    assert found.token_usage.total_output_tokens == 11
    assert database_of(ledger).rows("SELECT SUM(output_tokens) FROM usage_by_day") == [(11,)]


def test_a_request_counts_once_over_lines_files_and_replays(ledger: Ledger, tmp_path: Path) -> None:
    main = write(tmp_path / "a.jsonl", answer("m1", "r1", 5), answer("m1", "r1", 9), answer("m1", "r1", 7))
    beside = write(
        tmp_path / "b.jsonl",
        answer("m1", "r2", 50, isSidechain=True),
        answer("m3", "r3", 4, isSidechain=True),
        answer("m4", "r4", 1, isSidechain=True),
        answer("m4", "r5", 2, isSidechain=True),
    )
    [workflow] = take_in(ledger, main, beside).workflows
    found = sorted((str(record.request_id), record.output_tokens) for record in records(ledger, workflow))
    assert found == [("r1", 9), ("r3", 4), ("r5", 2)]


def test_answers_without_an_id_are_all_counted(ledger: Ledger, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", answer(None, "r1", 5), answer(None, "r1", 6))
    [workflow] = take_in(ledger, file).workflows
    assert [record.output_tokens for record in records(ledger, workflow)] == [5, 6]


def test_each_session_in_each_worktree_is_a_workflow(ledger: Ledger, tmp_path: Path) -> None:
    lines = [line(), line(cwd="/repos/two/"), line(sessionId="s2"), line(cwd="/repos/one"), line(cwd=None)]
    taken = take_in(ledger, write(tmp_path / "a.jsonl", *lines, line(cwd="C:\\work", sessionId="a b")))
    found = [ledger.read(summaries.summary, workflow_id) for workflow_id in taken.workflows]
    assert sorted((one.issue_id, one.worktree_path) for one in found) == [
        ("claude-code/a-b-c8687a08", "/unbound/a-b-c8687a08"),
        ("claude-code/s1", "/repos/one"),
        ("claude-code/s1", "/repos/two"),
        ("claude-code/s1", "/unbound/s1"),
        ("claude-code/s2", "/repos/one"),
    ]


def test_a_session_that_goes_on_holds_its_worktree_until_it_has_ended(ledger: Ledger, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", line(), answer("m1", "r1", 5))
    [workflow] = take_in(ledger, file, now=NOW).workflows
    assert ledger.read(summaries.summary, workflow).status == "in_progress"
    take_in(ledger, file, now=LONG_AFTER)
    found = ledger.read(summaries.summary, workflow)
    assert (found.status, found.completed_at) == ("completed", "2025-06-14T12:00:00.000000Z")
    assert timeline(ledger, workflow)[-1].event_type == "workflow_completed"


def test_a_session_that_goes_on_joins_the_workflow_of_its_worktree(ledger: Ledger, tmp_path: Path) -> None:
    holder = ledgers.create(ledger, worktree_path="/repos/one")
    file = write(tmp_path / "a.jsonl", line())
    assert take_in(ledger, file, now=NOW).workflows == {holder}
    write(file, line(), answer("m1", "r1", 5))
    again = take_in(ledger, file, now=LONG_AFTER)
    assert (again.workflows, again.new_events, again.known_events) == ({holder}, 1, 1)
    assert ledger.read(summaries.summary, holder).status == "pending", "callers alone move what a caller created"


def test_a_session_that_has_ended_leaves_the_worktree_to_its_holder(ledger: Ledger, tmp_path: Path) -> None:
    holder = ledgers.create(ledger, worktree_path="/repos/one")
    [workflow] = take_in(ledger, write(tmp_path / "a.jsonl", line())).workflows
    assert workflow != holder
    assert ledger.read(summaries.summary, holder).last_sequence == 1


def test_a_long_session_is_stored_in_parts(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line(uuid=str(number)) for number in range(10)]
    monkeypatch.setattr(transcripts, "MOST_BYTES", 3 * len(json.dumps(lines[0])))
    [workflow] = take_in(ledger, write(tmp_path / "a.jsonl", *lines)).workflows
    uuids = [
        json.loads(bytes(event.data)).get("uuid") for event in timeline(ledger, workflow) if event.agent == "user"
    ]
    assert uuids == [str(number) for number in range(10)]
    assert ledger.writer.commits == 4


def test_short_sessions_are_stored_together_and_whole(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [
        write(tmp_path / f"{n}.jsonl", line(sessionId=f"s{n}"), line(sessionId=f"s{n}", uuid="u2")) for n in range(8)
    ]
    monkeypatch.setattr(transcripts, "MOST_BYTES", 5 * files[0].stat().st_size)
    stored = take_in(ledger, *files)
    assert {timeline(ledger, workflow)[-1].event_type for workflow in stored.workflows} == {"workflow_completed"}
    assert (len(stored.workflows), ledger.writer.commits) == (8, 3)


def test_a_part_of_the_files_is_held_at_a_time(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transcripts, "MOST_BYTES", 200_000)
    whole = write(tmp_path / "a.jsonl", *(line(content=f"{n} " + "x" * 9000) for n in range(1000)))
    take_in(ledger, write(tmp_path / "b.jsonl", line()))  # what is loaded once is not counted
    tracemalloc.start()
    take_in(ledger, whole)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < whole.stat().st_size / 4


def test_a_line_that_is_too_long_is_malformed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transcripts, "LONGEST_LINE", 1000)
    found = survey(write(tmp_path / "a.jsonl", line(), line(content="x" * 1500), line()))
    assert (found.lines, len(found.malformed)) == (4, 2)


def test_a_session_that_begins_while_files_are_read_is_left_for_the_next_time(ledger: Ledger, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", line())
    found = survey(file)
    write(file, line(), line(sessionId="s2"))
    assert store(ledger, found).new_events == 1
    again = take_in(ledger, file)
    assert (len(again.workflows), again.new_events, again.known_events) == (2, 1, 1)


def test_progress_counts_every_byte_of_both_readings(ledger: Ledger) -> None:
    files = transcripts.files_of([DATA], ".jsonl")
    read: list[int] = []
    stored: list[int] = []
    transcripts.store(ledger, transcripts.survey(FORMAT, files, read.append), stored.append, LONG_AFTER)
    assert sum(read) == sum(stored) == sum(file.stat().st_size for file in files)


def test_files_are_found_below_folders_once(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    deep, other = write(tmp_path / "a" / "x.jsonl", line()), tmp_path / "note.txt"
    other.write_text("")
    assert transcripts.files_of([tmp_path, deep, other], ".jsonl") == [deep, other]
