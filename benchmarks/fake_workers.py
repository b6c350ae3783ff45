"""A fleet that needs no API: it empties the queue, invents each page's rows, and stores them as workers do."""

import argparse
import asyncio
import signal
from collections.abc import Iterable
from typing import cast

import msgspec
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from models import fleet
from models.database import Clock, create_engine
from models.ledger import Calls, PageResult, store_results, with_page
from models.messages import QUEUE, PageTask
from models.settings import async_url
from models.source import FetchedPage, Item

BATCH = 500
BEAT_SECONDS = 2.0
PROCESS = "fake-fleet"


class _Message(msgspec.Struct):
    body: str


def tasks_of(payloads: Iterable[bytes]) -> list[PageTask]:
    """The pages that raw queue entries ask for."""
    bodies = (msgspec.json.decode(payload, type=_Message).body for payload in payloads)
    return [msgspec.convert(msgspec.json.decode(body)[1], PageTask) for body in bodies]


def result_of(task: PageTask, clock: Clock, pages: int) -> PageResult:
    """One item on each page and none on the last one, which proves the end of the data."""
    items = [Item(item_id=str(task.page), title="an item")] if task.page < pages else []
    fetched = FetchedPage(items, total=pages - 1, page_size=1)
    calls = [Calls("fake", "200", 1)]
    result = PageResult(task=task, state="done", at=clock.now(), tries=1, outcome="200", calls=calls)
    return with_page(result, fetched)


async def work(redis: Redis, engine: AsyncEngine, clock: Clock, pages: int, window: int) -> None:
    """Wait until the queue is as full as it gets, then store pages until cancelled."""
    while await redis.llen(QUEUE) < window:  # noqa: ASYNC110 - a queue's length sets no event
        await asyncio.sleep(0.1)
    while True:
        payloads = cast(list[bytes] | None, await redis.rpop(QUEUE, BATCH))
        if not payloads:
            await asyncio.sleep(0.005)
            continue
        results = [result_of(task, clock, pages) for task in tasks_of(payloads)]
        async with engine.begin() as connection:
            await store_results(connection, results)


async def beat(redis: Redis, capacity: int) -> None:
    """Be a fleet with room for `capacity` pages."""
    while True:
        await fleet.beat(redis, PROCESS, capacity, [])
        await asyncio.sleep(BEAT_SECONDS)


async def main(options: argparse.Namespace) -> None:
    """Work until told to stop."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    engine, clock = create_engine(async_url(options.database)), Clock()
    await clock.synchronise(engine)
    async with Redis.from_url(options.redis) as redis:
        jobs = [
            asyncio.create_task(beat(redis, options.capacity)),
            asyncio.create_task(work(redis, engine, clock, options.pages, options.window)),
            asyncio.create_task(stop.wait()),
        ]
        done, left = await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
        for job in left:
            job.cancel()
        await asyncio.wait(left)
    await engine.dispose()
    for job in done:
        job.result()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--redis", required=True)
    parser.add_argument("--database", required=True)
    parser.add_argument("--pages", type=int, required=True, help="pages of each shop")
    parser.add_argument("--capacity", type=int, required=True)
    parser.add_argument("--window", type=int, required=True, help="messages to wait for before the first is taken")
    asyncio.run(main(parser.parse_args()))
