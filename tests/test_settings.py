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
            "AMELIA_PIN_WORKERS": "off",
            "AMELIA_MAX_CONCURRENT": "5",
            "PATH": "/bin",
        }
    )
    assert settings.port == 9000
    assert settings.database_path == Path("/data/a.db")
    assert settings.allowed_hosts == ("amelia.example.com", "other")
    assert settings.pin_workers is False
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
        ("AMELIA_DATABASE_URL", "mysql://x/y", "AMELIA_DATABASE_URL is malformed"),
        ("AMELIA_PROXY_HOPS", "-1", "AMELIA_PROXY_HOPS is malformed"),
        *[
            ("AMELIA_ALLOWED_HOSTS", entry, "which is no host name")
            for entry in (
                *(
                    "http://a.example",
                    "a.example/",
                    "*.a.example",
                    "a b",
                    ".",
                    "..a",
                    "a.example:",
                    "a:port",
                    "a:1:2",
                ),
                *("::1", "[::1", "user@a.example", "fine.example, b@d", "ä.example", "a\tb", "[a.example]"),
            )
        ],
    ],
)
def test_a_bad_setting_is_refused_with_a_sentence(name: str, value: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says) as refused:
        from_environment({name: value})
    assert "\n" not in refused.value.message


@pytest.mark.parametrize(
    ("entry", "host"),
    [
        ("Amelia.Example.", "amelia.example"),
        ("amelia.example:8443", "amelia.example"),
        ("amelia.example.:8443", "amelia.example"),
        (".Internal.:80", ".internal"),
        ("[FE80::1]:8420", "[fe80::1]"),
        ("10.0.0.1:1", "10.0.0.1"),
    ],
)
def test_an_allowed_host_is_kept_as_requests_are_compared_with_it(entry: str, host: str) -> None:
    assert from_environment({"AMELIA_ALLOWED_HOSTS": f" {entry} ,"}).allowed_hosts == (host,)


@pytest.mark.parametrize(
    ("settings", "asks"),
    [
        ({}, False),
        ({"HOST": "::1"}, False),
        ({"HOST": "localhost", "REQUIRE_TOKEN": "off"}, False),
        ({"HOST": "0.0.0.0"}, True),
        ({"HOST": "amelia.example"}, True),
        ({"REQUIRE_TOKEN": "on"}, True),
        ({"API_TOKEN": "t" * 20}, True),
    ],
)
def test_a_token_is_asked_for_on_a_network_or_where_the_operator_says_so(
    settings: dict[str, str], asks: bool
) -> None:
    assert from_environment({f"AMELIA_{name}": text for name, text in settings.items()}).asks_for_token is asks
