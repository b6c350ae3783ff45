"""While the store cannot take answers, none are bought."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from redis import Redis

from tests.e2e.fleet import TOKEN, Fleet, until
from tests.ledger import engine_for
from tests.simulator.process import SimulatorProcess
from worker.writer import LARGEST_BATCH

pytestmark = pytest.mark.e2e

SHOPS = 600
WINDOW = 5 * LARGEST_BATCH
"""What two lanes write, as much again that has gathered, and one batch more."""


@pytest.fixture
def simulator() -> Iterator[SimulatorProcess]:
    """One page of each shop: it is short, reaches the total, and so proves its own end."""
    with SimulatorProcess(seed=3, token=TOKEN, profile="uniform", shops=SHOPS, items_min=5, items_max=5) as running:
        yield running


async def test_pages_wait_before_their_calls_while_the_database_is_locked(
    tmp_path: Path, simulator: SimulatorProcess, postgres_url: str, redis_url: str
) -> None:
    limits = {"concurrency": SHOPS, "tmapi_concurrency_start": SHOPS, "tmapi_concurrency_max": SHOPS}
    with Fleet(tmp_path, simulator, database_url=postgres_url, redis_url=redis_url, **limits) as fleet:
        async with engine_for(postgres_url) as engine, engine.begin() as locked:
            await locked.execute(sa.text("LOCK TABLE item_seen IN EXCLUSIVE MODE"))
            fleet.producer()
            fleet.worker()
            crawl_id = fleet.submit()

            async def held() -> bool:
                with Redis.from_url(redis_url) as client:
                    return bool(client.hlen("unacked") >= SHOPS) and simulator.calls()["outcomes"]["200"] >= WINDOW

            await until(held, what=f"{SHOPS} pages taken, {WINDOW} of them answered")
            assert simulator.calls()["outcomes"] == {"200": WINDOW}
        await fleet.until_finished(crawl_id)
        await fleet.assert_complete(crawl_id)
        assert fleet.repeated == 0
        assert simulator.calls()["total"] == SHOPS
