"""Claude Code transcripts: one line of a file in, what it tells out. Pure.

The format is internal to Claude Code and changes with its versions. A line is a JSON object with `type`,
`timestamp`, `sessionId`, `cwd` and a `message` as the Anthropic API has it; lines of types other than user, assistant
and system carry no part of the conversation. One answer of a model spans several lines, which repeat its `usage`.
Only the members declared here are decoded.
"""

import hashlib
import re
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from amelia_flask.events import Level, NewEvent
from amelia_flask.fields import Moment
from amelia_flask.intake.transcripts import Malformed, Request, Told, clipped_data, clipped_text
from amelia_flask.usage import LARGEST_COST, Count, NewUsage

SOURCE = "claude-code"
MAIN, SUBAGENT, USER = "claude-code", "claude-code-subagent", "user"
_NO_MODEL = (None, "", "<synthetic>")  # the last stands in messages that no model wrote

_CONVERSATION = ("user", "assistant", "system")
_TEXTS = {"user": "user_prompt", "assistant": "assistant_message", "system": "system_message"}
_TYPES = {
    "thinking": "thinking",
    "redacted_thinking": "thinking",
    "tool_use": "tool_call",
    "server_tool_use": "tool_call",
    "tool_result": "tool_result",
    "web_search_tool_result": "tool_result",
}
_LEVELS: dict[str, Level] = {"warning": "warning", "error": "error"}

# What JavaScript writes for NUL and for half of a character that was cut: no database keeps them. A pair of halves,
# and a backslash that is escaped itself, stay as they are.
_SUSPECT = re.compile(rb"\\u(?:0000|[dD])")
_UNSTORABLE = re.compile(rb"(\\\\|\\ud[89ab]..\\ud[c-f]..)|\\u(?:0000|d[89a-f]..)", re.IGNORECASE)


class _Block(Struct):
    """A part of a message. A tool's result is text, or parts of which some are."""

    type: str = ""
    text: str | None = None
    thinking: str | None = None
    name: str | None = None
    id: str | None = None
    tool_use_id: str | None = None
    input: Any = None
    content: Any = None
    is_error: bool | None = None


class _Written(Struct):
    ephemeral_5m_input_tokens: Count | None = None
    ephemeral_1h_input_tokens: Count | None = None


class _Usage(Struct):
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    cache_read_input_tokens: Count | None = None
    cache_creation_input_tokens: Count | None = None
    cache_creation: _Written | None = None


class _Message(Struct):
    content: str | list[_Block]
    id: str | None = None
    model: str | None = None
    usage: _Usage | None = None


class _Kind(Struct):
    type: str


class _Line(Struct, rename="camel"):
    type: str
    timestamp: Moment
    session_id: Annotated[str, Meta(min_length=1)]
    cwd: str | None = None
    uuid: str | None = None
    agent_id: str | None = None
    request_id: str | None = None
    is_sidechain: bool | None = None
    level: str | None = None
    message: _Message | None = None
    content: str | list[_Block] | None = None  # of type system, which has no message
    cost_usd: Any = msgspec.field(default=None, name="costUSD")

    def __post_init__(self) -> None:
        if self.type in ("user", "assistant") and self.message is None:
            raise ValueError("Object missing required field `message`")


_line = msgspec.json.Decoder(_Line)
_kind = msgspec.json.Decoder(_Kind)


def parse(raw: bytes) -> Told | None:
    """What a line tells; None where it is of a type that tells nothing. Raises Malformed."""
    raw = _storable(raw.strip())
    line = _decoded(raw)
    content = None if line is None else line.message.content if line.message else line.content
    if line is None or content is None:
        return None
    blocks = [_Block("text", content)] if isinstance(content, str) else content
    moment = _in_utc(line.timestamp)
    return Told(
        session=line.session_id,
        directory=line.cwd,
        moment=moment,
        request=partial(_request, line, moment, raw),
        events=partial(_events, line, blocks, moment, raw),
    )


def _storable(raw: bytes) -> bytes:
    """The line with the replacement character for what cannot be stored."""
    if _SUSPECT.search(raw):
        return _UNSTORABLE.sub(lambda found: found[1] or b"\\ufffd", raw)
    return raw


def _decoded(raw: bytes) -> _Line | None:
    try:
        line = _line.decode(raw)
    except msgspec.ValidationError as error:
        if _type(raw) in _CONVERSATION:
            raise Malformed(str(error)) from None
        return None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Malformed("it is not JSON") from None
    return line if line.type in _CONVERSATION else None


def _type(raw: bytes) -> str:
    try:
        return _kind.decode(raw).type
    except msgspec.ValidationError as error:
        raise Malformed(str(error)) from None


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise Malformed("its timestamp is outside the calendar in UTC") from None


def _id(moment: datetime, raw: bytes) -> str:
    """The same for the same line, and rising with time, so that the index of the ids grows mostly at its end."""
    return f"{int(moment.timestamp() * 1000):011x}{hashlib.sha256(raw).hexdigest()[:32]}"


def _events(line: _Line, blocks: list[_Block], moment: datetime, raw: bytes) -> list[NewEvent]:
    line_id = _id(moment, raw)
    return [_event(line, block, moment, f"{SOURCE}:{line_id}:{n}") for n, block in enumerate(blocks)]


def _event(line: _Line, block: _Block, moment: datetime, event_id: str) -> NewEvent:
    event_type = _TEXTS[line.type] if block.type == "text" else _TYPES.get(block.type, "attachment")
    message = {"tool_call": block.name, "tool_result": _result(block.content)}.get(event_type) or _said(block)
    data = {
        "session_id": line.session_id,
        "uuid": line.uuid,
        "agent_id": line.agent_id,
        "tool_name": block.name,
        "tool_use_id": block.id or block.tool_use_id,
        "input": block.input,
        "content_type": block.type if event_type == "attachment" else None,
    }
    return NewEvent(
        agent=_agent(line, event_type),
        event_type=event_type,
        message=clipped_text(message),
        level="error" if block.is_error else _LEVELS.get(line.level or "", "info"),
        data=clipped_data(data),
        correlation_id=(line.request_id or "")[:200] or None,
        timestamp=moment,
        id=event_id,
    )


def _agent(line: _Line, event_type: str) -> str:
    if line.is_sidechain:
        return SUBAGENT
    return USER if event_type == "user_prompt" else MAIN


def _said(block: _Block) -> str:
    return block.text or block.thinking or ""


def _result(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _request(line: _Line, moment: datetime, raw: bytes) -> Request | None:
    """What the request used that a line of its answer repeats; the input is without the cache already."""
    message = line.message
    if line.type != "assistant" or message is None or message.usage is None or message.model in _NO_MODEL:
        return None
    used = message.usage
    message_id = message.id or _id(moment, raw)
    key = f"{message_id}:{line.request_id}" if message.id else message_id
    usage = NewUsage(
        agent=_agent(line, "assistant_message"),
        model=str(message.model)[:200],
        input_tokens=used.input_tokens or 0,
        output_tokens=used.output_tokens or 0,
        cache_read_tokens=used.cache_read_input_tokens or 0,
        cache_creation_tokens=_written(used),
        cost_usd=_cost(line.cost_usd),
        request_id=(line.request_id or "")[:200] or None,
        timestamp=moment,
        id=f"{SOURCE}:{hashlib.sha256(key.encode()).hexdigest()[:40]}",
    )
    return Request(message_id, bool(line.is_sidechain), usage)


def _written(used: _Usage) -> int:
    """Cache writes: the total, or its split by lifetime where that says more."""
    split = used.cache_creation or _Written()
    parts = (split.ephemeral_5m_input_tokens or 0) + (split.ephemeral_1h_input_tokens or 0)
    return max(used.cache_creation_input_tokens or 0, parts)


def _cost(value: Any) -> float | None:
    """Older versions wrote what the request cost."""
    is_cost = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= LARGEST_COST
    return float(value) if is_cost else None
