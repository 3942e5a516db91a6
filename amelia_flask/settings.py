"""Settings from `AMELIA_*`, each checked at start. The only module that reads the environment."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from amelia_flask.errors import SettingsError

PREFIX = "AMELIA_"
_SWITCHES = frozenset({"require_token", "pin_workers", "redact"})
_PATHS = frozenset({"database_path", "database_password_file"})
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
# A host name or address as a Host header has it, in lower case: the name, and the port, which is never compared.
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_-][a-z0-9._-]*)(?::[0-9]{1,5})?", re.ASCII)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator can set. `AMELIA_PORT` sets `port`, and so on; README.md has the table."""

    host: Annotated[str, Meta(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Meta(ge=1, le=65535)] = 8420
    database_path: Path = msgspec.field(default_factory=lambda: default_database_path())
    database_url: str | None = None
    database_password_file: Path | None = None
    workers: Annotated[int, Meta(ge=1, le=64)] | None = None
    threads: Annotated[int, Meta(ge=2, le=256)] = 16
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    max_concurrent: Annotated[int, Meta(ge=1)] | None = None
    max_body_bytes: Annotated[int, Meta(ge=1024, le=1 << 30)] = 8 * 1024 * 1024
    log_retention_days: Annotated[int, Meta(ge=1)] = 30
    log_retention_max_events: Annotated[int, Meta(ge=1)] = 100_000
    api_token: Annotated[str, Meta(pattern=r"^[\x21-\x7e]{16,}$")] | None = None
    require_token: bool = False
    allowed_hosts: tuple[str, ...] = ()
    proxy_hops: Annotated[int, Meta(ge=0, le=10)] = 0
    max_streams: Annotated[int, Meta(ge=0)] | None = None
    pin_workers: bool = True
    redact: bool = True

    @property
    def is_loopback(self) -> bool:
        """Whether only programs on this machine can connect."""
        return self.host in LOOPBACK

    @property
    def asks_for_token(self) -> bool:
        """Whether every call but the probes needs a token."""
        return self.require_token or self.api_token is not None or not self.is_loopback

    @property
    def waiting_readers(self) -> int:
        """How many readers of one process may wait for events at a time: half its threads at most."""
        half = self.threads // 2
        return half if self.max_streams is None else min(self.max_streams, half)

    @property
    def waiting_writes(self) -> int:
        """How many writes of one process may wait for a database that is held up: some threads stay free."""
        return self.threads // 4


def default_database_path() -> Path:
    """`instance/amelia.db` in a checkout, `~/.amelia/amelia.db` for an installed package."""
    root = Path(__file__).resolve().parent.parent
    checkout = (root / "pyproject.toml").is_file()
    return root / "instance" / "amelia.db" if checkout else Path.home() / ".amelia" / "amelia.db"


def from_environment(environ: Mapping[str, str] | None = None) -> Settings:
    """The settings of this process. Raises SettingsError, one sentence, for an unknown or malformed one."""
    environ = os.environ if environ is None else environ
    given = {name[len(PREFIX) :].lower(): text for name, text in environ.items() if name.startswith(PREFIX)}
    unknown = sorted(set(given) - set(Settings.__struct_fields__))
    if unknown:
        raise SettingsError(f"{PREFIX}{unknown[0].upper()} is not a setting of amelia-flask.")
    try:
        settings = msgspec.convert({name: _plain(name, text) for name, text in given.items()}, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(_sentence(str(error))) from None
    _check(settings)
    return settings


def _plain(name: str, text: str) -> object:
    if name == "allowed_hosts":
        return [_host(entry.strip()) for entry in text.split(",") if entry.strip()]
    if name in _PATHS:
        return Path(text).expanduser()
    return {"on": "true", "off": "false"}.get(text, text) if name in _SWITCHES else text


def _host(entry: str) -> str:
    """The name as requests are compared with it: lower case, no port, no trailing dot."""
    name = entry.lower()
    match = HOST.fullmatch(name.removeprefix("."))
    if match is None:
        raise SettingsError(
            f"AMELIA_ALLOWED_HOSTS holds {entry!r}, which is no host name: write amelia.example.com, or .example.com "
            "for all below it, or an IPv6 address in brackets."
        )
    return ("." if name.startswith(".") else "") + match[1].removesuffix(".")


def _sentence(problem: str) -> str:
    reason, _, place = problem.partition(" - at `$.")
    return f"{PREFIX}{place.rstrip('`').upper()} is malformed: {reason}."


def _check(settings: Settings) -> None:
    url = settings.database_url
    if url is not None and not url.startswith(("postgresql://", "postgres://")):
        raise SettingsError("AMELIA_DATABASE_URL is malformed: Expected a URL that begins with postgresql://.")
    if str(settings.database_path) in {"", ".", ":memory:"}:
        raise SettingsError("AMELIA_DATABASE_PATH must name a file.")
