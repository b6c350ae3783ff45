"""Shops and sources that answer nothing but 417 cost few calls, hold nobody up, and heal by themselves."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from models.tables import page
from tests.e2e.fleet import Fleet, until
from tests.simulator.process import SimulatorProcess

pytestmark = pytest.mark.e2e

SICK, SICK_PAGES, PAGE_SIZE = "sick", 200, 20
GOOD_SHOPS = 12
IN_FLIGHT, TRIES, ANSWERS = 20, 3, 8
WORKERS = 2
BOUND = ANSWERS - 1 + WORKERS * IN_FLIGHT + TRIES
"""Failed calls for the sick shop: to find out, in flight in each worker meanwhile, and one for each rest."""


@pytest.fixture
def market() -> Iterator[SimulatorProcess]:
    """Twelve small shops, and a large one of which nothing but page 1 can be had."""
    extra = {SICK: SICK_PAGES * PAGE_SIZE} | {f"good-{number}": 3 * PAGE_SIZE for number in range(GOOD_SHOPS)}
    with SimulatorProcess(seed=5, shops=0, extra=extra, latency=0.02) as running:
        running.script({"outcome": "417", "shop": SICK, "pages": [2, None]})
        yield running


def fleet_in(folder: Path, market: SimulatorProcess, **settings: Any) -> Fleet:
    limits: dict[str, Any] = {"tmapi_concurrency_start": IN_FLIGHT, "tmapi_concurrency_max": IN_FLIGHT}
    return Fleet(folder, market, max_tries=TRIES, retry_cap=0.2, **limits, **settings)


def start(fleet: Fleet) -> int:
    """Two workers and a producer; returns the number of a crawl of every shop."""
    for number in range(WORKERS):
        fleet.worker(f"worker-{number + 1}")
    fleet.producer()
    return fleet.submit()


def refused(market: SimulatorProcess, shop: str = SICK) -> int:
    """Calls for a shop that were answered with 417."""
    return int(market.calls(shop)["outcomes"].get("417", 0))


async def settled(fleet: Fleet, verdict: str, count: int) -> bool:
    return (await fleet.verdicts(1))[verdict] == count


async def test_a_shop_that_is_down_for_good_costs_few_calls_and_the_others_are_complete(
    tmp_path: Path, market: SimulatorProcess, redis_url: str, postgres_url: str
) -> None:
    with fleet_in(tmp_path, market, redis_url=redis_url, database_url=postgres_url, sticky_rest=0.5) as fleet:
        start(fleet)
        await fleet.until_finished(1)
        assert await fleet.verdicts(1) == {"complete": GOOD_SHOPS, "partial": 1}
        print(f"{refused(market)} calls in vain for {SICK_PAGES} pages, {TRIES} tries each; at most {BOUND}")
        assert TRIES < refused(market) <= BOUND
        reasons = await fleet.read(sa.select(page.c.reason, page.c.outcome).where(page.c.state == "dead"))
        assert len(reasons) >= SICK_PAGES - 1
        assert {row.outcome for row in reasons} == {"417"}
        assert sum(f"shop rested {TRIES} times" in row.reason for row in reasons) > SICK_PAGES / 2
        assert "is given up" in fleet.log("worker-1") + fleet.log("worker-2")
        assert "given up" in fleet.run("circuits").stdout
        assert (await fleet.calls())["417"] == refused(market)


@pytest.mark.slow
@pytest.mark.parametrize("embedded", [True, False])
async def test_a_shop_that_heals_is_completed_without_anybodys_doing(
    tmp_path: Path, market: SimulatorProcess, redis_url: str, postgres_url: str, embedded: bool
) -> None:
    servers: dict[str, Any] = {} if embedded else {"redis_url": redis_url, "database_url": postgres_url}
    with fleet_in(tmp_path, market, sticky_rest=4, **servers) as fleet:
        crawl = fleet.background("crawl", "crawl", str(fleet.shops_file())) if embedded else None
        if crawl is None:
            start(fleet)
        await until(lambda: _rests(fleet), what="a rest")
        await until(lambda: settled(fleet, "complete", GOOD_SHOPS), what="the end of the other shops")
        market.script({"clear": True})
        await fleet.until_finished(1)
        assert crawl is None or crawl.wait(60) == 0
        assert refused(market) <= BOUND
        await fleet.assert_complete(1)
        assert fleet.run("circuits").stdout == "nothing rests\n"


@pytest.mark.slow
async def test_an_operator_sees_what_rests_and_need_not_wait_for_it(
    tmp_path: Path, market: SimulatorProcess, redis_url: str, postgres_url: str
) -> None:
    with fleet_in(tmp_path, market, redis_url=redis_url, database_url=postgres_url, sticky_rest=3000) as fleet:
        start(fleet)
        await until(lambda: settled(fleet, "complete", GOOD_SHOPS), what="the end of the other shops")
        await until(lambda: _none_sent(fleet), what="the rest")
        (circuit,) = json.loads(fleet.run("circuits", "--json").stdout)
        assert (circuit["source"], circuit["shop"], circuit["level"]) == ("tmapi", SICK, 1)
        assert circuit["share"] >= 0.6
        assert 2900 < circuit["seconds"] < 4000
        assert f"tmapi shop {SICK} rests (until" in fleet.run("status").stdout.replace("\n", " ")
        calls = refused(market)
        assert fleet.run("circuits", "reset", "somebody").returncode == 2
        market.script({"clear": True})
        assert fleet.run("circuits", "reset", SICK).stdout == "circuits reset: 1\n"
        await fleet.until_finished(1)
        await fleet.assert_complete(1)
        assert refused(market) == calls <= BOUND


@pytest.mark.slow
async def test_an_outage_of_the_whole_source_costs_few_calls_and_no_page_a_try(
    tmp_path: Path, market: SimulatorProcess, redis_url: str, postgres_url: str
) -> None:
    rules: dict[str, Any] = {"sticky_source_answers": 15, "sticky_source_shops": 5, "sticky_rest": 2, "retry_base": 3}
    with fleet_in(tmp_path, market, redis_url=redis_url, database_url=postgres_url, **rules) as fleet:
        market.script({"outcome": "417"})
        start(fleet)
        await until(lambda: _waits(fleet), what="word of the rest")
        await until(lambda: _probes(fleet, 2), what="two probes in vain")
        made = market.calls()["total"]
        market.script({"clear": True})
        await fleet.until_finished(1)
        await fleet.assert_complete(1)
        print(f"{made} calls during the outage")
        assert made <= 15 - 1 + WORKERS * IN_FLIGHT + 5
        assert "tmapi goes on" in fleet.log("producer")


async def _rests(fleet: Fleet) -> bool:
    logs = "".join(path.read_text(errors="replace") for path in fleet.folder.rglob("*.log"))
    return f"shop {SICK} of tmapi rests for" in logs


async def _waits(fleet: Fleet) -> bool:
    return "tmapi waits, nothing is lost: until" in fleet.log("producer")


async def _probes(fleet: Fleet, failed: int) -> bool:
    logs = "".join(fleet.log(f"worker-{number + 1}") for number in range(WORKERS))
    return logs.count("tmapi rests for") - logs.count("of tmapi rests for") > failed


async def _none_sent(fleet: Fleet) -> bool:
    return (await fleet.pages())["sent"] == 0
