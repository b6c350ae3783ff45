"""The doctor against real servers, well and ill."""

import time
from collections.abc import AsyncIterator
from email.utils import formatdate
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from models.crawls import ShopRequest, shop_ids
from models.sessions import mark_refused, save_sessions
from models.settings import load_settings
from models.vault import Vault, new_key
from producer.doctor import Check, run_checks
from tests.ledger import START, engine_for
from tests.servers import PostgresServer, free_port

TOKEN = "canary-token-7f3a"
PASSWORD = "canary-password-91c2"
APP = {"top_app_key": "canary-app-key", "top_app_secret": "canary-app-secret"}


def by_name(checks: list[Check]) -> dict[str, Check]:
    assert len({check.name for check in checks}) == len(checks)
    return {check.name: check for check in checks}


class Api:
    """Any source's API: it answers 401 to everything and tells a wrong time by `skew` seconds."""

    def __init__(self) -> None:
        self.skew = 0.0
        self.queries: list[str] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.queries.append(request.path_qs)
        return web.Response(status=401, headers={"Date": formatdate(time.time() + self.skew, usegmt=True)})


@pytest.fixture
async def api() -> AsyncIterator[tuple[Api, str]]:
    """A running API and its address."""
    api, application = Api(), web.Application()
    application.router.add_route("*", "/{any:.*}", api.answer)
    async with TestServer(application, host="127.0.0.1") as server:
        yield api, str(server.make_url(""))


async def test_a_healthy_fleet_passes_every_check(
    database_url: str, redis_url: str, api: tuple[Api, str], tmp_path: Path
) -> None:
    settings = load_settings(
        data_dir=tmp_path, database_url=database_url, redis_url=redis_url, tmapi_base_url=api[1], tmapi_tokens=TOKEN
    )
    checks = by_name(await run_checks(settings))
    assert {name for name, check in checks.items() if not check.ok} <= {"user", "data folder"}
    assert checks["tmapi answer"].detail == "HTTP 401"
    assert not any(TOKEN in query for query in api[0].queries)
    assert not any(name.startswith(("top", "secret", "session")) for name in checks)


async def test_a_fleet_that_uses_top_alone_is_asked_for_no_token(
    database_url: str, redis_url: str, api: tuple[Api, str], tmp_path: Path
) -> None:
    key = new_key()
    settings = load_settings(
        data_dir=tmp_path,
        database_url=database_url,
        redis_url=redis_url,
        top_gateway_url=f"{api[1]}/router/rest",
        tmapi_base_url=f"http://127.0.0.1:{free_port()}",
        secret_key=key,
        **APP,
    )
    await store_sessions(database_url, Vault(settings), valid=2, refused=1)
    checks = by_name(await run_checks(settings))
    assert {name for name, check in checks.items() if not check.ok} <= {"user", "data folder", "sessions"}
    assert checks["top answer"].detail == "HTTP 401"
    assert api[0].queries == ["/router/rest"], "one call without a parameter"
    assert checks["secret key"].detail == "SHOPCRAWL_SECRET_KEY"
    assert checks["sessions"].detail == "3 stored, 1 refused"
    assert not any(name.startswith("tmapi") for name in checks)
    assert not any(secret in str(checks) for secret in [key, *APP.values(), "canary-session"])


async def store_sessions(url: str, vault: Vault, *, valid: int, refused: int) -> None:
    async with engine_for(url) as engine, engine.begin() as connection:
        requests = [ShopRequest("top", f"seller{number}", {}) for number in range(valid + refused)]
        ids = list((await shop_ids(connection, requests, START)).values())
        await save_sessions(connection, vault, dict.fromkeys(ids, "canary-session"), START)
        for shop_id in ids[:refused]:
            assert await mark_refused(connection, vault, shop_id, "canary-session", "27: gone", START)


async def test_both_sources_are_checked_side_by_side(api: tuple[Api, str], tmp_path: Path) -> None:
    settings = load_settings(
        data_dir=tmp_path, tmapi_base_url=api[1], top_gateway_url=api[1], tmapi_tokens=TOKEN, **APP
    )
    checks = by_name(await run_checks(settings))
    for name in ("tmapi", "top"):
        assert all(checks[f"{name} {what}"].ok for what in ("credential", "address", "answer"))
    assert checks["secret key"].ok and "to be made" in checks["secret key"].detail
    assert checks["sessions"].ok is None
    assert not (tmp_path / "secret.key").exists()


async def test_an_embedded_crawl_needs_nothing_but_a_credential(tmp_path: Path) -> None:
    checks = by_name(await run_checks(load_settings(data_dir=tmp_path / "data")))
    assert {name for name, check in checks.items() if check.ok is False} <= {"credential", "data folder"}
    assert checks["credential"].ok is False
    assert not (tmp_path / "data").exists()


async def test_a_database_without_tables_is_named_with_the_command_that_makes_them(
    postgres_server: PostgresServer, api: tuple[Api, str], tmp_path: Path
) -> None:
    url = postgres_server.create_database()
    checks = by_name(await run_checks(load_settings(data_dir=tmp_path, database_url=url, tmapi_base_url=api[1])))
    assert checks["database"].ok
    assert checks["schema"].ok is False
    assert "shopcrawl db upgrade" in checks["schema"].cure
    postgres_server.drop_database(url)


@pytest.mark.parametrize(("skew", "ok"), [(-3600.0, False), (3600.0, False), (0.0, True)])
async def test_a_clock_an_hour_off_is_found_by_the_apis_date(
    skew: float, ok: bool, api: tuple[Api, str], tmp_path: Path
) -> None:
    api[0].skew = skew
    for name, given in (
        ("tmapi", {"tmapi_base_url": api[1], "tmapi_tokens": TOKEN}),
        ("top", {"top_gateway_url": api[1], **APP}),
    ):
        checks = by_name(await run_checks(load_settings(data_dir=tmp_path, **given)))
        assert checks["clock"].ok is ok
        assert f"{name}'s API" in checks["clock"].detail


@pytest.mark.parametrize("scheme", ["postgresql://", "sqlite:///", "mysql://"])
async def test_services_that_do_not_answer_are_one_line_each_without_a_secret(scheme: str, tmp_path: Path) -> None:
    place = f"user:{PASSWORD}@127.0.0.1:{free_port()}/0"
    settings = load_settings(
        data_dir=tmp_path,
        database_url=f"{scheme}{place}",
        redis_url=f"redis://{place}",
        tmapi_base_url=f"http://127.0.0.1:{free_port()}",
        tmapi_tokens=TOKEN,
        top_gateway_url=f"http://127.0.0.1:{free_port()}",
        **APP,
    )
    checks = by_name(await run_checks(settings))
    assert {"database", "redis", "tmapi answer", "top answer"} <= {
        name for name, check in checks.items() if check.ok is False
    }
    for check in checks.values():
        line = f"{check.name} {check.detail} {check.cure}"
        assert "\n" not in line
        assert not any(secret in line for secret in (PASSWORD, TOKEN, *APP.values()))
        assert check.cure or check.ok is not False


@pytest.mark.parametrize("url", ["redis://host:notaport/0", "http://127.0.0.1", "nonsense"])
async def test_a_redis_url_that_is_none_is_a_failed_check(url: str, api: tuple[Api, str], tmp_path: Path) -> None:
    checks = by_name(await run_checks(load_settings(data_dir=tmp_path, redis_url=url, tmapi_base_url=api[1])))
    assert checks["redis"].ok is False
