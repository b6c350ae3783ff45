"""Settings come from the environment, say clearly what is wrong with them, and show no secret."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from models.errors import UsageError
from models.settings import Settings, async_url, load_settings

CANARY = "canary-secret"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of this machine, neither from the environment nor from a .env file."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"SHOPCRAWL_{name.upper()}", raising=False)
    monkeypatch.chdir(tmp_path)


def test_without_any_setting_there_is_a_default_for_everything(tmp_path: Path) -> None:
    settings = load_settings()
    assert settings.database == f"sqlite+aiosqlite:///{tmp_path}/shopcrawl-data/shopcrawl.db"
    assert (settings.tmapi_tokens, settings.redis_url, settings.page_size) == ((), None, 20)
    assert settings.total_timeout >= 60


def test_the_environment_beats_the_env_file_and_an_option_beats_both(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("SHOPCRAWL_PAGE_SIZE=30\nSHOPCRAWL_MAX_TRIES=3\nSHOPCRAWL_WORKERS=2\nOTHER=1\n")
    monkeypatch.setenv("SHOPCRAWL_PAGE_SIZE", "40")
    monkeypatch.setenv("SHOPCRAWL_WORKERS", "3")
    settings = load_settings(workers=4, concurrency=None)
    assert (settings.max_tries, settings.page_size, settings.workers, settings.concurrency) == (3, 40, 4, 200)


@pytest.mark.parametrize(
    ("text", "tokens"), [("a,b", ["a", "b"]), (" a , ,b,", ["a", "b"]), ("", []), (",", []), ("a b", ["a b"])]
)
def test_tokens_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch, text: str, tokens: list[str]) -> None:
    monkeypatch.setenv("SHOPCRAWL_TMAPI_TOKENS", text)
    assert [token.get_secret_value() for token in load_settings().tmapi_tokens] == tokens


@pytest.mark.parametrize("name", ["DATABASE_URL", "REDIS_URL", "PROXY", "FLOWER_USER", "FLOWER_PASSWORD"])
def test_an_empty_setting_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"SHOPCRAWL_{name}", "")
    assert getattr(load_settings(), name.lower()) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CONCURRENCY", "0"),
        ("CONCURRENCY", "many"),
        ("MAX_TRIES", "-1"),
        ("TOTAL_TIMEOUT", "0"),
        ("METRICS_PORT", "70000"),
        ("LOG_LEVEL", "LOUD"),
        ("ARCHIVE", "perhaps"),
        ("PAGE_SIZE", "201"),
        ("TRACKED_FIELDS", "title,sold_30d"),
        ("TRACKED_FIELDS", "colour"),
    ],
)
def test_a_bad_setting_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"SHOPCRAWL_{name}", value)
    with pytest.raises(UsageError, match=rf"^SHOPCRAWL_{name}: ") as caught:
        load_settings()
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_secret_is_shown_by_no_repr_dump_or_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOPCRAWL_TMAPI_TOKENS", CANARY)
    monkeypatch.setenv("SHOPCRAWL_DATABASE_URL", f"postgresql://u:{CANARY}@h/d")
    monkeypatch.setenv("SHOPCRAWL_REDIS_URL", f"redis://:{CANARY}@h")
    monkeypatch.setenv("SHOPCRAWL_PROXY", f"http://u:{CANARY}@h")
    monkeypatch.setenv("SHOPCRAWL_FLOWER_PASSWORD", CANARY)
    settings = load_settings()
    assert CANARY not in repr(settings) + str(settings) + settings.model_dump_json() + repr(settings.model_dump())
    assert sum(CANARY in secret for secret in settings.secrets) == 5
    monkeypatch.setenv("SHOPCRAWL_CONCURRENCY", CANARY)
    with pytest.raises(UsageError) as caught:
        load_settings()
    assert CANARY not in str(caught.value)
    assert caught.value.__cause__ is None


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_settings().page_size = 3


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("postgresql://u:p@h:1/d?x=y", "postgresql+asyncpg://u:p@h:1/d?x=y"),
        ("postgres://h/d", "postgresql+asyncpg://h/d"),
        ("postgresql+asyncpg://h/d", "postgresql+asyncpg://h/d"),
        ("postgresql+psycopg://h/d", "postgresql+asyncpg://h/d"),
        ("sqlite:////tmp/a.db", "sqlite+aiosqlite:////tmp/a.db"),
        ("sqlite+aiosqlite:///a.db", "sqlite+aiosqlite:///a.db"),
    ],
)
def test_a_database_url_is_given_its_async_driver(given: str, read: str) -> None:
    assert async_url(given) == read


@pytest.mark.parametrize("url", ["mysql://h/d", f"h:{CANARY}@d", "", "postgresql", "http://h"])
def test_any_other_database_is_refused_without_repeating_the_url(url: str) -> None:
    with pytest.raises(UsageError, match="SHOPCRAWL_DATABASE_URL must start with") as caught:
        async_url(url)
    assert CANARY not in str(caught.value)
