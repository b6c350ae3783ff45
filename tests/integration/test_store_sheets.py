"""A page that shows the same again costs one row, and its answer is archived once; two writers keep one history."""

import asyncio
import random
from collections.abc import AsyncIterator
from decimal import Decimal
from itertools import pairwise

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from models.archive import BODY, WITH_BODY, prune_bodies
from models.crawls import shop_ids
from models.items import sightings_of
from models.sheets import Sheet
from models.store import PageSeen, observe_pages
from models.tables import item, item_seen, item_version, page_body, sheet
from tests.ledger import START, after, dispatch, done, engine_for, items, requests, rows, store, stored, submit

SHOP = 1


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    async with engine_for(database_url) as engine:
        yield engine


async def crawl(engine: AsyncEngine, *shown: str, at: float, body: bytes | None = None, price: int = 1) -> int:
    """Show items on the only page of a shop; returns the page's id."""
    await submit(engine, "shop-1", seen=at)
    (task,) = await dispatch(engine)
    result = done(task, items(*shown, price=Decimal(price)), at=at)
    result.body = body
    assert await store(engine, result) == [True]
    return task.page_id


async def bodies(engine: AsyncEngine) -> list[tuple[int, bytes]]:
    """The archive as it is read."""
    async with engine.connect() as connection:
        query = sa.select(page_body.c.page_id, BODY).select_from(WITH_BODY).order_by(page_body.c.page_id)
        return [(row[0], row[1]) for row in await connection.execute(query)]


async def test_a_page_that_shows_the_same_moves_one_row_for_all_its_items(engine: AsyncEngine) -> None:
    await crawl(engine, "1", "2", "3", at=1)
    before = await rows(engine, item_seen)
    await crawl(engine, "3", "1", "2", at=2)
    assert await rows(engine, item_seen) == before
    assert [row.last_seen for row in await rows(engine, sheet)] == [after(2)]
    assert {row.last_seen for row in await stored(engine)} == {after(2)}


async def test_an_item_that_left_its_page_keeps_when_it_was_seen_last(engine: AsyncEngine) -> None:
    await crawl(engine, "1", "2", at=1)
    await crawl(engine, "1", "2", at=2)
    await crawl(engine, "1", at=3)
    await crawl(engine, "1", at=4)
    assert [(row.item_id, row.last_seen) for row in await stored(engine)] == [("1", after(4)), ("2", after(2))]


async def test_a_page_that_shows_again_what_it_showed_before_another_change_is_told_in_full(
    engine: AsyncEngine,
) -> None:
    for at, price in enumerate((1, 2, 1), 1):
        await crawl(engine, "1", "2", at=at, price=price)
    assert [(row.price, row.changed_at, row.last_seen) for row in await stored(engine)] == [(1, after(3), after(3))] * 2
    assert [(row.price, row.valid_to) for row in await rows(engine, item_version)] == [(1, after(2)), (2, after(3))] * 2


async def test_an_answer_that_comes_again_is_archived_once_and_read_back_for_each_page(engine: AsyncEngine) -> None:
    first = await crawl(engine, "1", at=1, body=b"same")
    second = await crawl(engine, "1", at=2, body=b"same")
    third = await crawl(engine, "1", at=3, body=b"other")
    fourth = await crawl(engine, "1", at=4, body=b"same")
    assert await bodies(engine) == [(first, b"same"), (second, b"same"), (third, b"other"), (fourth, b"same")]
    assert [row.same_as for row in await rows(engine, page_body)] == [None, first, None, first]
    assert [row.body for row in await rows(engine, page_body)] == [b"same", b"", b"other", b""]


async def test_pruning_keeps_an_old_answer_as_long_as_a_young_page_gave_it(engine: AsyncEngine) -> None:
    first = await crawl(engine, "1", at=1, body=b"same")
    second = await crawl(engine, "1", at=20, body=b"same")
    old = await crawl(engine, "1", at=2, body=b"late")
    async with engine.begin() as connection:
        assert await prune_bodies(connection, after(10), batch=100) == 1
    assert await bodies(engine) == [(first, b"same"), (second, b"same")]
    async with engine.begin() as connection:
        assert await prune_bodies(connection, after(30), batch=100) == 2
    assert await bodies(engine) == []
    again = await crawl(engine, "1", at=40, body=b"same")
    assert await bodies(engine) == [(again, b"same")], "nothing refers to what was pruned"
    assert old not in {first, second}


async def test_two_writers_of_the_same_items_keep_one_unbroken_history(postgres_url: str) -> None:
    async with engine_for(postgres_url) as engine:
        async with engine.begin() as connection:
            await shop_ids(connection, requests("shop-1"), START)
        told = await asyncio.gather(*(write(engine, random.Random(seed), seed) for seed in range(4)))
        versions = await rows(engine, item_version)
        current = {row.item_id: row for row in await rows(engine, item)}
        seen = await rows(engine, item_seen)
    assert sum(new for new, _changed in told) == len(current) == len(seen) == 6
    for item_id, row in current.items():
        spans = [(past.valid_from, past.valid_to, past.price) for past in versions if past.item_id == item_id]
        spans.append((row.changed_at, None, row.price))
        assert all(one[1] == two[0] and one[2] != two[2] for one, two in pairwise(spans)), spans
        assert spans[0][0] == row.first_seen
    assert versions


async def write(engine: AsyncEngine, choose: random.Random, writer: int) -> tuple[int, int]:
    """Store pages of a few items at prices that come and go; returns how many were new, and how many changed."""
    new = changed = 0
    for step in range(25):
        at = after(step + 1 + writer / 10)
        shown = [each for n in choose.sample(range(6), 3) for each in items(n, price=Decimal(choose.randint(1, 2)))]
        sightings, digest = sightings_of(shown, shop_id=SHOP, shop_crawl_id=writer, seen_at=at)
        page = PageSeen(sightings, Sheet(SHOP, digest, at, writer))
        while True:
            try:
                async with engine.begin() as connection:
                    diff, _same = await observe_pages(connection, [page])
                break
            except DBAPIError as error:  # as the writer does
                assert getattr(error.orig, "sqlstate", None) == "40P01"
        new, changed = new + len(diff.new), changed + len(diff.changed)
    return new, changed
