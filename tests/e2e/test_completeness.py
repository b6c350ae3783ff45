"""After a crawl the store equals the truth: no item missing, none invented, every value as the vendor meant it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from models.tables import item, item_seen
from tests.e2e.fleet import COLUMNS, TOKEN, Fleet
from tests.servers import RedisServer
from tests.simulator.process import SimulatorProcess

pytestmark = pytest.mark.e2e
SHOPS = 60
BIG = {"big": 1_000}


@pytest.fixture
def simulator() -> Iterator[SimulatorProcess]:
    """Shops of very different sizes behind an API that fails in every way that heals."""
    options = {"shops": SHOPS, "items_max": 400, "extra": BIG, "latency": 0.02, "latency_tail": 10, "gate": 30}
    with SimulatorProcess(faults="default", seed=11, token=TOKEN, **options) as running:
        yield running


def test_every_column_of_an_item_is_compared() -> None:
    bookkeeping = {"shop_id", "item_id", "shop_crawl_id", "first_seen", "changed_at", "last_seen", "figures_at"}
    bookkeeping |= {"sheet_id", "content_hash", "misses", "missed_at", "gone_at"}
    assert set(COLUMNS) == {column.name for table in (item, item_seen) for column in table.columns} - bookkeeping


@pytest.mark.slow
async def test_embedded_crawl_on_sqlite_stores_exactly_the_truth(tmp_path: Path, simulator: SimulatorProcess) -> None:
    with Fleet(tmp_path, simulator) as fleet:
        done = fleet.run("crawl", str(fleet.shops_file()), "--quiet", "--json")
        assert done.returncode == 0, done.stderr
        await fleet.assert_complete(1)
        assert sum((await fleet.calls()).values()) == simulator.calls()["total"]
        assert fleet.repeated == 0


async def test_distributed_crawl_on_postgresql_stores_exactly_the_truth(
    tmp_path: Path, simulator: SimulatorProcess, postgres_url: str, redis_server: RedisServer, redis_url: str
) -> None:
    with Fleet(tmp_path, simulator, database_url=postgres_url, redis_url=redis_url) as fleet:
        crawl_id = fleet.submit()
        fleet.producer()
        for name in ("worker-1", "worker-2"):
            fleet.worker(name)
        await fleet.until_finished(crawl_id)
        await fleet.assert_complete(crawl_id)
        assert sum((await fleet.calls()).values()) == simulator.calls()["total"]
        assert fleet.repeated == 0
