"""Secrets are taken out of what agents tell, before any of it is stored or compared. Pure.

What is replaced is told by its name (`"password": …`) or by its shape (`ghp_…`), and the marker in its place says how
long it was. RULES is all there is to it; `_SUSPECT` only spares most texts from being looked at by every rule.
"""

import re
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from amelia_flask.fields import MAX_OBJECT_BYTES
from amelia_flask.strictjson import canonical

Record = TypeVar("Record", bound=Struct)

# The members of records that agents fill as they like, with the most characters or bytes that each may have.
TEXTS = {"message": 65_536, "reason": 65_536, "feedback": 1000}
OBJECTS = {"data": MAX_OBJECT_BYTES, "state": MAX_OBJECT_BYTES}

# A name is secret when it ends in one of these, whatever its case, and with or without `-`, `_` or nothing between.
NAMES = (
    *("authorization", "api_key", "access_key", "secret_key", "private_key"),
    *("token", "password", "passwd", "secret", "cookie", "cookies"),
)


class Rule(NamedTuple):
    """What is taken out of a text: the group `secret` of `pattern`, as it is in `example`."""

    name: str
    pattern: str
    example: str


# Every branch begins with a letter, not a set of them: the search goes by it, which is several times faster.
_BRANCHES = [(case(name[0]), name[1:].replace("_", "[-_ ]?")) for name in NAMES for case in (str.lower, str.upper)]
_NAME = "(?:" + "|".join(f"{first}(?i:{rest})" for first, rest in _BRANCHES) + r")\\{0,3}[\"']? *+"
_SCHEME = "(?i:basic|bearer|digest|negotiate|token)"
# In code these stand where a secret would, and are none.
_HARMLESS = r"(?!\$[A-Z({]|(?i:basic|bearer|false|nil|none|null|true|undefined)\b)"
_MARKED = r"\[redacted \d"
# Where a word without quotes ends.
_END = r"\s\"'`,;&<>(){}\[\]\\|"
_QUOTED = rf"(?:(?!\\{{0,3}}(?P=quote)|{_MARKED})[^\r\n])++"
_WORD = rf"{_HARMLESS}[^:=>{_END}][^{_END}]*+(?![(\[])"
# A known beginning counts only where a word begins; the look back comes after it, so that the search goes by it.
_SHAPE = r"(?P<secret>{0}(?<![\w-]{0}){1})"

# The order matters: a rule sees what those before it have left, and none takes a marker for a secret.
RULES = (
    Rule(
        "private key",
        r"(?P<secret>-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----(?:"
        r"(?:[^-\[]|-(?!----))*+-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|"
        r"(?:[\s\\nr]*+[A-Za-z0-9+/=]{40,}+)++(?:[\s\\nr]*+[A-Za-z0-9+/=]++)?))",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA7n2\n-----END RSA PRIVATE KEY-----",
    ),
    Rule(
        "cookie header",
        rf"[cC](?i:ookie): *+(?P<secret>[\w.-]++=(?:(?!{_MARKED})[^\r\n\"'\\])++)",
        "Set-Cookie: sid=31d4d96e407aad42; Path=/",
    ),
    Rule(
        "assignment",
        rf"{_NAME}[:=]=?+>?+(?: *+\\{{0,3}}(?P<quote>[\"'])|(?=\S)| ++(?=[^{_END}]{{6}})(?=[^\d{_END}]*+\d))"
        rf"(?P<secret>(?(quote){_QUOTED}|{_WORD}))",
        "GITHUB_TOKEN=kR3vT9",
    ),
    Rule(
        "authorization header",
        rf"[aA](?i:uthorization)[:=] *+{_SCHEME} ++(?P<secret>{_HARMLESS}[^\s\"'\\,;\[]++)",
        "Authorization: Basic dXNlcjpwYXNz",
    ),
    Rule(
        "password in a URL",
        r"://[^\s/:@?\#\"'<>]*+:(?P<secret>(?!\$[A-Z({])[^\s/@?\#\"'<>\[\]]++)@",
        "postgres://user:hunter2@db/app",
    ),
    Rule(
        "OpenAI, Anthropic and their like",
        _SHAPE.format("sk-", r"(?=[A-Za-z_-]*+\d|[A-Za-z0-9]{20})[\w-]{20,}+"),
        "sk-ant-api03-Zk3vT9Qm2LxW8aBc",
    ),
    Rule(
        "GitHub",
        r"(?P<secret>gh[opusr]_(?<![\w-]gh._)[A-Za-z0-9]{20,}+[\w-]*+)",
        "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
    ),
    Rule(
        "GitHub, fine-grained",
        _SHAPE.format("github_pat_", r"[\w-]{20,}+"),
        "github_pat_11ABCDEFG0abcdefghijkl_mnopqrstuvwxyz",
    ),
    Rule("GitLab", _SHAPE.format("glpat-", r"[\w-]{16,}+"), "glpat-Zk3vT9Qm2LxW8aBcDeFg"),
    Rule("Slack", r"(?P<secret>xox[abeprs]-(?<![\w-]xox.-)[\w-]{10,}+)", "xoxb-123456789012-Zk3vT9Qm2LxW"),
    Rule("AWS", r"(?P<secret>A[KS]IA(?<![\w-]A.IA)[A-Z0-9]{16}(?![\w-]))", "AKIAIOSFODNN7EXAMPLE"),
    Rule("Google, a key", _SHAPE.format("AIza", r"[\w-]{30,}+"), "AIzaSyD3vT9Qm2LxW8aBcDeFgHiJkLmNoPqRsTu"),
    Rule("Google, access", r"(?P<secret>ya29\.(?<![\w-]ya29\.)[\w.-]{16,}+)", "ya29.a0AfH6SMBx3vT9Qm2LxW8aBc"),
    Rule("Hugging Face", _SHAPE.format("hf_", r"[A-Za-z0-9]{20,}+[\w-]*+"), "hf_ZkvTQmLxWaBcDeFgHiJkLmNoPqRsTuVw"),
    Rule("npm", _SHAPE.format("npm_", r"[A-Za-z0-9]{20,}+[\w-]*+"), "npm_Zk3vT9Qm2LxW8aBcDeFgHiJkLmNoPqRsTu12"),
    Rule("PyPI", _SHAPE.format("pypi-AgE", r"[\w-]{16,}+"), "pypi-AgEIcHlwaS5vcmcCJDEyMzQ1Njc4"),
    Rule("this service", _SHAPE.format("amf_", r"[\w-]{40,}+"), "amf_Zk3vT9Qm2LxW8aBcDeFgHiJkLmNoPqRsTu12Zk3vT9Q"),
    Rule(
        "JSON Web Token",
        _SHAPE.format("eyJ", r"[\w-]{8,}+\.eyJ[\w-]{4,}+(?:\.[\w-]*+)*+"),
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiI0MiJ9.Zk3vT9Qm2LxW",
    ),
)
_PATTERNS = [re.compile(rule.pattern, re.ASCII) for rule in RULES]

# What may hold a secret, found in a microsecond: every branch begins with a letter that is rare, which is what the
# search goes by. In JSON an escape may hide anything.
_AFTER_NAME = r"[\"'\\\s]*+[:=]"
_SUSPECT = re.compile(
    "|".join(
        (
            *(rf"{k}(?:[eE][yYnN]|[iI][eE][sS]?)(?:{_AFTER_NAME}|--| BLOCK)" for k in "kK"),
            *(rf"{w}(?<=[sS]{w})(?:[oO][rR])?[dD]{_AFTER_NAME}" for w in "wW"),
            *(rf"{c}[rR][eE][tT]{_AFTER_NAME}" for c in "cC"),
            *(rf"{z}[aA][tT][iI][oO][nN]{_AFTER_NAME}" for z in "zZ"),
            r"_(?<=[fmoprstu]_)[A-Za-z0-9_-]{16}",
            r"-(?<=[kti]-)[A-Za-z0-9_-]{16}",
            *(r"A[KS]IA", r"AIza", r"J(?<=eyJ)", r"ya29\.", r"xox[a-z]-", "@", r"\\[u/]"),
        )
    ),
    re.ASCII,
)
_MARKER = re.compile(r"\[redacted \d+ characters\]")
_SEPARATORS = re.compile("[-_ ]")
_SECRET_NAMES = tuple(name.replace("_", "") for name in NAMES)


def may_hold_secret(text: str) -> bool:
    """Whether `text`, or JSON as text, needs a closer look. Far faster than that, and never wrong when it says no."""
    return _SUSPECT.search(text) is not None


def redact(record: Record) -> Record:
    """`record` itself, in which markers stand in place of secrets; it keeps its bounds.

    What would grow beyond them, because a marker is longer than what it replaces, becomes one marker as a whole.
    Done twice it changes nothing more.
    """
    for name, redact_member in _members(type(record)):
        found = getattr(record, name)
        kept = redact_member(found)
        if kept is not found:
            setattr(record, name, kept)
    return record


def redact_text(text: str, longest: int | None = None) -> str:
    """`text`, at most `longest` characters of it, with markers in place of secrets."""
    if not may_hold_secret(text):
        return text
    kept = text
    for pattern in _PATTERNS:
        kept = pattern.sub(_replace, kept)
    return kept if longest is None or len(kept) <= longest else marker(text)


def redact_json(text: str, longest: int | None = None) -> str:
    """The JSON in `text`, to the letter where it holds no secret, with markers in place of those it holds."""
    if not may_hold_secret(text):
        return text
    value = msgspec.json.decode(text)
    kept = redact_value(value)
    if kept == value:
        return text
    raw = msgspec.json.encode(kept)
    return raw.decode() if longest is None or len(raw) <= longest else f'{{"redacted":"{marker(text)}"}}'


def redact_value(value: Any, is_secret: bool = False) -> Any:
    """A decoded JSON value with markers in place of secrets, or of all text and numbers in it."""
    if isinstance(value, dict):
        return {redact_text(name): redact_value(of, is_secret or _is_secret(name)) for name, of in value.items()}
    if isinstance(value, list):
        return [redact_value(member, is_secret) for member in value]
    if value is None or isinstance(value, bool) or not (is_secret or isinstance(value, str)):
        return value
    text = str(value)
    if is_secret:
        return value if not text or _MARKER.fullmatch(text) else marker(text)
    return redact_text(text)


def same_text(one: str, other: str) -> bool:
    """Whether two texts say the same, where one may have been stored while secrets were kept, the other not."""
    return one == other or redact_text(one, TEXTS["message"]) == redact_text(other, TEXTS["message"])


def same_json(one: str | None, other: str | None) -> bool:
    """Whether two texts hold the same JSON value, but for secrets that are kept in one of them."""
    if one == other:
        return True
    if one is None or other is None:
        return False
    return _canonical(one) == _canonical(other)


def marker(secret: str) -> str:
    """What stands in place of `secret`."""
    return f"[redacted {len(secret)} characters]"


@cache
def _members(kind: type[Struct]) -> tuple[tuple[str, Callable[[Any], Any]], ...]:
    """The members of a kind of record that may hold secrets, each with what redacts it."""
    named = set(kind.__struct_fields__)
    texts = ((name, partial(_text, longest=longest)) for name, longest in TEXTS.items() if name in named)
    objects = ((name, partial(_object, longest=longest)) for name, longest in OBJECTS.items() if name in named)
    return *texts, *objects


def _text(text: str | None, longest: int) -> str | None:
    return None if text is None else redact_text(text, longest)


def _object(raw: Raw | UnsetType, longest: int) -> Raw | UnsetType:
    if raw is UNSET:
        return raw
    text = bytes(raw).decode()
    kept = redact_json(text, longest)
    return raw if kept is text else Raw(kept)


def _canonical(text: str) -> bytes:
    return canonical(msgspec.json.decode(redact_json(text, MAX_OBJECT_BYTES)))


def _is_secret(name: str) -> bool:
    return _SEPARATORS.sub("", name).lower().endswith(_SECRET_NAMES)


def _replace(match: re.Match[str]) -> str:
    before, after = match.span("secret")
    return match.string[match.start() : before] + marker(match["secret"]) + match.string[after : match.end()]
