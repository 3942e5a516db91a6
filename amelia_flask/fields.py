"""The kinds of values that requests and answers share, each with its bounds, as msgspec types."""

import re
from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta, Raw

from amelia_flask import clock

MAX_OBJECT_BYTES = 262_144

# A check of a whole struct names the member at fault first, in backquotes: `strictjson.explain` reads it.

# "$(?!\n)" where "$" alone would let a trailing line feed pass; messages leave it out.
Id = Annotated[
    str, Meta(min_length=1, max_length=128, pattern=r"^[\x21-\x7e]+$(?!\n)", description="1-128 visible characters.")
]
# Kept as the bytes that came; absent and null are the same.
JsonObject = Annotated[
    Raw,
    Meta(
        extra_json_schema={"type": ["object", "null"]},
        description=f"A JSON object of at most {MAX_OBJECT_BYTES} bytes.",
    ),
]
_NULL = b"null"
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")  # category Cc of Unicode


def no_object() -> Raw:
    """The default of a member that holds an object."""
    return Raw(_NULL)


Moment = Annotated[datetime, Meta(tz=True, description="RFC 3339 with an offset; kept in UTC.")]
Timestamp = Annotated[
    str, Meta(extra_json_schema={"format": "date-time"}, description="RFC 3339 in UTC with microseconds.")
]


def check_object(name: str, raw: Raw) -> Raw:
    """`raw` itself, or without its white space where it would be too long with it.

    Raises ValueError unless it is null or an object of at most MAX_OBJECT_BYTES bytes.
    """
    text = bytes(raw)
    if text == _NULL:
        return raw
    if not text.startswith(b"{"):
        raise ValueError(f"`{name}`: Expected an object")
    if len(text) > MAX_OBJECT_BYTES:
        text = msgspec.json.format(text, indent=-1)
        if len(text) > MAX_OBJECT_BYTES:
            raise ValueError(f"`{name}`: Expected an object of at most {MAX_OBJECT_BYTES} bytes as JSON")
    return Raw(text)


def object_to_text(raw: Raw) -> str | None:
    """The object as a column keeps it: its text, or None."""
    text = bytes(raw)
    return None if text == _NULL else text.decode()


def object_from_text(text: str | None) -> Raw:
    """What `object_to_text` kept, as a member of an answer."""
    return Raw(_NULL) if text is None else Raw(text)


def check_moment(name: str, moment: datetime | None) -> None:
    """Raises ValueError for a time that leaves the calendar when it is converted to UTC."""
    if moment is not None:
        try:
            clock.to_text(moment)
        except OverflowError:
            raise ValueError(f"`{name}`: The time is outside the calendar in UTC") from None


def check_text(name: str, text: str) -> None:
    """Raises ValueError for control characters, which a name or a path never needs."""
    if _CONTROL.search(text):
        raise ValueError(f"`{name}`: Expected no control characters")
