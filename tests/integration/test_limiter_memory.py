"""Limits outlive Redis: SQL remembers what was learnt and what an operator has set."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from models import fleet, limits
from models.database import Clock
from models.errors import UsageError
from models.fleet import Learnt
from models.source import Credential, Limits
from producer.limit_memory import keep_limits
from producer.limits import merged
from tests.ledger import engine_for
from worker.limiter import Limiter

SOURCE = "tmapi"
ONE = Credential("one", "canary-one")
BOUNDS = Limits(rate=0, start=4, floor=1, ceiling=64)
DAY = 20_000


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    async with engine_for(database_url) as engine:
        yield engine


async def refused_at(redis: Redis, calls: int) -> None:
    """One process comes, makes so many calls at once, the last of them is refused, and it goes."""
    limiter = Limiter(redis, process="a", beat=0.2)
    await limiter.start()
    bounds = Limits(rate=0, start=calls, floor=1, ceiling=64)
    async with asyncio.timeout(20):
        permits = [await limiter.acquire(SOURCE, (ONE,), bounds, priority=5, claim=None) for _ in range(calls)]
        permits.pop().release(ok=False, throttled=True)
        for permit in permits:
            permit.release(ok=False, throttled=False)
    await limiter.stop()


async def limit_of_a_new_process(redis: Redis) -> tuple[int, int]:
    limiter = Limiter(redis, process="b", beat=0.2)
    await limiter.start()
    async with asyncio.timeout(20):
        (await limiter.acquire(SOURCE, (ONE,), BOUNDS, priority=5, claim=None)).release(ok=False, throttled=False)
    (state,) = await fleet.limit_states(redis, SOURCE)
    await limiter.stop()
    return state.limit, state.ceiling


async def test_a_limit_that_was_found_is_known_after_redis_lost_everything(engine: AsyncEngine, redis: Redis) -> None:
    clock = Clock()
    await refused_at(redis, 20)
    await keep_limits(engine, redis, clock)
    await redis.flushall()
    assert await limit_of_a_new_process(redis) == (4, 0)
    await keep_limits(engine, redis, clock)
    assert await limit_of_a_new_process(redis) == (19, 19)


async def test_a_fleet_that_starts_anew_starts_with_the_limit_it_had_found(engine: AsyncEngine, redis: Redis) -> None:
    await refused_at(redis, 20)
    await keep_limits(engine, redis, Clock())
    await redis.flushall()
    await keep_limits(engine, redis, Clock())
    assert await limit_of_a_new_process(redis) == (19, 19)


async def test_what_is_remembered_never_overrides_what_was_learnt_since(redis: Redis) -> None:
    await refused_at(redis, 10)
    await fleet.restore(redis, SOURCE, "one", Learnt(limit=40, knee=40, day=DAY, used=30))
    assert await limit_of_a_new_process(redis) == (9, 9)
    await fleet.restore(redis, SOURCE, "two", Learnt(limit=40, knee=40, day=DAY, used=30))
    await fleet.restore(redis, SOURCE, "two", Learnt(limit=8, knee=8, day=DAY, used=20))
    values = await redis.hmget(fleet.limit_key(SOURCE, "two"), "limit", "knee", "day", "used")
    assert [int(value or 0) for value in values] == [40, 40, DAY, 30]


async def test_orders_in_sql_win_over_what_redis_holds(engine: AsyncEngine, redis: Redis) -> None:
    clock = Clock()
    await fleet.set_order(redis, SOURCE, "old", {"concurrency": 9})
    async with engine.begin() as connection:
        await limits.set_order(connection, SOURCE, "one", {"concurrency": 40, "rate": 2.5}, clock.now())
        await limits.set_order(connection, SOURCE, fleet.WHOLE_SOURCE, {"ceiling": 80}, clock.now())
        await limits.set_order(connection, SOURCE, "one", {"rate": 0.125}, clock.now())
    await keep_limits(engine, redis, clock)
    assert await fleet.orders(redis, SOURCE) == {"one": {"rate": 0.125}, fleet.WHOLE_SOURCE: {"ceiling": 80}}
    async with engine.begin() as connection:
        for scope in ("one", fleet.WHOLE_SOURCE):
            await limits.set_order(connection, SOURCE, scope, {}, clock.now())
    await keep_limits(engine, redis, clock)
    assert await fleet.orders(redis, SOURCE) == {}


@pytest.mark.parametrize(
    ("known", "wanted", "order"),
    [
        ({}, {"concurrency": 40}, {"concurrency": 40}),
        ({"concurrency": 40}, {"rate": 5}, {"concurrency": 40, "rate": 5}),
        ({"concurrency": 40, "rate": 5}, {"ceiling": 60}, {"ceiling": 60, "rate": 5}),
        ({"floor": 2, "ceiling": 60}, {"concurrency": 7}, {"concurrency": 7}),
        ({"concurrency": 40, "rate": 5}, {}, {}),
    ],
)
def test_orders_add_up_and_a_fixed_number_and_bounds_exclude_each_other(
    known: dict[str, float], wanted: dict[str, float], order: dict[str, float]
) -> None:
    assert merged(known, wanted) == order


def test_a_floor_above_the_ceiling_is_refused() -> None:
    with pytest.raises(UsageError, match="floor 9 is above the ceiling 8"):
        merged({"ceiling": 8}, {"floor": 9})


def test_the_bounds_shown_are_those_that_the_limiter_obeys() -> None:
    orders = {fleet.WHOLE_SOURCE: {"concurrency": 10.0, "rate": 3.0}, "one": {"ceiling": 20.0}}
    assert limits.obeying(BOUNDS, orders, "one") == Limits(3, 4, 10, 10)
    assert limits.obeying(BOUNDS, {"one": {"floor": 90.0}}, "one") == Limits(0, 4, 64, 64)
    assert limits.obeying(BOUNDS, orders, "two").floor == 10
