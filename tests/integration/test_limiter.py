"""What the limiter promises to a worker and to the fleet, against a real Redis."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
from redis.asyncio import Redis

from models import fleet
from models.source import Credential, Limits
from tests.servers import RedisServer
from worker.limiter import AllParked, DuplicateDelivery, Limiter, Permit

ONE, TWO = Credential("one", "canary-one"), Credential("two", "canary-two")
FOUR = Limits(rate=0, start=4, floor=4, ceiling=4)

Start = Callable[..., Awaitable[Limiter]]


async def take(
    limiter: Limiter,
    *,
    claim: tuple[int, int] | None = None,
    priority: int = 5,
    limits: Limits = FOUR,
    credentials: tuple[Credential, ...] = (ONE,),
    only: str | None = None,
) -> Permit:
    return await limiter.acquire("tmapi", credentials, limits, priority=priority, claim=claim, only=only)


async def until(condition: Callable[[], Awaitable[bool]], within: float = 5.0) -> None:
    async with asyncio.timeout(within):
        while not await condition():  # noqa: ASYNC110 - what is awaited happens in Redis
            await asyncio.sleep(0.01)


async def in_flight(redis: Redis) -> int:
    return sum(state.in_flight for state in await fleet.limit_states(redis, "tmapi"))


async def waiting(redis: Redis) -> int:
    return sum(state.waiting for state in await fleet.limit_states(redis, "tmapi"))


async def cancel(task: asyncio.Task[Permit]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_two_processes_never_hold_more_than_the_limit(redis: Redis, start: Start) -> None:
    limiters = [await start("a"), await start("b")]
    tasks = [asyncio.create_task(take(limiter)) for limiter in limiters for _ in range(10)]
    most = 0
    pending = set(tasks)
    while pending:
        done, pending = await asyncio.wait(pending, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        assert done, "nobody was served"
        held = [task.result() for task in done]
        most = max(most, len(held), await in_flight(redis))
        for permit in held:
            permit.release(ok=True, throttled=False)
    assert 1 <= most <= 4


async def test_processes_that_want_the_same_get_the_same(start: Start) -> None:
    first, second = await start("a"), await start("b")
    held = [await take(first) for _ in range(4)]
    eager = [asyncio.create_task(take(first)) for _ in range(8)]
    late = [asyncio.create_task(take(second)) for _ in range(8)]
    for _ in range(4):
        held.pop().release(ok=True, throttled=False)
        await asyncio.sleep(0.05)

    async def shared() -> bool:
        for task in eager:
            if task.done():
                task.result().release(ok=True, throttled=False)
        return sum(task.done() for task in late) >= 2

    await until(shared)
    for task in (*eager, *late):
        await cancel(task)


async def test_urgent_pages_go_first_and_equals_in_order(start: Start) -> None:
    limiter = await start("a")
    held = [await take(limiter) for _ in range(4)]
    served: list[str] = []

    async def wait(name: str, priority: int) -> None:
        permit = await take(limiter, priority=priority)
        served.append(name)
        permit.release(ok=True, throttled=False)

    tasks = [asyncio.create_task(wait(name, priority)) for name, priority in [("x", 5), ("y", 5), ("urgent", 0)]]
    await asyncio.sleep(0)
    held.pop().release(ok=True, throttled=False)
    await asyncio.gather(*tasks)
    assert served == ["urgent", "x", "y"]


async def test_a_claim_is_granted_once_in_the_fleet(start: Start) -> None:
    first, second = await start("a"), await start("b")
    permit = await take(first, claim=(7, 2))
    for limiter in (first, second):
        for fence in (1, 2):
            with pytest.raises(DuplicateDelivery):
                await take(limiter, claim=(7, fence))
    newer = await take(second, claim=(7, 3))
    newer.release(ok=True, throttled=False)
    permit.release(ok=True, throttled=False)


async def test_an_unclaimed_page_may_be_taken_again(redis: Redis, start: Start) -> None:
    first, second = await start("a"), await start("b")
    (await take(first, claim=(7, 1))).release(ok=False, throttled=False)
    second.unclaim(7, 1)  # not its own claim: no effect
    await take(second)
    with pytest.raises(DuplicateDelivery):
        await take(second, claim=(7, 1))
    first.unclaim(7, 1)
    await until(lambda: _missing(redis, "shopcrawl:claim:7"))
    await take(second, claim=(7, 1))


async def test_a_finished_page_is_remembered_for_a_minute_only(redis: Redis, start: Start) -> None:
    limiter = await start("a")
    permit = await take(limiter, claim=(7, 1))
    assert 1100 < await redis.ttl("shopcrawl:claim:7") <= 1200
    permit.release(ok=True, throttled=False)
    limiter.finished(7)

    async def shortened() -> bool:
        return 0 < await redis.ttl("shopcrawl:claim:7") <= 60

    await until(shortened)


async def test_a_cancelled_waiter_leaves_neither_permit_nor_claim(redis: Redis, start: Start) -> None:
    limiter = await start("a")
    held = [await take(limiter) for _ in range(4)]
    tasks = [asyncio.create_task(take(limiter, claim=(page, 1))) for page in range(50)]
    for index, task in enumerate(tasks):
        await asyncio.sleep(0.002 * (index % 3))
        if index == 25:
            for permit in held:
                permit.release(ok=True, throttled=False)
        await cancel(task)
        if not task.cancelled():  # it was served before it could be cancelled
            task.result().release(ok=False, throttled=False)
            limiter.unclaim(index, 1)

    async def clean() -> bool:
        claims = [key async for key in redis.scan_iter("shopcrawl:claim:*")]
        return not claims and await in_flight(redis) == 0 and await waiting(redis) == 0

    await until(clean)
    again = [await take(limiter, claim=(page, 1)) for page in range(4)]
    assert len(again) == 4


async def test_release_counts_once(start: Start) -> None:
    limiter = await start("a")
    permits = [await take(limiter) for _ in range(4)]
    for _ in range(3):
        permits[0].release(ok=True, throttled=False)
    fifth = await take(limiter)
    sixth = asyncio.create_task(take(limiter))
    await asyncio.sleep(0.15)
    assert not sixth.done()
    fifth.release(ok=True, throttled=False)
    await sixth


async def test_a_killed_process_frees_its_share_after_the_lease(start: Start) -> None:
    doomed, other = await start("a", lease=0.6), await start("b")
    for _ in range(4):
        await take(doomed)
    patient = asyncio.create_task(take(other))
    await asyncio.sleep(0.15)
    assert not patient.done()
    doomed._pools["tmapi"].task.cancel()  # what kill -9 leaves: no more calls and nothing given back
    await asyncio.wait_for(patient, 5)


async def test_a_stopped_process_frees_its_share_at_once(start: Start) -> None:
    leaving, other = await start("a"), await start("b")
    for _ in range(4):
        await take(leaving)
    patient = asyncio.create_task(take(other))
    await leaving.stop()
    await asyncio.wait_for(patient, 5)
    with pytest.raises(RuntimeError):
        await take(leaving)


async def test_a_flushed_redis_does_not_double_the_limit(redis: Redis, start: Start) -> None:
    first, second = await start("a"), await start("b")
    for _ in range(4):
        await take(first)
    eager = asyncio.create_task(take(second))
    await until(lambda: _is(waiting(redis), 1))
    await redis.flushall()
    await until(lambda: _is(in_flight(redis), 4))
    assert not eager.done()
    await cancel(eager)


async def test_what_was_learnt_survives_a_flushed_redis(redis: Redis, start: Start) -> None:
    limiter = await start("a")
    limits = Limits(rate=0, start=4, floor=1, ceiling=64)
    permits = [await take(limiter, limits=limits) for _ in range(4)]
    tasks = deque(asyncio.create_task(take(limiter, limits=limits)) for _ in range(200))
    for _ in range(60):
        permits.pop().release(ok=True, throttled=False)
        permits.append(await tasks.popleft())
    await until(lambda: _grown(redis, 16))
    await redis.flushall()
    await until(lambda: _grown(redis, 16))
    for task in tasks:
        await cancel(task)


async def test_a_refusal_shrinks_the_limit_for_the_whole_fleet_once_per_burst(redis: Redis, start: Start) -> None:
    limits = Limits(rate=0, start=16, floor=1, ceiling=64)
    first, second = await start("a"), await start("b")
    burst = [await take(first, limits=limits) for _ in range(16)]
    for permit in burst[8:]:
        permit.release(ok=False, throttled=True)

    async def shrunk() -> bool:
        (state,) = await fleet.limit_states(redis, "tmapi")
        return state.limit == 8 and state.ceiling == 8

    await until(shrunk)
    assert second.calls == 0
    patient = asyncio.create_task(take(second, limits=limits))
    await until(lambda: _is(waiting(redis), 1))
    assert not patient.done()
    burst[0].release(ok=True, throttled=False)
    await patient


async def test_a_parked_credential_hands_its_work_to_the_other(start: Start) -> None:
    limiter = await start("a")
    await take(limiter, credentials=(ONE, TWO))
    await limiter.park("tmapi", "one", "439: no money")
    permits = [await take(limiter, credentials=(ONE, TWO)) for _ in range(3)]
    assert {permit.credential for permit in permits} == {TWO}


async def test_all_parked_reaches_new_and_old_waiters_of_every_process(redis: Redis, start: Start) -> None:
    first, second = await start("a"), await start("b")
    held = [await take(first) for _ in range(4)]
    waiters = [asyncio.create_task(take(limiter, claim=(page, 1))) for page, limiter in enumerate((first, second))]
    await until(lambda: _is(waiting(redis), 2))
    await first.park("tmapi", "one", "439: no money")
    for permit in held:
        permit.release(ok=False, throttled=False)
    for task in waiters:
        with pytest.raises(AllParked, match="one: 439: no money"):
            await asyncio.wait_for(task, 1)
    with pytest.raises(AllParked):
        await take(second)
    assert await fleet.parked(redis, "tmapi") == {"one": "439: no money"}
    await until(lambda: _missing(redis, "shopcrawl:claim:0"))
    await fleet.unpark(redis, "tmapi", "one")
    await take(second, claim=(0, 1))


async def test_only_the_probe_gets_a_parked_credential(redis: Redis, start: Start) -> None:
    limiter = await start("a")
    await fleet.park(redis, "tmapi", "one", "439: no money")
    probe = await take(limiter, only="one", credentials=(ONE, TWO))
    assert probe.credential == ONE
    other = await take(limiter, credentials=(ONE, TWO))
    assert other.credential == TWO


async def test_stopping_in_the_middle_of_calls_always_ends(start: Start) -> None:
    for round_number in range(30):
        limiter = await start(f"p{round_number}")
        await take(limiter, claim=(round_number, 1), limits=Limits(rate=0, start=64, floor=64, ceiling=64))
        waiter = asyncio.create_task(take(limiter, claim=(round_number, 2)))
        await asyncio.sleep(round_number % 5 / 2000)
        await asyncio.wait_for(limiter.stop(), 3)
        await cancel(waiter)


async def test_without_a_usable_credential_there_is_no_waiting(start: Start) -> None:
    limiter = await start("a")
    with pytest.raises(AllParked):
        await take(limiter, credentials=())
    with pytest.raises(AllParked):
        await take(limiter, only="unknown")


async def test_a_lost_redis_is_waited_for_and_logged_once(
    redis_server: RedisServer, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    limiter = await start("a")
    held = await take(limiter)
    redis_server.stop(kill=True)
    caplog.set_level(logging.WARNING, "worker.limiter")
    patient = asyncio.create_task(take(limiter, claim=(1, 1)))
    await until(lambda: _true(bool(caplog.records)))
    held.release(ok=True, throttled=False)
    await asyncio.to_thread(redis_server.start)
    await asyncio.wait_for(patient, 20)
    assert len(caplog.records) == 1
    assert "canary" not in caplog.text


async def test_a_rate_is_kept_and_used(start: Start) -> None:
    limits = Limits(rate=200, start=50, floor=50, ceiling=50)
    limiters = [await start("a"), await start("b")]
    loop = asyncio.get_running_loop()
    times: list[float] = []

    async def call(limiter: Limiter) -> None:
        permit = await take(limiter, limits=limits)
        times.append(loop.time())
        permit.release(ok=True, throttled=False)

    await asyncio.gather(*(call(limiter) for limiter in limiters for _ in range(120)))
    for index, time in enumerate(times):
        assert sum(time - 1 < earlier <= time for earlier in times[: index + 1]) <= 200


async def test_heartbeats_tell_who_lives_and_what_they_hold(redis: Redis) -> None:
    held = {(page, page % 3) for page in range(5000)} | {(2**63, 2**31)}
    await fleet.beat(redis, "host:1", 200, held)
    await fleet.beat(redis, "host:2", 10, [])
    first, second = await fleet.live_workers(redis)
    assert first == fleet.WorkerBeat("host:1", 200, frozenset(held))
    assert second == fleet.WorkerBeat("host:2", 10, frozenset())
    assert 0 < await redis.ttl(fleet.worker_key("host:1")) <= 15
    await redis.delete(fleet.worker_key("host:1"))
    assert [worker.process for worker in await fleet.live_workers(redis)] == ["host:2"]
    assert await redis.smembers("shopcrawl:workers") == {b"host:2"}


async def _missing(redis: Redis, key: str) -> bool:
    return not await redis.exists(key)


async def _grown(redis: Redis, at_least: int) -> bool:
    return any(state.limit >= at_least for state in await fleet.limit_states(redis, "tmapi"))


async def _is(value: Awaitable[int], expected: int) -> bool:
    return await value == expected


async def _true(value: bool) -> bool:
    return value
