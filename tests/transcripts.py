"""Lines of Claude Code transcripts made from keyword arguments, and files of them."""

import json
from pathlib import Path
from typing import Any


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


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    return path
