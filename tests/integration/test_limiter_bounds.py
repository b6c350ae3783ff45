"""Bounds that hold for the whole fleet: calls of a day, and what an operator has set while it runs."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from redis.asyncio import Redis

from models import fleet
from models.source import Credential, Limits
from worker.bans import AllBanned
from worker.limiter import AllParked, Limiter, Permit

SOURCE = "tmapi"
ONE = Credential("one", "canary-one")
DAILY = 60
LIMITS = Limits(rate=0, start=8, floor=1, ceiling=64)

BEAT = 0.3
Start = Callable[..., Awaitable[Limiter]]


async def take(limiter: Limiter, limits: Limits) -> Permit:
    return await limiter.acquire(SOURCE, (ONE,), limits, priority=5, claim=None)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await condition():  # noqa: ASYNC110 - what is awaited happens in Redis
            await asyncio.sleep(0.01)


async def state(redis: Redis) -> fleet.LimitState:
    (found,) = await fleet.limit_states(redis, SOURCE)
    return found


async def use_up(limiters: list[Limiter], limits: Limits) -> int:
    """Call as often as the limiters allow; returns how often that was."""
    made = 0

    async def work(limiter: Limiter) -> None:
        nonlocal made
        while True:
            try:
                permit = await take(limiter, limits)
            except AllBanned:
                return
            made += 1
            await asyncio.sleep(0.001)
            permit.release(ok=True, throttled=False)

    async with asyncio.timeout(30):
        await asyncio.gather(*(work(limiter) for limiter in limiters for _ in range(10)))
    return made


async def test_two_processes_make_exactly_the_calls_of_a_day(redis: Redis, start: Start) -> None:
    limiters = [await start("a", beat=BEAT), await start("b", beat=BEAT)]
    daily = Limits(rate=0, start=8, floor=1, ceiling=64, per_day=DAILY)
    assert await use_up(limiters, daily) == DAILY
    (ban,) = await fleet.bans(redis, SOURCE)
    assert (ban.scope, ban.reason) == ("one", f"daily limit of {DAILY} calls is used up")
    more = Limits(rate=0, start=8, floor=1, ceiling=64, per_day=DAILY + 5)
    with pytest.raises(AllBanned):
        await take(limiters[0], more)

    async def lifted() -> bool:
        return not await fleet.bans(redis, SOURCE)

    await until(lifted)
    made = 0

    async def has_made_five() -> bool:  # each process learns of it with its own next call
        nonlocal made
        made += await use_up(limiters, more)
        return made >= 5

    await until(has_made_five)
    assert made + await use_up(limiters, more) == 5


async def test_a_flushed_redis_is_told_how_much_of_the_day_is_used(redis: Redis, start: Start) -> None:
    limiter = await start("a", beat=BEAT)
    daily = Limits(rate=0, start=8, floor=1, ceiling=64, per_day=DAILY)
    for _ in range(20):
        (await take(limiter, daily)).release(ok=True, throttled=False)
    await redis.flushall()
    assert 30 <= await use_up([limiter], daily) <= DAILY - 20


async def test_what_an_operator_sets_holds_in_every_process_at_once(redis: Redis, start: Start) -> None:
    limiters = [await start("a", beat=BEAT), await start("b", beat=BEAT)]
    held = [await take(limiter, LIMITS) for limiter in limiters for _ in range(3)]
    await fleet.set_order(redis, SOURCE, "one", {"concurrency": 2})
    for permit in held:
        permit.release(ok=True, throttled=False)

    async def narrowed() -> bool:
        return (await state(redis)).limit == 2

    await until(narrowed)
    permits = [await take(limiter, LIMITS) for limiter in limiters]
    third = asyncio.create_task(take(limiters[0], LIMITS))
    await until(lambda: _waits(redis))
    assert not third.done()
    await fleet.set_order(redis, SOURCE, "one", {})
    permits.append(await asyncio.wait_for(third, 10))
    for permit in permits:
        permit.release(ok=True, throttled=False)


async def test_a_slow_rate_that_is_raised_does_not_hold_up_the_next_call(redis: Redis, start: Start) -> None:
    limiter = await start("a", beat=BEAT)
    slow = Limits(rate=0.01, start=8, floor=8, ceiling=8)
    (await take(limiter, slow)).release(ok=True, throttled=False)
    waiting, calls = asyncio.create_task(take(limiter, slow)), limiter.calls

    async def knows_that_it_must_wait() -> bool:
        return limiter.calls > calls + 1

    await until(knows_that_it_must_wait)
    assert not waiting.done()
    await fleet.set_order(redis, SOURCE, fleet.WHOLE_SOURCE, {"rate": 100})
    (await asyncio.wait_for(waiting, 10)).release(ok=True, throttled=False)


async def _waits(redis: Redis) -> bool:
    return (await state(redis)).waiting > 0


async def test_a_park_stops_every_process_within_a_round_trip(redis: Redis, start: Start) -> None:
    limiters = [await start(name, beat=60) for name in "abc"]  # whatever spreads sooner than the beat was told
    for limiter in limiters:
        (await take(limiter, LIMITS)).release(ok=True, throttled=False)

    async def all_listen() -> bool:
        return (await redis.pubsub_numsub(fleet.NEWS))[0][1] == len(limiters)

    await until(all_listen)
    await limiters[0].park(SOURCE, "one", "439: no money")
    for limiter in limiters:
        assert await stops(limiter)
    await limiters[1].unpark(SOURCE, "one")
    for limiter in limiters:
        (await asyncio.wait_for(goes_on(limiter), 20)).release(ok=True, throttled=False)


async def stops(limiter: Limiter) -> bool:
    """Take permits until none is given."""
    async with asyncio.timeout(20):
        while True:
            try:
                permit = await take(limiter, LIMITS)
            except AllParked:
                return True
            await asyncio.sleep(0.001)
            permit.release(ok=True, throttled=False)


async def goes_on(limiter: Limiter) -> Permit:
    while True:
        try:
            return await take(limiter, LIMITS)
        except AllParked:
            await asyncio.sleep(0.001)
