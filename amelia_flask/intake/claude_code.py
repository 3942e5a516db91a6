"""Claude Code transcripts: one line of a file in, what it tells out. Pure.

The format is internal to Claude Code and changes with its versions. A line is a JSON object with `type`,
`timestamp`, `sessionId`, `cwd` and a `message` as the Anthropic API has it; lines of types other than user, assistant
and system carry no part of the conversation. One answer of a model spans several lines, which repeat its `usage`.
"""

import hashlib
from datetime import datetime
from typing import Any

import msgspec

from amelia_flask import clock
from amelia_flask.events import NewEvent
from amelia_flask.fields import Moment
from amelia_flask.intake.transcripts import Malformed, Request, Told, clipped_data, clipped_text
from amelia_flask.strictjson import canonical
from amelia_flask.usage import LARGEST_COST, LARGEST_COUNT, NewUsage

SOURCE = "claude-code"
MAIN, SUBAGENT, USER = "claude-code", "claude-code-subagent", "user"
SYNTHETIC = "<synthetic>"  # stands for a model in messages that none wrote

_TYPES = {
    "thinking": "thinking",
    "redacted_thinking": "thinking",
    "tool_use": "tool_call",
    "server_tool_use": "tool_call",
    "tool_result": "tool_result",
    "web_search_tool_result": "tool_result",
}
_SYSTEM_LEVELS = {"warning": "warning", "error": "error"}


def parse(raw: bytes) -> Told | None:
    """What a line tells; None where it is of a type that tells nothing. Raises Malformed."""
    line = _object(raw)
    kind = _text(line, "type")
    if kind not in ("user", "assistant", "system"):
        return None
    moment = _moment(line)
    session = _text(line, "sessionId")
    blocks = _blocks(line)
    line_id = _digest(canonical(line))
    return Told(
        session=session,
        directory=line.get("cwd") if isinstance(line.get("cwd"), str) else None,
        moment=moment,
        events=[_event(line, block, moment, f"{SOURCE}:{line_id}:{n}") for n, block in enumerate(blocks)],
        request=_request(line, moment, line_id) if kind == "assistant" else None,
    )


def _object(raw: bytes) -> dict[str, Any]:
    try:
        line = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Malformed("it is not JSON") from None
    if not isinstance(line, dict):
        raise Malformed("it is not an object")
    kept: dict[str, Any] = _without_nul(line) if b"\\u0000" in raw else line
    return kept


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:40]


def _without_nul(value: Any) -> Any:
    """NUL, which no database of ours keeps, as the replacement character."""
    if isinstance(value, str):
        return value.replace("\0", "\ufffd")
    if isinstance(value, list):
        return [_without_nul(one) for one in value]
    if isinstance(value, dict):
        return {_without_nul(name): _without_nul(one) for name, one in value.items()}
    return value


def _text(line: dict[str, Any], name: str) -> str:
    value = line.get(name)
    if not isinstance(value, str) or not value:
        raise Malformed(f"it has no {name}")
    return value


def _moment(line: dict[str, Any]) -> datetime:
    try:
        moment = msgspec.convert(_text(line, "timestamp"), Moment)
        clock.to_text(moment)
    except (msgspec.ValidationError, OverflowError):
        raise Malformed("its timestamp is no time with an offset") from None
    return moment


def _blocks(line: dict[str, Any]) -> list[dict[str, Any]]:
    """The parts of a message; plain text is one part."""
    message = line if line["type"] == "system" else line.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise Malformed("its message has no content that can be read")
    return content


def _event(line: dict[str, Any], block: dict[str, Any], moment: datetime, event_id: str) -> NewEvent:
    event_type = _event_type(line, block)
    message = {"tool_call": str(block.get("name")), "tool_result": _result(block)}.get(event_type) or _said(block)
    data = {
        "session_id": line["sessionId"],
        "uuid": line.get("uuid"),
        "agent_id": line.get("agentId"),
        "tool_name": block.get("name"),
        "tool_use_id": block.get("id") or block.get("tool_use_id"),
        "input": block.get("input"),
        "content_type": None if event_type != "attachment" else block.get("type"),
    }
    request_id = line.get("requestId")
    return NewEvent(
        agent=_agent(line, event_type),
        event_type=event_type,
        message=clipped_text(message),
        level=_level(line, block),
        data=clipped_data(data),
        correlation_id=request_id[:200] if isinstance(request_id, str) and request_id else None,
        timestamp=moment,
        id=event_id,
    )


def _event_type(line: dict[str, Any], block: dict[str, Any]) -> str:
    if block.get("type") == "text":
        return {"user": "user_prompt", "assistant": "assistant_message"}.get(line["type"], "system_message")
    return _TYPES.get(str(block.get("type")), "attachment")


def _agent(line: dict[str, Any], event_type: str) -> str:
    if line.get("isSidechain") is True:
        return SUBAGENT
    return USER if event_type == "user_prompt" else MAIN


def _level(line: dict[str, Any], block: dict[str, Any]) -> Any:
    if block.get("is_error") is True:
        return "error"
    return _SYSTEM_LEVELS.get(str(line.get("level")), "info")


def _said(block: dict[str, Any]) -> str:
    return str(block.get("text") or block.get("thinking") or "")


def _result(block: dict[str, Any]) -> str:
    """The text of what a tool gave back, which is text or parts of which some are."""
    content = block.get("content")
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _request(line: dict[str, Any], moment: datetime, line_id: str) -> Request | None:
    """What the request used that a line of its answer repeats; the input is without the cache already."""
    message = line["message"]
    used, model = message.get("usage"), message.get("model")
    if not isinstance(used, dict) or not isinstance(model, str) or not model or model == SYNTHETIC:
        return None
    message_id, request_id = message.get("id"), line.get("requestId")
    key = f"{message_id}:{request_id}" if isinstance(message_id, str) and message_id else line_id
    usage = NewUsage(
        agent=_agent(line, "assistant_message"),
        model=model[:200],
        input_tokens=_count(used.get("input_tokens")),
        output_tokens=_count(used.get("output_tokens")),
        cache_read_tokens=_count(used.get("cache_read_input_tokens")),
        cache_creation_tokens=_written(used),
        cost_usd=_cost(line.get("costUSD")),
        request_id=request_id[:200] if isinstance(request_id, str) and request_id else None,
        timestamp=moment,
        id=f"{SOURCE}:{_digest(key.encode())}",
    )
    return Request(str(message_id or line_id), line.get("isSidechain") is True, usage)


def _written(used: dict[str, Any]) -> int:
    """Cache writes: the total, or its split by lifetime where that says more."""
    split = used.get("cache_creation")
    parts = sum(_count(one) for one in split.values()) if isinstance(split, dict) else 0
    return max(_count(used.get("cache_creation_input_tokens")), parts)


def _count(value: Any) -> int:
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST_COUNT:
        raise Malformed("its usage holds a count that is none")
    return value


def _cost(value: Any) -> float | None:
    """Older versions wrote what the request cost."""
    is_cost = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= LARGEST_COST
    return float(value) if is_cost else None
