"""Bytes that PostgreSQL writes for a first crawl, and for re-crawls of the same shops, by what happened meanwhile.

Bytes are those of the write-ahead log from the submission of a crawl until its last page is stored, with a checkpoint
before it: the first change of each block then takes a copy of the whole block along, as in a crawl a day later. Each
page goes the way that a worker's does, from its answer to `store_results` with its archived body. A worker's own
transactions are all that is left out: there is no review, which costs the same in every crawl.
"""

import argparse
import asyncio
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from urllib.request import urlopen

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from benchmarks.crawls import SETTINGS
from benchmarks.figures import Figure, report
from benchmarks.rig import Rig, rig
from models.compression import zstd
from models.crawls import ShopRequest, submit_crawl
from models.database import create_engine
from models.ledger import Calls, PageResult, store_results, with_page
from models.messages import PageTask
from models.settings import async_url
from models.source import HttpResponse, Item, source_named
from models.tables import page, shop_crawl
from producer.dispatch import Dispatcher
from tests.simulator.process import SimulatorProcess

NAME = "history_bytes"
SHOPS = 400
PAGES = 5
PAGE_SIZE = 20
BATCH = 64
MOST_SHARE = 0.15
MOST_GROWTH = 0.15
START = datetime(2026, 3, 1, 12, tzinfo=UTC)
OPTIONS = {"page_size": PAGE_SIZE, "max_pages": 100, "sort": "time_up"}
FINISH = """
UPDATE page SET reviewed = true; UPDATE shop_crawl SET state = 'settled', settled_at = now();
UPDATE crawl SET state = 'finished'; VACUUM
"""
SIZE = """
SELECT sum(pg_total_relation_size(relname::regclass)) FROM unnest(
    ARRAY['item', 'item_seen', 'item_version', 'item_sales', 'change', 'sheet', 'page_body']) AS relname
"""

Change = Callable[[Item, int], Item]
Bodies = Mapping[tuple[str, int], bytes]


@dataclass(frozen=True)
class Written:
    """What one crawl wrote, in bytes for each page: log, and growth of the tables that hold items and answers."""

    log: float
    growth: float


def unchanged(item: Item, _number: int) -> Item:
    """The item as it was."""
    return item


def figures_moved(item: Item, _number: int) -> Item:
    """The item with other sales figures, as nearly every item has a day later."""
    return msgspec.structs.replace(item, sold_30d=(item.sold_30d or 0) + 1, gmv_30d=(item.gmv_30d or Decimal(0)) + 9)


def one_in_a_hundred(item: Item, number: int) -> Item:
    """Every hundredth item with another price."""
    return item if number % 100 else msgspec.structs.replace(item, price=(item.price or Decimal(0)) + 1)


def bodies(shops: int) -> Bodies:
    """The answers for all pages of so many full shops."""
    keys = [f"shop{number:05d}" for number in range(shops)]
    query = f"page_size={PAGE_SIZE}&sort=time_up&apiToken=t"
    with SimulatorProcess(shops=0, extra=dict.fromkeys(keys, PAGES * PAGE_SIZE)) as simulator:
        return {
            (key, number): urlopen(f"{simulator.url}/1688/shop/items?member_id={key}&page={number}&{query}").read()
            for key in keys
            for number in range(1, PAGES + 1)
        }


class Store:
    """The benchmark's database and the answers that are stored in it."""

    def __init__(self, bench: Rig, answers: Bodies) -> None:
        self._url = async_url(bench.fresh("history"))
        self._execute = bench.postgres.execute
        self._answers, self._day = answers, 0
        self._source = source_named("tmapi")

    async def crawl(self, change: Change) -> Written:
        """Crawl all shops a day later, with every item as `change` makes it."""
        engine, now = create_engine(self._url), START + timedelta(days=self._day)
        self._day += 1
        self._sql("CHECKPOINT")
        log, size = self._sql("SELECT pg_current_wal_lsn()"), self._size()
        try:
            tasks = await self._dispatched(engine, now)
            for start in range(0, len(tasks), BATCH):
                at = now + timedelta(milliseconds=start + 1)
                results = [self._result(task, at, change) for task in tasks[start : start + BATCH]]
                async with engine.begin() as connection:
                    if None in await store_results(connection, results):
                        raise RuntimeError("a page was not stored: the figures mean nothing")
        finally:
            await engine.dispose()
        written = float(self._sql(f"SELECT pg_current_wal_lsn() - '{log}'"))
        self._sql_each(FINISH)
        return Written(written / len(tasks), (self._size() - size) / len(tasks))

    def _sql(self, text: str) -> str:
        return self._execute(text, database="history")

    def _sql_each(self, texts: str) -> None:
        for text in texts.split(";"):
            self._sql(text)

    def _size(self) -> int:
        return int(self._sql(SIZE))

    async def _dispatched(self, engine: AsyncEngine, now: datetime) -> list[PageTask]:
        """The pages of a new crawl of all shops, planned and sent as a producer does."""
        requests = [ShopRequest("tmapi", key, OPTIONS) for key in sorted({key for key, _page in self._answers})]
        async with engine.begin() as connection:
            crawl_id = (await submit_crawl(connection, requests, now=now, settings=SETTINGS)).crawl_id
            ids = await connection.scalars(sa.select(shop_crawl.c.id).where(shop_crawl.c.crawl_id == crawl_id))
            common = {"source": "tmapi", "priority": 5, "state": "ready", "reviewed": True, "due_at": now}
            common |= dict.fromkeys(("fence", "tries", "crashes"), 0)
            more = [(number, row) for row in ids for number in range(2, PAGES + 1)]
            rows = [common | {"shop_crawl_id": row, "number": number, "rank": number} for number, row in more]
            await connection.execute(sa.insert(page), rows)
        dispatcher, tasks = Dispatcher(SETTINGS), list[PageTask]()
        while len(tasks) < len(self._answers):
            async with engine.begin() as connection:
                tasks += await dispatcher.take_due(connection, sources=["tmapi"], room=1000, now=now)
        return tasks

    def _result(self, task: PageTask, at: datetime, change: Change) -> PageResult:
        body = self._answers[task.shop, task.page]
        fetched = self._source.decode(HttpResponse(200, {}, body), task, at)
        number = task.page_id * PAGE_SIZE
        shown = [change(item, number + place) for place, item in enumerate(fetched.items)]
        if shown != fetched.items:  # such a page would have had another body
            body += str(self._day).encode()
        fetched.items = shown
        calls = [Calls("key-1", "200", 1)]
        result = PageResult(
            task=task, state="done", at=at, tries=0, outcome="200", calls=calls, body=zstd.compress(body, 1)
        )
        return with_page(result, fetched)


async def crawls(store: Store) -> dict[str, Written]:
    """A first crawl, and what followed."""
    return {
        "first": await store.crawl(unchanged),
        "second": await store.crawl(unchanged),
        "third": await store.crawl(unchanged),
        "hundredth": await store.crawl(one_in_a_hundred),
        "figures": await store.crawl(figures_moved),
    }


def judge(written: Mapping[str, Written]) -> Sequence[Figure]:
    """The figures and their limits."""
    first, second, third = (written[name] for name in ("first", "second", "third"))
    share = max(second.log, third.log) / first.log
    growth = max(second.growth, third.growth) / first.growth
    return [
        Figure("log of an unchanged re-crawl to a first crawl's", share, "", MOST_SHARE, at_least=False),
        Figure("growth of tables, likewise", growth, "", MOST_GROWTH, at_least=False),
        Figure("log with 1 % of the items changed, likewise", written["hundredth"].log / first.log, ""),
        Figure("log with all sales figures moved, likewise", written["figures"].log / first.log, ""),
        Figure("log of a first crawl", first.log, "bytes/page"),
        Figure("log of an unchanged re-crawl", third.log, "bytes/page"),
        Figure("growth of tables in a first crawl", first.growth, "bytes/page"),
        Figure("growth of tables in an unchanged re-crawl", third.growth, "bytes/page"),
    ]


def main() -> bool:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.history_bytes", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--shops", type=int, default=SHOPS, help=f"of {PAGES} pages each")
    answers = bodies(parser.parse_args().shops)
    with rig(durable=True) as bench:
        written = asyncio.run(crawls(Store(bench, answers)))
    return report(NAME, judge(written), {"pages": len(answers)})


if __name__ == "__main__":
    sys.exit(not main())
