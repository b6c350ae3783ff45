"""One source in one process: who waits for a permit, and the task that asks Redis for its share of each limit."""

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

from redis.exceptions import RedisError

from models.source import Credential, Limits
from worker.bans import Bans, refusal
from worker.limiter_call import Answer, Call
from worker.permits import DuplicateDelivery, Lane, Waiter
from worker.waiting import Line

log = logging.getLogger(__name__)

GAP = 0.01  # shortest pause between two calls: what comes up meanwhile travels together
PATIENCE = 0.1  # pause before a call that holds nobody up here
SLOT_PATIENCE = 0.05  # half of how far ahead rate slots are handed out
IDLE = 0.03  # pause before a free permit is offered to the other processes
BACKOFF = (0.05, 2.0)


@dataclass(frozen=True, slots=True)
class Terms:
    """On which terms a process takes part, times in seconds; see Limiter."""

    process: str
    lease: float
    beat: float
    patience: float
    urgent_share: float = 0.9


class Pool:
    """One source in this process: its waiters, its lanes, and the task that calls Redis for all of them.

    `ask` makes one call for this source and raises what the Redis client raises.
    """

    def __init__(self, source: str, terms: Terms, ask: Callable[[Call], Awaitable[Answer]]) -> None:
        self.source = source
        self.terms = terms
        self._ask = ask
        self.lanes: dict[str, Lane] = {}
        self.bans = Bans()
        self.unclaimed: list[tuple[str, str]] = []
        self.finished: list[str] = []
        self._unchecked: list[Waiter] = []
        self._ready: dict[str | None, Line] = {None: Line(terms.urgent_share)}
        self._waiting: Counter[str | None] = Counter()
        self._loop = asyncio.get_running_loop()
        self._due = self._last_call = 0.0
        self._woken = asyncio.Event()
        self._alarm: asyncio.TimerHandle | None = None
        self._slot_alarm: asyncio.TimerHandle | None = None
        self._clock_gap = 0.0
        self._leaving = False
        self._news = self._news_seen = 0
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
                self._ready[credential.name] = Line(self.terms.urgent_share)
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
            self._ready[waiter.only].add(waiter)
            self.pump()
            self._refuse()
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

    def ban(self, scope: str, seconds: float, reason: str) -> bool:
        """Obey a ban at once and tell Redis; True if there was none of this scope."""
        new = self.bans.learn(scope, seconds, reason, self._loop.time())
        self._refuse()
        self.nudge(0, gap=0 if new else GAP)  # the others go on calling until Redis knows
        return new

    def hear_news(self) -> None:
        """Parks or bans may have changed: hand out nothing before Redis has told."""
        self._news += 1
        self.nudge(0)

    def freed(self, urgent: bool) -> None:
        """A permit came back: hand it on, or tell Redis soon that it is free."""
        self.pump()
        if urgent:
            self.nudge(0)
        elif any(lane.in_use < lane.quota for lane in self.lanes.values()):
            self.nudge(IDLE)

    def pump(self) -> None:
        """Hand out permits to ready waiters, most urgent first, from the lane with most room."""
        if self._news != self._news_seen:
            return
        now = self._loop.time()
        lanes = [lane for lane in self.lanes.values() if lane.has_room(now) and not self.bans.over(lane.name)]
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

    def nudge(self, delay: float, gap: float = GAP) -> None:
        """Have the next call within `delay` seconds, but not closer than `gap` to the last one."""
        due = max(self._loop.time() + delay, self._last_call + gap)
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
            news = self._news
            try:
                async with asyncio.timeout(max(1.0, self.terms.lease / 2)):
                    answer = await self._ask(call)
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
        self._news_seen = news
        self._apply(call, checked, answer)

    def _compose(self, leaving: bool = False) -> tuple[Call, list[Waiter]]:
        self.calls += 1
        self._due = self._last_call + self.terms.beat
        if self._alarm:
            self._alarm.cancel()
        self._alarm = self._loop.call_at(self._due, self._ring)
        checked = [waiter for waiter in self._unchecked if not waiter.future.done()]
        self._unchecked = []
        lanes = sorted(self.lanes.values(), key=lambda lane: lane.in_use / max(1, lane.answer.limit))
        idle = leaving or not self._waiting.total()
        call = Call(
            process=self.terms.process,
            claims=[(str(w.claim[0]), w.claim[1], w.value) for w in checked if w.claim],
            unclaimed=self.unclaimed.copy(),
            finished=self.finished.copy(),
            waiting=self._waiting[None],
            lanes=[lane.call(self._waiting[lane.name], self._last_call, idle=idle) for lane in lanes],
            lease=round(self.terms.lease * 1000),
            grace=round(self.terms.beat * 1250),
            bans=self.bans.call(self._last_call),
            leaving=leaving,
        )
        return call, checked

    def _apply(self, call: Call, checked: list[Waiter], answer: Answer) -> None:
        now = self._loop.time()
        self._clock_gap = answer.now - now * 1000
        forgotten = any(said.born not in (0, lane.born) for said, lane in zip(call.lanes, answer.lanes, strict=True))
        self.bans.apply(answer.bans, now, forgotten=forgotten)
        del self.unclaimed[: len(call.unclaimed)], self.finished[: len(call.finished)]
        for said, lane in zip(call.lanes, answer.lanes, strict=True):
            self.lanes[said.name].apply(said, lane, self._last_call + self.terms.lease, now)
        self._admit(checked, set(answer.duplicates))
        self.pump()
        self._refuse()
        self.nudge(self._patience(now))

    def _admit(self, checked: list[Waiter], duplicates: set[int]) -> None:
        """Waiters whose claim holds join the queue; the others learn that they are duplicates."""
        for index, waiter in enumerate(checked):
            if waiter.future.done():
                continue
            if index in duplicates:
                self._fail(waiter, DuplicateDelivery(f"page {waiter.value.split()[0]} is taken"))
            else:
                self._ready[waiter.only].add(waiter)

    def _patience(self, now: float) -> float:
        """Seconds until asking again makes sense; a slow rate has nothing to give before its next slot."""
        if self.bans.untold:
            return 0
        ban_end = self.bans.next_end()
        longest = self.terms.beat if ban_end is None else min(self.terms.beat, ban_end - now)
        lanes = [lane for lane in self.lanes.values() if not self.bans.over(lane.name)]
        if not self._waiting.total() or (self.lanes and not lanes):
            return longest
        lanes = [lane for lane in lanes if not lane.parked]
        if lanes and all(lane.rate and not lane.slots for lane in lanes):
            pause = max(SLOT_PATIENCE, min(lane.answer.delay for lane in lanes) / 1000 - SLOT_PATIENCE)
        else:
            pause = SLOT_PATIENCE if any(lane.rate for lane in lanes) else PATIENCE
        return min(longest, pause)

    def _refuse(self) -> None:
        """Tell those who wait in vain: every credential they may use is parked, or banned for long."""
        now = self._loop.time()
        for only, line in self._ready.items():
            lanes = list(self.lanes.values()) if only is None else [self.lanes[only]]
            while line and (error := refusal(lanes, self.bans, only, self.terms.patience, now)):
                waiter = line.pop()
                self._fail(waiter, error)
                if waiter.claim:
                    self.unclaimed.append((str(waiter.claim[0]), waiter.value))

    def _next_for(self, lane: Lane) -> Waiter | None:
        """Take the next waiter that may use the lane: one that may use no other comes first."""
        keys = (lane.name,) if lane.parked else (lane.name, None)
        return next((self._ready[key].pop() for key in keys if self._ready[key]), None)

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
                await self._ask(call)

    def _fail_all(self, error: Exception) -> None:
        for waiter in itertools.chain(self._unchecked, *self._ready.values()):
            if not waiter.future.done():
                self._fail(waiter, error)
