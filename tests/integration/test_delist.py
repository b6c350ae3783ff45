"""Delisting: what whole crawls prove absent is gone, dated, and back when it returns; doubtful ones take nothing."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from models.messages import PageTask
from models.tables import item, item_seen, shop
from tests.ledger import SETTINGS, engine_for, rows
from tests.lists import Goods, Market


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    async with engine_for(database_url) as engine:
        yield engine


async def gone(engine: AsyncEngine) -> set[int]:
    """Items that count as gone."""
    return {int(row.item_id) for row in await rows(engine, item_seen, item_seen.c.gone_at.is_not(None))}


async def test_an_item_is_gone_after_two_whole_crawls_without_it_and_back_when_it_returns(engine: AsyncEngine) -> None:
    goods = Goods(list(range(95)))
    market = Market(engine, shop=goods)
    await market.crawl()
    baseline = (await market.shop()).baseline_at
    goods.on_sale.remove(33)
    await market.crawl()
    assert (await market.misses(), await gone(engine)) == ({33: 1}, set())
    await market.crawl()
    settled = await market.settled()
    assert (settled.verdict, settled.gone_items) == ("complete", 1)
    assert await gone(engine) == {33}
    (row,) = await rows(engine, item_seen, item_seen.c.gone_at.is_not(None))
    assert row.gone_at == settled.settled_at
    await market.crawl()
    assert (await market.settled()).gone_items == 0
    goods.on_sale.insert(33, 33)
    await market.crawl()
    assert await market.events("gone", "back") == [("gone", 33), ("back", 33)]
    assert (await gone(engine), await market.misses()) == (set(), {})
    assert (await market.shop()).baseline_at == baseline == (await market.shop()).baseline_at


async def test_an_item_that_was_seen_between_is_missed_anew(engine: AsyncEngine) -> None:
    goods = Goods(list(range(60)))
    market = Market(engine, shop=goods)
    for on_sale in (True, False, True, False):
        goods.on_sale = [number for number in range(60) if on_sale or number != 7]
        await market.crawl()
    assert (await market.misses(), await gone(engine)) == ({7: 1}, set())


async def test_every_item_that_left_a_still_shop_is_gone_wherever_it_stood(engine: AsyncEngine) -> None:
    goods = Goods(list(range(100)))
    market = Market(engine, shop=goods)
    await market.crawl()
    left = {0, 19, 20, 21, 40, 41, 59, 63, 99}
    goods.on_sale = [number for number in goods.on_sale if number not in left]
    await market.crawl()
    assert set(await market.misses()) == left
    await market.crawl()
    assert await gone(engine) == left
    assert (await market.settled()).gone_items == len(left)


async def test_an_item_that_slipped_across_a_border_is_not_missed_but_found(engine: AsyncEngine) -> None:
    goods = Goods(list(range(100)))
    market = Market(engine, shop=goods)
    await market.crawl()

    def slip(goods: Goods, task: PageTask) -> None:
        if task.page == 1 and 5 in goods.on_sale:
            goods.on_sale.remove(5)
            goods.on_sale.append(500)

    goods.moves = slip
    await market.crawl(room=1)
    settled = await market.settled()
    assert (settled.verdict, settled.first_distinct, settled.distinct_items) == ("complete", 100, 101)
    assert await market.misses() == {}
    goods.moves = lambda *_: None
    await market.crawl()
    await market.crawl()
    assert await market.events("gone") == [("gone", 5)]


def truncated(task: PageTask, shown: list[int], total: int) -> tuple[list[int], int]:
    return ([] if task.page >= 4 else shown, total)


def too_large(_: PageTask, shown: list[int], total: int) -> tuple[list[int], int]:
    return shown, total * 10


def short_end(task: PageTask, shown: list[int], total: int) -> tuple[list[int], int]:
    return (shown[:2] if task.page == 5 else shown, total)


@pytest.mark.parametrize("faults", [truncated, too_large, short_end])
async def test_a_partial_crawl_takes_nothing_away(engine: AsyncEngine, faults: object) -> None:
    goods = Goods(list(range(95)))
    market = Market(engine, shop=goods)
    await market.crawl()
    goods.on_sale.remove(33)
    goods.faults = faults  # type: ignore[assignment]  # parametrize knows no types
    for _ in range(3):
        await market.crawl()
        assert (await market.settled()).verdict == "partial"
    assert (await market.misses(), await market.events("gone")) == ({}, [])


async def test_a_dead_page_takes_nothing_away(engine: AsyncEngine) -> None:
    goods = Goods(list(range(95)))
    market = Market(engine, shop=goods)
    await market.crawl()
    goods.on_sale.remove(70)
    goods.lost = lambda task: "dead" if task.page == 3 else "done"
    for _ in range(3):
        await market.crawl()
        assert (await market.settled()).verdict == "partial"
    assert (await market.misses(), await market.events("gone")) == ({}, [])


@pytest.mark.parametrize("options", [{"sort": "sales"}, {"sort": "default"}, {"price_start": "0"}])
async def test_orders_and_filters_that_prove_nothing_take_nothing_away(
    engine: AsyncEngine, options: dict[str, Any]
) -> None:
    goods = Goods(list(range(95)))
    market = Market(engine, shop=goods)
    await market.crawl(**options)
    goods.on_sale.remove(33)
    for _ in range(3):
        await market.crawl(**options)
        assert (await market.settled()).verdict == "complete"
    assert (await market.misses(), await market.events("gone")) == ({}, [])


async def test_a_shop_that_lost_half_of_its_items_is_suspect_until_a_second_look_agrees(engine: AsyncEngine) -> None:
    goods = Goods(list(range(100)))
    market = Market(engine, shop=goods)
    await market.crawl()
    whole, goods.on_sale = goods.on_sale, goods.on_sale[:50]
    status = await market.crawl()
    assert (status.verdicts.suspect, status.pages.done) == (1, 3), "no second pass: it is crawled again anyway"
    shop = await market.shop()
    assert (shop.known_items, shop.suspect_items) == (100, 50)
    assert await market.misses() == {}
    goods.on_sale = whole
    await market.crawl()
    shop = await market.shop()
    assert ((await market.settled()).verdict, shop.known_items, shop.suspect_items) == ("complete", 100, None)
    goods.on_sale = whole[:50]
    verdicts = []
    for _ in range(3):
        await market.crawl()
        verdicts.append((await market.settled()).verdict)
    assert verdicts == ["suspect", "complete", "complete"]
    assert (await market.shop()).known_items == 50
    assert await gone(engine) == set(range(50, 100))


async def test_newest_items_alone_say_nothing_about_the_others(engine: AsyncEngine) -> None:
    goods = Goods(list(range(95)))
    market = Market(engine, shop=goods)
    await market.crawl()
    goods.on_sale = [*goods.on_sale[3:], 500]
    crawl_id = await market.submit(sort="time_down")
    async with engine.begin() as connection:
        await connection.execute(
            sa.text("UPDATE shop_crawl SET mode = 'new' WHERE crawl_id = :crawl"), {"crawl": crawl_id}
        )
    goods.asked.clear()
    await market.run(crawl_id)
    settled = await market.settled()
    assert (settled.verdict, settled.new_items, len(goods.asked)) == ("complete", 1, 2)
    assert settled.reason == "1 new items in 2 pages, page 2 shows nothing new"
    (row,) = await rows(engine, shop)
    assert (row.known_items, row.suspect_items) == (95, None)
    assert await market.misses() == {}


async def test_what_was_seen_under_the_reversed_order_is_proved_absent_all_the_same(engine: AsyncEngine) -> None:
    goods = Goods(list(range(95)))
    market = Market(engine, shop=goods)
    await market.crawl(sort="time_down")
    goods.on_sale.remove(33)
    await market.crawl(sort="time_up")
    await market.crawl(sort="time_down")
    assert await gone(engine) == {33}


async def test_how_many_crawls_it_takes_is_a_setting(engine: AsyncEngine) -> None:
    goods = Goods(list(range(40)))
    market = Market(engine, SETTINGS.model_copy(update={"gone_after": 1}), shop=goods)
    await market.crawl()
    goods.on_sale = []
    market.settings = market.settings.model_copy(update={"shrink_guard": 1.0})
    await market.crawl()
    assert (await market.settled()).gone_items == 40
    assert {row.item_id for row in await rows(engine, item)} == {str(number) for number in range(40)}
