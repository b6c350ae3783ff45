"""What a ban means to a worker and to the fleet, against a real Redis."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from models import fleet
from models.source import Credential, Limits
from tests.servers import RedisServer
from worker.limiter import AllBanned, AllParked, Limiter, Permit

ONE, TWO = Credential("one", "canary-one"), Credential("two", "canary-two")
WIDE = Limits(rate=0, start=64, floor=64, ceiling=64)
SOURCE, DAY = "tmapi", 31_062.0
SELDOM = 60.0
"""A beat so slow that whatever spreads sooner was told."""

Start = Callable[..., Awaitable[Limiter]]


async def take(
    limiter: Limiter,
    *,
    claim: tuple[int, int] | None = None,
    credentials: tuple[Credential, ...] = (ONE,),
    only: str | None = None,
    limits: Limits = WIDE,
) -> Permit:
    return await limiter.acquire(SOURCE, credentials, limits, priority=5, claim=claim, only=only)


async def until(condition: Callable[[], Awaitable[bool]], within: float = 10.0) -> None:
    async with asyncio.timeout(within):
        while not await condition():  # noqa: ASYNC110 - what is awaited happens in Redis
            await asyncio.sleep(0.01)


async def refused(waiting: Coroutine[Any, Any, Permit], within: float = 10.0) -> AllBanned:
    with pytest.raises(AllBanned) as caught:
        await asyncio.wait_for(waiting, within)
    return caught.value


async def listeners(redis: Redis, count: int) -> None:
    """Wait until so many processes follow the news."""

    async def all_there() -> bool:
        return bool((await redis.pubsub_numsub(fleet.NEWS))[0][1] == count)

    await until(all_there)


async def lived_through(redis: Redis, seconds: float) -> None:
    """Move the ends of all bans towards the past, as time would, and let the processes notice."""
    found: dict[Any, Any] = await redis.hgetall(fleet.bans_key(SOURCE))
    for scope, value in found.items():
        end, _, reason = value.decode().partition(" ")
        await redis.hset(fleet.bans_key(SOURCE), scope, f"{float(end) - seconds * 1000:.0f} {reason}")
    await redis.publish(fleet.NEWS, SOURCE)


async def test_a_ban_stops_three_processes_at_once(redis: Redis, start: Start) -> None:
    limiters = [await start(name, beat=SELDOM) for name in "abc"]
    await listeners(redis, 3)
    served: list[float] = []
    loop = asyncio.get_running_loop()

    async def fetch(limiter: Limiter) -> AllBanned:
        while True:
            try:
                permit = await take(limiter)
            except AllBanned as banned:
                return banned
            served.append(loop.time())
            await asyncio.sleep(0.005)
            permit.release(ok=True, throttled=False)

    workers = [asyncio.create_task(fetch(limiter)) for limiter in limiters for _ in range(8)]
    await until(lambda: _true(len(served) > 300))
    limiters[0].ban(SOURCE, None, DAY, "7: enough for today")
    learnt = loop.time()
    answers = await asyncio.wait_for(asyncio.gather(*workers), 10)
    assert all(DAY - 10 < answer.seconds <= DAY for answer in answers)
    assert all(answer.reasons == {"one": "7: enough for today"} for answer in answers)
    print(f"the last permit was given out {1000 * max(0.0, served[-1] - learnt):.1f} ms after the ban was learnt")
    (ban,) = await fleet.bans(redis, SOURCE)
    assert (ban.scope, ban.reason) == (fleet.WHOLE_SOURCE, "7: enough for today")
    (state,) = await fleet.limit_states(redis, SOURCE)
    assert state.ban is not None and DAY - 10 < state.ban.seconds <= DAY
    assert (await refused(take(limiters[1], claim=(1, 1)))).seconds > DAY - 10


async def test_a_park_reaches_the_other_processes_before_their_next_beat(redis: Redis, start: Start) -> None:
    first, second = await start("a", beat=SELDOM), await start("b", beat=SELDOM)
    await listeners(redis, 2)
    for limiter in (first, second):
        (await take(limiter)).release(ok=True, throttled=False)
    await first.park(SOURCE, "one", "439: no money")
    await until(lambda: _parked(second))
    await first.unpark(SOURCE, "one")
    await until(lambda: _serves(second))


async def test_the_longer_ban_wins_whoever_tells_first(redis: Redis, start: Start) -> None:
    first, second = await start("a"), await start("b")
    first.ban(SOURCE, "one", DAY, "7: enough for today")
    await until(lambda: _banned(redis, 1))
    second.ban(SOURCE, "one", 10, "7: slow down")
    await until(lambda: _refuses(second, DAY - 20))
    (ban,) = await fleet.bans(redis, SOURCE)
    assert ban.seconds > DAY - 20
    second.ban(SOURCE, "one", 2 * DAY, "7: enough for two days")

    async def longer() -> bool:
        return (await fleet.bans(redis, SOURCE))[0].seconds > 2 * DAY - 20

    await until(longer)


async def test_a_long_ban_frees_every_waiter_at_once_and_leaves_no_claim(redis: Redis, start: Start) -> None:
    limiter = await start("a", beat=SELDOM)
    narrow = Limits(rate=0, start=1, floor=1, ceiling=1)
    held = await take(limiter, limits=narrow)
    waiters = [asyncio.create_task(take(limiter, claim=(page, 1), limits=narrow)) for page in range(20)]
    await until(lambda: _claims(redis, 20))
    limiter.ban(SOURCE, "one", DAY, "7: enough for today")
    held.release(ok=False, throttled=False)
    for waiter in waiters:
        assert (await _error(waiter)).reasons == {"one": "7: enough for today"}
    await until(lambda: _claims(redis, 0))


async def test_a_ban_ends_by_redis_time_and_work_goes_on_by_itself(redis: Redis, start: Start) -> None:
    first, second = await start("a", beat=SELDOM), await start("b", beat=SELDOM)
    await listeners(redis, 2)
    first.ban(SOURCE, None, DAY, "7: enough for today")
    for limiter in (first, second):
        await refused(take(limiter))
    await lived_through(redis, DAY - 2)  # short enough now to be waited for
    for limiter in (first, second):
        await until(partial(_serves, limiter))
    assert await fleet.bans(redis, SOURCE) == []
    assert not await redis.exists(fleet.bans_key(SOURCE))


async def test_a_short_ban_is_waited_for_with_hardly_a_call_to_redis(redis: Redis, start: Start) -> None:
    limiter = await start("a", beat=SELDOM)
    (await take(limiter)).release(ok=True, throttled=False)
    limiter.ban(SOURCE, "one", 1, "7: slow down")
    loop = asyncio.get_running_loop()
    before, learnt = limiter.calls, loop.time()
    permits = await asyncio.wait_for(asyncio.gather(*(take(limiter, claim=(page, 1)) for page in range(10))), 10)
    assert len(permits) == 10
    assert loop.time() - learnt >= 0.99
    assert limiter.calls - before <= 8


async def test_a_banned_credential_hands_its_work_to_the_free_one(redis: Redis, start: Start) -> None:
    both = (ONE, TWO)
    first, second = await start("a"), await start("b")
    await listeners(redis, 2)
    for limiter in (first, second):
        (await take(limiter, credentials=both)).release(ok=True, throttled=False)
    first.ban(SOURCE, "one", DAY, "7: enough for today")
    await until(lambda: _banned(redis, 1))
    for limiter in (first, second):
        permits = await asyncio.wait_for(asyncio.gather(*(take(limiter, credentials=both) for _ in range(5))), 10)
        assert {permit.credential for permit in permits} == {TWO}
    second.ban(SOURCE, None, 600, "7: slow down, all")
    await until(lambda: _refuses(first, credentials=both))
    answer = await refused(take(first, credentials=both))
    assert 500 < answer.seconds <= 600
    assert answer.reasons == {"one": "7: enough for today", "two": "7: slow down, all"}
    states = {state.credential: state.ban for state in await fleet.limit_states(redis, SOURCE)}
    assert states["one"] is not None and states["one"].scope == "one"
    assert states["two"] is not None and states["two"].scope == fleet.WHOLE_SOURCE


async def test_parked_credentials_are_no_way_around_a_ban_and_neither_are_probes(redis: Redis, start: Start) -> None:
    limiter = await start("a")
    await fleet.park(redis, SOURCE, "one", "439: no money")
    (await take(limiter, credentials=(ONE, TWO))).release(ok=True, throttled=False)
    limiter.ban(SOURCE, "two", DAY, "7: enough for today")
    answer = await refused(take(limiter, credentials=(ONE, TWO)))
    assert answer.reasons == {"one": "439: no money", "two": "7: enough for today"}
    (await asyncio.wait_for(take(limiter, credentials=(ONE, TWO), only="one"), 10)).release(ok=False, throttled=False)
    limiter.ban(SOURCE, None, DAY, "7: enough for today")
    await refused(take(limiter, credentials=(ONE, TWO), only="one"))


async def test_an_emptied_redis_is_told_again_by_whoever_remembers(redis: Redis, start: Start) -> None:
    limiter = await start("a")
    (await take(limiter)).release(ok=True, throttled=False)
    limiter.ban(SOURCE, "one", DAY, "7: enough for today")
    await until(lambda: _banned(redis, 1))
    await redis.flushall()
    await until(lambda: _banned(redis, 1))
    assert (await refused(take(await start("b")))).seconds > DAY - 20


async def test_a_ban_that_nobody_remembers_is_learnt_anew(redis: Redis, start: Start) -> None:
    first = await start("a")
    (await take(first)).release(ok=True, throttled=False)
    first.ban(SOURCE, "one", DAY, "7: enough for today")
    await until(lambda: _banned(redis, 1))
    await first.stop()
    await redis.flushall()
    second = await start("b")
    permit = await take(second)
    second.ban(SOURCE, "one", DAY - 60, "7: enough for today")
    permit.release(ok=False, throttled=False)
    await refused(take(second))


async def test_an_operator_lifts_a_ban_and_everybody_goes_on(redis: Redis, start: Start) -> None:
    limiters = [await start(name, beat=SELDOM) for name in "ab"]
    await listeners(redis, 2)
    limiters[0].ban(SOURCE, None, DAY, "7: enough for today")
    for limiter in limiters:
        await refused(take(limiter))
    assert await fleet.lift_bans(redis, SOURCE) == 1
    assert await fleet.lift_bans(redis, SOURCE) == 0
    for limiter in limiters:
        await until(partial(_serves, limiter))


async def test_without_a_subscription_the_next_call_brings_the_ban(redis: Redis, start: Start) -> None:
    first, deaf = await start("a", beat=SELDOM), await start("b", beat=0.2)
    await listeners(redis, 2)
    (await take(deaf)).release(ok=True, throttled=False)
    assert deaf._listener is not None
    deaf._listener.cancel()
    await listeners(redis, 1)
    first.ban(SOURCE, None, DAY, "7: enough for today")
    await until(lambda: _refuses(deaf))


async def test_a_lost_subscription_is_made_anew(redis: Redis, redis_server: RedisServer, start: Start) -> None:
    first, second = await start("a", beat=SELDOM), await start("b", beat=SELDOM)
    await listeners(redis, 2)
    await asyncio.to_thread(redis_server.restart)
    await until(lambda: _listeners_back(redis, 2), within=60)
    first.ban(SOURCE, None, DAY, "7: enough for today")
    await until(lambda: _refuses(second))


async def test_a_new_ban_is_logged_once(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    limiter = await start("a")
    caplog.set_level(logging.INFO, "worker.limiter")
    for seconds in (DAY, DAY - 1, DAY + 1):
        limiter.ban(SOURCE, None, seconds, "7: enough for today")
    limiter.ban(SOURCE, "one", 1, "7: slow down")
    logged = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert logged == [
        ("WARNING", "tmapi is banned (scope *) for 31062 s: 7: enough for today"),
        ("INFO", "tmapi is banned (scope one) for 1 s: 7: slow down"),
    ]


async def test_a_refusal_that_comes_while_the_process_stops_harms_nobody(redis: Redis, start: Start) -> None:
    limiter = await start("a")
    permit = await take(limiter)
    await limiter.stop()
    limiter.ban(SOURCE, "one", DAY, "7: enough for today")
    permit.release(ok=False, throttled=False)
    assert await fleet.bans(redis, SOURCE) == []


async def _banned(redis: Redis, count: int) -> bool:
    return len(await fleet.bans(redis, SOURCE)) == count


async def _claims(redis: Redis, count: int) -> bool:
    return len([key async for key in redis.scan_iter("shopcrawl:claim:*")]) == count


async def _serves(limiter: Limiter) -> bool:
    return await _error_of(limiter) is None


async def _parked(limiter: Limiter) -> bool:
    return isinstance(await _error_of(limiter), AllParked)


async def _refuses(limiter: Limiter, seconds: float = 0, credentials: tuple[Credential, ...] = (ONE,)) -> bool:
    error = await _error_of(limiter, credentials)
    return isinstance(error, AllBanned) and error.seconds > seconds


async def _error_of(limiter: Limiter, credentials: tuple[Credential, ...] = (ONE,)) -> Exception | None:
    try:
        (await take(limiter, credentials=credentials)).release(ok=True, throttled=False)
    except (AllBanned, AllParked) as error:
        return error
    return None


async def _listeners_back(redis: Redis, count: int) -> bool:
    try:
        return bool((await redis.pubsub_numsub(fleet.NEWS))[0][1] == count)
    except RedisError:
        return False


async def _error(task: asyncio.Task[Permit]) -> AllBanned:
    with pytest.raises(AllBanned) as caught:
        await asyncio.wait_for(task, 10)
    return caught.value


async def _true(value: bool) -> bool:
    return value
