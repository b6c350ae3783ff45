"""Late sightings on real databases: seeing again changes nothing, another decoder rewrites history as its own."""

import random
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from models.changes import Change, record
from models.crawls import shop_ids
from models.items import Sighting, sighting_of, sightings_of
from models.past import correct
from models.sheets import Sheet
from models.source import Item
from models.store import PageSeen, observe, observe_pages
from models.tables import change, item, item_seen, item_version, outbox, shop, subscription
from tests.history import all_rows
from tests.ledger import START, engine_for, requests

TICK = timedelta(hours=1, microseconds=1)
Raw = tuple[int, int, int, int | None]
"""What a page says of an item: its number, and what a decoder makes prices, figures and a unit of."""


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """An engine on a database with two shops, numbered 1 and 2, that had been read completely just before."""
    async with engine_for(database_url) as engine:
        async with engine.begin() as connection:
            await shop_ids(connection, requests("one", "two"), START)
            await connection.execute(sa.update(shop).values(baseline_at=START - TICK / 2))
        yield engine


def at(tick: int) -> datetime:
    return START + tick * TICK


def decoded(raw: Raw, old: bool) -> Item:
    number, price, sold, unit = raw
    return Item(
        item_id=f"item-{number}",
        title=f"title {price // 2}" if old else f"title {price // 3}",
        price=Decimal(price) / 4,
        stock=None if old else price % 2,
        unit=None if unit is None or old else f"unit {unit}",
        sold_30d=sold if old else sold // 2,
        gmv_30d=None if old else Decimal(sold) * 10,
    )


def sightings(raw: Sequence[Raw], shop_id: int, *, old: bool) -> list[Sighting]:
    return [
        sighting_of(decoded(each, old), shop_id=shop_id, shop_crawl_id=100 + tick, seen_at=at(tick))
        for tick, each in enumerate(raw)
    ]


def invented(seed: int, length: int = 120, items: int = 6) -> list[Raw]:
    chance = random.Random(seed)
    prices = dict.fromkeys(range(items), 0)
    found = []
    for _ in range(length):
        number = chance.randrange(items)
        if chance.random() < 0.4:
            prices[number] = chance.randrange(8)
        found.append((number, prices[number], chance.randrange(4), chance.choice((None, 0, 1))))
    return found


async def see(engine: AsyncEngine, seen: Iterable[Sighting], size: int = 7) -> None:
    """Live: in order of time, in batches."""
    given = list(seen)
    for start in range(0, len(given), size):
        async with engine.begin() as connection:
            await observe(connection, given[start : start + size])


async def see_again(engine: AsyncEngine, seen: Iterable[Sighting], size: int = 11) -> list[Sighting]:
    """Late, in batches; returns the sightings that corrected something."""
    given, told = list(seen), []
    for start in range(0, len(given), size):
        async with engine.begin() as connection:
            told += await correct(connection, given[start : start + size])
    return told


@pytest.mark.parametrize("seed", range(3))
async def test_seeing_again_what_was_seen_changes_no_row(engine: AsyncEngine, seed: int) -> None:
    seen = sightings(invented(seed), 1, old=True)
    await see(engine, seen)
    before = await all_rows(engine, 1)
    assert before["item_version"] and before["item_sales"] and before["change"]
    again = random.Random(seed).choices(seen, k=150)
    assert await see_again(engine, again) == []
    assert await all_rows(engine, 1) == before


async def test_an_item_is_back_from_its_first_sighting_on_whichever_is_stored_first(engine: AsyncEngine) -> None:
    first, *later = sightings([(0, 4, 0, None)] * 6, 1, old=True)
    await see(engine, [first])
    async with engine.begin() as connection:
        await record(connection, [Change(1, first.item_id, "gone", at(2) + TICK / 2, 7)])
        await connection.execute(sa.update(item_seen).values(gone_at=at(2) + TICK / 2))
    before_it_was_gone, earliest, between, newest = later[1:]
    await see(engine, [newest])
    assert await see_again(engine, [between, before_it_was_gone, earliest]) == []
    async with engine.connect() as connection:
        rows = (await connection.execute(sa.select(change).order_by(change.c.at))).all()
    assert [(row.kind, row.at) for row in rows] == [("new", at(0)), ("gone", at(2) + TICK / 2), ("back", at(3))]
    assert rows[-1].shop_crawl_id == earliest.shop_crawl_id


@pytest.mark.parametrize("seed", range(3))
async def test_another_decoder_leaves_the_rows_it_would_have_made(engine: AsyncEngine, seed: int) -> None:
    raw = invented(seed)
    await see(engine, sightings(raw, 1, old=True))
    again = sightings(raw, 1, old=False)
    assert await see_again(engine, again)
    await see(engine, sightings(raw, 2, old=False))
    assert await all_rows(engine, 1) == await all_rows(engine, 2)
    assert await see_again(engine, again) == []


async def test_late_sightings_in_any_order_are_put_right_by_seeing_all_in_theirs(engine: AsyncEngine) -> None:
    raw = invented(7)
    seen = sightings(raw, 1, old=True)
    newest = {each.key: each for each in seen}
    await see(engine, newest.values())
    late = [each for each in seen if newest[each.key] is not each]
    random.Random(7).shuffle(late)
    assert await see_again(engine, late)
    await see_again(engine, seen)
    await see(engine, sightings(raw, 2, old=True))
    assert await all_rows(engine, 1) == await all_rows(engine, 2)


async def test_a_late_sighting_moves_neither_last_seen_nor_misses_nor_what_is_gone(engine: AsyncEngine) -> None:
    seen = sightings([(1, price, 0, None) for price in (0, 4, 6)], 1, old=True)
    await see(engine, [seen[0], seen[2]])
    async with engine.begin() as connection:
        await connection.execute(sa.update(item_seen).values(misses=2, gone_at=at(9)))
    (before,) = (await all_rows(engine, 1))["item_seen"]
    assert await see_again(engine, [seen[1]]) == [seen[1]]
    (after,) = (await all_rows(engine, 1))["item_seen"]
    assert after == before
    async with engine.connect() as connection:
        prices = list(await connection.scalars(sa.select(item_version.c.price)))
    assert sorted(prices) == [Decimal(0), Decimal(1)]


async def test_a_corrected_change_keeps_its_place_in_the_outbox_and_a_false_one_leaves_it(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(
            sa.insert(subscription).values(
                url="http://x", sealed=b"", kinds=["price", "title"], state="active", next_at=START, created_at=START
            )
        )
    await see(engine, sightings([(1, 0, 0, None), (1, 2, 0, None)], 1, old=True))
    async with engine.connect() as connection:
        waiting = {row.kind: row.id for row in await connection.execute(sa.select(change))}
        assert set(waiting) == {"new", "price", "title"}
    await see_again(engine, sightings([(1, 0, 0, None), (1, 2, 0, None)], 1, old=False))
    async with engine.connect() as connection:
        due = set(await connection.scalars(sa.select(outbox.c.change_id)))
        kinds = {row.kind: row.id for row in await connection.execute(sa.select(change))}
    assert due == {waiting["price"]}
    assert kinds == {"new": waiting["new"], "price": waiting["price"]}


async def price_of(engine: AsyncEngine) -> Any:
    async with engine.connect() as connection:
        return await connection.scalar(sa.select(item.c.price))


async def see_page(engine: AsyncEngine, tick: int, raw: Raw) -> None:
    """A page that shows one item."""
    seen, digest = sightings_of([decoded(raw, True)], shop_id=1, shop_crawl_id=100 + tick, seen_at=at(tick))
    async with engine.begin() as connection:
        await observe_pages(connection, [PageSeen(seen, Sheet(1, digest, at(tick), 100 + tick))])


@pytest.mark.parametrize("paged", [False, True])
async def test_what_was_corrected_is_compared_when_it_is_seen_next(engine: AsyncEngine, paged: bool) -> None:
    raw = (1, 4, 0, None)
    for tick in (0, 1):
        await (see_page(engine, tick, raw) if paged else see(engine, sightings([raw] * 2, 1, old=True)[tick:][:1]))
    (other,) = sightings([(1, 6, 0, None)], 1, old=True)
    assert await see_again(engine, [other]) == [other]
    assert await price_of(engine) == Decimal("1.5")
    await (see_page(engine, 2, raw) if paged else see(engine, sightings([raw] * 3, 1, old=True)[2:]))
    assert await price_of(engine) == 1
    async with engine.connect() as connection:
        (version,) = await connection.execute(sa.select(item_version))
    assert (version.price, version.valid_from, version.valid_to) == (Decimal("1.5"), at(0), at(2))


async def test_the_newest_sighting_read_again_tells_what_is_not_tracked_too(engine: AsyncEngine) -> None:
    raw = [(1, 4, 0, None)] * 2
    await see(engine, sightings(raw, 1, old=True))
    for tick, told in ((0, None), (1, "SALE")):
        better = msgspec.structs.replace(decoded(raw[tick], True), type="SALE")
        again = sighting_of(better, shop_id=1, shop_crawl_id=100 + tick, seen_at=at(tick))
        assert bool(await see_again(engine, [again])) == (told is not None)
        async with engine.connect() as connection:
            assert await connection.scalar(sa.select(item.c.type)) == told
    assert await see_again(engine, [again]) == []
