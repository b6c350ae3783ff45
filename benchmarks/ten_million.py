"""Ten million items in PostgreSQL: does storing a page take as long as among a hundred thousand, do questions?"""

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from benchmarks.figures import Figure, report
from benchmarks.rig import Rig, rig
from models.database import create_engine, reader
from models.feed import Wanted, read_changes
from models.items import FIGURES, VALUES, sightings_of
from models.profiles import item_profile, shop_profile
from models.settings import async_url
from models.sheets import Sheet
from models.source import Item
from models.status import crawl_status, recent_crawls
from models.store import PageSeen, observe_pages
from models.tables import item, item_seen

NAME = "ten_million"
ITEMS, FEW = 10_000_000, 100_000
SHOP_ITEMS = 100
GROUP = 20
WARMING, GROUPS = 10, 100
ASKED = 15
MOST_RATIO = 1.5
MOST_MILLISECONDS = 200.0
NOW = datetime(2026, 3, 1, 12, 0, 0, 1, tzinfo=UTC)
BIG = ("item", "item_seen", "item_version", "item_sales", "change", "sheet", "page")
SCANS = f"SELECT COALESCE(sum(seq_scan), 0) FROM pg_stat_user_tables WHERE relname IN {BIG}"

# A thousand shops a crawl, a hundred items a shop, five pages each; some items have a past. Every hour had its crawl.
FILL = """
INSERT INTO shop (source, key, created_at, baseline_at, known_items)
    SELECT 'tmapi', 'shop' || s, '2026-01-01', '2026-01-02', {shop_items} FROM generate_series(1, {shops}) s;
INSERT INTO crawl (kind, state, fingerprint, priority, options, created_at, finished_at)
    SELECT 'crawl', 'finished', 'crawl' || c, 5, '{{}}', '{now}'::timestamptz - interval '1 hour' * (1 + {crawls} - c),
    '{now}'::timestamptz - interval '1 hour' * ({crawls} - c) FROM generate_series(1, {crawls}) c;
INSERT INTO shop_crawl (crawl_id, shop_id, kind, state, verdict, priority, options, planned, pages_done, rows,
    distinct_items, total_first, total_last, created_at, settled_at)
    SELECT 1 + (s.id - 1) / 1000, s.id, 'crawl', 'settled', 'complete', 5, '{{}}', 5, 5, {shop_items}, {shop_items},
    {shop_items}, {shop_items}, c.created_at, c.finished_at FROM shop s JOIN crawl c ON c.id = 1 + (s.id - 1) / 1000
    ORDER BY s.id;
INSERT INTO page (shop_crawl_id, source, number, priority, rank, state, reviewed, fence, tries, crashes, due_at,
    finished_at, outcome, rows, total)
    SELECT c.id, 'tmapi', n, 5, n, 'done', true, 1, 0, 0, c.created_at, c.settled_at, '200', 20, {shop_items}
    FROM shop_crawl c, generate_series(1, 5) n;
INSERT INTO sheet (shop_id, digest, last_seen, shop_crawl_id)
    SELECT c.shop_id, n, c.settled_at, c.id FROM shop_crawl c, generate_series(1, 5) n ORDER BY c.shop_id, n;
INSERT INTO item (shop_id, item_id, title, image, images, category_id, category_path, category_name, price,
    drop_ship_price, wholesale_price, origin_price, agent_price, quantity_begin, new_product, type, unit, status,
    created_time, first_seen, changed_at, shop_crawl_id)
    SELECT c.shop_id, (600000000000 + c.shop_id * 1000 + n)::text, 'An item of many words number ' || n,
    'https://img.example.com/ibank/O1CN01wSApKHuhdSVMXeEfI_' || n || '.jpg',
    '["https://img.example.com/ibank/O1CN01wSApKHuhdSVMXeEfI_1.jpg", "https://img.example.com/ibank/O1CN01wSApKH.jpg"]',
    '1046', '["7", "1046"]', 'Cups', n, n, n, n, n, 1, false, 'SALE', 'piece', 'published', '2025-01-01',
    '2026-01-02', '2026-01-02', c.id FROM shop_crawl c, generate_series(1, {shop_items}) n ORDER BY c.shop_id, n;
INSERT INTO item_seen (shop_id, item_id, sheet_id, last_seen, shop_crawl_id, content_hash, gmv_30d, sold_30d,
    figures_at, misses)
    SELECT c.shop_id, (600000000000 + c.shop_id * 1000 + n)::text, (c.shop_id - 1) * 5 + 1 + (n - 1) / 20,
    c.settled_at, c.id, 0, n * 9, n, c.settled_at, 0
    FROM shop_crawl c, generate_series(1, {shop_items}) n ORDER BY c.shop_id, n;
INSERT INTO item_version (shop_id, item_id, valid_from, valid_to, shop_crawl_id, title, price)
    SELECT c.shop_id, (600000000000 + c.shop_id * 1000 + n)::text, '2026-01-01', '2026-01-02', c.id, 'Once', n
    FROM shop_crawl c, generate_series(1, {shop_items}, 20) n ORDER BY c.shop_id, n;
INSERT INTO item_sales (shop_id, item_id, at, gmv_30d, sold_30d)
    SELECT c.shop_id, (600000000000 + c.shop_id * 1000 + n)::text, '2026-01-02', n, n
    FROM shop_crawl c, generate_series(1, {shop_items}, 10) n ORDER BY c.shop_id, n;
INSERT INTO change (shop_id, item_id, kind, at, shop_crawl_id, before, after)
    SELECT c.shop_id, (600000000000 + c.shop_id * 1000 + n)::text,
    (ARRAY['price', 'new', 'gone', 'back', 'title', 'stock', 'image', 'status', 'category', 'price'])[1 + n / 10],
    c.settled_at, c.id, '{{"price": "1.000000"}}', '{{"price": "2.000000"}}'
    FROM shop_crawl c, generate_series(0, {shop_items} - 1, 10) n ORDER BY c.settled_at, c.shop_id, n;
VACUUM (ANALYZE);
CHECKPOINT
"""


class Stock:
    """A database with so many items, and the times that storing pages in it took."""

    def __init__(self, bench: Rig, items: int) -> None:
        self.items, self.shops = items, items // SHOP_ITEMS
        self.crawls = -(-self.shops // 1000)
        self._name = f"items_{items}"
        self._execute = bench.postgres.execute
        self.engine = create_engine(async_url(bench.fresh(self._name)))
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self._at = NOW

    def sql(self, text: str) -> str:
        """Run a statement and return what it prints."""
        return self._execute(text, database=self._name)

    async def store_group(self, shop_id: int) -> None:
        """Store one page of a shop in the ways that a page can turn out, each in a transaction of its own."""
        shown = await self._page(shop_id)
        moved = [msgspec.structs.replace(each, sold_30d=(each.sold_30d or 0) + 1) for each in shown]
        dearer = [msgspec.structs.replace(each, price=(each.price or Decimal(0)) + 1) for each in moved]
        new = [msgspec.structs.replace(each, item_id=f"9{each.item_id}") for each in shown]
        steps = {"compared": shown, "unchanged": shown, "figures": moved, "changed": dearer, "new": new}
        for name, items in steps.items():
            await self._store(name, shop_id, items)

    async def _page(self, shop_id: int) -> list[Item]:
        same = (item.c.shop_id == item_seen.c.shop_id) & (item.c.item_id == item_seen.c.item_id)
        columns = [item.c.item_id, *(item.c[name] for name in VALUES), *(item_seen.c[name] for name in FIGURES)]
        query = sa.select(*columns).join(item_seen, same).where(item.c.shop_id == shop_id)
        async with reader(self.engine).connect() as connection:
            rows = await connection.execute(query.order_by(item.c.item_id).limit(GROUP))
            return [Item(**row._mapping) for row in rows]

    async def _store(self, name: str, shop_id: int, items: Sequence[Item]) -> None:
        self._at += timedelta(seconds=1)
        sightings, digest = sightings_of(items, shop_id=shop_id, shop_crawl_id=shop_id, seen_at=self._at)
        page = PageSeen(sightings, Sheet(shop_id, digest, self._at, shop_id))
        started = time.perf_counter()
        async with self.engine.begin() as connection:
            diff, same = await observe_pages(connection, [page])
        self.seconds[name].append(time.perf_counter() - started)
        expected = {"new": (GROUP, 0, 0), "changed": (0, GROUP, 0), "unchanged": (0, 0, 1)}.get(name, (0, 0, 0))
        if (len(diff.new), len(diff.changed), len(same)) != expected:
            raise RuntimeError(f"a page that was to be {name} was not: the figures mean nothing")

    def median(self, name: str) -> float:
        """Milliseconds."""
        return statistics.median(self.seconds[name]) * 1000


Question = Callable[[AsyncEngine, random.Random], Awaitable[Any]]


async def _changes(engine: AsyncEngine, newest: int | None, **wanted: Any) -> None:
    """The first batch of changes, as a reader is shown it."""
    asked = Wanted(since=NOW - timedelta(hours=24), **wanted)
    async for _batch in read_changes(engine, asked, newest=newest):
        return


async def _status(engine: AsyncEngine, ask: Callable[[AsyncConnection], Awaitable[Any]]) -> None:
    async with reader(engine).connect() as connection:
        await ask(connection)


def questions(stock: Stock) -> Mapping[str, Question]:
    """What operators ask of the whole store."""

    def key(choose: random.Random) -> tuple[str, str]:
        number = choose.randint(1, stock.shops)
        return f"shop{number}", str(600000000000 + number * 1000 + choose.randint(1, SHOP_ITEMS))

    return {
        "changes of a day": lambda engine, _choose: _changes(engine, None),
        "changes, the newest 50": lambda engine, _choose: _changes(engine, 50),
        "changes of a kind": lambda engine, _choose: _changes(engine, 50, kinds=("gone",)),
        "changes of a shop": lambda engine, choose: _changes(engine, 50, shops=(choose.randint(1, stock.shops),)),
        "status": lambda engine, choose: _status(
            engine, lambda connection: crawl_status(connection, choose.randint(1, stock.crawls), now=NOW)
        ),
        "crawls": lambda engine, _choose: _status(engine, lambda connection: recent_crawls(connection, 20)),
        "show SHOP": lambda engine, choose: shop_profile(engine, key(choose)[0]),
        "show SHOP ITEM": lambda engine, choose: item_profile(engine, *key(choose)),
    }


async def ask(stock: Stock, choose: random.Random) -> dict[str, tuple[float, int]]:
    """The median of the milliseconds that each question takes, and how often it read a big table from end to end."""
    answers = {}
    for name, question in questions(stock).items():
        await stock.engine.dispose()  # a session tells its statistics at its end
        scans, seconds = int(stock.sql(SCANS)), []
        for _ in range(ASKED):
            started = time.perf_counter()
            await question(stock.engine, choose)
            seconds.append(time.perf_counter() - started)
        await stock.engine.dispose()
        await asyncio.sleep(0.5)
        answers[name] = (statistics.median(seconds) * 1000, int(stock.sql(SCANS)) - scans)
    return answers


async def measure(few: Stock, many: Stock) -> list[Figure]:
    """Store pages in both in turn, then ask the larger one."""
    chosen = [random.Random(7).sample(range(1, stock.shops + 1), WARMING + GROUPS) for stock in (few, many)]
    for number, shop_ids in enumerate(zip(*chosen, strict=True)):
        for stock, shop_id in zip((few, many), shop_ids, strict=True):
            if number == WARMING:
                stock.seconds.clear()
            await stock.store_group(shop_id)
    figures = []
    for name in many.seconds:
        ratio = many.median(name) / few.median(name)
        figures.append(Figure(f"page {name}: time to that among {few.items:,}", ratio, "", MOST_RATIO, at_least=False))
        figures.append(Figure(f"page {name}", many.median(name), "ms"))
    for name, (milliseconds, scans) in (await ask(many, random.Random(7))).items():
        figures.append(Figure(name, milliseconds, "ms", MOST_MILLISECONDS, at_least=False))
        figures.append(Figure(f"{name}: big tables read from end to end", scans, "", 0, at_least=False))
    await few.engine.dispose()
    await many.engine.dispose()
    return figures


def fill(stock: Stock) -> None:
    """Generate the shops, crawls, items and their past."""
    started = time.perf_counter()
    texts = {"shops": stock.shops, "crawls": stock.crawls, "shop_items": SHOP_ITEMS, "now": NOW}
    for statement in FILL.format(**texts).split(";\n"):
        stock.sql(f"SET session_replication_role = replica; {statement}" if "INSERT" in statement else statement)
    print(f"  {stock.items:,} items made in {time.perf_counter() - started:.0f} s", flush=True)


def main() -> bool:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ten_million", description=__doc__)
    parser.add_argument("--items", type=int, default=ITEMS, help=f"a multiple of {FEW}; some 8 GB for ten million")
    with rig() as bench:
        few, many = Stock(bench, FEW), Stock(bench, parser.parse_args().items)
        for stock in (few, many):
            fill(stock)
        figures = asyncio.run(measure(few, many))
    return report(NAME, figures)


if __name__ == "__main__":
    sys.exit(not main())
