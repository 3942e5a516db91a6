"""Claude Code transcripts: what a line tells, and what an import of files stores."""

import json
import re
import tracemalloc
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from amelia_flask import events, summaries, usage
from amelia_flask.events import StoredEvent
from amelia_flask.intake import claude_code, transcripts
from amelia_flask.intake.transcripts import Format, Malformed, Stored, Survey, Told
from amelia_flask.ledger import Ledger
from tests import ledgers
from tests.ledgers import dump, rows

ledger = ledgers.ledger

DATA = Path(__file__).parent / "data" / "claude-code"
FORMAT = Format(claude_code.SOURCE, claude_code.parse)
NOW = datetime(2025, 6, 14, 12, 30, tzinfo=UTC)
LONG_AFTER = NOW + timedelta(days=1)


def line(kind: str = "user", content: Any = "Hello", **members: Any) -> dict[str, Any]:
    """A line as Claude Code writes it; `members` replace or add, None takes out."""
    message = {"role": kind, "content": content}
    whole = {
        "type": kind,
        "timestamp": "2025-06-14T12:00:00Z",
        "sessionId": "s1",
        "cwd": "/repos/one",
        "uuid": "u1",
        "message": message,
    }
    return {name: value for name, value in (whole | members).items() if value is not None}


def answer(message_id: str | None, request_id: str, tokens: int, **members: Any) -> dict[str, Any]:
    """A line of an answer that used so many tokens of output."""
    message = {
        "id": message_id,
        "role": "assistant",
        "model": "claude-sonnet-4-5",
        "content": [{"type": "text", "text": f"{message_id} {request_id} {tokens}"}],
        "usage": {"input_tokens": 10, "output_tokens": tokens},
    }
    return line("assistant", message=message, requestId=request_id, **members)


def told(given: Any) -> Told:
    """What a line tells, which is something."""
    found = claude_code.parse(json.dumps(given).encode())
    assert found is not None
    return found


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    return path


def survey(*files: Path) -> Survey:
    return transcripts.survey(FORMAT, list(files), lambda _: None)


def store(ledger: Ledger, found: Survey, now: datetime = LONG_AFTER) -> Stored:
    return transcripts.store(ledger, found, lambda _: None, now)


def take_in(ledger: Ledger, *files: Path, now: datetime = LONG_AFTER) -> Stored:
    return store(ledger, survey(*files), now)


def timeline(ledger: Ledger, workflow_id: str) -> list[StoredEvent]:
    return ledger.read(events.page, workflow_id, events.Page(limit=1000)).events


def records(ledger: Ledger, workflow_id: str) -> list[usage.StoredUsage]:
    return ledger.read(usage.page, workflow_id, None, 1000).token_usage


@pytest.mark.parametrize(
    ("given", "agent", "event_type", "message"),
    [
        (line(), "user", "user_prompt", "Hello"),
        (line(content=[{"type": "text", "text": "Hi"}]), "user", "user_prompt", "Hi"),
        (line("assistant", [{"type": "text", "text": "Yes"}]), "claude-code", "assistant_message", "Yes"),
        (line("assistant", [{"type": "thinking", "thinking": "Hm"}]), "claude-code", "thinking", "Hm"),
        (line("assistant", [{"type": "tool_use", "name": "Bash", "input": {}}]), "claude-code", "tool_call", "Bash"),
        (line(content=[{"type": "tool_result", "content": "ok"}]), "claude-code", "tool_result", "ok"),
        (
            line(content=[{"type": "tool_result", "content": [{"type": "text", "text": "a"}, {"text": "b"}]}]),
            "claude-code",
            "tool_result",
            "a\nb",
        ),
        (line(content=[{"type": "image", "source": {"data": "…"}}]), "claude-code", "attachment", ""),
        (line("system", message=None) | {"content": "Compacted"}, "claude-code", "system_message", "Compacted"),
        (line("assistant", "Done", isSidechain=True), "claude-code-subagent", "assistant_message", "Done"),
        (line(content="a\0b"), "user", "user_prompt", "a\ufffdb"),
        (line(content="x" * 70_000), "user", "user_prompt", "x" * 65_535 + "…"),
    ],
)
def test_a_line_tells_an_event(given: Any, agent: str, event_type: str, message: str) -> None:
    [event] = told(given).events()
    assert (event.agent, event.event_type, event.message) == (agent, event_type, message)
    assert event.timestamp == datetime(2025, 6, 14, 12, tzinfo=UTC)


def test_a_tool_call_keeps_its_name_and_input() -> None:
    block = {"type": "tool_use", "id": "t1", "name": "Edit", "input": {"file": "a.py"}}
    [event] = told(line("assistant", [block], requestId="r1")).events()
    expected = {"session_id": "s1", "uuid": "u1", "tool_name": "Edit", "tool_use_id": "t1", "input": {"file": "a.py"}}
    assert json.loads(bytes(event.data)) == expected
    assert event.correlation_id == "r1"


def test_a_tool_that_failed_is_an_error() -> None:
    [event] = told(line(content=[{"type": "tool_result", "content": "no", "is_error": True}])).events()
    assert event.level == "error"


def test_input_that_is_too_large_for_an_event_is_named_and_left_out() -> None:
    block = {"type": "tool_use", "id": "t1", "name": "Write", "input": {"content": "x" * 300_000}}
    [event] = told(line("assistant", [block])).events()
    data = json.loads(bytes(event.data))
    assert data["omitted"] == ["input"]
    assert data["tool_name"] == "Write"


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"{", "it is not JSON"),
        (b'{"type": "user", "sessionId": "\xff"}', "it is not JSON"),
        (b'{"deep": ' + b"[" * 100_000, "it is not JSON"),
        (b"42", "Expected `object`, got `int`"),
        (b'{"silly": "this"}', "missing required field `type`"),
        (b'{"type": 5}', "at `$.type`"),
        (json.dumps(line(timestamp=None)).encode(), "missing required field `timestamp`"),
        (json.dumps(line(timestamp="yesterday")).encode(), "at `$.timestamp`"),
        (json.dumps(line(timestamp="2025-06-14T12:00:00")).encode(), "at `$.timestamp`"),
        (json.dumps(line(timestamp="0001-01-01T00:00:00+05:00")).encode(), "timestamp is outside the calendar"),
        (json.dumps(line(sessionId=None)).encode(), "missing required field `sessionId`"),
        (json.dumps(line(sessionId="")).encode(), "at `$.sessionId`"),
        (json.dumps(line(message=None)).encode(), "missing required field `message`"),
        (json.dumps(line(message="error")).encode(), "at `$.message`"),
        (json.dumps(line(content=["wow"])).encode(), "at `$.message.content"),
        (json.dumps(answer("m", "r", -1)).encode(), "at `$.message.usage.output_tokens`"),
        (json.dumps(answer("m", "r", 10**16)).encode(), "at `$.message.usage.output_tokens`"),
    ],
)
def test_a_line_that_cannot_be_read_says_why(raw: bytes, reason: str) -> None:
    with pytest.raises(Malformed, match=re.escape(reason)):
        claude_code.parse(raw)


@pytest.mark.parametrize(
    "given",
    [
        {"type": "summary", "summary": "All went well", "leafUuid": "u1"},
        {"type": "file-history-snapshot", "timestamp": 5, "message": "of another shape"},
        line("progress"),
        line("system", message=None, subtype="turn_duration", durationMs=5),
    ],
)
def test_lines_that_carry_no_part_of_the_conversation_tell_nothing(given: Any) -> None:
    assert claude_code.parse(json.dumps(given).encode()) is None


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        (rb"a\u0000\u0000b", "a\ufffd\ufffdb"),
        (rb"cut \ud83d", "cut \ufffd"),
        (rb"cut \uDE00 \uD83D\n", "cut \ufffd \ufffd\n"),
        (rb"whole \ud83d\ude00", "whole \U0001f600"),
        (rb"\\u0000 \\\u0000 \\ud83d", "\\u0000 \\\ufffd \\ud83d"),
    ],
)
def test_what_no_database_keeps_is_replaced(written: bytes, kept: str) -> None:
    raw = json.dumps(line("assistant", [{"type": "tool_use", "name": "?", "input": {"?": "?"}}])).encode()
    found = claude_code.parse(raw.replace(b"?", written))
    assert found is not None
    [event] = found.events()
    assert event.message == kept
    assert json.loads(bytes(event.data))["input"] == {kept: kept}


def test_a_line_has_the_same_id_with_and_without_its_end() -> None:
    raw = json.dumps(line()).encode()
    one, other = claude_code.parse(raw), claude_code.parse(raw + b"\r\n")
    assert one is not None
    assert other is not None
    assert one.events()[0].id == other.events()[0].id


def test_cache_writes_of_both_lifetimes_count_even_where_the_total_says_less() -> None:
    given = answer("m1", "r1", 5)
    split = {"ephemeral_5m_input_tokens": 30, "ephemeral_1h_input_tokens": 12}
    given["message"]["usage"] |= {"cache_read_input_tokens": 7, "cache_creation": split}
    request = told(given).request()
    assert request is not None
    counts = (request.usage.input_tokens, request.usage.cache_read_tokens, request.usage.cache_creation_tokens)
    assert counts == (10, 7, 42)


def test_messages_that_no_model_wrote_use_nothing() -> None:
    given = answer("m1", "r1", 5)
    given["message"]["model"] = "<synthetic>"
    assert told(given).request() is None


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
    before = dump(ledger.settings.database_path)
    again = take_in(ledger, *files)
    assert (again.new_events, again.known_events, again.new_records, again.grown_records) == (0, 26, 0, 0)
    assert dump(ledger.settings.database_path) == before


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
    assert rows(ledger.settings.database_path, "SELECT SUM(output_tokens) FROM usage_by_day") == [(11,)]


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


def test_short_sessions_are_stored_together(ledger: Ledger, tmp_path: Path) -> None:
    files = [write(tmp_path / f"{n}.jsonl", line(sessionId=f"s{n}"), answer(f"m{n}", "r", 5)) for n in range(9)]
    assert len(take_in(ledger, *files).workflows) == 9
    assert ledger.writer.commits == 1


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
