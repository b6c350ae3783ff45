"""The fleet-wide limiter: a process asks Redis for its share of each limit and hands out permits from it."""

import asyncio
import heapq
import itertools
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress

from redis.asyncio import Redis
from redis.exceptions import RedisError

from models import fleet
from models.source import Credential, Limits
from worker.limiter_call import Answer, Call, read_answer, script_arguments, script_text
from worker.permits import AllParked, DuplicateDelivery, Lane, Permit, Waiter

__all__ = ["AllParked", "DuplicateDelivery", "Limiter", "Permit"]

log = logging.getLogger(__name__)

GAP = 0.01  # shortest pause between two calls: what comes up meanwhile travels together
PATIENCE = 0.1  # pause before a call that holds nobody up here
SLOT_PATIENCE = 0.05  # half of how far ahead rate slots are handed out
IDLE = 0.03  # pause before a free permit is offered to the other processes
BACKOFF = (0.05, 2.0)


class Pool:
    """One source in this process: its waiters, its lanes, and the task that calls Redis for all of them."""

    def __init__(self, limiter: "Limiter", source: str) -> None:
        self.limiter = limiter
        self.source = source
        self.lanes: dict[str, Lane] = {}
        self.unclaimed: list[tuple[str, str]] = []
        self.finished: list[str] = []
        self._unchecked: list[Waiter] = []
        self._ready: dict[str | None, list[Waiter]] = {None: []}
        self._waiting: Counter[str | None] = Counter()
        self._loop = asyncio.get_running_loop()
        self._due = self._last_call = 0.0
        self._woken = asyncio.Event()
        self._alarm: asyncio.TimerHandle | None = None
        self._slot_alarm: asyncio.TimerHandle | None = None
        self._clock_gap = 0.0
        self._leaving = False
        self.calls = 0
        self.task = asyncio.create_task(self._run(), name=f"limiter:{source}")

    def redis_now(self) -> float:
        """Redis' time in ms, as of the last answer plus what passed here since."""
        return self._loop.time() * 1000 + self._clock_gap

    def meet(self, credentials: Iterable[Credential], limits: Limits) -> None:
        """Learn of credentials and of changed limits."""
        for credential in credentials:
            lane = self.lanes.get(credential.name)
            if lane is None:
                self.lanes[credential.name] = Lane(credential, limits, self.redis_now, self.freed)
                self._ready[credential.name] = []
                self._ring()
            else:
                lane.limits = limits

    def enter(self, waiter: Waiter) -> None:
        """Queue a waiter: checked first if it has a claim, served at once if a permit is free."""
        idle = not self._ready[waiter.only]
        self._waiting[waiter.only] += 1
        if waiter.claim:
            self._unchecked.append(waiter)
        else:
            heapq.heappush(self._ready[waiter.only], waiter)
            self.pump()
        if not waiter.future.done():
            self.nudge(0 if idle else PATIENCE)

    def abandon(self, waiter: Waiter) -> None:
        """Undo everything for a waiter whose page was cancelled."""
        future = waiter.future
        if not future.done() or future.cancelled():
            future.cancel()
            self._waiting[waiter.only] -= 1
        elif future.exception() is None:
            future.result().release(ok=False, throttled=False)
        if waiter.claim:
            self.unclaimed.append((str(waiter.claim[0]), waiter.value))
            self.nudge(PATIENCE)

    def freed(self, urgent: bool) -> None:
        """A permit came back: hand it on, or tell Redis soon that it is free."""
        self.pump()
        if urgent:
            self.nudge(0)
        elif any(lane.in_use < lane.quota for lane in self.lanes.values()):
            self.nudge(IDLE)

    def pump(self) -> None:
        """Hand out permits to ready waiters, most urgent first, from the lane with most room."""
        now = self._loop.time()
        lanes = [lane for lane in self.lanes.values() if lane.has_room(now)]
        while lanes:
            lane = lanes[0] if len(lanes) == 1 else max(lanes, key=lambda each: each.quota - each.in_use)
            waiter = self._next_for(lane)
            if waiter is None:
                lanes.remove(lane)
                continue
            self._waiting[waiter.only] -= 1
            waiter.future.set_result(lane.hand_out())
            if not lane.has_room(now):
                lanes.remove(lane)
        self._set_slot_alarm(now)

    def nudge(self, delay: float) -> None:
        """Have the next call within `delay` seconds, but not closer than GAP to the last one."""
        due = max(self._loop.time() + delay, self._last_call + GAP)
        if due < self._due:
            self._due = due
            if self._alarm:
                self._alarm.cancel()
            self._alarm = self._loop.call_at(due, self._ring)

    def _ring(self) -> None:
        self._due = 0.0
        self._woken.set()

    async def _run(self) -> None:
        while not self._leaving:
            while self._loop.time() < self._due:
                self._woken.clear()
                await self._woken.wait()
            try:
                await self._call_redis()
            except Exception as error:
                log.exception("the limiter of %s failed", self.source)
                self._fail_all(error)
                await asyncio.sleep(BACKOFF[1])

    async def _call_redis(self) -> None:
        backoff, worst = BACKOFF
        failing = False
        while True:
            self._last_call = self._loop.time()
            call, checked = self._compose()
            try:
                async with asyncio.timeout(max(1.0, self.limiter.lease / 2)):
                    answer = await self.limiter.ask(self.source, call)
                break
            except (RedisError, OSError, TimeoutError) as error:
                if not failing:
                    log.warning("the limiter of %s waits for Redis: %s", self.source, type(error).__name__)
                failing = True
            self._unchecked = checked + self._unchecked
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, worst)
        if failing:
            log.info("the limiter of %s has Redis back", self.source)
        self._apply(call, checked, answer)

    def _compose(self, leaving: bool = False) -> tuple[Call, list[Waiter]]:
        self.calls += 1
        self._due = self._last_call + self.limiter.beat
        if self._alarm:
            self._alarm.cancel()
        self._alarm = self._loop.call_at(self._due, self._ring)
        checked = [waiter for waiter in self._unchecked if not waiter.future.done()]
        self._unchecked = []
        lanes = sorted(self.lanes.values(), key=lambda lane: lane.in_use / max(1, lane.answer.limit))
        call = Call(
            process=self.limiter.process,
            claims=[(str(w.claim[0]), w.claim[1], w.value) for w in checked if w.claim],
            unclaimed=self.unclaimed.copy(),
            finished=self.finished.copy(),
            waiting=self._waiting[None],
            lanes=[lane.call(self._waiting[lane.name], self._last_call) for lane in lanes],
            lease=round(self.limiter.lease * 1000),
            grace=round(self.limiter.beat * 1250),
            leaving=leaving,
        )
        return call, checked

    def _apply(self, call: Call, checked: list[Waiter], answer: Answer) -> None:
        now = self._loop.time()
        self._clock_gap = answer.now - now * 1000
        del self.unclaimed[: len(call.unclaimed)], self.finished[: len(call.finished)]
        for said, lane in zip(call.lanes, answer.lanes, strict=True):
            self.lanes[said.name].apply(said, lane, self._last_call + self.limiter.lease, now)
        self._admit(checked, set(answer.duplicates))
        self.pump()
        self._refuse_parked()
        if self._waiting.total() > 0:
            self.nudge(self._patience())

    def _admit(self, checked: list[Waiter], duplicates: set[int]) -> None:
        """Waiters whose claim holds join the queue; the others learn that they are duplicates."""
        for index, waiter in enumerate(checked):
            if waiter.future.done():
                continue
            if index in duplicates:
                self._fail(waiter, DuplicateDelivery(f"page {waiter.value.split()[0]} is taken"))
            else:
                heapq.heappush(self._ready[waiter.only], waiter)

    def _patience(self) -> float:
        """Seconds until asking again makes sense; a slow rate has nothing to give before its next slot."""
        open_lanes = [lane for lane in self.lanes.values() if not lane.parked]
        if open_lanes and all(lane.limits.rate and not lane.slots for lane in open_lanes):
            return max(SLOT_PATIENCE, min(lane.answer.delay for lane in open_lanes) / 1000 - SLOT_PATIENCE)
        return SLOT_PATIENCE if any(lane.limits.rate for lane in open_lanes) else PATIENCE

    def _refuse_parked(self) -> None:
        """Tell those who wait that every credential is parked; probes of a parked one go on waiting."""
        if not self.lanes or not all(lane.parked for lane in self.lanes.values()):
            return
        reasons = {lane.name: lane.parked for lane in self.lanes.values()}
        for waiter in self._ready[None]:
            if not waiter.future.done():
                self._fail(waiter, AllParked(reasons))
                if waiter.claim:
                    self.unclaimed.append((str(waiter.claim[0]), waiter.value))
        self._ready[None].clear()

    def _next_for(self, lane: Lane) -> Waiter | None:
        """Take the most urgent waiter that may use the lane, leaving out those who gave up."""
        best: list[Waiter] = []
        for key in (lane.name,) if lane.parked else (lane.name, None):
            queue = self._ready[key]
            while queue and queue[0].future.done():
                heapq.heappop(queue)
            if queue and (not best or queue[0] < best[0]):
                best = queue
        return heapq.heappop(best) if best else None

    def _set_slot_alarm(self, now: float) -> None:
        """Serve those who wait when the next rate slot comes."""
        times = [lane.slots[0] for lane in self.lanes.values() if lane.slots]
        if self._slot_alarm:
            self._slot_alarm.cancel()
        waiting = times and self._waiting.total() > 0
        self._slot_alarm = self._loop.call_at(max(now, *times), self.pump) if waiting else None

    def _fail(self, waiter: Waiter, error: Exception) -> None:
        self._waiting[waiter.only] -= 1
        waiter.future.set_exception(error)

    async def leave(self) -> None:
        """Stop calling, free the share for the others and hand over what they have not been told."""
        self._leaving = True
        while not self.task.done():  # a Redis call may swallow a cancellation (wait_for before Python 3.12)
            self.task.cancel()
            await asyncio.wait([self.task], timeout=0.1)
        call, _ = self._compose(leaving=True)
        for alarm in (self._alarm, self._slot_alarm):
            if alarm:
                alarm.cancel()
        for waiter in itertools.chain(self._unchecked, *self._ready.values()):
            waiter.future.cancel()
        with suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(1):
                await self.limiter.ask(self.source, call)

    def _fail_all(self, error: Exception) -> None:
        for waiter in itertools.chain(self._unchecked, *self._ready.values()):
            if not waiter.future.done():
                self._fail(waiter, error)


class Limiter:
    """Permits for calls, within limits that the whole fleet shares; one per process.

    `redis` must give bytes. A process that falls silent for `lease` seconds loses its share; `beat` is the longest
    pause between two calls.
    """

    def __init__(self, redis: Redis, *, process: str, lease: float = 10.0, beat: float = 2.0) -> None:
        self.process = process
        self.lease = lease
        self.beat = beat
        self._redis = redis
        self._script = redis.register_script(script_text())
        self._pools: dict[str, Pool] = {}
        self._order = itertools.count()
        self._running = False

    async def start(self) -> None:
        """Be ready to serve."""
        self._running = True

    async def stop(self) -> None:
        """Cancel those who wait and give this process's share back."""
        self._running = False
        pools, self._pools = self._pools, {}
        await asyncio.gather(*(pool.leave() for pool in pools.values()))

    async def acquire(
        self,
        source: str,
        credentials: Sequence[Credential],
        limits: Limits,
        *,
        priority: int,
        claim: tuple[int, int] | None,
        only: str | None = None,
    ) -> Permit:
        """Wait for the right to make one call, lower `priority` first, then first come, first served.

        `claim` is the (page_id, fence) to take up. `only` names the credential to use although it is parked. Raises
        DuplicateDelivery if that claim or a newer one was made, AllParked if no credential may be used.
        """
        if not self._running:
            raise RuntimeError("the limiter is not started")
        if not credentials or (only and all(only != credential.name for credential in credentials)):
            raise AllParked({only: "not configured here"} if only else {})
        pool = self._pools.get(source)
        if pool is None:
            pool = self._pools[source] = Pool(self, source)
        pool.meet(credentials, limits)
        waiter = Waiter((priority, next(self._order)), claim, only, self.process)
        pool.enter(waiter)
        try:
            return await waiter.future
        except asyncio.CancelledError:
            pool.abandon(waiter)
            raise

    async def ask(self, source: str, call: Call) -> Answer:
        """Run the script once. Raises what the Redis client raises."""
        keys, args = script_arguments(source, call)
        return read_answer(await self._script(keys=keys, args=args))

    def unclaim(self, page_id: int, fence: int) -> None:
        """Forget this process's claim, so that the same sending may be taken up again; told with the next call."""
        for pool in itertools.islice(self._pools.values(), 1):
            pool.unclaimed.append((str(page_id), f"{fence} {self.process}:"))
            pool.nudge(PATIENCE)

    def finished(self, page_id: int) -> None:
        """Keep the claim of a stored page for FINISHED_TTL seconds only; told with the next call."""
        for pool in itertools.islice(self._pools.values(), 1):
            pool.finished.append(str(page_id))

    async def park(self, source: str, credential_name: str, reason: str) -> None:
        """Send nothing more with this credential: this process at once, the others with their next call."""
        pool = self._pools.get(source)
        lane = pool.lanes.get(credential_name) if pool else None
        if pool is None or lane is None:
            await fleet.park(self._redis, source, credential_name, reason)
            return
        lane.parked = lane.park_unsent = reason
        pool.nudge(0)

    async def unpark(self, source: str, credential_name: str) -> None:
        """Use this credential again: the whole fleet learns of it with its next call."""
        await fleet.unpark(self._redis, source, credential_name)

    @property
    def calls(self) -> int:
        """Calls made to Redis so far."""
        return sum(pool.calls for pool in self._pools.values())
