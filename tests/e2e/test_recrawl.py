"""An operator's re-crawl overtakes a running crawl, by whichever way it is asked for, and is never done twice."""

import asyncio
import functools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from celery import Celery

from models.tables import shop, shop_crawl
from tests.e2e.fleet import TOKEN, Fleet, until
from tests.servers import RedisServer
from tests.simulator.process import SimulatorProcess

pytestmark = pytest.mark.e2e

SMALL = "small"
SLOW = 8.0


@pytest.fixture
def fleet(tmp_path: Path, postgres_url: str, redis_server: RedisServer, redis_url: str) -> Iterator[Fleet]:
    """A crawl that is far from its end: 100 shops of 100 pages at 50 pages a second; one shop has a single page."""
    options = {"profile": "uniform", "shops": 100, "items_min": 2_000, "items_max": 2_000, "latency": 0.2}
    limits = {"concurrency": 20, "tmapi_concurrency_start": 10, "tmapi_concurrency_max": 10}
    with (
        SimulatorProcess(seed=2, token=TOKEN, extra={SMALL: 15}, **options) as simulator,
        Fleet(tmp_path, simulator, database_url=postgres_url, redis_url=redis_url, **limits) as running,
    ):
        assert running.submit() == 1
        running.producer()
        running.worker()
        yield running


async def recrawls(fleet: Fleet, key: str) -> list[str]:
    """The states of a shop's re-crawls."""
    query = sa.select(shop_crawl.c.state).join(shop, shop.c.id == shop_crawl.c.shop_id)
    return [row.state for row in await fleet.read(query.where(shop.c.key == key, shop_crawl.c.kind == "recrawl"))]


async def until_recrawled(fleet: Fleet, key: str) -> None:
    async def settled() -> bool:
        return "settled" in await recrawls(fleet, key)

    await until(settled, what=f"the re-crawl of {key}")


def ask_by_celery(redis_url: str, key: str) -> None:
    """Ask as any Celery client can that knows nothing of us but the task's name."""
    with Celery(broker=redis_url, set_as_current=False) as client:
        client.send_task("recrawl_shops", args=[[key]])


async def test_recrawl_overtakes_a_running_crawl_however_it_is_asked_for(fleet: Fleet, redis_url: str) -> None:
    first, second = [key for key in fleet.simulator.control("GET", "shops") if key != SMALL][:2]
    await fleet.until_done(150)
    asked = fleet.run("recrawl", first, "--no-follow", "--json")
    assert json.loads(asked.stdout) == {"crawl_id": 2, "resumed": False, "shops": 1, "pending": 0, "fresh": 0}
    ask_by_celery(redis_url, second)
    for key in (first, second):
        await until_recrawled(fleet, key)
        assert fleet.simulator.calls(key)["pages"]["100"]["delivered"] == 1  # the crawl itself is not there yet
    assert not await fleet.is_finished(1)


@pytest.mark.slow
async def test_recrawl_asked_for_again_and_again_is_done_once(fleet: Fleet, redis_url: str) -> None:
    await fleet.until_done(150)
    fleet.simulator.script({"set": {"latency": SLOW}, "shop": SMALL})
    ask = functools.partial(fleet.run, "recrawl", SMALL, "--no-follow", "--json")
    answers = await asyncio.gather(asyncio.to_thread(ask), asyncio.to_thread(ask))
    ask_by_celery(redis_url, SMALL)
    assert sorted(json.loads(answer.stdout)["shops"] for answer in answers) == [0, 1]
    assert sum(json.loads(answer.stdout)["pending"] for answer in answers) == 1
    await until_recrawled(fleet, SMALL)
    assert await recrawls(fleet, SMALL) == ["settled"]
    assert fleet.simulator.calls(SMALL)["pages"]["1"]["delivered"] == 2
