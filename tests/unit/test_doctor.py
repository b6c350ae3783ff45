"""The doctor's judgements: each finding is one line, and each trouble names its cure."""

from pathlib import Path

import pytest

from models.errors import UnavailableError
from models.settings import load_settings
from models.source import source_named
from models.vault import Vault, new_key
from producer import doctor
from producer.doctor import Check, DatabaseAnswer, StoredSessions

HEAD = "0002"
DISK = 10 * 1024**3


@pytest.mark.parametrize(
    ("kind", "version", "ok"),
    [
        ("PostgreSQL", (12, 9), False),
        ("PostgreSQL", (13, 0), True),
        ("PostgreSQL", (18, 6), True),
        ("SQLite", (3, 34, 1), False),
        ("SQLite", (3, 35, 0), True),
        ("SQLite", (3, 50, 4), True),
    ],
)
def test_database_must_be_new_enough(kind: str, version: tuple[int, ...], ok: bool) -> None:
    check = doctor.judge_database(DatabaseAnswer(kind, version, (HEAD, HEAD)))
    assert check.ok is ok
    assert bool(check.cure) is not ok


def test_schema_must_be_the_programs_own() -> None:
    assert doctor.judge_schema(HEAD, HEAD, embedded=False).ok
    for current in (None, "0001"):
        check = doctor.judge_schema(current, HEAD, embedded=False)
        assert check.ok is False
        assert "shopcrawl db upgrade" in check.cure
        assert doctor.judge_schema(current, HEAD, embedded=True).ok


def test_redis_that_keeps_everything_is_fine() -> None:
    info: dict[str, object] = {"redis_version": "6.2.14", "maxmemory_policy": "noeviction", "aof_enabled": 1}
    assert [check.ok for check in doctor.judge_redis(info)] == [True, True, True]


@pytest.mark.parametrize(
    ("change", "index", "ok"),
    [
        ({"redis_version": "6.0.16"}, 0, False),
        ({"redis_version": "unstable"}, 0, False),
        ({"maxmemory_policy": "allkeys-lru"}, 1, False),
        ({"aof_enabled": 0}, 2, None),
    ],
)
def test_redis_that_forgets_or_is_too_old_is_named_with_its_cure(
    change: dict[str, object], index: int, ok: bool | None
) -> None:
    info: dict[str, object] = {"redis_version": "8.2.1", "maxmemory_policy": "noeviction", "aof_enabled": 1, **change}
    checks = doctor.judge_redis(info)
    assert checks[index].ok is ok
    assert checks[index].cure
    assert all(check.ok and not check.cure for number, check in enumerate(checks) if number != index)


@pytest.mark.parametrize(
    ("ahead", "ok", "detail"),
    [
        ({}, None, "no other clock"),
        ({"the API": 59.0, "the database": -3.0}, True, "59 s ahead of the API"),
        ({"the API": 1.0, "the database": -61.0}, False, "61 s behind the database"),
        ({"the API": 3600.0}, False, "3600 s ahead of the API"),
    ],
)
def test_clock_more_than_a_minute_off_is_named(ahead: dict[str, float], ok: bool | None, detail: str) -> None:
    check = doctor.judge_clock(ahead)
    assert check.ok is ok
    assert detail in check.detail
    assert bool(check.cure) is (ok is False)


SOURCES = [source_named("tmapi"), source_named("top")]


def test_credentials_are_told_apart_but_never_shown() -> None:
    secrets = ["canary-token-one", "canary-token-two", "canary-app-key", "canary-app-secret"]
    settings = load_settings(tmapi_tokens=",".join(secrets[:2]), top_app_key=secrets[2], top_app_secret=secrets[3])
    tmapi, top = doctor.judge_sources(SOURCES, settings)
    assert tmapi.ok and tmapi.detail.startswith("2, by fingerprint: ")
    assert top.ok and top.detail.startswith("1, by fingerprint: ")
    assert not any(secret in str(check) for secret in secrets for check in (tmapi, top))


def test_one_source_is_enough_and_the_other_is_not_spoken_of() -> None:
    for given, name in (
        ({"tmapi_tokens": "canary-token"}, "tmapi credential"),
        ({"top_app_key": "key", "top_app_secret": "canary-secret"}, "top credential"),
    ):
        [check] = doctor.judge_sources(SOURCES, load_settings(**given))
        assert (check.name, check.ok) == (name, True)


def test_without_any_credential_the_cure_names_all_of_them() -> None:
    [check] = doctor.judge_sources(SOURCES, load_settings())
    assert check.ok is False
    for variable in ("SHOPCRAWL_TMAPI_TOKENS", "SHOPCRAWL_TOP_APP_KEY", "SHOPCRAWL_TOP_APP_SECRET"):
        assert variable in check.cure


@pytest.mark.parametrize(("given", "missing"), [("top_app_key", "secret"), ("top_app_secret", "key")])
def test_half_an_app_is_a_failure_even_beside_a_token(given: str, missing: str) -> None:
    tmapi, top = doctor.judge_sources(SOURCES, load_settings(tmapi_tokens="t", **{given: "canary-half"}))
    assert tmapi.ok and top.ok is False
    assert top.detail == f"the app's {missing} is missing"
    assert "canary-half" not in str(top) and "SHOPCRAWL_TOP_APP_KEY" in top.cure


def test_a_token_given_twice_is_warned_about() -> None:
    [check] = doctor.judge_sources(SOURCES, load_settings(tmapi_tokens="one,one"))
    assert check.ok is None and "given twice" in check.cure


def test_a_source_that_cannot_be_loaded_is_named_and_the_others_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> object:
        if name == "broken":
            raise ImportError("no module named canary")
        return source_named(name)

    monkeypatch.setattr(doctor, "source_names", lambda: ["broken", "top"])
    monkeypatch.setattr(doctor, "source_named", load)
    [check], sources = doctor.load_sources()
    assert (check.name, check.ok) == ("source broken", False) and check.cure
    assert [source.name for source in sources] == ["top"]


@pytest.mark.parametrize(
    ("url", "ok"),
    [
        ("https://api.tmapi.io", True),
        ("http://127.0.0.1:8000/x", True),
        ("http://[::1]:8000", True),
        ("http://localhost", True),
        ("http://api.tmapi.io", None),
        ("http://127.0.0.1.evil.example", None),
    ],
)
def test_address_should_be_https_or_this_machine(url: str, ok: bool | None) -> None:
    check = doctor.judge_address("tmapi", url)
    assert check.ok is ok
    assert bool(check.cure) is (ok is not True)


@pytest.mark.parametrize("name", ["tmapi", "top"])
@pytest.mark.parametrize(
    "url", ["ftp://host", "host", "https://", "https://host:port", "http://[::1", "https://u:p@host"]
)
async def test_an_address_that_is_none_is_not_called_and_the_cure_names_the_setting(name: str, url: str) -> None:
    settings = load_settings(tmapi_base_url=url, top_gateway_url=url)
    [check] = (await doctor.check_api(source_named(name), settings)).checks
    assert check.ok is False
    assert {"tmapi": "SHOPCRAWL_TMAPI_BASE_URL", "top": "SHOPCRAWL_TOP_GATEWAY_URL"}[name] in check.cure


# Sessions and their key


def test_sessions_are_not_spoken_of_where_nobody_needs_any(tmp_path: Path) -> None:
    settings = load_settings(data_dir=tmp_path, secret_key="canary-no-key")
    assert doctor.check_sessions(StoredSessions(), settings, needed=False) == []


def test_a_key_that_opens_the_sessions_is_fine(tmp_path: Path) -> None:
    for given in ({"secret_key": new_key()}, {}):
        settings = load_settings(data_dir=tmp_path, **given)
        stored = StoredSessions(1, 0, [text.encode() for text in Vault(settings).seal(["canary-session"])])
        key, sessions = doctor.check_sessions(stored, settings, needed=True)
        assert key.ok and sessions.ok
        assert sessions.detail == "1 stored, 0 refused"
        assert not any(secret in str([key, sessions]) for secret in ["canary-session", *given.values()])
    assert "mode 600" in key.detail


def test_a_lost_key_is_found_by_the_sessions_it_does_not_open(tmp_path: Path) -> None:
    sealed = Vault(load_settings(data_dir=tmp_path, secret_key=new_key())).seal(["one", "two"])
    stored = StoredSessions(2, 0, [text.encode() for text in sealed])
    for given in ({"secret_key": new_key()}, {}):
        key, _ = doctor.check_sessions(stored, load_settings(data_dir=tmp_path, **given), needed=False)
        assert key.ok is False and key.cure
        assert "2 of the newest sessions" in key.detail


def test_a_key_that_is_none_or_that_others_can_read_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "secret.key").write_text(new_key())
    (tmp_path / "secret.key").chmod(0o644)
    for given, told in (({"secret_key": "canary-no-key"}, "`shopcrawl session key`"), ({}, "chmod 600")):
        key, _ = doctor.check_sessions(StoredSessions(), load_settings(data_dir=tmp_path, **given), needed=True)
        assert key.ok is False and key.cure
        assert told in key.detail and "canary" not in str(key)


def test_a_key_file_that_other_machines_do_not_have_is_warned_about(tmp_path: Path) -> None:
    settings = load_settings(data_dir=tmp_path, redis_url="redis://127.0.0.1:1/0")
    key, _ = doctor.check_sessions(StoredSessions(), settings, needed=True)
    assert key.ok is None and "SHOPCRAWL_SECRET_KEY" in key.cure
    assert not list(tmp_path.iterdir()), "looking makes no key"


@pytest.mark.parametrize(("total", "refused", "ok"), [(0, 0, None), (300, 0, True), (300, 30, None)])
def test_shops_without_a_usable_session_are_counted(total: int, refused: int, ok: bool | None) -> None:
    check = doctor.judge_sessions(StoredSessions(total, refused))
    assert check.ok is ok
    assert bool(check.cure) is (ok is not True)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("Thu, 01 Jan 1970 00:01:00 GMT", 60.5), (None, None), ("", None), ("soon", None)],
)
def test_date_header_is_read_or_ignored(header: str | None, seconds: float | None) -> None:
    assert doctor.http_date(header) == seconds


def test_root_is_warned_about() -> None:
    assert doctor.judge_user(1000, False).ok
    assert doctor.judge_user(0, False).ok is None
    assert doctor.judge_user(0, True).ok is None


@pytest.mark.parametrize(("free", "ok"), [(DISK, True), (1024**3, None), (1024**2, False)])
def test_little_disk_is_warned_about_and_a_full_disk_is_a_failure(tmp_path: object, free: int, ok: bool | None) -> None:
    check = doctor.judge_disk(Path("/data"), free)
    assert check.ok is ok
    assert bool(check.cure) is (ok is not True)


def test_data_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    assert doctor.check_data_dir(tmp_path / "not" / "yet" / "made").detail.startswith(f"{tmp_path}, ")
    (tmp_path / "file").write_text("in the way")
    check = doctor.check_data_dir(tmp_path / "file")
    assert check.ok is False
    assert check.cure


async def test_embedded_redis_without_any_binary_is_a_failure_with_a_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_nothing() -> str:
        raise UnavailableError("no redis-server found")

    monkeypatch.setattr(doctor, "find_redis", find_nothing)
    [check] = await doctor.check_redis(load_settings())
    assert check == Check("redis", False, "no redis-server found", check.cure)
    assert "SHOPCRAWL_REDIS_URL" in check.cure
