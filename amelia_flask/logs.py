"""Log lines: one line for each thing that happened, as text or as JSON, which nobody can forge or garble.

Whoever wrote a message, and whatever stands in it: control characters are escaped when the line is formed.
"""

import json
import logging
import re
import traceback
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

Format = Literal["text", "json"]

# Of the request that this thread works for; it stands in every line that is logged meanwhile.
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

# Control characters, line separators, what turns the direction of writing or cannot be seen, and halves of pairs.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)


def config(level: str, form: Format) -> dict[str, Any]:
    """What `logging.config.dictConfig` and gunicorn take: everything to standard error in one form."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": JsonLines if form == "json" else TextLines}},
        "handlers": {
            "error_stream": {"class": "logging.StreamHandler", "stream": "ext://sys.stderr", "formatter": "line"}
        },
        "root": {"level": level.upper(), "handlers": ["error_stream"]},
        "loggers": {"gunicorn.error": {"level": level.upper(), "propagate": True, "handlers": []}},
    }


def escaped(text: str) -> str:
    """The text with everything escaped, as Python writes it, that could forge or garble a line."""
    return _UNSAFE.sub(lambda match: ascii(match[0])[1:-1], text)


class TextLines(logging.Formatter):
    """Time, process, level, logger, message and request id; the lines of a traceback follow, each set in."""

    def format(self, record: logging.LogRecord) -> str:
        """Called by the handler."""
        told = [f"    {escaped(line)}" for line in _traceback(record).split("\n") if line]
        return "\n".join([" ".join(_parts(record)), *told])


class JsonLines(logging.Formatter):
    """One object a line: time, level, logger, message, pid; request_id and exception where there are such.

    A line about a request has its method, path, status and milliseconds as members too.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Called by the handler."""
        members: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
            "pid": record.process,
        }
        if (request := request_id.get()) is not None:
            members["request_id"] = request
        members |= _members(record)
        if told := _traceback(record):
            members["exception"] = told
        # ASCII alone, so that no reader of lines finds a character to break them at.
        return json.dumps(members)


def _parts(record: logging.LogRecord) -> list[str]:
    """The parts of a line of text. The message about a request has its id already."""
    process = f"[{record.process}]"
    head = [_time(record), process, record.levelname, f"{escaped(record.name)}:", escaped(_message(record))]
    request = request_id.get()
    return head if request is None or _members(record) else [*head, request]


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC).replace(tzinfo=None)
    return f"{moment.isoformat(timespec='milliseconds')}Z"


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # a line that was written wrongly is still a line
        return f"{record.msg!r} {record.args!r}"


def _members(record: logging.LogRecord) -> Mapping[str, Any]:
    """What the writer of the line gave as `extra={"members": {…}}`."""
    members: Mapping[str, Any] = getattr(record, "members", {})
    return members


def _traceback(record: logging.LogRecord) -> str:
    fault = record.exc_info[1] if record.exc_info else None
    return "".join(traceback.format_exception(fault)).rstrip("\n") if fault is not None else ""
