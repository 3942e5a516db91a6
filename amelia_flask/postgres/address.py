"""The URL of a database: what the driver is told of it, and what people are."""

from itertools import cycle
from pathlib import Path
from urllib.parse import quote

import psycopg

from amelia_flask.errors import SettingsError
from amelia_flask.postgres.connection import CONNECT_SECONDS


def conninfo(url: str, password_file: Path | None) -> dict[str, str]:
    """What the driver is told. Raises SettingsError."""
    given = _parsed(url)
    if password_file is not None:
        given["password"] = _read_password(password_file)
    defaults = {"connect_timeout": str(CONNECT_SECONDS), "application_name": "amelia-flask"}
    keepalives = {"keepalives_idle": "10", "keepalives_interval": "5", "keepalives_count": "3"}
    return defaults | keepalives | {"tcp_user_timeout": "20000"} | given


def _parsed(url: str) -> dict[str, str]:
    """What a URL says; of a malformed one nothing is told, because any part of it may be one of a password."""
    try:
        given = {name: str(value) for name, value in psycopg.conninfo.conninfo_to_dict(url).items()}
    except psycopg.Error:
        given = {"port": "unknown"}
    is_number = all(port.isdigit() for port in given.get("port", "").split(",") if port)
    if not is_number or "@" in url.partition("://")[2].partition("?")[0].partition("/")[2]:
        raise SettingsError(
            "AMELIA_DATABASE_URL is malformed: write postgresql://user:password@host:5432/database?parameter=value, "
            "and in a name or password %40 for @, %2F for /, %3A for :, %3F for ? and %25 for %."
        )
    return given


def _read_password(file: Path) -> str:
    try:
        return file.read_text().strip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise SettingsError(f"AMELIA_DATABASE_PASSWORD_FILE {file} cannot be read: {reason}.") from None


def shown(given: dict[str, str]) -> str:
    """A URL with what people may know."""
    hosts, ports = given.get("host", "").split(","), given.get("port", "").split(",")
    places = ",".join(f"{_quoted(host)}{port and ':'}{port}" for host, port in zip(hosts, cycle(ports), strict=False))
    user = f"{quote(given['user'])}@" if "user" in given else ""
    return f"postgresql://{user}{places}/{quote(given.get('dbname', ''))}"


def _quoted(host: str) -> str:
    return f"[{host}]" if ":" in host else quote(host, safe="")
