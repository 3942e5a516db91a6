"""Now, in UTC, as the text that is stored; and new time-ordered ids."""

import random
import threading
import time
from datetime import UTC, datetime, timedelta

_MILLISECOND = timedelta(milliseconds=1)
_lock = threading.Lock()
_last = 0


def now() -> datetime:
    """The present moment, aware, in UTC."""
    return datetime.now(UTC)


# Of all times that there are as text the first and the last.
FIRST, LAST = "0001-01-01T00:00:00.000000Z", "9999-12-31T23:59:59.999999Z"


def to_text(moment: datetime) -> str:
    """`YYYY-MM-DDTHH:MM:SS.ffffffZ`: sorts as text in the order of time. `moment` must be aware."""
    return f"{moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec='microseconds')}Z"


def from_text(text: str) -> datetime:
    """The moment that `to_text` wrote. Raises ValueError for anything else."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None or to_text(moment) != text:
        raise ValueError(f"{text!r} is not a time as it is stored")
    return moment


def milliseconds(start: str, end: datetime) -> int:
    """Whole milliseconds from a stored time to `end`; never below 0, whatever the clock did in between."""
    elapsed = (end - datetime.fromisoformat(start)) // _MILLISECOND
    return elapsed if elapsed > 0 else 0  # for each row of a list, where a call of max() would be felt


def new_id() -> str:
    """A UUIDv7 (RFC 9562, 5.7) that rises within a process, also when the clock steps back.

    48 bits of Unix milliseconds and 12 bits of their fraction (method 3 of section 6.2), then 62 random bits from a
    generator that the system seeds, anew in each process: an id is no secret.
    """
    global _last
    with _lock:
        _last = max(_last + 1, time.time_ns() * 4096 // 1_000_000)
        stamp = _last
    high = (stamp >> 12) << 16 | 0x7000 | stamp & 0xFFF
    digits = f"{high << 64 | 0b10 << 62 | random.getrandbits(62):032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
