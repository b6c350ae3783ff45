"""During a ban nothing is called, held or sent, even if Redis forgets it; afterwards the crawl goes on by itself."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from models import fleet as shared
from models.database import create_engine
from models.settings import async_url
from tests.e2e.fleet import until
from tests.e2e.sellers import SellerFleet
from tests.simulator.process import SimulatorProcess
from tests.timetravel import let_time_pass

pytestmark = pytest.mark.e2e

DEFAULT = 60  # seconds, where the platform names none
IN_FLIGHT = 12
WORKERS = ("worker-1", "worker-2")
SELLERS = {f"seller-{number}": 90 for number in range(24)}
SETTINGS: dict[str, Any] = {"top_page_size": 20, "top_concurrency_start": IN_FLIGHT, "top_concurrency_max": IN_FLIGHT}


@pytest.fixture
def platform() -> Iterator[SimulatorProcess]:
    """Two dozen sellers behind slow answers, so that every permit is in use when a ban begins."""
    switches = {"top_timestamps": "real", "top_latency": 0.15}
    with SimulatorProcess(shops=0, seed=3, top=SELLERS, switches=switches) as running:
        yield running


@pytest.fixture
def fleet(tmp_path: Path, platform: SimulatorProcess, postgres_url: str, redis_url: str) -> Iterator[SellerFleet]:
    """Two workers and a producer that may make twelve calls at once."""
    servers = {"database_url": postgres_url, "redis_url": redis_url}
    with SellerFleet(tmp_path / "fleet", platform, **SETTINGS, **servers) as running:
        running.producer()
        for name in WORKERS:
            running.worker(name)
        yield running


def ban(platform: SimulatorProcess, scope: str, seconds: float | str, **more: Any) -> None:
    platform.script({"top": {"ban": {"scope": scope, "seconds": seconds, "after": 40, **more}}})


def assert_obeyed(platform: SimulatorProcess) -> list[dict[str, Any]]:
    """Each ban cost at most the calls that may be in flight when it is learned; returns the bans."""
    bans = list(platform.top_calls()["bans"])
    print([(each["calls"], each["in_flight"]) for each in bans])
    assert all(1 <= each["calls"] <= IN_FLIGHT for each in bans)
    return bans


async def until_all_is_put_back(fleet: SellerFleet, redis: Redis) -> None:
    """Wait until no page is out and no worker holds one."""

    async def idle() -> bool:
        beats = await shared.live_workers(redis)
        return (
            len(beats) == len(WORKERS) and not any(beat.held for beat in beats) and (await fleet.pages())["sent"] == 0
        )

    await until(idle, what="workers without a page")


async def travel(fleet: SellerFleet, redis: Redis, seconds: float) -> None:
    """Let the ban's time pass, for the platform and for us."""
    fleet.simulator.advance(seconds)
    engine = create_engine(async_url(fleet.database_url))
    await let_time_pass(engine, redis, seconds)
    await engine.dispose()


@pytest.mark.slow
async def test_short_bans_one_after_the_other_cost_only_what_was_in_flight(
    fleet: SellerFleet, platform: SimulatorProcess
) -> None:
    ban(platform, "app_api", 2, times=2)
    crawl_id = fleet.submit()
    await fleet.until_finished(crawl_id)
    await fleet.assert_complete(crawl_id)
    assert len(assert_obeyed(platform)) == 2
    assert await fleet.tries() == 0
    assert fleet.repeated == 0


@pytest.mark.slow
@pytest.mark.parametrize(("scope", "lasts", "restarted"), [("app_daily", "midnight", False), ("dynamic", 30, True)])
async def test_long_ban_gives_every_page_back_and_is_relearnt_after_redis_forgot_it(
    fleet: SellerFleet, platform: SimulatorProcess, redis_url: str, scope: str, lasts: float | str, restarted: bool
) -> None:
    ban(platform, scope, lasts, sentence=False)
    crawl_id = fleet.submit()
    async with Redis.from_url(redis_url) as redis:
        await until_all_is_banned(redis)
        await until_all_is_put_back(fleet, redis)
        (known,) = await shared.bans(redis, "top")
        assert_obeyed(platform)
        calls = platform.top_calls()["total"]

        for name in WORKERS if restarted else ():
            fleet.kill(name)
        await redis.flushall()
        for name in WORKERS if restarted else ():
            fleet.worker(name)
        again = fleet.run("crawl", str(fleet.shops_file()), "--no-follow", "--option", "max_pages=7")
        assert again.returncode == 0, again.stderr
        await until_all_is_banned(redis)
        await until_all_is_put_back(fleet, redis)
        assert restarted <= platform.top_calls()["total"] - calls <= IN_FLIGHT
        (relearnt,) = await shared.bans(redis, "top")
        assert relearnt.scope == known.scope
        assert abs((relearnt.until - known.until).total_seconds()) <= DEFAULT

        await travel(fleet, redis, max(known.seconds, relearnt.seconds) + 1)
        for number in (crawl_id, crawl_id + 1):
            await fleet.until_finished(number)
            await fleet.assert_complete(number)
    assert await fleet.tries() == 0


async def until_all_is_banned(redis: Redis) -> None:
    """Wait until the fleet knows of the ban."""

    async def known() -> bool:
        return bool(await shared.bans(redis, "top"))

    await until(known, what="a ban in Redis")
