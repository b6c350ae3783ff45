"""A budget is never exceeded, whatever is killed, and the ledger tells of every call what became of it."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from models.tables import call, crawl, page
from tests.e2e.fleet import TOKEN, Fleet, until
from tests.servers import RedisServer
from tests.simulator.process import SimulatorProcess

pytestmark = pytest.mark.e2e

BUDGET = 200
WORKERS = ("worker-1", "worker-2")
LIMITS: dict[str, Any] = {"concurrency": 20, "tmapi_concurrency_start": 40, "tmapi_concurrency_max": 40}


@pytest.fixture
def simulator() -> Iterator[SimulatorProcess]:
    """About 260 pages, slow and often failing: calls are in flight whenever a worker dies."""
    faults = {"417": 0.1, "500": 0.05, "empty": 0.02}
    options = {"profile": "uniform", "shops": 40, "items_min": 60, "items_max": 200, "latency": 0.3}
    with SimulatorProcess(seed=5, token=TOKEN, **options) as running:
        running.script({"set": {"faults": faults}})
        yield running


@pytest.fixture
def fleet(tmp_path: Path, simulator: SimulatorProcess, postgres_url: str, redis_url: str) -> Iterator[Fleet]:
    with Fleet(tmp_path / "fleet", simulator, database_url=postgres_url, redis_url=redis_url, **LIMITS) as running:
        running.producer()
        for name in WORKERS:
            running.worker(name)
        yield running


async def account(fleet: Fleet, crawl_id: int) -> tuple[int, int, int]:
    """Calls of a crawl: reserved, settled, and pages that are out."""
    [reserved] = await fleet.read(sa.select(crawl.c.reserved).where(crawl.c.id == crawl_id))
    [settled] = await fleet.read(sa.select(sa.func.sum(call.c.calls)).where(call.c.crawl_id == crawl_id))
    [out] = await fleet.read(sa.select(sa.func.count()).where(page.c.state == "sent"))
    return int(reserved[0]), int(settled[0] or 0), int(out[0])


async def until_waiting(fleet: Fleet, crawl_id: int) -> None:
    async def waiting() -> bool:
        [row] = await fleet.read(sa.select(crawl.c.state).where(crawl.c.id == crawl_id))
        return bool(row[0] == "waiting")

    await until(waiting, what="the crawl to wait for a larger budget")


@pytest.mark.slow
async def test_workers_killed_at_random_never_make_a_call_beyond_the_budget(
    fleet: Fleet, simulator: SimulatorProcess
) -> None:
    done = fleet.run("crawl", str(fleet.shops_file()), "--no-follow", "--json", "--max-calls", str(BUDGET))
    crawl_id = int(json.loads(done.stdout)["crawl_id"])
    for kill, name in zip(range(1, 4), itertools.cycle(WORKERS)):
        await fleet.until_done(20 * kill)
        fleet.kill(name)
        fleet.worker(name)
    await until_waiting(fleet, crawl_id)
    reserved, settled, out = await account(fleet, crawl_id)
    made = simulator.calls()["total"]
    print(f"budget {BUDGET}, made {made}, reserved {reserved}, settled {settled}, unknown {reserved - settled}")
    assert out == 0
    assert reserved == BUDGET
    assert settled <= made <= BUDGET
    assert made - settled <= reserved - settled, "a call that nobody saw end is among the unknown ones"
    status = json.loads(fleet.run("status", str(crawl_id), "--json").stdout)
    assert status["state"] == "waiting"

    assert fleet.run("budget", str(crawl_id), "--max-calls", "100000").returncode == 0
    await fleet.until_finished(crawl_id)
    await fleet.assert_complete(crawl_id)
    reserved, settled, out = await account(fleet, crawl_id)
    assert settled <= simulator.calls()["total"] <= reserved
    assert out == 0


@pytest.mark.slow
async def test_an_emptied_redis_does_not_lift_a_budget(
    fleet: Fleet, simulator: SimulatorProcess, redis_server: RedisServer
) -> None:
    done = fleet.run("crawl", str(fleet.shops_file()), "--no-follow", "--json", "--max-calls", str(BUDGET))
    crawl_id = int(json.loads(done.stdout)["crawl_id"])
    for share in (40, 80):
        await fleet.until_done(share)
        with redis_server.client() as client:
            client.flushall()
    await until_waiting(fleet, crawl_id)
    reserved, settled, out = await account(fleet, crawl_id)
    assert (reserved, out) == (BUDGET, 0)
    assert settled <= simulator.calls()["total"] <= BUDGET
