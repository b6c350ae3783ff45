"""The doctor against real servers, well and ill."""

import time
from collections.abc import AsyncIterator
from email.utils import formatdate
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from models.settings import load_settings
from producer.doctor import Check, run_checks
from tests.servers import PostgresServer, free_port

TOKEN = "canary-token-7f3a"
PASSWORD = "canary-password-91c2"


def by_name(checks: list[Check]) -> dict[str, Check]:
    assert len({check.name for check in checks}) == len(checks)
    return {check.name: check for check in checks}


class Api:
    """An API that answers 401 to everything and tells a wrong time by `skew` seconds."""

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
    assert checks["api answer"].detail == "HTTP 401"
    assert not any(TOKEN in query for query in api[0].queries)


async def test_an_embedded_crawl_needs_nothing_but_a_token(api: tuple[Api, str], tmp_path: Path) -> None:
    checks = by_name(await run_checks(load_settings(data_dir=tmp_path / "data", tmapi_base_url=api[1])))
    assert {name for name, check in checks.items() if check.ok is False} <= {"token", "data folder"}
    assert checks["token"].ok is False
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
    checks = by_name(await run_checks(load_settings(data_dir=tmp_path, tmapi_base_url=api[1])))
    assert checks["clock"].ok is ok
    assert "the API" in checks["clock"].detail


@pytest.mark.parametrize("scheme", ["postgresql://", "sqlite:///", "mysql://"])
async def test_services_that_do_not_answer_are_one_line_each_without_a_secret(scheme: str, tmp_path: Path) -> None:
    place = f"user:{PASSWORD}@127.0.0.1:{free_port()}/0"
    settings = load_settings(
        data_dir=tmp_path,
        database_url=f"{scheme}{place}",
        redis_url=f"redis://{place}",
        tmapi_base_url=f"http://127.0.0.1:{free_port()}",
        tmapi_tokens=TOKEN,
    )
    checks = by_name(await run_checks(settings))
    assert {"database", "redis", "api answer"} <= {name for name, check in checks.items() if check.ok is False}
    for check in checks.values():
        line = f"{check.name} {check.detail} {check.cure}"
        assert "\n" not in line
        assert PASSWORD not in line and TOKEN not in line
        assert check.cure or check.ok is not False


@pytest.mark.parametrize("url", ["redis://host:notaport/0", "http://127.0.0.1", "nonsense"])
async def test_a_redis_url_that_is_none_is_a_failed_check(url: str, api: tuple[Api, str], tmp_path: Path) -> None:
    checks = by_name(await run_checks(load_settings(data_dir=tmp_path, redis_url=url, tmapi_base_url=api[1])))
    assert checks["redis"].ok is False
