"""Sellers of every size are read by windows of time until the store equals the truth, even while they are edited."""

from math import ceil
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from models.tables import item
from tests.e2e.fleet import Values
from tests.e2e.sellers import SellerFleet
from tests.simulator.process import SimulatorProcess

pytestmark = pytest.mark.e2e

WINDOW = 2_000  # rows that one listing shows, instead of the platform's 20,000
PAGE_SIZE = 200
EDITED = ("middle", "largest")
SELLERS: dict[str, Any] = {
    "nothing": 0,
    "one": 1,
    "small": {"items": 45, "big_ids": True},
    "middle": 4_321,
    "largest": {"items": 9_000, "profile": "clustered", "burst_rows": 1_800},
}


def platform(**switches: Any) -> SimulatorProcess:
    """A few sellers, one of whom has far more rows than a listing shows and bulk edits.

    Titles come with unescaped control characters in them.
    """
    switches = {"top_window": WINDOW, "top_raw_control": True, **switches}
    return SimulatorProcess(shops=0, seed=4, top=SELLERS, switches=switches)


@pytest.mark.slow
async def test_embedded_crawl_on_sqlite_of_simplified_answers_stores_exactly_the_truth(tmp_path: Path) -> None:
    with (
        platform() as simulator,
        SellerFleet(tmp_path, simulator, top_window_rows=WINDOW, top_simplify="true") as fleet,
    ):
        done = fleet.run("crawl", str(fleet.shops_file()), "--quiet", "--json")
        assert done.returncode == 0, done.stderr
        await fleet.assert_complete(1)
        await assert_frugal(fleet)


@pytest.mark.slow
async def test_distributed_crawl_on_postgresql_of_wrapped_answers_stores_exactly_the_truth(
    tmp_path: Path, postgres_url: str, redis_url: str
) -> None:
    settings = {"database_url": postgres_url, "redis_url": redis_url, "top_simplify": "false"}
    with platform() as simulator, SellerFleet(tmp_path, simulator, top_window_rows=WINDOW, **settings) as fleet:
        crawl_id = fleet.submit()
        fleet.producer()
        for name in ("worker-1", "worker-2"):
            fleet.worker(name)
        await fleet.until_finished(crawl_id)
        await fleet.assert_complete(crawl_id)
        await assert_frugal(fleet)


async def assert_frugal(fleet: SellerFleet) -> None:
    """Every call is in the ledger, and splitting windows cost few calls beyond the pages needed."""
    calls = fleet.simulator.top_calls()
    assert await fleet.calls() == calls["outcomes"] == {"200": calls["total"]}
    assert fleet.repeated <= 2, "page 1 of the two that are split: to see that their counts have not changed"
    rows = [each["items"] for each in fleet.simulator.control("GET", "top/shops").values()]
    needed = sum(max(1, ceil(count / PAGE_SIZE)) for count in rows)
    print(f"{calls['total']} calls for {needed} pages")
    assert calls["total"] <= 1.5 * needed


async def test_nothing_that_stays_is_missed_while_two_rows_are_edited_with_every_page(tmp_path: Path) -> None:
    with platform(top_edits=2) as simulator, SellerFleet(tmp_path, simulator, top_window_rows=WINDOW) as fleet:
        done = fleet.run("crawl", str(fleet.shops_file()), "--quiet", "--json")
        assert done.returncode == 0, done.stderr
        assert all(entry.verdict in {"complete", "drifted"} for entry in (await fleet.shops(1)).values())
        assert sum(row["edited"] for nick in EDITED for row in simulator.top_truth(nick)) > 100
        truth, stored = fleet.truth(), await fleet.stored()
        assert stored.keys() == truth.keys()
        assert {key for key, values in stored.items() if timeless(values) != timeless(truth[key])} == set()
        (counted,) = await fleet.read(sa.select(sa.func.count().label("rows")).select_from(item))
        assert counted.rows == len(stored), "no item is stored twice"


def timeless(values: Values) -> Values:
    """What an edit leaves as it is."""
    return values | {"price": None}
