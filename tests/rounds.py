"""Crawls of a simulated market one after the other, by a fleet that is running already."""

import asyncio
from collections.abc import Mapping, Sequence

import sqlalchemy as sa

from models.crawls import ShopRequest, submit_crawl
from models.database import Clock, create_engine
from models.settings import Settings, async_url
from models.source import source_named
from models.tables import crawl
from tests.simulator.process import SimulatorProcess

POLL = 0.05
FEWEST = 10  # items that a shop counts as having when its movement is worked out: small shops are to move too
SETTINGS = Settings(_env_file=None)  # type: ignore[call-arg]


def set_in_motion(simulator: SimulatorProcess, share: float) -> None:
    """Let that share of every shop's items appear, and as many be repriced, after each page.

    A quarter as many come back, and as many vanish as appear and come back: shops keep their size.
    """
    for key, size in simulator.control("GET", "shops?sizes").items():
        rate = max(size, FEWEST) * share
        values = {"appear": rate, "vanish": rate * 1.25, "reprice": rate, "restore": rate / 4}
        simulator.script({"set": values, "shop": key})


def requests_for(
    simulator: SimulatorProcess, options: Mapping[str, Mapping[str, str]] | None = None
) -> list[ShopRequest]:
    """Requests for every shop of a simulator; `options` by shop, for those that have any."""
    given, source = options or {}, source_named("tmapi")
    keys = simulator.control("GET", "shops")
    return [ShopRequest("tmapi", key, source.options(given.get(key, {}), SETTINGS)) for key in keys]


async def crawl_round(database_url: str, requests: Sequence[ShopRequest], *, within: float = 100.0) -> int:
    """Submit one crawl and wait for its end; returns its number. Raises TimeoutError after `within` seconds."""
    engine = create_engine(async_url(database_url))
    try:
        clock = Clock()
        await clock.synchronise(engine)
        async with engine.begin() as connection:
            submitted = await submit_crawl(connection, requests, now=clock.now(), settings=SETTINGS)
        state = sa.select(crawl.c.state).where(crawl.c.id == submitted.crawl_id)
        async with asyncio.timeout(within):
            while True:
                async with engine.connect() as connection:
                    if await connection.scalar(state) == "finished":
                        return submitted.crawl_id
                await asyncio.sleep(POLL)
    finally:
        await engine.dispose()
