"""Whatever is killed while a seller is read by windows, no row is lost and few pages are paid for twice."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.sellers import SellerFleet
from tests.servers import RedisServer
from tests.simulator.process import SimulatorProcess

pytestmark = pytest.mark.e2e

WINDOW = 2_000
WORKERS = ("worker-1", "worker-2")
IN_FLIGHT = 8
SELLERS = {"huge": {"items": 30_000, "profile": "clustered", "burst_rows": 1_800}, "small": 450}
LIMITS: dict[str, Any] = {"top_concurrency_start": IN_FLIGHT, "top_concurrency_max": IN_FLIGHT}


@pytest.fixture
def simulator() -> Iterator[SimulatorProcess]:
    """Many windows, each page of which is answered slowly enough for a kill to find some of them on their way."""
    switches = {"top_window": WINDOW, "top_latency": 0.1}
    with SimulatorProcess(shops=0, seed=4, top=SELLERS, switches=switches) as running:
        yield running


@pytest.mark.slow
async def test_killed_workers_and_an_emptied_redis_lose_nothing(
    tmp_path: Path, simulator: SimulatorProcess, postgres_url: str, redis_server: RedisServer, redis_url: str
) -> None:
    settings = {"database_url": postgres_url, "redis_url": redis_url, "top_window_rows": WINDOW}
    with SellerFleet(tmp_path, simulator, **settings, **LIMITS) as fleet:
        fleet.producer()
        for name in WORKERS:
            fleet.worker(name)
        crawl_id = fleet.submit()
        for done, name in zip((20, 35), WORKERS, strict=True):
            await fleet.until_done(done)
            fleet.kill(name)
            fleet.worker(name)
        await fleet.until_done(50)
        with redis_server.client() as client:
            client.flushall()
        assert not await fleet.is_finished(crawl_id)
        await fleet.until_finished(crawl_id)
        await fleet.assert_complete(crawl_id)
        faults = len(WORKERS) + 1
        print(f"{fleet.repeated} pages were had twice, {simulator.top_calls()['total']} calls")
        assert fleet.repeated <= faults * IN_FLIGHT + 1, "beside the second count of the one that is split"
        assert "pages were lost on their way and are sent again" in fleet.log("producer")
