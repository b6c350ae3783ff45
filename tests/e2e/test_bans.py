"""A platform that closes itself for seconds or until midnight costs only the calls that were already on their way."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from redis.asyncio import Redis

from models import fleet as shared
from models.database import create_engine
from models.settings import async_url
from models.tables import page
from tests.e2e.fleet import Fleet, until
from tests.simulator.process import SimulatorProcess
from tests.timetravel import let_time_pass

pytestmark = pytest.mark.e2e

DAY = 31_062
SELLERS, ITEMS, PAGE_SIZE = 30, 180, 20
WORKERS = ("worker-1", "worker-2", "worker-3")
IN_FLIGHT = 12
KEY, SECRET = "12345678", "helloworld"


@pytest.fixture
def platform() -> Iterator[SimulatorProcess]:
    """Thirty sellers on a platform whose bans go by a virtual clock, and timestamps by the real one."""
    sellers = {f"seller-{number}": ITEMS for number in range(SELLERS)}
    switches = {"top_timestamps": "real", "top_edits": 0}
    with SimulatorProcess(seed=3, shops=0, top=sellers, latency=0.05, switches=switches) as running:
        yield running


def fleet_before(folder: Path, platform: SimulatorProcess, **servers: str) -> Fleet:
    """A fleet that may make twelve calls at once, in three workers where it has a Redis."""
    limits: dict[str, Any] = {"top_concurrency_start": IN_FLIGHT, "top_concurrency_max": IN_FLIGHT}
    app = {"top_app_key": KEY, "top_app_secret": SECRET, "top_gateway_url": f"{platform.url}/router/rest"}
    return Fleet(folder, platform, top_page_size=PAGE_SIZE, tmapi_tokens="", **app, **limits, **servers)


def shops_file(fleet: Fleet) -> str:
    """The sellers with their sessions."""
    path = fleet.folder / "sellers.csv"
    rows = [f"{nick},top,{session}" for nick, session in fleet.simulator.top_sessions().items()]
    path.write_text("\n".join(["shop,source,session", *rows]) + "\n")
    return str(path)


def ban(platform: SimulatorProcess, scope: str, seconds: float | str, **more: Any) -> None:
    platform.script({"top": {"ban": {"scope": scope, "seconds": seconds, "after": 60, **more}}})


def assert_frugal(platform: SimulatorProcess) -> int:
    """No call was made during a ban but those already on their way; returns how many those were."""
    seen = platform.top_calls()
    print({name: seen[name] for name in ("total", "during_ban", "during_ban_in_flight", "after_ban_learned")})
    for each in seen["bans"]:
        assert 1 <= each["calls"] <= IN_FLIGHT
    return int(seen["during_ban"])


async def assert_stored_whole(fleet: Fleet, crawl_id: int) -> None:
    """Every seller is complete, no page has used up a try, and the store has exactly the items there are."""
    assert await fleet.verdicts(crawl_id) == {"complete": SELLERS}
    assert {row.tries for row in await fleet.read(sa.select(page.c.tries).distinct())} == {0}
    truth = {
        (nick, str(number))
        for nick in fleet.simulator.top_sessions()
        for number in fleet.simulator.top_ids(nick)["ever"]
    }
    assert (await fleet.stored()).keys() == truth


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["app_daily", "api", "app_api", "dynamic"])
async def test_a_ban_for_the_day_frees_every_slot_and_the_crawl_goes_on_by_itself(
    tmp_path: Path, platform: SimulatorProcess, redis_url: str, postgres_url: str, scope: str
) -> None:
    ban(platform, scope, DAY)
    with fleet_before(tmp_path, platform, redis_url=redis_url, database_url=postgres_url) as fleet:
        for name in WORKERS:
            fleet.worker(name)
        fleet.producer()
        done = fleet.run("crawl", shops_file(fleet), "--no-follow", "--json")
        assert done.returncode == 0, done.stderr
        await until(lambda: _says(fleet, "producer", "top waits, nothing is lost: until"), what="word of the ban")
        await until(lambda: _none_sent(fleet), what="free slots")
        assert "top waits until" in fleet.run("status").stdout
        refused = assert_frugal(platform)
        platform.advance(DAY)
        engine = create_engine(async_url(fleet.database_url))
        async with Redis.from_url(redis_url) as redis:
            (known,) = await shared.bans(redis, "top")
            assert known.scope == ("*" if scope == "api" else hashlib.sha256(KEY.encode()).hexdigest()[:8])
            await let_time_pass(engine, redis, DAY)
        await engine.dispose()
        await fleet.until_finished(1)
        await assert_stored_whole(fleet, 1)
        calls = await fleet.calls()
        assert sum(count for code, count in calls.items() if code.startswith("7")) == refused
        assert platform.top_calls()["during_ban"] == refused
        assert "top goes on" in fleet.log("producer")


@pytest.mark.slow
async def test_bans_of_a_second_or_two_are_waited_out_in_place(tmp_path: Path, platform: SimulatorProcess) -> None:
    ban(platform, "api", 1, times=3)
    with fleet_before(tmp_path, platform) as fleet:
        done = fleet.run("crawl", shops_file(fleet), "--quiet")
        assert done.returncode == 0, done.stderr
        assert_frugal(platform)
        await assert_stored_whole(fleet, 1)


@pytest.mark.slow
async def test_an_operator_may_lift_a_ban(
    tmp_path: Path, platform: SimulatorProcess, redis_url: str, postgres_url: str
) -> None:
    ban(platform, "app_daily", "midnight")
    with fleet_before(tmp_path, platform, redis_url=redis_url, database_url=postgres_url) as fleet:
        fleet.worker()
        fleet.producer()
        crawl = fleet.background("crawl", "crawl", shops_file(fleet))
        await until(lambda: _says(fleet, "crawl", "top waits until"), what="word of the ban")
        await until(lambda: _none_sent(fleet), what="free slots")
        platform.script({"top": {"lift": True}})
        resumed = fleet.run("resume", "--quiet")
        assert resumed.returncode == 0, resumed.stderr
        assert crawl.wait(60) == 0
        await assert_stored_whole(fleet, 1)


@pytest.mark.slow
@pytest.mark.parametrize("hosted", [True, False], ids=["by another process", "by nobody"])
async def test_an_operator_may_lift_a_ban_of_an_embedded_crawl(
    tmp_path: Path, platform: SimulatorProcess, hosted: bool
) -> None:
    ban(platform, "app_daily", "midnight")
    with fleet_before(tmp_path, platform) as fleet:
        crawl = fleet.background("crawl", "crawl", shops_file(fleet))
        await until(lambda: _says(fleet, "crawl", "top waits until"), what="word of the ban")
        await until(lambda: _none_sent(fleet), what="free slots")
        if not hosted:
            fleet.stop("crawl")
        platform.script({"top": {"lift": True}})
        resumed = fleet.run("resume", "--quiet")
        assert resumed.returncode == 0, resumed.stderr
        assert not hosted or crawl.wait(60) == 0
        await assert_stored_whole(fleet, 1)


async def _says(fleet: Fleet, name: str, words: str) -> bool:
    return words in fleet.log(name)


async def _none_sent(fleet: Fleet) -> bool:
    return (await fleet.pages())["sent"] == 0
