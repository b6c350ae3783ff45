"""Crawls as asked for: the same command twice is one crawl, and a second click re-crawls nothing twice."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from models.crawls import Submission, fingerprint, known_shops, submit_crawl, submit_recrawl, unfinished_crawls
from models.messages import NORMAL_PRIORITY, URGENT_PRIORITY
from models.tables import crawl, page, shop, shop_crawl
from tests.ledger import OPTIONS, SETTINGS, SOURCE, START, after, engine_for, requests, rows, submit

NASTY = ["O'Neill", '"quoted"', "店铺 🏪", "a\\b", "new\nline", "%s :rows {r}", "x" * 10_000, " "]


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    async with engine_for(database_url) as engine:
        yield engine


async def recrawl(engine: AsyncEngine, *keys: str, **options: Any) -> Submission:
    async with engine.begin() as connection:
        return await submit_recrawl(connection, requests(*keys, **options), now=START, settings=SETTINGS)


async def settle(engine: AsyncEngine, crawl_id: int, verdict: str, at: float) -> None:
    """End a crawl as the producer would."""
    settled = {"state": "settled", "verdict": verdict, "settled_at": after(at)}
    async with engine.begin() as connection:
        await connection.execute(sa.update(shop_crawl).where(shop_crawl.c.crawl_id == crawl_id).values(settled))
        await connection.execute(sa.update(crawl).where(crawl.c.id == crawl_id).values(state="finished"))


async def known(engine: AsyncEngine, **filters: Any) -> list[str]:
    async with engine.connect() as connection:
        return sorted(request.key for request in await known_shops(connection, now=after(1000), **filters))


async def test_a_crawl_begins_with_page_1_of_each_shop_in_the_order_asked_for(engine: AsyncEngine) -> None:
    keys = ["b", "a", *NASTY]
    crawl_id = await submit(engine, *keys, priority=3)
    shops = {row.id: row.key for row in await rows(engine, shop)}
    crawls = await rows(engine, shop_crawl)
    assert [shops[row.shop_id] for row in crawls] == keys
    assert {(row.crawl_id, row.kind, row.state, row.priority, row.planned) for row in crawls} == {
        (crawl_id, "crawl", "open", 3, 1)
    }
    pages = await rows(engine, page)
    assert [row.shop_crawl_id for row in pages] == [row.id for row in crawls]
    assert {(row.source, row.number, row.rank, row.slice, row.state, row.fence, row.priority) for row in pages} == {
        (SOURCE, 1, 1, 0, "ready", 0, 3)
    }
    assert all(row.due_at == START and row.reviewed for row in pages)


async def test_the_same_command_finds_its_crawl_until_that_has_finished(engine: AsyncEngine) -> None:
    first = await submit(engine, "a", "b")
    async with engine.begin() as connection:
        again = await submit_crawl(connection, requests("b", "a"), now=after(5), settings=SETTINGS)
    assert again == Submission(first, resumed=True, shops=2)
    assert len(await rows(engine, page)) == 2
    await settle(engine, first, "complete", 10)
    assert await submit(engine, "a", "b") != first
    assert len(await rows(engine, shop)) == 2


async def test_the_same_command_twice_at_once_is_one_crawl(engine: AsyncEngine) -> None:
    ids = await asyncio.gather(*(submit(engine, "a", "b") for _ in range(4)))
    assert len(set(ids)) == 1
    assert len(await rows(engine, page)) == 2


async def test_other_options_or_shops_are_another_crawl(engine: AsyncEngine) -> None:
    ids = [await submit(engine, "a"), await submit(engine, "a", sort="sale"), await submit(engine, "a", "b")]
    assert len(set(ids)) == 3
    async with engine.connect() as connection:
        assert await unfinished_crawls(connection) == ids


def test_a_fingerprint_knows_shops_and_options_but_no_order() -> None:
    one, two = requests("a", sort="x", shop_cat_id="1"), requests("b")
    assert fingerprint("crawl", [*one, *two]) == fingerprint("crawl", [*two, *one])
    assert fingerprint("crawl", one) == fingerprint("crawl", requests("a", shop_cat_id="1", sort="x"))
    assert len({fingerprint("crawl", one), fingerprint("crawl", two), fingerprint("recrawl", one)}) == 3


async def test_a_shop_named_twice_is_crawled_once(engine: AsyncEngine) -> None:
    await submit(engine, "a", "b", "a")
    assert len(await rows(engine, shop_crawl)) == len(await rows(engine, page)) == 2


async def test_shops_of_two_sources_may_share_their_key(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        mixed = [*requests("a"), type(requests("a")[0])("top", "a", OPTIONS)]
        assert (await submit_crawl(connection, mixed, now=START, settings=SETTINGS)).shops == 2
    assert [row.source for row in await rows(engine, page)] == [SOURCE, "top"]


async def test_a_recrawl_asked_for_twice_is_one_recrawl(engine: AsyncEngine) -> None:
    await submit(engine, "a", "b", "c")
    first = await recrawl(engine, "a", "b")
    assert (first.shops, first.pending, first.resumed) == (2, 0, False)
    assert await recrawl(engine, "b", "a") == Submission(first.crawl_id, resumed=True, shops=0, pending=2)
    third = await recrawl(engine, "b", "c")
    assert (third.shops, third.pending) == (1, 1)
    urgent = await rows(engine, page, page.c.priority == URGENT_PRIORITY)
    assert len(urgent) == 3
    assert len(await rows(engine, crawl)) == 3
    assert {row.priority for row in await rows(engine, page)} == {URGENT_PRIORITY, NORMAL_PRIORITY}


async def test_a_recrawl_is_possible_again_once_the_first_is_settled(engine: AsyncEngine) -> None:
    first = await recrawl(engine, "a")
    await settle(engine, first.crawl_id, "complete", 5)
    second = await recrawl(engine, "a")
    assert second.shops == 1
    assert second.crawl_id != first.crawl_id


async def test_many_operators_at_once_recrawl_each_shop_once(engine: AsyncEngine) -> None:
    keys = [f"shop-{number:02}" for number in range(30)]
    await submit(engine, *keys)
    orders = (keys, keys[::-1], keys[10:] + keys[:10], keys[::2] + keys[1::2])
    submissions = await asyncio.gather(*(recrawl(engine, *order) for order in orders))
    assert sum(submission.shops for submission in submissions) == 30
    assert all(submission.shops + submission.pending == 30 for submission in submissions)
    assert {submission.crawl_id for submission in submissions} <= {row.id for row in await rows(engine, crawl)}
    assert len(await rows(engine, page, page.c.priority == URGENT_PRIORITY)) == 30


async def test_a_shop_is_known_with_the_options_last_asked_for_settled_or_not(engine: AsyncEngine) -> None:
    await settle(engine, await submit(engine, "a", "b", sort="sale"), "complete", 5)
    await submit(engine, "b", "c", sort="time_up", page_size=50)
    async with engine.connect() as connection:
        options = {request.key: request.options for request in await known_shops(connection, now=START)}
    assert options == {
        "a": OPTIONS | {"sort": "sale"},
        "b": OPTIONS | {"sort": "time_up", "page_size": 50},
        "c": OPTIONS | {"sort": "time_up", "page_size": 50},
    }


async def test_known_shops_fit_every_filter_given(engine: AsyncEngine) -> None:
    await settle(engine, await submit(engine, "old", "both"), "failed", 100)
    await settle(engine, await submit(engine, "both", "new"), "partial", 900)
    await submit(engine, "running", "old")
    assert await known(engine) == ["both", "new", "old", "running"]
    assert await known(engine, verdicts=["failed"]) == ["old"]
    assert await known(engine, verdicts=["failed", "partial"]) == ["both", "new", "old"]
    assert await known(engine, older_than=timedelta(seconds=500)) == ["old"]
    assert await known(engine, older_than=timedelta(seconds=50), verdicts=["partial"]) == ["both", "new"]
    assert await known(engine, keys=["new", "nobody"]) == ["new"]
    assert await known(engine, keys=[]) == []
    assert await known(engine, source=SOURCE, keys=["old"]) == ["old"]
    assert await known(engine, source="top") == []


async def test_ten_thousand_shops_are_taken_in_by_one_transaction(engine: AsyncEngine) -> None:
    keys = [f"b2b-{number:06}" for number in range(10_000)]
    async with engine.begin() as connection:
        submission = await submit_crawl(connection, requests(*keys), now=START, settings=SETTINGS)
        again = await submit_crawl(connection, requests(*keys), now=START, settings=SETTINGS)
        count = await connection.scalar(sa.select(sa.func.count()).select_from(page))
    assert submission.shops == count == 10_000
    assert again == Submission(submission.crawl_id, resumed=True, shops=10_000)
    await settle(engine, submission.crawl_id, "failed", 1)
    assert await known(engine, verdicts=["failed"]) == keys
