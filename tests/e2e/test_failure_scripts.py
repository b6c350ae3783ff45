"""However an API fails, each shop gets the right verdict with its reason, nothing is delisted, and all heals."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from models.tables import item_seen, shop, shop_crawl
from tests.e2e.fleet import TOKEN, Fleet
from tests.rounds import crawl_round, requests_for
from tests.servers import RedisServer
from tests.simulator.process import SimulatorProcess
from tests.witness import witness

pytestmark = pytest.mark.e2e
ITEMS, PAGE_SIZE = 400, 50  # eight full pages


@dataclass(frozen=True)
class Failure:
    """A directive to the simulator for one shop, and which verdict with which reason a crawl during it must have."""

    directive: dict[str, Any]
    verdict: str
    reason: str
    second: tuple[str, str] | None = None
    """Verdict and reason of the second crawl during it, if they differ."""


def from_page(page: int, outcome: str, **details: Any) -> dict[str, Any]:
    return {"outcome": outcome, "pages": [page, None], **details}


FAILURES = {
    "truncated-at-page-7": Failure(
        {"outcome": "partial", "fraction": 0.75}, "partial", "of 400 items, page 7 is empty"
    ),
    "page-7-broken-off": Failure(
        from_page(7, "truncated"), "partial", "3 of 9 pages could not be had: page 7: truncated"
    ),
    "417-from-page-3": Failure(from_page(3, "417"), "partial", "7 of 9 pages could not be had: page 3: 417"),
    "repeated-last-page": Failure(from_page(5, "repeat_last"), "partial", "of 400 items, page 6 repeats page 5"),
    "last-page-without-end": Failure({"set": {"beyond_end": "last"}}, "complete", "400 items, page 9 repeats page 8"),
    "total-10-times-too-large": Failure({"set": {"total_factor": 10}}, "partial", "400 of 4000 items, page 9 is empty"),
    "total-10-times-too-small": Failure({"set": {"total_factor": 0.1}}, "complete", "400 items, .*page 9 is empty"),
    "half-empty": Failure({"set": {"hidden": 0.5}}, "suspect", "200 .*400", ("complete", "200 items")),
    "html-with-200": Failure({"outcome": "html200"}, "failed", "no page could be had; page 1: "),
    "string-data": Failure({"outcome": "data_text"}, "failed", "no page could be had; page 1: "),
    "page-size-capped": Failure({"set": {"page_size_max": 20, "page_size_echo": "asked"}}, "complete", "400 items"),
    "last-page-short": Failure(
        {"outcome": "short", "pages": 8, "rows": 7}, "partial", "of 400 items, page 8 is the short"
    ),
    "last-page-short-once": Failure(
        {"outcome": "short", "pages": 8, "rows": 7, "times": 1},
        "drifted",
        "a second pass of 1 call found 43 more",
        ("complete", "400 items"),
    ),
    "page-5-short-once": Failure(
        {"outcome": "short", "pages": 5, "rows": 7, "times": 1},
        "drifted",
        "a second pass of . calls? found 43 more",
        ("complete", "400 items"),
    ),
    "reordered": Failure({"set": {"reorder": 0.3}}, "partial", "of 400 items"),
}


@pytest.fixture
def simulator() -> Iterator[SimulatorProcess]:
    """A shop for every failure, all of one size; nothing moves in them."""
    switches = {"journal": True, "page_size_max": PAGE_SIZE}
    extra = dict.fromkeys(FAILURES, ITEMS)
    with SimulatorProcess(shops=0, extra=extra, seed=3, token=TOKEN, switches=switches) as running:
        yield running


async def test_every_failure_gets_its_verdict_and_reason_and_leaves_no_trace(
    tmp_path: Path, simulator: SimulatorProcess, postgres_url: str, redis_server: RedisServer, redis_url: str
) -> None:
    page_size = {"page_size": str(PAGE_SIZE)}
    options = dict.fromkeys(FAILURES, page_size) | {"reordered": page_size | {"sort": "sales"}}
    requests = requests_for(simulator, options)
    limits = {"max_tries": 2, "sticky_answers": 0}  # a shop that rests would only take longer to its verdict
    with Fleet(tmp_path, simulator, database_url=postgres_url, redis_url=redis_url, **limits) as fleet:
        fleet.producer()
        fleet.worker()
        await crawl_round(postgres_url, requests)
        simulator.script(*({**failure.directive, "shop": name} for name, failure in FAILURES.items()))
        await crawl_round(postgres_url, requests)
        await crawl_round(postgres_url, requests)
        simulator.script({"clear": True})
        await crawl_round(postgres_url, requests)
        assert await outcomes(fleet, 1) == dict.fromkeys(FAILURES, ("complete", 400))
        assert "\n".join(await unexpected(fleet)) == ""
        assert await outcomes(fleet, 4) == dict.fromkeys(FAILURES, ("complete", 400))
        seen = await witness(postgres_url, simulator)
        assert (seen.lost, seen.events, seen.gone) == ([], [], set())
        assert not seen.overlooked.keys() - {("half-empty", 3)}
        assert seen.wrong_histories == set()
        assert await left_over(fleet) == set()


async def outcomes(fleet: Fleet, crawl: int) -> dict[str, tuple[str, int]]:
    """Verdict and number of items of each shop in a crawl."""
    query = sa.select(shop.c.key, shop_crawl.c.verdict, shop_crawl.c.distinct_items).join(shop)
    return {
        row.key: (row.verdict, row.distinct_items)
        for row in await fleet.read(query.where(shop_crawl.c.crawl_id == crawl))
    }


async def unexpected(fleet: Fleet) -> list[str]:
    """What the crawls during the failures should not have come to, one line for each shop."""
    query = sa.select(shop.c.key, shop_crawl.c.crawl_id, shop_crawl.c.verdict, shop_crawl.c.reason).join(shop)
    wrong = []
    for row in await fleet.read(query.where(shop_crawl.c.crawl_id.in_([2, 3]))):
        failure = FAILURES[row.key]
        verdict, reason = failure.verdict, failure.reason
        if row.crawl_id == 3 and failure.second:
            verdict, reason = failure.second
        if row.verdict != verdict or not re.search(reason, row.reason):
            wrong.append(f"{row.key}, crawl {row.crawl_id}: {row.verdict}: {row.reason}")
    return wrong


async def left_over(fleet: Fleet) -> set[tuple[str, int | None, int | None, int]]:
    """What is remembered of each shop, once for all: its size, suspicions, and the misses of its items."""
    query = sa.select(shop.c.known_items, shop.c.suspect_items, item_seen.c.misses, item_seen.c.gone_at).distinct()
    rows = await fleet.read(query.join(item_seen, item_seen.c.shop_id == shop.c.id))
    return {tuple(row) for row in rows} - {(ITEMS, None, 0, None)}
