"""What Prometheus is told of calls and money is what the ledger holds, also when finished crawls are not read again."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from decimal import Decimal

import pytest
import sqlalchemy as sa
from prometheus_client import REGISTRY
from sqlalchemy.ext.asyncio import AsyncEngine

from models.database import Clock
from models.ledger import Calls, PageResult, store_results
from models.tables import crawl, page
from producer.dispatch import Dispatcher
from producer.spending import EVERY, LATE_ANSWERS, Spending
from tests.ledger import SETTINGS, after, engine_for, submit

PRICED = SETTINGS.model_copy(update={"tmapi_prices": "0.25"})
PRICE = Decimal("0.25")


class SetClock(Clock):
    """A clock that shows what a test sets."""

    time = after(0)

    def now(self) -> datetime:
        return self.time


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """An engine on an empty database."""
    async with engine_for(database_url) as engine:
        yield engine


def told() -> tuple[float | None, ...]:
    names = ("calls_reserved", "calls_settled", "calls_unknown", "spend")
    return tuple(REGISTRY.get_sample_value(f"shopcrawl_{name}", {"source": "tmapi"}) for name in names)


async def work(engine: AsyncEngine, shops: int, lost: int, out: int, name: str = "shop") -> None:
    """Dispatch a crawl; so many of its calls are lost, so many stay out, the others are settled."""
    await submit(engine, *(f"{name}-{number}" for number in range(shops)))
    async with engine.begin() as connection:
        tasks = await Dispatcher(PRICED).take_due(connection, sources=["tmapi"], room=99, now=after(1))
        ids = [task.page_id for task in tasks[:lost]]
        await connection.execute(sa.update(page).where(page.c.id.in_(ids)).values(state="cancelled"))
        ended = tasks[lost : len(tasks) - out]
        calls = [Calls("k", "200", 1, PRICE)]
        results = [PageResult(task=t, state="done", at=after(2.5), tries=0, calls=calls, price=PRICE) for t in ended]
        await store_results(connection, results)


async def finish(engine: AsyncEngine, crawl_id: int, at: float) -> None:
    async with engine.begin() as connection:
        mine = sa.update(crawl).where(crawl.c.id == crawl_id)
        await connection.execute(mine.values(state="finished", finished_at=after(at)))


async def test_reserved_settled_and_unknown_calls_and_money_of_each_source(engine: AsyncEngine) -> None:
    clock = SetClock()
    spending = Spending(engine, clock)
    await work(engine, shops=10, lost=3, out=2)
    assert await spending.measure() >= EVERY
    assert told() == (10, 5, 3, 2.5)


async def test_finished_crawls_are_counted_once_and_late_answers_of_theirs_too(engine: AsyncEngine) -> None:
    clock = SetClock()
    spending = Spending(engine, clock)
    await work(engine, shops=4, lost=0, out=0)
    await finish(engine, 1, at=10.5)
    for minutes, crawls, expected in ((5, 0, 4), (60, 0, 4), (70, 2, 10), (80, 0, 10), (200, 0, 10), (201, 1, 13)):
        clock.time = after(0.5) + timedelta(minutes=minutes)
        for number in range(crawls):
            await work(engine, shops=3, lost=0, out=0, name=f"crawl-{number}")
        await spending.measure()
        assert told()[1] == expected
        async with engine.begin() as connection:  # everything open ends now
            ends = sa.update(crawl).where(crawl.c.finished_at.is_(None))
            await connection.execute(ends.values(state="finished", finished_at=clock.time))


async def test_a_crawl_is_read_again_until_late_answers_are_in(engine: AsyncEngine) -> None:
    clock = SetClock()
    spending = Spending(engine, clock)
    await work(engine, shops=2, lost=0, out=1)
    await finish(engine, 1, at=3.5)
    clock.time = after(4.5)
    await spending.measure()
    assert told() == (2, 1, 0, 0.5)
    async with engine.begin() as connection:
        await connection.execute(sa.text("UPDATE call SET calls = 2"))
    clock.time = after(3.5) + LATE_ANSWERS
    await spending.measure()
    assert told()[1] == 2
