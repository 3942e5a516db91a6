from pathlib import Path

import pytest

from amelia_flask.errors import SettingsError
from amelia_flask.settings import from_environment


def test_the_defaults_are_safe() -> None:
    settings = from_environment({})
    assert (settings.host, settings.port, settings.max_body_bytes) == ("127.0.0.1", 8420, 8 * 1024 * 1024)
    assert settings.database_path.parts[-2:] == ("instance", "amelia.db")
    assert settings.is_loopback


def test_every_kind_of_value_is_read() -> None:
    settings = from_environment(
        {
            "AMELIA_PORT": "9000",
            "AMELIA_DATABASE_PATH": "/data/a.db",
            "AMELIA_ALLOWED_HOSTS": "Amelia.example.com, other",
            "AMELIA_PIN_WORKERS": "on",
            "AMELIA_MAX_CONCURRENT": "5",
            "PATH": "/bin",
        }
    )
    assert settings.port == 9000
    assert settings.database_path == Path("/data/a.db")
    assert settings.allowed_hosts == ("amelia.example.com", "other")
    assert settings.pin_workers is True
    assert settings.max_concurrent == 5


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("AMELIA_PROT", "1", "AMELIA_PROT is not a setting"),
        ("AMELIA_PORT", "x", "AMELIA_PORT is malformed"),
        ("AMELIA_PORT", "70000", "AMELIA_PORT is malformed"),
        ("AMELIA_LOG_LEVEL", "loud", "AMELIA_LOG_LEVEL is malformed"),
        ("AMELIA_PIN_WORKERS", "yes", "AMELIA_PIN_WORKERS is malformed"),
        ("AMELIA_API_TOKEN", "short", "AMELIA_API_TOKEN is malformed"),
        ("AMELIA_MAX_CONCURRENT", "0", "AMELIA_MAX_CONCURRENT is malformed"),
        ("AMELIA_DATABASE_PATH", ":memory:", "AMELIA_DATABASE_PATH must name a file"),
        ("AMELIA_DATABASE_URL", "postgresql://x", "AMELIA_DATABASE_URL is set"),
        ("AMELIA_REQUIRE_TOKEN", "on", "AMELIA_API_TOKEN is not set"),
        ("AMELIA_HOST", "0.0.0.0", "opens the service to a network"),
    ],
)
def test_a_bad_setting_is_refused_with_a_sentence(name: str, value: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says) as refused:
        from_environment({name: value})
    assert "\n" not in refused.value.message


def test_a_network_address_is_fine_with_a_token() -> None:
    settings = from_environment({"AMELIA_HOST": "0.0.0.0", "AMELIA_API_TOKEN": "t" * 20})
    assert not settings.is_loopback
