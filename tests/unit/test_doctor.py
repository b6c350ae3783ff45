"""The doctor's judgements: each finding is one line, and each trouble names its cure."""

from pathlib import Path

import pytest

from models.errors import UnavailableError
from models.settings import load_settings
from producer import doctor
from producer.doctor import Check, DatabaseAnswer

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


def test_tokens_are_told_apart_but_never_shown() -> None:
    tokens = ["canary-token-one", "canary-token-two"]
    check = doctor.judge_tokens(tokens)
    assert check.ok
    assert "2 TMAPI tokens" in check.detail
    assert not any(token in str(check) for token in tokens)
    assert doctor.judge_tokens([]).ok is False
    assert doctor.judge_tokens([tokens[0], tokens[0]]).ok is None


@pytest.mark.parametrize(
    ("url", "ok"),
    [
        ("https://api.tmapi.io", True),
        ("http://127.0.0.1:8000/x", True),
        ("http://[::1]:8000", True),
        ("http://localhost", True),
        ("http://api.tmapi.io", None),
        ("http://127.0.0.1.evil.example", None),
        ("ftp://api.tmapi.io", False),
        ("api.tmapi.io", False),
        ("https://", False),
        ("https://host:port", False),
        ("http://[::1", False),
    ],
)
def test_address_must_be_https_or_this_machine(url: str, ok: bool | None) -> None:
    check = doctor.judge_address(url)
    assert check.ok is ok
    assert bool(check.cure) is (ok is not True)


def test_address_is_shown_without_its_password() -> None:
    assert "s3cret" not in str(doctor.judge_address("https://user:s3cret@api.tmapi.io/path?key=s3cret"))


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
