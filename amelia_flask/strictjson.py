"""JSON taken at its strictest: what two readers could understand differently, or could not keep, is refused.

RFC 8259 leaves open what to do with repeated names, huge numbers, deep nesting and lone surrogates; I-JSON (RFC
7493) forbids most of them. Here all of them are refused, together with NUL, which PostgreSQL cannot store.
"""

import json
import re
from collections.abc import Iterator
from math import isinf
from typing import Any, NoReturn, TypeVar

import msgspec

from amelia_flask.errors import AmeliaError, MalformedJson, ValidationError, invalid

MAX_DEPTH = 64
MAX_DIGITS = 1000
LARGEST_INTEGER = 2**63 - 1
SMALLEST_INTEGER = -(2**63)

T = TypeVar("T")
Loc = list[str | int]

_SUSPECT_ESCAPE = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")
_PLACE = re.compile(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]")


class _Suspect(Exception):
    """Something to be looked up by a walk through the whole value."""


def parse(raw: bytes) -> Any:
    """The value that `raw` holds. Raises MalformedJson, or ValidationError for an integer outside 64 bits."""
    try:
        text = raw.decode()
        value = _decoder.decode(text)
    except UnicodeDecodeError:
        raise MalformedJson("The body is not UTF-8.") from None
    except RecursionError:
        raise MalformedJson(f"The body is nested more than {MAX_DEPTH} deep.") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise MalformedJson(f"The body is not JSON: {error.msg} ({where}).") from None
    except _Suspect:
        _refuse_integer(json.loads(raw))
    if text.count("{") + text.count("[") > MAX_DEPTH or _SUSPECT_ESCAPE.search(text):
        _refuse_depth_and_text(value)
    return value


def decode(raw: bytes, decoder: "msgspec.json.Decoder[T]") -> T:
    """`raw` as the decoder's type. Raises MalformedJson, or a ValidationError that names the member."""
    value = parse(raw)
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise explain(error, value, ["body"]) from None
    except msgspec.DecodeError:
        raise MalformedJson from None


def decode_lines(raw: bytes, decoder: "msgspec.json.Decoder[T]", limit: int) -> list[T]:
    """Each non-blank line as the decoder's type; errors name the line, counted from 0 as in a JSON array."""
    lines = [line for line in raw.split(b"\n") if line.strip()]
    if not 1 <= len(lines) <= limit:
        raise invalid(["body"], f"Expected 1 to {limit} lines, got {len(lines)}", kind="too_many")
    return [_decode_line(index, line, decoder) for index, line in enumerate(lines)]


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


def _decode_line(index: int, line: bytes, decoder: "msgspec.json.Decoder[T]") -> T:
    try:
        return decode(line, decoder)
    except MalformedJson as error:
        raise MalformedJson(f"Line {index + 1}: {error.message}") from None
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
    """An input is quoted whole only while it is short."""
    text = json.dumps(value)
    return value if len(text) <= 200 else f"{text[:200]}…"


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise MalformedJson("An object names the same member twice.")
    return members


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise MalformedJson(f"An integer has more than {MAX_DIGITS} digits.")
    number = int(text)
    if not SMALLEST_INTEGER <= number <= LARGEST_INTEGER:
        raise _Suspect
    return number


def _float(text: str) -> float:
    number = float(text)
    if isinf(number):
        raise MalformedJson("A number is too large.")
    return number


def _constant(name: str) -> NoReturn:
    raise MalformedJson(f"{name} is not JSON.")


_decoder = json.JSONDecoder(
    object_pairs_hook=_no_repeats, parse_int=_integer, parse_float=_float, parse_constant=_constant
)


def _walk(value: Any) -> Iterator[tuple[Loc, Any]]:
    """Every value inside `value`, names of members included, each with the way to it."""
    pending: list[tuple[Loc, Any]] = [([], value)]
    while pending:
        loc, value = pending.pop()
        yield loc, value
        if isinstance(value, dict):
            for name, member in value.items():
                yield [*loc, name], name
                pending.append(([*loc, name], member))
        elif isinstance(value, list):
            pending += [([*loc, index], member) for index, member in enumerate(value)]


def _refuse_integer(value: Any) -> NoReturn:
    for loc, found in _walk(value):
        if isinstance(found, int) and not SMALLEST_INTEGER <= found <= LARGEST_INTEGER:
            raise invalid(["body", *loc], "The integer does not fit into 64 bits", _shorten(found))
    raise AmeliaError


def _refuse_depth_and_text(value: Any) -> None:
    for loc, found in _walk(value):
        if len(loc) >= MAX_DEPTH and isinstance(found, dict | list):
            raise MalformedJson(f"The body is nested more than {MAX_DEPTH} deep.")
        if isinstance(found, str) and not storable(found):
            raise MalformedJson("A string holds NUL or a lone surrogate.")


def storable(text: str) -> bool:
    """Whether every database keeps `text` as it is: no NUL, no lone surrogate."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)
