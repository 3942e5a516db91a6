"""Settings from `AMELIA_*`, each checked at start. The only module that reads the environment."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from amelia_flask.errors import SettingsError

PREFIX = "AMELIA_"
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator can set. `AMELIA_PORT` sets `port`, and so on; README.md has the table."""

    host: Annotated[str, Meta(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Meta(ge=1, le=65535)] = 8420
    database_path: Path = msgspec.field(default_factory=lambda: default_database_path())
    database_url: str = ""
    workers: Annotated[int, Meta(ge=1, le=64)] | None = None
    threads: Annotated[int, Meta(ge=2, le=256)] = 16
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    max_concurrent: Annotated[int, Meta(ge=1)] | None = None
    max_body_bytes: Annotated[int, Meta(ge=1024, le=1 << 30)] = 8 * 1024 * 1024
    log_retention_days: Annotated[int, Meta(ge=1)] = 30
    log_retention_max_events: Annotated[int, Meta(ge=1)] = 100_000
    api_token: Annotated[str, Meta(pattern=r"^[\x21-\x7e]{16,}$")] | None = None
    require_token: bool = False
    allowed_hosts: tuple[str, ...] = ()
    max_streams: Annotated[int, Meta(ge=0)] | None = None
    pin_workers: bool = False

    @property
    def is_loopback(self) -> bool:
        """Whether only programs on this machine can connect."""
        return self.host in LOOPBACK

    @property
    def waiting_readers(self) -> int:
        """How many readers of one process may wait for events at a time: half its threads at most."""
        half = self.threads // 2
        return half if self.max_streams is None else min(self.max_streams, half)


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
        return [host.strip().lower() for host in text.split(",") if host.strip()]
    if name == "database_path":
        return Path(text).expanduser()
    return {"on": "true", "off": "false"}.get(text, text) if name in {"require_token", "pin_workers"} else text


def _sentence(problem: str) -> str:
    reason, _, place = problem.partition(" - at `$.")
    return f"{PREFIX}{place.rstrip('`').upper()} is malformed: {reason}."


def _check(settings: Settings) -> None:
    if settings.database_url:
        raise SettingsError("AMELIA_DATABASE_URL is set, but this version keeps its record on SQLite only.")
    if str(settings.database_path) in {"", ".", ":memory:"}:
        raise SettingsError("AMELIA_DATABASE_PATH must name a file.")
    if settings.require_token and settings.api_token is None:
        raise SettingsError("AMELIA_REQUIRE_TOKEN is on, but AMELIA_API_TOKEN is not set.")
    if not settings.is_loopback and settings.api_token is None:
        raise SettingsError(f"AMELIA_HOST={settings.host} opens the service to a network: set AMELIA_API_TOKEN too.")
