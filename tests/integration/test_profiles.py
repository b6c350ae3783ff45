"""What is known of shops and items, read from both databases, and the command that shows it."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from models import profiles
from models.errors import UsageError
from models.profiles import ItemCounts, item_profile, shop_profile
from models.source import Item
from models.tables import (
    change,
    crawl,
    item_sales,
    item_seen,
    item_version,
    schedule,
    schedule_shop,
    sheet,
    shop,
    shop_crawl,
)
from tests.e2e.here import run_here
from tests.ledger import engine_for
from tests.store import SEEN, add_rows, shop_id_of, stock

OPTIONS = {"page_size": 20, "max_pages": 100}


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """An engine on an empty database."""
    async with engine_for(database_url) as engine:
        yield engine


def day(number: float) -> datetime:
    return SEEN + timedelta(days=number)


async def add_crawl(engine: AsyncEngine, shop_id: int, number: int, **values: Any) -> int:
    """A shop crawl that was settled on a day; returns the id of its crawl."""
    common = {"kind": "crawl", "state": "finished", "fingerprint": "f", "priority": 5, "options": {}}
    async with engine.begin() as connection:
        made = sa.insert(crawl).values(**common, created_at=day(number)).returning(crawl.c.id)
        crawl_id = int(await connection.scalar(made) or 0)
        own = {"crawl_id": crawl_id, "shop_id": shop_id, "kind": "crawl", "state": "settled", "priority": 5}
        own |= {"options": OPTIONS, "planned": 2, "created_at": day(number), "settled_at": day(number)}
        await connection.execute(sa.insert(shop_crawl).values(**(own | values)))
    return crawl_id


async def add_change(engine: AsyncEngine, shop_id: int, kind: str, number: int, item_id: str = "1") -> None:
    row = {"shop_id": shop_id, "item_id": item_id, "kind": kind, "at": day(number), "shop_crawl_id": 1}
    await add_rows(engine, change, [row | {"before": None, "after": {"price": "3.900000"}}])


async def test_a_shop_is_known_by_its_items_crawls_and_changes(engine: AsyncEngine) -> None:
    shop_id = await stock(engine, "b2b-1", [Item(item_id=str(number)) for number in range(3)])
    await stock(engine, "b2b-1", [Item(item_id="9")], seen={"gone_at": day(2)})
    await stock(engine, "other", [Item(item_id="1")])
    settled = [
        await add_crawl(
            engine, shop_id, 0, verdict="complete", distinct_items=4, total_first=5, total_last=4, reserved=3
        ),
        await add_crawl(engine, shop_id, 1, verdict="complete", mode="new"),
        await add_crawl(engine, shop_id, 2, verdict="complete", options=OPTIONS | {"price_start": "5"}),
        await add_crawl(engine, shop_id, 3, verdict="partial", reason="why", total_first=7),
    ]
    await add_crawl(engine, shop_id, 4, kind="plan")
    running = await add_crawl(engine, shop_id, 5, state="open", settled_at=None)
    for number in range(7):
        await add_change(engine, shop_id, "price", number)
    await add_change(engine, await shop_id_of(engine, "other"), "gone", 9)
    async with engine.begin() as connection:
        await connection.execute(sa.update(shop).where(shop.c.id == shop_id).values(baseline_at=day(0), known_items=4))
    found = await shop_profile(engine, "b2b-1")
    assert (found.source, found.shop, found.baseline_at, found.known_items) == ("tmapi", "b2b-1", day(0), 4)
    assert (found.items, found.running, found.next) == (ItemCounts(3, 1), running, None)
    assert [each.crawl for each in found.crawls] == settled[::-1]
    assert [each.whole for each in found.crawls] == [True, False, False, True]
    assert [(each.verdict, each.reason, each.total) for each in (found.crawls[0], found.crawls[-1])] == [
        ("partial", "why", 7),
        ("complete", None, 4),
    ]
    assert (found.crawls[-1].distinct, found.crawls[-1].calls) == (4, 3)
    assert [(entry.kind, entry.at, entry.after) for entry in found.changes] == [
        ("price", day(number), {"price": "3.9"}) for number in range(2, 7)
    ]


async def test_items_of_a_very_large_shop_are_not_counted(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiles, "MOST_COUNTED", 3)
    for key, count in (("large", 4), ("small", 3)):
        await stock(engine, key, [Item(item_id=str(number)) for number in range(count)])
    assert (await shop_profile(engine, "large")).items is None
    assert (await shop_profile(engine, "small")).items == ItemCounts(3, 0)


async def test_the_next_crawl_is_the_first_of_all_schedules_that_concern_the_shop(engine: AsyncEngine) -> None:
    shop_id, other = await shop_id_of(engine, "b2b-1"), await shop_id_of(engine, "other")
    common: dict[str, Any] = {"kind": "interval", "mode": "full", "created_at": day(0)}
    schedules: list[dict[str, Any]] = [
        {"shop_id": other, "next_at": day(1), "enabled": True},
        {"source": "top", "next_at": day(2), "enabled": True},
        {"next_at": day(3), "enabled": False},
        {"next_at": day(4), "enabled": True, "kind": "adaptive"},
        {"source": "tmapi", "next_at": day(6), "enabled": True},
        {"shop_id": shop_id, "next_at": day(7), "enabled": True},
    ]
    async with engine.begin() as connection:
        made = [
            int(await connection.scalar(sa.insert(schedule).values(**(common | each)).returning(schedule.c.id)) or 0)
            for each in schedules
        ]
    found = (await shop_profile(engine, "b2b-1")).next
    assert found is not None and (found.schedule, found.at, found.kind) == (made[3], day(4), "adaptive")
    await add_rows(
        engine, schedule_shop, [{"schedule_id": made[3], "shop_id": shop_id, "every": 1.0, "due_at": day(9)}]
    )
    found = (await shop_profile(engine, "b2b-1")).next
    assert found is not None and (found.schedule, found.at) == (made[4], day(6))


async def test_an_item_is_known_by_its_versions_sales_and_events(engine: AsyncEngine) -> None:
    new = Item(item_id="1", title="new", price=Decimal("3.50"), sold_30d=7, gmv_30d=Decimal("70.50"))
    shop_id = await stock(engine, "b2b-1", [new, Item(item_id="2")], at=day(5))
    past = {"shop_id": shop_id, "item_id": "1", "shop_crawl_id": 1}
    versions = [(0, 2, "old", Decimal(2)), (2, 5, "mid", Decimal(3))]
    await add_rows(
        engine,
        item_version,
        [past | {"valid_from": day(a), "valid_to": day(b), "title": title, "price": p} for a, b, title, p in versions],
    )
    figures = {"shop_id": shop_id, "item_id": "1", "sold_30d": 5, "gmv_30d": Decimal(50)}
    await add_rows(engine, item_sales, [figures | {"at": day(0)}, figures | {"at": day(1), "sold_30d": 6}])
    for number, kind in enumerate(("new", "price", "gone", "back")):
        await add_change(engine, shop_id, kind, number)
    await add_change(engine, shop_id, "gone", 1, item_id="2")
    found = await item_profile(engine, "b2b-1", "1")
    assert (found.item_id, found.first_seen, found.last_seen, found.gone_at) == ("1", day(5), day(5), None)
    assert [(each.valid_from, each.valid_to, each.fields["title"]) for each in found.versions] == [
        (day(5), None, "new"),
        (day(2), day(5), "mid"),
        (day(0), day(2), "old"),
    ]
    assert str(found.current["price"]) == "3.5"
    assert [(each.at, each.figures["sold_30d"], str(each.figures["gmv_30d"])) for each in found.sales] == [
        (day(5), 7, "70.5"),
        (day(1), 6, "50"),
        (day(0), 5, "50"),
    ]
    assert [(entry.kind, entry.at) for entry in found.events] == [("new", day(0)), ("gone", day(2)), ("back", day(3))]


async def test_an_item_was_seen_when_its_page_was(engine: AsyncEngine) -> None:
    shop_id = await stock(engine, "b2b-1", [Item(item_id="1")], seen={"gone_at": day(8)})
    async with engine.begin() as connection:
        page = {"shop_id": shop_id, "digest": 1, "last_seen": day(7), "shop_crawl_id": 1}
        number = await connection.scalar(sa.insert(sheet).values(**page).returning(sheet.c.id))
        await connection.execute(sa.update(item_seen).values(sheet_id=number))
    found = await item_profile(engine, "b2b-1", "1")
    assert (found.first_seen, found.last_seen, found.gone_at) == (day(0), day(7), day(8))


async def test_unknown_shops_and_items_are_told_with_those_that_are_meant(engine: AsyncEngine) -> None:
    for key in ("b2b-22031471", "b2b-22031472", "other"):
        await stock(engine, key, [Item(item_id="610947572360")])
    await stock(engine, "other", [Item(item_id="1")], source="top")
    wrong = {
        ("b2b-2203147",): "unknown shop 'b2b-2203147'; did you mean 'b2b-22031471' or 'b2b-22031472'?",
        ("zzz",): "unknown shop 'zzz'",
        ("other",): "shop 'other' is in tmapi and top: choose one with --source",
        ("b2b-22031471", "top"): "shop 'b2b-22031471' is not in top, but in tmapi",
    }
    for (key, *source), message in wrong.items():
        with pytest.raises(UsageError) as caught:
            await shop_profile(engine, key, *source)
        assert str(caught.value) == message
    with pytest.raises(UsageError, match="'b2b-22031471' has no item '61094757236'; did you mean '610947572360'"):
        await item_profile(engine, "b2b-22031471", "61094757236")
    assert (await shop_profile(engine, "other", "top")).source == "top"


def test_show_prints_a_page_or_one_json_object(sqlite_url: str, tmp_path: Path) -> None:
    async def fill() -> None:
        async with engine_for(sqlite_url) as engine:
            await stock(engine, "b2b-1", [Item(item_id="7", title="连衣裙", price=Decimal("3.9"))])

    asyncio.run(fill())
    env = {"data_dir": tmp_path}
    page = run_here(tmp_path, "show", "b2b-1", env=env)
    assert (page.code, page.err) == (0, "") and "1 present" in page.out and "\x1b" not in page.out
    told = run_here(tmp_path, "show", "b2b-1", "--json", env=env)
    assert json.loads(told.out)["items"] == {"present": 1, "gone": 0}
    page = run_here(tmp_path, "show", "b2b-1", "7", env=env)
    assert page.code == 0 and "连衣裙" in page.out and "3.9 ┤" in page.out
    found = json.loads(run_here(tmp_path, "show", "b2b-1", "7", "--json", env=env).out)
    assert (found["item_id"], found["versions"][0]["fields"]["price"], found["versions"][0]["valid_to"]) == (
        "7",
        "3.9",
        None,
    )
    wrong = run_here(tmp_path, "show", "b2b", env=env)
    assert (wrong.code, wrong.out, wrong.err) == (2, "", "shopcrawl: unknown shop 'b2b'; did you mean 'b2b-1'?\n")
