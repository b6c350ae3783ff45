"""Whatever is killed in the middle of a crawl, it ends by itself, complete, and pays for few pages twice."""

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.fleet import TOKEN, Fleet, until
from tests.servers import PostgresServer, RedisServer
from tests.simulator.process import SimulatorProcess

pytestmark = pytest.mark.e2e

CONCURRENCY = 20
WORKERS = ("worker-1", "worker-2")
SLOTS = CONCURRENCY * len(WORKERS)
# Fewer calls than slots: the others wait for a permit, so that every slot has a page in it.
LIMITS: dict[str, Any] = {"concurrency": CONCURRENCY, "tmapi_concurrency_start": 30, "tmapi_concurrency_max": 30}
KILLS = 5
SENT_AGAIN = "pages were lost on their way and are sent again"


@pytest.fixture
def simulator() -> Iterator[SimulatorProcess]:
    """About 420 pages, each answered slowly enough for a kill to find every slot busy."""
    options = {"profile": "uniform", "shops": 60, "items_min": 60, "items_max": 200, "latency": 0.4}
    with SimulatorProcess(seed=5, token=TOKEN, **options) as running:
        yield running


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that forgets everything when it dies."""
    folder = tmp_path / "redis"
    folder.mkdir()
    with RedisServer(folder) as server:
        yield server


@pytest.fixture
def fleet(tmp_path: Path, simulator: SimulatorProcess, postgres_url: str, redis: RedisServer) -> Iterator[Fleet]:
    """Two workers and a producer on PostgreSQL."""
    with Fleet(tmp_path / "fleet", simulator, database_url=postgres_url, redis_url=redis.url, **LIMITS) as running:
        running.producer()
        for name in WORKERS:
            running.worker(name)
        yield running


async def every_slot_busy(redis: RedisServer) -> None:
    """Wait until the workers hold as many messages as they can: each slot has a page in it."""

    async def busy() -> bool:
        with redis.client() as client:
            return bool(client.hlen("unacked") >= SLOTS)

    await until(busy, what=f"{SLOTS} messages taken")


async def assert_survived(fleet: Fleet, crawl_id: int, *, most_repeats: int) -> None:
    """The crawl ends by itself and complete; at most so many whole pages were delivered again."""
    started = time.monotonic()
    assert not await fleet.is_finished(crawl_id)
    await fleet.until_finished(crawl_id)
    print(f"ended {time.monotonic() - started:.1f} s after the last fault, {fleet.repeated} repeats of {most_repeats}")
    await fleet.assert_complete(crawl_id)
    assert fleet.repeated <= most_repeats


async def test_workers_killed_five_times_lose_nothing(fleet: Fleet) -> None:
    crawl_id = fleet.submit()
    for kill, name in zip(range(1, KILLS + 1), itertools.cycle(WORKERS)):
        await fleet.until_done(60 * kill)
        fleet.kill(name)
        fleet.worker(name)
    await assert_survived(fleet, crawl_id, most_repeats=CONCURRENCY * KILLS)
    assert SENT_AGAIN in fleet.log("producer")


@pytest.mark.slow
async def test_worker_told_to_stop_finishes_what_it_holds_and_leaves_the_rest(fleet: Fleet) -> None:
    crawl_id = fleet.submit()
    await fleet.until_done(60)
    assert fleet.stop("worker-1") == 0
    await assert_survived(fleet, crawl_id, most_repeats=0)


async def test_flushed_redis_loses_nothing(fleet: Fleet, redis: RedisServer) -> None:
    crawl_id = fleet.submit()
    await fleet.until_done(60)
    await every_slot_busy(redis)
    with redis.client() as client:
        client.flushall()
    await assert_survived(fleet, crawl_id, most_repeats=SLOTS)
    assert SENT_AGAIN in fleet.log("producer")


@pytest.mark.slow
async def test_redis_killed_under_full_load_and_started_empty_loses_nothing(fleet: Fleet, redis: RedisServer) -> None:
    crawl_id = fleet.submit()
    await fleet.until_done(60)
    await every_slot_busy(redis)
    redis.restart(immediate=True)
    await assert_survived(fleet, crawl_id, most_repeats=SLOTS)
    assert SENT_AGAIN in fleet.log("producer")


@pytest.mark.slow
async def test_two_producers_send_no_page_twice_and_may_be_killed_one_after_the_other(fleet: Fleet) -> None:
    fleet.producer("producer-2")
    crawl_id = fleet.submit()
    await fleet.until_done(100)
    fleet.kill("producer")
    await fleet.until_done(200)
    fleet.kill("producer-2")
    fleet.producer()
    await assert_survived(fleet, crawl_id, most_repeats=0)


async def test_postgresql_restarted_at_once_loses_nothing(
    fleet: Fleet, redis: RedisServer, postgres_server: PostgresServer
) -> None:
    crawl_id = fleet.submit()
    await fleet.until_done(60)
    await every_slot_busy(redis)
    postgres_server.restart(immediate=True)
    await assert_survived(fleet, crawl_id, most_repeats=SLOTS)


@pytest.mark.slow
async def test_embedded_worker_killed_five_times_is_started_again_and_loses_nothing(
    tmp_path: Path, simulator: SimulatorProcess
) -> None:
    with Fleet(tmp_path, simulator, **LIMITS) as fleet:
        crawl = fleet.background("crawl", "crawl", str(fleet.shops_file()), "--quiet")
        for kill in range(1, KILLS + 1):
            await fleet.until_done(60 * kill)
            worker_of(crawl.pid).kill()
        await assert_survived(fleet, 1, most_repeats=CONCURRENCY * KILLS)
        assert crawl.wait(60) == 0


def worker_of(pid: int) -> psutil.Process:
    """The worker process that an embedded crawl runs now."""
    children = psutil.Process(pid).children(recursive=True)
    return next(child for child in children if child.cmdline()[1:3] == ["-m", "worker"])
