"""Shops read page after page, without HTTP: a listing that moves as told, and everything from submission to verdict."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from models.crawls import ShopRequest, submit_recrawl
from models.ledger import Calls, PageResult, store_results, with_page
from models.messages import PageTask
from models.settings import Settings
from models.source import FetchedPage, Item
from models.status import CrawlStatus, crawl_status
from models.tables import change, item_seen, shop, shop_crawl
from producer.dispatch import Dispatcher
from producer.planning.review import review
from tests.ledger import SETTINGS, START, rows

SIZE = 20
OPTIONS: dict[str, Any] = {"page_size": SIZE, "max_pages": 500, "sort": "time_up"}

Answer = Callable[[PageTask, list[int], int], tuple[list[int], int]]
"""From the rows and the total that a call would get, those that it gets."""


def as_it_is(_: PageTask, rows: list[int], total: int) -> tuple[list[int], int]:
    """A server without faults."""
    return rows, total


@dataclass
class Goods:
    """One shop's goods; `faults` distort what it answers, `moves` happens after each answer."""

    on_sale: list[int]
    faults: Answer = as_it_is
    lost: Callable[[PageTask], str] = lambda _: "done"
    moves: Callable[["Goods", PageTask], None] = lambda *_: None
    asked: list[tuple[int, int, bool]] = field(default_factory=list)
    """Calls so far: page, page size, and whether it was of a price band."""

    def answer(self, task: PageTask) -> FetchedPage:
        size = task.options["page_size"]
        low, high = (
            Decimal(task.options.get(name) or edge) for name, edge in (("price_start", 0), ("price_end", 10**6))
        )
        listed = [number for number in self.on_sale if low <= price(number) <= high]
        if task.options["sort"] == "time_down":
            listed.reverse()
        start = (task.page - 1) * size
        shown, total = self.faults(task, listed[start : start + size], len(listed))
        self.asked.append((task.page, size, "price_start" in task.options or "price_end" in task.options))
        self.moves(self, task)
        return FetchedPage([Item(item_id=str(number), price=price(number)) for number in shown], total)


def price(number: int) -> Decimal:
    return Decimal(number * 7 % 100) + Decimal("0.5")


class Market:
    """Shops, a clock, and a producer whose workers answer by what the shops show."""

    def __init__(self, engine: AsyncEngine, settings: Settings = SETTINGS, **shops: Goods) -> None:
        self.engine, self.settings, self.shops = engine, settings, shops
        self.now = START
        self.dispatcher = Dispatcher(settings)

    def tick(self, seconds: float = 1) -> datetime:
        self.now += timedelta(seconds=seconds)
        return self.now

    async def submit(self, **options: object) -> int:
        self.tick(3600)
        requests = [ShopRequest("tmapi", key, OPTIONS | options) for key in self.shops]
        async with self.engine.begin() as connection:
            return (await submit_recrawl(connection, requests, now=self.now, settings=self.settings)).crawl_id

    async def crawl(self, room: int = 5, **options: object) -> CrawlStatus:
        """Crawl all shops to the end."""
        return await self.run(await self.submit(**options), room)

    async def run(self, crawl_id: int, room: int = 5) -> CrawlStatus:
        """Go on until the crawl is over; figures must add up all the way."""
        for _ in range(2000):
            async with self.engine.begin() as connection:
                tasks = await self.dispatcher.take_due(connection, sources=["tmapi"], room=room, now=self.tick())
            status = await self.status(crawl_id)
            assert min(status.pages.ready, status.pages.sent) >= 0
            if not tasks and status.is_over:
                assert (status.pages.ready, status.pages.sent) == (0, 0)
                return status
            assert tasks, "nothing is out, but the crawl is not over"
            for task in tasks:
                await self.store(self.result(task))
            await self.review()
        raise AssertionError("the crawl does not end")

    def result(self, task: PageTask) -> PageResult:
        goods = self.shops[task.shop]
        state, at = goods.lost(task), self.tick()
        calls = [Calls("key-1", "200", 1)]
        result = PageResult(task=task, state=state, at=at, tries=1, outcome="200", calls=calls)
        if state != "done":
            result.reason = "417: no data"
            return result
        return with_page(result, goods.answer(task))

    async def store(self, result: PageResult) -> None:
        async with self.engine.begin() as connection:
            assert None not in await store_results(connection, [result])

    async def review(self) -> None:
        async with self.engine.begin() as connection:
            await review(connection, now=self.tick(), settings=self.settings)

    async def status(self, crawl_id: int) -> CrawlStatus:
        async with self.engine.connect() as connection:
            return await crawl_status(connection, crawl_id, now=self.now)

    async def settled(self) -> Any:
        """The newest shop crawl."""
        return (await rows(self.engine, shop_crawl))[-1]

    async def shop(self) -> Any:
        return (await rows(self.engine, shop))[0]

    async def events(self, *kinds: str) -> list[tuple[str, int]]:
        """(kind, item) of these changes in the order in which they were recorded."""
        found = await rows(self.engine, change, change.c.kind.in_(kinds))
        return [(row.kind, int(row.item_id)) for row in found]

    async def misses(self) -> dict[int, int]:
        """How often each item has been missed of late."""
        return {int(row.item_id): row.misses for row in await rows(self.engine, item_seen) if row.misses}
