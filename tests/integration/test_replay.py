"""Replays of archived crawls on real databases: no call, no difference to the live store, whatever it had lost."""

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from random import Random
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from models.compression import zstd
from models.ledger import PageResult, with_page
from models.messages import PageTask
from models.source import FetchedPage, HttpResponse, source_named
from models.tables import (
    change,
    item,
    item_sales,
    item_seen,
    item_version,
    outbox,
    page,
    page_body,
    shop,
    shop_crawl,
    subscription,
)
from producer.archive import bodies, replay
from producer.archive.bodies import Scope
from producer.archive.replay import Replay, Replayed
from tests.history import all_rows
from tests.integration.test_slices import Platform
from tests.ledger import engine_for, rows
from tests.market import SETTINGS, START, Crawler, Market
from tests.windows_server import Seller

EVERYTHING = Scope()


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    async with engine_for(database_url) as engine:
        yield engine


async def crawled(engine: AsyncEngine, *, shops: int, size: int, crawls: int) -> None:
    """Crawl a market again and again while it moves."""
    market = Market(shops, size)
    crawler = Crawler(engine, market)
    for _ in range(crawls):
        await crawler.crawl()
        market.move()


@pytest.fixture
async def small(engine: AsyncEngine) -> AsyncEngine:
    """A database with three shops that were crawled five times."""
    await crawled(engine, shops=3, size=12, crawls=5)
    return engine


async def run(engine: AsyncEngine, scope: Scope = EVERYTHING, **options: Any) -> Replayed:
    return await Replay(engine, scope, SETTINGS, **options).run()


async def empty(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        for table in (outbox, change, item_sales, item_version, item_seen, item):
            await connection.execute(sa.delete(table))


async def test_replaying_hundreds_of_pages_changes_nothing_and_rebuilds_an_emptied_store_row_by_row(
    engine: AsyncEngine,
) -> None:
    await crawled(engine, shops=6, size=23, crawls=7)
    before = await all_rows(engine)
    assert {"new", "price", "title", "unit", "gone", "back"} <= {row[2] for row in before["change"]}
    assert before["item_version"]
    assert before["item_sales"]
    found = await run(engine)
    assert (found.differences, found.failed, found.pages > 200) == (0, 0, True)
    assert await all_rows(engine) == before
    ledger = [await rows(engine, table) for table in (shop_crawl, page, shop)]
    await empty(engine)
    assert (await run(engine)).new == len(before["item"])
    assert await all_rows(engine) == before
    assert [await rows(engine, table) for table in (shop_crawl, page, shop)] == ledger
    assert (await run(engine)).differences == 0


@pytest.mark.parametrize("pages", [1, 40])
async def test_a_replay_that_was_cut_short_is_finished_by_the_next_one(
    small: AsyncEngine, pages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await all_rows(small)
    await empty(small)
    monkeypatch.setattr(bodies, "BATCH", 1 if pages == 1 else 16)
    read = 0

    def interrupt(number: int) -> None:
        nonlocal read
        read += number
        if read >= pages:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await Replay(small, EVERYTHING, SETTINGS).run(interrupt)
    assert await all_rows(small) != before
    await run(small)
    assert await all_rows(small) == before


async def test_a_dry_run_says_what_would_change_and_changes_nothing(small: AsyncEngine) -> None:
    await empty(small)
    found = await run(small, dry_run=True)
    assert found.new
    assert not any((await all_rows(small)).values())


async def test_lost_items_come_back_with_their_history(small: AsyncEngine) -> None:
    before = await all_rows(small)
    async with small.begin() as connection:
        await connection.execute(sa.delete(item).where(item.c.shop_id == 1))
        await connection.execute(sa.delete(item_seen).where(item_seen.c.shop_id == 2))
    found = await run(small)
    assert found.new == sum(row[0] in {1, 2} for row in before["item"])
    assert await all_rows(small) == before


async def test_a_new_decoder_rewrites_history_as_if_it_had_read_every_page(
    small: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = type(source_named("tmapi")).decode

    def decode(self: Any, response: HttpResponse, task: PageTask, now: Any) -> FetchedPage:
        found: FetchedPage = old(self, response, task, now)
        items = [
            msgspec.structs.replace(
                each,
                title=f"new {each.title}",
                stock=int(each.price or 0) % 3,
                price=round(each.price or 0),
                extra=None,
            )
            for each in found.items
        ]
        return msgspec.structs.replace(found, items=items)

    monkeypatch.setattr(type(source_named("tmapi")), "decode", decode)
    found = await run(small)
    assert (found.new, found.corrected > 50) == (0, True)
    corrected = await all_rows(small)
    assert (await run(small)).differences == 0
    await empty(small)
    await run(small)
    rebuilt = await all_rows(small)
    # What no page says any more stays with the items that had it.
    for stored in (corrected, rebuilt):
        stored["item"] = [tuple(part for part in row if not isinstance(part, dict)) for row in stored["item"]]
    assert {name: len(part) for name, part in corrected.items()} == {name: len(part) for name, part in rebuilt.items()}
    assert corrected["item_sales"] == rebuilt["item_sales"]
    assert corrected["item_version"] == rebuilt["item_version"]
    assert corrected["change"] == rebuilt["change"]


async def test_bodies_that_do_not_decode_are_named_and_the_others_go_on(small: AsyncEngine) -> None:
    before = await all_rows(small)
    broken = {3: zstd.compress(b'{"code": 200'), 5: b"no zstd"}
    async with small.begin() as connection:
        for page_id, body in broken.items():
            await connection.execute(sa.update(page_body).where(page_body.c.page_id == page_id).values(body=body))
        await connection.execute(sa.update(page).where(page.c.id == 7).values(state="dead"))
        gone = zstd.compress(json.dumps({"code": 417, "msg": "try again"}).encode())
        await connection.execute(sa.update(page_body).where(page_body.c.page_id == 7).values(body=gone))
        shared = page_body.c.page_id.in_(broken) | page_body.c.same_as.in_([*broken, 7])
        unreadable = set(await connection.scalars(sa.select(page_body.c.page_id).where(shared)))
    found = await run(small)
    assert {each.page_id for each in found.failures} == unreadable
    assert all(each.reason and each.shop.startswith("shop-") for each in found.failures)
    assert (found.failed, found.unreadable, found.differences) == (len(unreadable), 1, 0)
    assert await all_rows(small) == before


async def test_a_page_that_had_been_given_up_is_stored_once_it_is_readable(small: AsyncEngine) -> None:
    before = await all_rows(small)
    async with small.begin() as connection:
        await connection.execute(sa.update(page).where(page.c.id == 7).values(state="dead"))
    await empty(small)
    found = await run(small)
    assert (found.recovered, found.failed) == (1, 0)
    assert (await all_rows(small))["item"] == before["item"]


async def test_only_the_pages_of_the_scope_are_read(small: AsyncEngine) -> None:
    total = (await run(small)).pages
    crawls = [(await run(small, Scope(crawl_id=number))).pages for number in range(1, 6)]
    assert sum(crawls) == total
    assert (await run(small, Scope(shops=(1, 2)))).pages < total
    later = Scope(since=START + timedelta(days=3))
    assert 0 < (await run(small, later)).pages < total


async def test_no_subscriber_is_told_of_the_past(small: AsyncEngine) -> None:
    async with small.begin() as connection:
        await connection.execute(
            sa.insert(subscription).values(
                url="http://x",
                sealed=b"",
                kinds=["price", "new", "gone"],
                state="active",
                next_at=START,
                created_at=START,
            )
        )
    await empty(small)
    await run(small)
    assert (await all_rows(small))["change"]
    assert await rows(small, outbox) == []


async def test_shop_crawls_are_counted_in_their_order_however_few_are_read_at_once(
    small: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await all_rows(small)
    await empty(small)
    monkeypatch.setattr(replay, "SETTLED_AT_ONCE", 2)
    await run(small)
    assert await all_rows(small) == before


class Sellers(Platform):
    """Sellers read by windows of time, whose answers are archived; an edited row has another price."""

    def answer(self, task: PageTask, state: str = "done") -> PageResult:
        result = super().answer(task, state)
        if result.page is None:
            return result
        known, listed = self.sellers[task.shop].rows, []
        for sighting in result.page.sightings:
            row = known.get(int(sighting.item_id.rpartition("-")[2]))
            listed.append(
                {"num_iid": sighting.item_id, "nick": task.shop, "price": f"{row.second % 97 if row else 0}.50"}
            )
        body = json.dumps({"items": {"item": listed}, "total_results": result.page.total}).encode()
        result.body = zstd.compress(body, 1)
        return with_page(result, source_named("top").decode(HttpResponse(200, {}, body), task, result.at))


async def test_windows_of_time_are_replayed_with_what_their_crawls_missed(engine: AsyncEngine) -> None:
    seller = Seller(20, 200, Random(3))
    seller.stock(Random(4).randrange(10_000) for _ in range(260))
    platform = Sellers(engine, seller=seller)
    for _ in range(4):
        status = await platform.run(await platform.submit("seller"))
        assert status.verdicts.complete == 1
        platform.now += timedelta(days=1)
        platform.tick()
        for row in Random(len(seller.gone)).sample(sorted(seller.rows), 12):
            seller.remove(row) if row % 3 else seller.edit(row)
    before = await all_rows(engine)
    assert {"gone", "price"} <= {row[2] for row in before["change"]}
    assert (await run(engine)).differences == 0
    assert await all_rows(engine) == before
    await empty(engine)
    await run(engine)
    assert await all_rows(engine) == before
