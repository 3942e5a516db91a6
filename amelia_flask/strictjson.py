"""JSON taken at its strictest: what two readers could understand differently, or could not keep, is refused.

RFC 8259 leaves open what to do with repeated names, huge numbers, deep nesting and lone surrogates; I-JSON (RFC
7493) forbids most of them. Here all of them are refused, together with NUL, which PostgreSQL cannot store.
"""

import json
import re
from itertools import islice
from math import isinf
from typing import Any, NoReturn, TypeVar

import msgspec

from amelia_flask.errors import MalformedJson, ValidationError, invalid

MAX_DEPTH = 64
MAX_DIGITS = 1000
LARGEST_INTEGER = 2**63 - 1
SMALLEST_INTEGER = -(2**63)
LONGEST_QUOTE = 200

T = TypeVar("T")
Loc = list[str | int]

_ALL_BUT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
# In text that is JSON and whose escaped backslashes have been taken out.
_UNSTORABLE_ESCAPE = re.compile(r"\\u(?:0000|d[89ab]..(?!\\ud[c-f])|(?<!\\ud[89ab]..\\u)d[c-f])", re.IGNORECASE)
# An integer that may not fit into 64 bits, once all digits are zeros; what is as deep as may be, in indented JSON.
_LONG_INTEGER, _DIGITS = b"0" * 19, bytes.maketrans(b"123456789", b"0" * 9)
_TOO_DEEP = b"\n" + b" " * MAX_DEPTH
_PLACE = re.compile(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]")


class _LargeInteger(Exception):
    """An integer outside 64 bits, still to be found."""


def parse(raw: bytes) -> Any:
    """The value that `raw` holds. Raises MalformedJson, or ValidationError for an integer outside 64 bits."""
    try:
        text = raw.decode()
        value = _parse(text)
    except UnicodeDecodeError:
        raise MalformedJson("The body is not UTF-8.") from None
    except RecursionError:
        raise _too_deep() from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise MalformedJson(f"The body is not JSON: {error.msg} ({where}).") from None
    if _is_too_deep(raw):
        raise _too_deep()
    if _UNSTORABLE_ESCAPE.search(text.replace(r"\\", "  ")):
        raise MalformedJson("A string holds NUL or a lone surrogate.")
    return value


def decode(raw: bytes, decoder: "msgspec.json.Decoder[T]") -> T:
    """`raw` as the decoder's type. Raises MalformedJson, or a ValidationError that names the member."""
    value = None if _is_plain(raw) else parse(raw)
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise explain(error, parse(raw) if value is None else value, ["body"]) from None
    except msgspec.DecodeError:
        raise MalformedJson from None


def decode_lines(raw: bytes, decoder: "msgspec.json.Decoder[T]", limit: int) -> list[T]:
    """Each line that is not blank as the decoder's type.

    Errors name the line: malformed ones by their number in the file, in a `loc` as the index that the record has
    among the others, as in a JSON array.
    """
    lines = [(number, line) for number, line in enumerate(raw.split(b"\n"), 1) if line.strip()]
    if not 1 <= len(lines) <= limit:
        raise invalid(["body"], f"Expected 1 to {limit} lines, got {len(lines)}", kind="too_many")
    return [_decode_line(index, number, line, decoder) for index, (number, line) in enumerate(lines)]


def canonical(value: Any) -> bytes:
    """The same bytes for the same value, whatever the order of its members: for comparing and for digests."""
    return msgspec.json.encode(value, order="sorted")


def explain(error: msgspec.ValidationError, value: Any, root: Loc) -> ValidationError:
    """msgspec's first complaint as a ValidationError whose `loc` leads to the member."""
    message, _, place = str(error).partition(" - at `$")
    loc: Loc = [
        name or (int(index) if index.isdigit() else index) for name, index in _PLACE.findall(place.rstrip("`"))
    ]
    kind, loc, message = _kind(message, loc)
    return invalid([*root, *loc], message, _shorten(_at(value, loc)), kind)


def _decode_line(index: int, number: int, line: bytes, decoder: "msgspec.json.Decoder[T]") -> T:
    try:
        return decode(line, decoder)
    except MalformedJson as error:
        raise MalformedJson(f"Line {number}: {error.message}") from None
    except ValidationError as error:
        problem = error.detail[0]
        raise invalid(
            ["body", index, *problem["loc"][1:]], problem["msg"], problem["input"], problem["type"]
        ) from None


def _kind(message: str, loc: Loc) -> tuple[str, Loc, str]:
    missing = re.fullmatch(r"Object missing required field `(.+)`", message)
    if missing:
        return "missing", [*loc, missing[1]], "This member is required"
    check = re.fullmatch(r"`(\w+)`: (.+)", message, re.DOTALL)
    if check:
        return "value_error", [*loc, check[1]], check[2]
    unknown = re.fullmatch(r"Object contains unknown field `(.+)`", message, re.DOTALL)
    if unknown:
        return "extra_forbidden", [*loc, unknown[1][:100]], "There is no such member here"
    pattern = re.fullmatch(r"Expected `str` matching regex '(.+)\(\?!\\\\n\)'", message)
    if pattern:
        return "value_error", loc, f"Expected text that matches {pattern[1]}".replace("\\\\", "\\")
    return ("type_error" if ", got `" in message else "value_error"), loc, message


def _at(value: Any, loc: Loc) -> Any:
    for step in loc:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def _shorten(value: Any) -> Any:
    """An input is quoted whole only while it is short; a long one is not written out to its end."""
    text = "".join(islice(json.JSONEncoder().iterencode(value), LONGEST_QUOTE + 1))
    return value if len(text) <= LONGEST_QUOTE else f"{text[:LONGEST_QUOTE]}…"


def _parse(text: str) -> Any:
    try:
        return _decoder.decode(text)
    except _LargeInteger:
        value = _unbounded_decoder.decode(text)
    way = _way_to_large_integer(value) or []
    raise invalid(["body", *way], "The integer does not fit into 64 bits", _shorten(_at(value, way)))


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise MalformedJson("An object names the same member twice.")
    return members


def _unbounded_integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise MalformedJson(f"An integer has more than {MAX_DIGITS} digits.")
    return int(text)


def _integer(text: str) -> int:
    number = _unbounded_integer(text)
    if _is_large(number):
        raise _LargeInteger
    return number


def _is_large(number: int) -> bool:
    return not SMALLEST_INTEGER <= number <= LARGEST_INTEGER


def _float(text: str) -> float:
    number = float(text)
    if isinf(number):
        raise MalformedJson("A number is too large.")
    return number


def _constant(name: str) -> NoReturn:
    raise MalformedJson(f"{name} is not JSON.")


_decoder, _unbounded_decoder = (
    json.JSONDecoder(object_pairs_hook=_no_repeats, parse_int=integer, parse_float=_float, parse_constant=_constant)
    for integer in (_integer, _unbounded_integer)
)


def _way_to_large_integer(value: Any) -> Loc | None:
    if isinstance(value, int):
        return [] if _is_large(value) else None
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, member in members:
        way = _way_to_large_integer(member)
        if way is not None:
            return [step, *way]
    return None


def _is_plain(raw: bytes) -> bool:
    """Whether `raw` passes without the closer look of `parse`, which takes twice as long: most bodies do.

    What is decoded and encoded again to the same bytes, but for white space, names no member twice, holds no number
    that is read as another, and is UTF-8. Long integers, NUL and nesting leave signs of their own.
    """
    if (b"\\" in raw and b"\\u" in raw) or _LONG_INTEGER in raw.translate(_DIGITS):
        return False
    try:
        again = msgspec.json.encode(msgspec.json.decode(raw))
        return again == msgspec.json.format(raw, indent=-1) and _TOO_DEEP not in msgspec.json.format(raw, indent=1)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError):
        return False


def _is_too_deep(raw: bytes) -> bool:
    """Whether JSON is nested too deep: what is left when its innermost brackets are taken off so often."""
    outside_strings = b"".join(raw.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"')[::2])
    brackets = outside_strings.translate(bytes.maketrans(b"{}", b"[]"), _ALL_BUT_BRACKETS)
    depth = 0
    while brackets and depth < MAX_DEPTH:
        brackets = brackets.replace(b"[]", b"")
        depth += 1
    return bool(brackets)


def _too_deep() -> MalformedJson:
    return MalformedJson(f"The body is nested more than {MAX_DEPTH} deep.")
