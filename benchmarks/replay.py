"""5,000 archived pages of a moving market replayed over the live store, and into an emptied one; rows are compared."""

import argparse
import asyncio
import sys
import time
from dataclasses import dataclass

import psutil
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from benchmarks.figures import Figure, report
from benchmarks.rig import rig
from models.database import create_engine
from models.settings import async_url
from models.tables import change, item, item_sales, item_seen, item_version
from producer.archive.bodies import Scope, count_bodies
from producer.archive.replay import Replay, Replayed
from tests.history import all_rows, differing
from tests.market import SETTINGS, Crawler, Market

NAME = "replay"
SHOPS, PAGES, CRAWLS = 52, 20, 5
PAGE_SIZE = 20
MOST_GROWTH = 20.0


@dataclass(frozen=True)
class Run:
    """One replay: what it did, seconds, and how much this process grew behind its first tenth, in MB."""

    replayed: Replayed
    seconds: float
    growth: float


async def replay(engine: AsyncEngine, pages: int) -> Run:
    """Replay the whole archive."""
    memory: list[float] = []
    me, read = psutil.Process(), 0

    def look(number: int) -> None:
        nonlocal read
        read += number
        if read > pages / 10:
            memory.append(me.memory_info().rss / 2**20)

    started = time.perf_counter()
    replayed = await Replay(engine, Scope(), SETTINGS).run(look)
    return Run(replayed, time.perf_counter() - started, max(memory) - memory[0])


async def measure(url: str, options: argparse.Namespace) -> list[Figure]:
    """Crawl, replay over what is stored, empty the store, replay again."""
    engine = create_engine(async_url(url))
    try:
        market = Market(options.shops, options.pages * PAGE_SIZE - PAGE_SIZE // 2, page_size=PAGE_SIZE)
        crawler = Crawler(engine, market)
        for _ in range(options.crawls):
            await crawler.crawl()
            market.move()
        pages = await count_bodies(engine, Scope())
        live = await all_rows(engine)
        over = await replay(engine, pages)
        wrong = len(differing(live, await all_rows(engine)))
        async with engine.begin() as connection:
            for table in (change, item_sales, item_version, item_seen, item):
                await connection.execute(sa.delete(table))
        rebuilt = await replay(engine, pages)
        lost = len(differing(live, await all_rows(engine)))
        again = await replay(engine, pages)
    finally:
        await engine.dispose()
    rows = sum(map(len, live.values()))
    return [
        Figure("rows that a replay over the live store changed", wrong, "rows", 0, at_least=False),
        Figure("rows of a rebuilt store that differ", lost, "rows", 0, at_least=False),
        Figure("differences that a second replay found", again.replayed.differences, "", 0, at_least=False),
        Figure(
            "memory gained behind the first tenth", max(over.growth, rebuilt.growth), "MB", MOST_GROWTH, at_least=False
        ),
        Figure("rows compared", rows, "rows"),
        *(Figure(f"of them in {name}", len(part), "rows") for name, part in live.items()),
        Figure("pages", pages, "pages"),
        Figure("over the live store", pages / over.seconds, "pages/s"),
        Figure("into an emptied store", pages / rebuilt.seconds, "pages/s"),
    ]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.replay", description=__doc__)
    options.add_argument("--shops", type=int, default=SHOPS)
    options.add_argument("--pages", type=int, default=PAGES, help="pages of each shop")
    options.add_argument("--crawls", type=int, default=CRAWLS)
    return options


def main() -> bool:
    """Run as the command line says."""
    options = parser().parse_args()
    with rig() as bench:
        found = asyncio.run(measure(bench.fresh(NAME), options))
    return report(NAME, found, vars(options))


if __name__ == "__main__":
    sys.exit(not main())
