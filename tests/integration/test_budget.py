"""Calls are reserved before they leave: caps hold to the call, and reserved is settled, unknown or in flight."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from msgspec.structs import replace
from sqlalchemy.ext.asyncio import AsyncEngine

from models import budget
from models.crawls import Budget, submit_crawl
from models.ledger import Calls, PageResult, store_results
from models.messages import PageTask
from models.settings import Settings
from models.tables import call, crawl, daily_use, page
from producer.dispatch import Dispatcher
from producer.planning.hold import rest_crawls
from tests.ledger import SETTINGS, SOURCE, START, after, done, ended, engine_for, items, requests, rows

PRICED = Settings(_env_file=None, tmapi_prices="0.02,417=0", tmapi_daily_calls=7)  # type: ignore[call-arg]
ALL_CAPS = budget.daily_caps(PRICED)


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    async with engine_for(database_url) as engine:
        yield engine


async def start(engine: AsyncEngine, *keys: str, caps: Budget, **options: Any) -> int:
    async with engine.begin() as connection:
        wanted = requests(*keys, **options)
        return (await submit_crawl(connection, wanted, now=START, settings=SETTINGS, budget=caps)).crawl_id


async def take(engine: AsyncEngine, settings: Settings = SETTINGS, now: datetime = START) -> list[PageTask]:
    async with engine.begin() as connection:
        return await Dispatcher(settings).take_due(connection, sources=[SOURCE], room=1000, now=now)


async def store(engine: AsyncEngine, *results: PageResult, **options: Any) -> list[Any]:
    async with engine.begin() as connection:
        return list(await store_results(connection, results, **options))


async def account(engine: AsyncEngine, crawl_id: int = 1) -> dict[str, int]:
    """Reserved calls of a crawl, and what they are now."""
    async with engine.connect() as connection:
        reserved = int(await connection.scalar(sa.select(crawl.c.reserved).where(crawl.c.id == crawl_id)) or 0)
        settled = int(await connection.scalar(sa.select(sa.func.sum(call.c.calls))) or 0)
        out = int(await connection.scalar(sa.select(sa.func.count()).where(page.c.state == "sent")) or 0)
    return {"reserved": reserved, "settled": settled, "out": out, "unknown": reserved - settled - out}


def note(task: PageTask, calls: int = 1, at: float = 1) -> PageResult:
    """Calls made so far, and the wish for one more."""
    counted = [Calls("key-1", "417", calls)]
    return PageResult(task=task, state="sent", at=after(at), tries=1, calls=counted)


async def test_a_crawl_is_never_sent_more_than_its_budget_and_goes_on_when_it_is_raised(engine: AsyncEngine) -> None:
    await start(engine, "a", "b", "c", caps=Budget(max_calls=2))
    tasks = await take(engine)
    assert [task.shop for task in tasks] == ["a", "b"]
    held = [row for row in await rows(engine, page) if row.state == "held"]
    assert [(row.fence, row.reason) for row in held] == [(0, "budget of crawl 1: 2 calls are used up")]
    await store(engine, *(done(task, items(1)) for task in tasks))
    assert await account(engine) == {"reserved": 2, "settled": 2, "out": 0, "unknown": 0}
    async with engine.begin() as connection:
        assert await rest_crawls(connection) == []  # two pages wait for their review
        await connection.execute(sa.update(page).values(reviewed=True))
        assert await rest_crawls(connection) == [1]
        assert await budget.raise_caps(connection, 1, max_calls=3, max_spend=None, now=after(2))
        assert not await budget.raise_caps(connection, 99, max_calls=3, max_spend=None, now=after(2))
    assert [row.state for row in await rows(engine, crawl)] == ["running"]
    assert [task.shop for task in await take(engine, now=after(3))] == ["c"]


async def test_money_is_reserved_at_the_highest_price_and_settled_at_the_true_one(engine: AsyncEngine) -> None:
    await start(engine, "a", "b", caps=Budget(max_spend=Decimal("0.03")))
    [task] = await take(engine, PRICED)  # the second one would cost 0.04 in all
    failed = replace(ended(task, "ready", due=0), price=Decimal("0.02"), calls=[Calls("key-1", "417", 1)])
    await store(engine, failed)
    [row] = await rows(engine, crawl)
    assert (row.reserved, row.spend) == (1, 0)
    assert [task.shop for task in await take(engine, PRICED, now=after(2))] == ["a"]


async def test_a_days_budget_puts_pages_off_to_the_next_day(engine: AsyncEngine) -> None:
    keys = [str(number) for number in range(9)]
    await start(engine, *keys, caps=Budget())
    assert len(await take(engine, PRICED)) == 7
    late = [row for row in await rows(engine, page) if row.state == "ready"]
    assert {(row.fence, row.due_at.date().isoformat()) for row in late} == {(0, "2026-03-02")}
    tomorrow = datetime(2026, 3, 2, 0, 0, 1, tzinfo=UTC)
    assert len(await take(engine, PRICED, now=tomorrow)) == 2
    used = {(row.day, row.source, row.credential): row.reserved for row in await rows(engine, daily_use)}
    assert used == {("2026-03-01", SOURCE, ""): 7, ("2026-03-02", SOURCE, ""): 2}


async def test_a_shop_with_a_budget_of_its_own_leaves_the_others_alone(engine: AsyncEngine) -> None:
    await start(engine, "a", "b", caps=Budget(), max_calls=1)
    first = await take(engine)
    results = [replace(ended(task, "ready", due=0), calls=[Calls("key-1", "417", 1)]) for task in first]
    await store(engine, *results)
    assert await take(engine, now=after(2)) == []
    assert {row.reason for row in await rows(engine, page)} == {"budget of the shop: 1 calls are used up"}


async def test_each_further_call_of_a_page_is_reserved_before_it_leaves(engine: AsyncEngine) -> None:
    await start(engine, "a", caps=Budget(max_calls=3))
    [task] = await take(engine)
    granted = [(await store(engine, note(task, at=n)))[0].refused for n in (1, 2, 3)]
    assert granted == [None, None, "budget of crawl 1: 3 calls are used up"]
    assert await account(engine) == {"reserved": 3, "settled": 3, "out": 1, "unknown": -1}
    back = PageResult(task=task, state="ready", at=after(4), tries=3, due_at=after(4), reserved=0)
    await store(engine, back)
    assert await account(engine) == {"reserved": 3, "settled": 3, "out": 0, "unknown": 0}
    assert await take(engine, now=after(5)) == []


async def test_a_lost_sending_stays_reserved_as_unknown_until_its_zombie_is_heard_of(engine: AsyncEngine) -> None:
    await start(engine, "a", caps=Budget(max_calls=2))
    [task] = await take(engine)
    async with engine.begin() as connection:  # the reconciler found it nowhere
        await connection.execute(sa.update(page).values(state="ready"))
    assert await account(engine) == {"reserved": 1, "settled": 0, "out": 0, "unknown": 1}
    [again] = await take(engine, now=after(1))
    assert await store(engine, done(again, items(1))) != [None]
    assert await account(engine) == {"reserved": 2, "settled": 1, "out": 0, "unknown": 1}
    assert await store(engine, done(task, items(1), at=2)) == [None]
    assert await account(engine) == {"reserved": 2, "settled": 2, "out": 0, "unknown": 0}


async def test_a_page_put_back_without_a_call_gives_its_reservation_back(engine: AsyncEngine) -> None:
    await start(engine, "a", caps=Budget(max_calls=1))
    [task] = await take(engine)
    await store(engine, PageResult(task=task, state="ready", at=after(1), tries=0, due_at=after(1)))
    assert await account(engine) == {"reserved": 0, "settled": 0, "out": 0, "unknown": 0}
    assert len(await take(engine, now=after(2))) == 1


async def test_a_commit_that_is_made_again_counts_no_call_twice(engine: AsyncEngine) -> None:
    await start(engine, "a", "b", caps=Budget())
    first, second = await take(engine)
    results = [done(first, items(1)), note(second, calls=2)]
    await store(engine, *results)
    before = await account(engine)
    stored = await store(engine, *results, once_more=True)
    assert await account(engine) == before
    assert stored[0] is None
    assert stored[1].refused is not None  # whether its call was reserved is not known


async def test_credits_of_a_credential_are_taken_in_blocks_that_shrink_and_given_back(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:

        async def take_some(wanted: int) -> int:
            return await budget.take_credits(connection, SOURCE, "key-1", wanted=wanted, cap=70, now=START)

        assert [await take_some(16) for _ in range(2)] == [2, 2]
        taken = 4
        while more := await take_some(16):
            assert more == 1 or more <= (70 - taken) // 32
            taken += more
        assert taken == 70
        await budget.return_credits(connection, "2026-03-01", SOURCE, "key-1", 5)
        assert await take_some(1) == 1
