"""An invented market crawled without workers: its answers go through the real decoder, ledger, archive and producer."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from models.compression import zstd
from models.crawls import ShopRequest, submit_crawl
from models.ledger import Calls, PageResult, store_results, with_page
from models.messages import PageTask
from models.settings import Settings
from models.source import HttpResponse, source_named
from models.tables import crawl
from producer.dispatch import Dispatcher
from producer.planning.review import review
from tests.tmapi_pages import ROW

START = datetime.fromisoformat("2026-03-01T12:00:00.000001+00:00")
BATCH = 8
SETTINGS = Settings(_env_file=None)  # type: ignore[call-arg]


@dataclass
class Good:
    """One item on sale."""

    number: int
    price: int
    sold: int = 0
    title: str = "thing"

    def row(self) -> dict[str, Any]:
        """As the API sends it."""
        prices = dict.fromkeys(ROW["price_info"], f"{self.price / 100:.2f}")
        sales = {name: str(self.sold * (place + 1)) for place, name in enumerate(ROW["sale_info"])}
        own = {"item_id": str(self.number), "price": f"{self.price / 100:.2f}", "title": f"{self.title} {self.number}"}
        # A unit that is not always sent, and a field that nobody knows.
        unit = {"unit": ("PCS", "BOX", None)[self.price % 3], "lately": self.sold}
        return {**ROW, **own, **unit, "price_info": prices, "sale_info": sales}


@dataclass
class Market:
    """Shops with goods in the order in which they were put on sale; `hidden` ones may come back to their places."""

    shops: int
    size: int
    seed: int = 0
    page_size: int = 5
    goods: dict[str, list[Good]] = field(default_factory=dict)
    hidden: dict[str, set[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._numbers = iter(range(10**9))
        for number in range(self.shops):
            self.goods[f"shop-{number}"] = [self._good() for _ in range(self.size + number % self.page_size)]
            self.hidden[f"shop-{number}"] = set()

    def _good(self) -> Good:
        return Good(10**6 + next(self._numbers), self._random.randrange(100, 9999))

    def move(self, share: float = 0.2) -> None:
        """Time passes: prices, titles and figures change, goods are added, hidden and shown again."""
        for key, goods in self.goods.items():
            for good in goods:
                chance = self._random.random()
                good.price += self._random.randrange(1, 99) if chance < share else 0
                good.title = "better thing" if chance > 1 - share / 4 else good.title
                good.sold += self._random.randrange(3) if self._random.random() < share * 2 else 0
                if self._random.random() < share / 4:
                    self.hidden[key] ^= {good.number}
            goods += [self._good() for _ in range(self._random.randrange(2))]

    def answer(self, task: PageTask) -> bytes:
        """The body of a page as it is now."""
        shown = [good for good in self.goods[task.shop] if good.number not in self.hidden[task.shop]]
        start = (task.page - 1) * self.page_size
        rows = [good.row() for good in shown[start : start + self.page_size]]
        data = {"page": task.page, "page_size": self.page_size, "total_count": str(len(shown)), "items": rows}
        return json.dumps({"code": 200, "msg": "success", "data": data}).encode()


class Crawler:
    """Crawls a market into a database; each page takes a second of an invented clock."""

    def __init__(self, engine: AsyncEngine, market: Market, answer: Callable[[PageTask], bytes] | None = None) -> None:
        self.engine, self.market = engine, market
        self.now = START
        self._answer = answer or market.answer

    async def crawl(self, pause: timedelta = timedelta(days=1)) -> int:
        """Crawl all shops to their verdicts, and let some time pass; returns the crawl's number."""
        source = source_named("tmapi")
        options = source.options({"page_size": str(self.market.page_size)}, SETTINGS)
        async with self.engine.begin() as connection:
            requests = [ShopRequest("tmapi", key, options) for key in self.market.goods]
            submitted = await submit_crawl(connection, requests, now=self._tick(), settings=SETTINGS)
        dispatcher = Dispatcher(SETTINGS)
        while await self._state(submitted.crawl_id) == "running":
            async with self.engine.begin() as connection:
                tasks = await dispatcher.take_due(connection, sources=["tmapi"], room=500, now=self._tick())
            for start in range(0, len(tasks), BATCH):
                await self._fetch(tasks[start : start + BATCH])
            async with self.engine.begin() as connection:
                await review(connection, now=self._tick(), settings=SETTINGS)
        self.now += pause
        return submitted.crawl_id

    def _tick(self) -> datetime:
        self.now += timedelta(seconds=1, microseconds=1)
        return self.now

    async def _state(self, crawl_id: int) -> str:
        async with self.engine.connect() as connection:
            return str(await connection.scalar(sa.select(crawl.c.state).where(crawl.c.id == crawl_id)))

    async def _fetch(self, tasks: Sequence[PageTask]) -> None:
        results = []
        for task in tasks:
            at, body = self._tick(), self._answer(task)
            fetched = source_named("tmapi").decode(HttpResponse(200, {}, body), task, at)
            result = PageResult(
                task=task, state="done", at=at, tries=0, outcome="200",
                body=zstd.compress(body, 1), calls=[Calls("key-1", "200", 1)],
            )  # fmt: skip
            results.append(with_page(result, fetched))
        async with self.engine.begin() as connection:
            await store_results(connection, results)
