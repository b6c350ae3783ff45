"""A seller of a million items read by windows of time while it is edited: calls, items, and the producer's memory."""

import argparse
import asyncio
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import psutil
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from benchmarks.figures import Figure, report
from benchmarks.rig import peak_megabytes, rig
from models.crawls import ShopRequest, shop_ids, submit_crawl
from models.database import Clock, create_engine
from models.sessions import save_sessions
from models.settings import Settings, async_url, load_settings
from models.source import source_named
from models.tables import call, crawl, item, shop_crawl, slice_
from models.vault import Vault, new_key
from tests.simulator.process import SimulatorProcess

NAME = "windows"
ITEMS = 1_000_000
SELLER = "big"
PAGE = 200
APP_KEY, APP_SECRET = "12345678", "helloworld"  # the simulator's first app
CONCURRENCY = 40
MARGIN = 3.0
"""Seconds before now at which windows end: the simulator shows every change at once."""
MOST_CALLS = 1.10
MOST_MEGABYTES = 200.0
MOST_GROWTH = 10.0
POLL = 0.25
LONGEST = 1800.0


@dataclass(frozen=True)
class Crawled:
    """One crawl: its verdict, windows and rounds, calls answered with rows, seconds, and the items stored."""

    verdict: str
    windows: int
    rounds: int
    calls: int
    seconds: float
    items: set[int]


def settings_for(simulator: SimulatorProcess, key: str) -> dict[str, Any]:
    """The settings that every process needs to crawl the simulated platform."""
    return {
        "top_gateway_url": f"{simulator.url}/router/rest",
        "top_app_key": APP_KEY,
        "top_app_secret": APP_SECRET,
        "top_window_margin": MARGIN,
        "top_concurrency_start": CONCURRENCY,
        "top_concurrency_max": CONCURRENCY,
        "concurrency": CONCURRENCY,
        "secret_key": key,
    }


async def crawl_seller(
    database: str, simulator: SimulatorProcess, given: Mapping[str, Any], producer: psutil.Process, pages: int
) -> tuple[Crawled, list[float]]:
    """Crawl the seller to its verdict; also the producer's memory at each of the first `pages` pages, in MB."""
    engine = create_engine(async_url(database))
    try:
        started = time.perf_counter()
        await submit(engine, load_settings(**given), simulator)
        memory = await watch(engine, producer, pages)
        seconds = time.perf_counter() - started
        async with engine.connect() as connection:
            (found,) = await connection.execute(sa.select(shop_crawl.c.verdict, shop_crawl.c.slices))
            rounds = await connection.scalar(sa.select(sa.func.max(slice_.c.round)))
            calls = await connection.scalar(sa.select(sa.func.sum(call.c.calls)))
            items = {int(key) for key in await connection.scalars(sa.select(item.c.item_id))}
        return Crawled(found.verdict, found.slices, int(rounds or 0), int(calls or 0), seconds, items), memory
    finally:
        await engine.dispose()


async def submit(engine: AsyncEngine, settings: Settings, simulator: SimulatorProcess) -> None:
    """Store the seller's session and ask for the crawl."""
    clock = Clock()
    await clock.synchronise(engine)
    wanted = [ShopRequest("top", SELLER, source_named("top").options({}, settings))]
    async with engine.begin() as connection:
        ids = await shop_ids(connection, wanted, clock.now())
        sessions = {ids["top", SELLER]: simulator.top_sessions()[SELLER]}
        await save_sessions(connection, Vault(settings), sessions, clock.now())
        await submit_crawl(connection, wanted, now=clock.now(), settings=settings)


async def watch(engine: AsyncEngine, producer: psutil.Process, pages: int) -> list[float]:
    """The producer's resident memory in MB after each page, until the crawl has finished. Raises TimeoutError."""
    memory = [0.0] * pages
    async with asyncio.timeout(LONGEST):
        while True:
            async with engine.connect() as connection:
                done = await connection.scalar(sa.select(shop_crawl.c.pages_done)) or 0
                state = await connection.scalar(sa.select(crawl.c.state))
            if state != "running":
                return memory
            memory[min(done, pages - 1)] = producer.memory_info().rss / 2**20
            await asyncio.sleep(POLL)


def near(memory: Sequence[float], share: float) -> float:
    """The memory seen last before this share of the way."""
    return next((value for value in memory[int(len(memory) * share) :: -1] if value), 0.0)


def measure(options: argparse.Namespace) -> bool:
    """Crawl once, print and keep the figures; returns whether the limits were kept."""
    pages = ceil(options.items / PAGE)
    simulator = SimulatorProcess(
        shops=0, top={SELLER: {"items": options.items, "profile": "clustered"}}, switches={"top_edits": options.edits}
    )
    with simulator, rig() as bench:
        database = bench.fresh(NAME)
        given = settings_for(simulator, new_key())
        with bench.fleet(bench.environment(database, **given), 1) as roles:
            (producer,) = roles["producer"]
            crawled, memory = asyncio.run(crawl_seller(database, simulator, given, producer, pages))
            peak = peak_megabytes(producer)
        truth = simulator.top_ids(SELLER)
    missing = len(set(truth["throughout"]) - crawled.items)
    invented = len(crawled.items - set(truth["ever"]))
    if crawled.verdict != "complete":
        raise RuntimeError(f"the seller is {crawled.verdict}: the figures mean nothing")
    return report(NAME, figures(crawled, memory, peak, pages, missing, invented), vars(options))


def figures(
    crawled: Crawled, memory: Sequence[float], peak: float, pages: int, missing: int, invented: int
) -> list[Figure]:
    """The figures and their limits."""
    growth = near(memory, 0.9) - near(memory, 0.1)
    return [
        Figure("calls for each page there must be", crawled.calls / pages, "calls", MOST_CALLS, at_least=False),
        Figure("items there throughout and not stored", missing, "items", 0, at_least=False),
        Figure("items stored that never were", invented, "items", 0, at_least=False),
        Figure("producer's largest memory (RSS)", peak, "MB", MOST_MEGABYTES, at_least=False),
        Figure("its growth from 10 % to 90 % of the way", growth, "MB", MOST_GROWTH, at_least=False),
        Figure("calls", crawled.calls, "calls"),
        Figure("items stored", len(crawled.items), "items"),
        Figure("windows", crawled.windows, "windows"),
        Figure("rounds", crawled.rounds, "rounds"),
        Figure("from submission to the verdict", crawled.seconds, "s"),
    ]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.windows", description=__doc__)
    options.add_argument("--items", type=int, default=ITEMS)
    options.add_argument("--edits", type=float, default=2, help="items edited after each page")
    return options


def main() -> bool:
    """Run as the command line says."""
    return measure(parser().parse_args())


if __name__ == "__main__":
    sys.exit(not main())
