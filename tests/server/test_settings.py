"""Settings from the environment."""

import dataclasses
from pathlib import Path

import pytest

from server import settings
from server.config import Settings
from server.setting import SettingError

ROOT = Path(__file__).parents[2]


def test_without_any_variable_the_defaults_stand() -> None:
    loaded = settings.load({})
    assert (loaded.listen.host, loaded.listen.port) == ("127.0.0.1", 8080)
    assert str(loaded.storage.url) == "sqlite:///var/swarm.db"
    assert loaded == settings.load({"PORT": "", "SWARM_POOL_SIZE": ""})


def test_every_default_is_a_value_that_is_accepted() -> None:
    defaults = {setting.variable: settings.default_text(setting) for setting in settings.SETTINGS}
    assert settings.load(defaults) == settings.load({})


def test_every_setting_has_a_field_of_its_own() -> None:
    places = [(setting.section, setting.field) for setting in settings.SETTINGS]
    assert len(places) == len(set(places))
    sections = {field.name for field in dataclasses.fields(Settings)}
    assert {section for section, _ in places} == sections


def test_variables_are_read() -> None:
    loaded = settings.load(
        {
            "HOST": "::1",
            "PORT": " 9000 ",
            "DATABASE_URL": "postgres://u:secret@db/x",
            "SWARM_PGBOUNCER": "1",
            "SWARM_POOL_TIMEOUT": "2.5",
            "SWARM_LOG_LEVEL": "debug",
            "SWARM_TRUSTED_PROXIES": "10.0.0.0/8, ::1",
            "SWARM_METRICS_TOKEN": "the-secret-of-the-figures",
        }
    )
    assert (loaded.listen.host, loaded.listen.port) == ("::1", 9000)
    assert (loaded.storage.pgbouncer, loaded.storage.pool_timeout) == (True, 2.5)
    assert loaded.log.level == "DEBUG"
    assert [str(network) for network in loaded.edge.trusted_proxies] == ["10.0.0.0/8", "::1/128"]
    assert loaded.edge.metrics_token == "the-secret-of-the-figures"
    assert "secret" not in repr(loaded)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("PORT", "9" * 5_000),
        ("PORT", "٣"),
        ("HOST", "a b"),
        ("DATABASE_URL", "mysql://u:secret@db/x"),
        ("DATABASE_URL", "secret"),
        ("SWARM_POOL_SIZE", "0"),
        ("SWARM_PRE_PING", "yes"),
        ("SWARM_POOL_TIMEOUT", "nan"),
        ("SWARM_LOG_LEVEL", "LOUD"),
        ("SWARM_RATE_LIMIT", "600"),
        ("SWARM_RATE_LIMIT", "600/fortnight"),
        ("SWARM_RATE_LIMIT", "600/minute; 10/second"),
        ("SWARM_RATE_LIMIT", "0/minute"),
        ("SWARM_RATE_LIMIT", "5 per 2 days"),
        ("SWARM_RATE_LIMIT", "9" * 5_000 + "/minute"),
        ("SWARM_CORS_ORIGINS", "*"),
        ("SWARM_CORS_ORIGINS", "https://app.example.com,*"),
        ("SWARM_CORS_ORIGINS", "https://app.example.com/secret"),
        ("SWARM_TRUSTED_PROXIES", "10.0.0.1/8"),
        ("SWARM_TRUSTED_PROXIES", "10.0.0.0/8, proxy"),
        ("SWARM_TRUSTED_PROXIES", "10.0.0.0/33"),
        ("SWARM_METRICS_TOKEN", "secret"),
        ("SWARM_METRICS_TOKEN", "a secret with blanks in it"),
        ("SWARM_METRICS_ADDRESS", "9100"),
    ],
)
def test_a_bad_value_is_one_sentence_that_names_the_variable(variable: str, value: str) -> None:
    with pytest.raises(SettingError) as caught:
        settings.load({variable: value})
    sentence = str(caught.value)
    assert sentence.startswith(variable)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert "secret" not in sentence


def test_a_rate_is_read_in_every_notation_and_need_not_be_there() -> None:
    for text in ("600/minute", "600 per minute", "600 / 1 Minutes", "600/60seconds"):
        requests = settings.load({"SWARM_RATE_LIMIT": text}).rates.requests
        assert requests is not None
        assert (requests.amount, requests.get_expiry()) == (600, 60)
    nothing = settings.load({"SWARM_RATE_LIMIT": "0", "SWARM_RATE_LIMIT_ADDRESS": "0"}).rates
    assert (nothing.requests, nothing.refused) == (None, None)
    default = settings.load({}).rates
    assert default.requests is None
    assert f"{default.refused}" == "30 per 1 minute"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost", "LOCALHOST"])
def test_loopback_needs_no_credentials(host: str) -> None:
    settings.check_exposure(settings.load({"HOST": host}).listen, open=True)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "localhost.example.org"])
def test_beyond_loopback_credentials_are_needed(host: str) -> None:
    with pytest.raises(SettingError, match="HOST is"):
        settings.check_exposure(settings.load({"HOST": host}).listen, open=True)
    loaded = settings.load({"HOST": host, "SWARM_ALLOW_UNAUTHENTICATED": "1"})
    settings.check_exposure(loaded.listen, open=loaded.open)
    loaded = settings.load({"HOST": host, "SWARM_BOOTSTRAP_KEY": "k" * 32})
    settings.check_exposure(loaded.listen, open=loaded.open)


def test_the_documentation_is_up_to_date() -> None:
    assert (ROOT / "docs" / "settings.md").read_text() == settings.as_markdown(), (
        "make it anew: python -m server settings > docs/settings.md"
    )
