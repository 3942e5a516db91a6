"""Claude Code transcripts: what a line tells."""

import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest

from amelia_flask.intake import claude_code
from amelia_flask.intake.transcripts import Malformed, Told
from tests.transcripts import answer, line


def told(given: Any) -> Told:
    """What a line tells, which is something."""
    found = claude_code.parse(json.dumps(given).encode())
    assert found is not None
    return found


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
