"""A crawl of the simulated shops from submission to its end, for benchmarks."""

import asyncio
import time
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from models.crawls import ShopRequest, submit_crawl
from models.database import Clock, create_engine
from models.settings import Settings, async_url
from models.source import source_named
from models.tables import crawl, item, page, shop_crawl
from tests.simulator.process import SimulatorProcess

SETTINGS = Settings(_env_file=None)  # type: ignore[call-arg]

POLL = 0.1
LONGEST = 900.0


@dataclass(frozen=True)
class Crawled:
    """What a crawl achieved: calls answered with 200, items stored, seconds from submission to the last verdict."""

    pages: int
    items: int
    seconds: float
    steady: float
    """Pages per second between the first and the last tenth of the pages."""

    @property
    def rate(self) -> float:
        """Pages per second, start and end included."""
        return self.pages / self.seconds


async def crawl_all(database: str, simulator: SimulatorProcess) -> Crawled:
    """Submit a crawl of every shop to running workers and a producer, and wait for its end. Raises TimeoutError."""
    engine = create_engine(async_url(database))
    try:
        requests = _requests(simulator)
        clock = Clock()
        await clock.synchronise(engine)
        started = time.perf_counter()
        async with engine.begin() as connection:
            submission = await submit_crawl(connection, requests, now=clock.now(), settings=SETTINGS)
        await _finished(engine, submission.crawl_id)
        seconds = time.perf_counter() - started
        async with engine.connect() as connection:
            return await _result(connection, seconds)
    finally:
        await engine.dispose()


def _requests(simulator: SimulatorProcess) -> list[ShopRequest]:
    options = source_named("tmapi").options({}, Settings(_env_file=None))  # type: ignore[call-arg]
    return [ShopRequest("tmapi", key, options) for key in simulator.control("GET", "shops")]


async def _finished(engine: AsyncEngine, crawl_id: int) -> None:
    async with asyncio.timeout(LONGEST):
        while True:
            async with engine.connect() as connection:
                if await connection.scalar(sa.select(crawl.c.state).where(crawl.c.id == crawl_id)) == "finished":
                    return
            await asyncio.sleep(POLL)


async def _result(connection: AsyncConnection, seconds: float) -> Crawled:
    verdicts = sa.select(shop_crawl.c.verdict).distinct()
    found = {row.verdict for row in await connection.execute(verdicts)}
    if found != {"complete"}:
        raise RuntimeError(f"not every shop is complete: {found}")
    items = await connection.scalar(sa.select(sa.func.count()).select_from(item))
    ends = list(
        await connection.scalars(
            sa.select(page.c.finished_at).where(page.c.state == "done").order_by(page.c.finished_at)
        )
    )
    first, last = len(ends) // 10, len(ends) - 1 - len(ends) // 10
    steady = (last - first) / (ends[last] - ends[first]).total_seconds()
    return Crawled(len(ends), int(items or 0), seconds, steady)
