"""The producer's loop: review what came back, send what is due, look after what went missing."""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from models import credentials, fleet
from models.background import background
from models.broker import redis_url
from models.circuits import OpenCircuit, open_circuits
from models.credentials import Parked
from models.database import Clock, reader, unavailable
from models.fleet import Ban
from models.messages import NORMAL_PRIORITY, QUEUE, URGENT_QUEUE, PageTask
from models.settings import Settings
from models.source import source_named, source_names
from producer import metrics, news
from producer.dispatch import Dispatcher, oldest_due, window
from producer.enqueue import send
from producer.housekeeping import Housekeeping
from producer.limit_memory import keep_limits
from producer.pauses import Pause, pause
from producer.planning.hold import rest_crawls
from producer.planning.review import LARGEST_REVIEW, Reviewed, review
from producer.reconcile import Suspicion, alive, delivered, overdue, send_again
from producer.schedules.starts import Schedules
from producer.spending import Spending
from producer.webhooks.deliver import LANES, Deliverer

BUSY_PAUSE = 0.1
RELAXED_PAUSE = 0.3  # each look costs producer and database as much CPU as a dozen pages
IDLE_PAUSE = 0.5
URGENT_SECONDS = 3.0  # after urgent pages have left, more of their shops are to follow soon
RECONCILE_SECONDS = 4.0
FLEET_SECONDS = 1.0
LONGEST_OUTAGE_PAUSE = 5.0

logger = logging.getLogger(__name__)


def next_pause(*, finished: int, seconds: float, reserve: int, urgent: bool) -> float:
    """Seconds until the next look while pages are out, of which `finished` came back in so many seconds.

    `reserve` is how many pages are out beyond what the workers hold: longer than half of it lasts, nobody may pause.
    """
    if urgent or reserve <= 0:
        return BUSY_PAUSE
    lasts = reserve * seconds / finished if finished else RELAXED_PAUSE * 2
    return min(RELAXED_PAUSE, max(BUSY_PAUSE, lasts / 2))


class Producer:
    """Runs until cancelled; several may run on one PostgreSQL, and none sends what another has taken."""

    def __init__(self, settings: Settings, engine: AsyncEngine, clock: Clock) -> None:
        self._settings, self._engine, self._clock = settings, engine, clock
        self._redis = Redis.from_url(redis_url(settings), socket_timeout=10, socket_connect_timeout=5)
        self._dispatcher = Dispatcher(settings)
        self._deliverer = Deliverer(settings, engine, clock)
        self._suspicion = Suspicion()
        self._capacities: Sequence[int] = ()
        self._bans: dict[str, list[Ban]] = {}
        self._at_rest: dict[str, OpenCircuit] = {}
        self._waiting: dict[str, Pause] = {}
        self._out = 0
        self._looked_at = self._urgent_at = -math.inf

    @property
    def waiting(self) -> dict[str, str]:
        """The sources that cannot be called now, and why."""
        return {source: str(pause) for source, pause in self._waiting.items()}

    async def run(self) -> None:
        """Work until cancelled; an outage of the database or Redis only makes it wait."""
        try:
            named = {"reconcile": self._look_after, "dispatch": self._work, "fleet": self._count_fleet}
            named |= {f"webhooks {lane}": self._deliverer.step for lane in range(1, LANES + 1)}
            named["schedules"] = Schedules(self._settings, self._engine, self._clock).step
            named["housekeeping"] = Housekeeping(self._settings, self._engine, self._clock).step
            if self._settings.metrics_port:  # nobody else asks for these sums
                named["spending"] = Spending(self._engine, self._clock).measure
                named["webhooks"] = self._deliverer.measure
            steps = [self._repeat(step, name) for name, step in named.items()]
            async with background(*steps, self._clock.keep(self._engine)):
                await asyncio.Event().wait()
        finally:
            await self._redis.aclose()

    async def _repeat(self, step: Callable[[], Awaitable[float]], name: str) -> None:
        """Call a step again and again, after the pause it returns; wait out outages of the servers it needs."""
        outage = 0.0
        while True:
            try:
                pause = await step()
                if outage:
                    logger.info("%s works again", name)
                outage = 0.0
            except (SQLAlchemyError, RedisError, OSError, TimeoutError) as error:
                if not outage:
                    detail = unavailable(error) if isinstance(error, SQLAlchemyError) else type(error).__name__
                    logger.warning("%s waits: %s", name, detail)
                outage = pause = min(max(2 * outage, 0.25), LONGEST_OUTAGE_PAUSE)
            await asyncio.sleep(pause)

    async def _work(self) -> float:
        """Review and dispatch once; returns the pause until the next time."""
        started, before = time.monotonic(), self._looked_at
        self._looked_at = started
        async with self._engine.begin() as connection:
            reviewed = await review(connection, now=self._clock.now(), settings=self._settings)
        metrics.reviewed.inc(reviewed.pages)
        if reviewed.unhappy or reviewed.finished:
            async with reader(self._engine).connect() as connection:
                await news.tell(connection, reviewed, now=self._clock.now())
        sent = await self._dispatch()
        if reviewed.pages >= LARGEST_REVIEW:
            return 0  # more is waiting
        if not (reviewed.pages or sent or self._out):
            return IDLE_PAUSE
        return next_pause(
            finished=reviewed.pages,
            seconds=started - before,
            reserve=self._out - sum(self._capacities),
            urgent=started - self._urgent_at < URGENT_SECONDS,
        )

    async def _dispatch(self) -> int:
        now = self._clock.now()
        async with self._engine.begin() as connection:
            parked = await credentials.parked(connection)
            self._out = await self._dispatcher.sent(connection)
            room = window(self._settings.in_flight, self._capacities) - self._out
            tasks = await self._dispatcher.take_due(connection, sources=self._open_sources(parked), room=room, now=now)
            for probe in parked:
                tasks += await self._probe(connection, probe, now)
            for source in self._rested():
                tasks += await self._dispatcher.take_due(connection, sources=[source], room=1, now=now)
        self._out += len(tasks)
        metrics.sent.set(self._out)
        if any(task.priority < NORMAL_PRIORITY for task in tasks):
            self._urgent_at = time.monotonic()
        if tasks:
            # After the commit: should this process die here, the reconciler finds the pages missing and sends them.
            await send(self._redis, tasks)
            metrics.messages.inc(len(tasks))
        return len(tasks)

    def _open_sources(self, parked: Sequence[Parked]) -> list[str]:
        """Sources with a credential that may be used; the others wait, and say so once."""
        waiting = {}
        for source in source_names():
            adapter = source_named(source)
            names = {credential.name for credential in adapter.credentials(self._settings)}
            resting = [entry for entry in parked if entry.source == source]
            why = pause(names, resting, self._bans.get(source, ()), self._settings.inline_wait)
            why = why or self._rest(source)
            if why is None:
                continue
            waiting[source] = why if names else Pause(adapter.credential_help())
            if names and source not in self._waiting:
                logger.warning("%s waits, nothing is lost: %s", source, why)
        for source in self._waiting.keys() - waiting.keys():
            if self._waiting[source].until is not None:
                logger.info("%s goes on", source)
        self._waiting = waiting
        return [source for source in source_names() if source not in waiting]

    def _rest(self, source: str) -> Pause | None:
        """Why nothing is sent to a source that rests as a whole."""
        circuit = self._at_rest.get(source)
        return None if circuit is None else Pause(f"nearly every call fails: {circuit.reason}", circuit.until)

    def _rested(self) -> list[str]:
        """The sources whose rest is over, that one page may be tried with; each only once for every look at Redis."""
        over = [source for source, circuit in self._at_rest.items() if circuit.state == "due"]
        over = [source for source in over if self._waiting.get(source) == self._rest(source)]
        self._at_rest |= {source: msgspec.structs.replace(self._at_rest[source], state="probing") for source in over}
        return over

    async def _probe(self, connection: AsyncConnection, probe: Parked, now: datetime) -> list[PageTask]:
        """One page to try a parked credential with, if that is due."""
        if probe.probe_at > now or not await credentials.take_probe(connection, probe, now=now):
            return []
        return await self._dispatcher.take_due(
            connection, sources=[probe.source], room=1, now=now, credential=probe.name
        )

    async def _count_fleet(self) -> float:
        """Learn how many pages the living workers can hold: a worker that joins gets its share within a second."""
        self._capacities = [worker.capacity for worker in await fleet.live_workers(self._redis)]
        metrics.workers.set(len(self._capacities))
        self._bans = {source: await fleet.bans(self._redis, source) for source in source_names()}
        await self._look_at_circuits()
        await self._measure()
        return FLEET_SECONDS

    async def _look_at_circuits(self) -> None:
        at_rest: dict[str, OpenCircuit] = {}
        for source in source_names():
            found = await open_circuits(self._redis, source)
            metrics.show_circuits(source, found)
            if found and found[0].shop is None:
                at_rest[source] = found[0]
        self._at_rest = at_rest

    async def _look_after(self) -> float:
        """Bring Redis in line with SQL's parked credentials and limits, and find lost pages."""
        now = self._clock.now()
        async with reader(self._engine).connect() as connection:
            parked = await credentials.parked(connection)
            suspects = await overdue(connection, now)
            metrics.oldest_due.set(await oldest_due(connection, source_names(), now))
        await self._align_parks(parked)
        await keep_limits(self._engine, self._redis, self._clock)
        async with self._engine.begin() as connection:
            resting = await rest_crawls(connection)
        if resting:
            async with reader(self._engine).connect() as connection:
                await news.tell(connection, Reviewed(finished=resting), now=now)
        missing = suspects - await alive(self._redis, suspects) if suspects else frozenset()
        lost = missing & self._suspicion.missing
        if lost:
            crashed = await delivered(self._redis, lost)
            async with self._engine.begin() as connection:
                again = await send_again(connection, lost, crashed, now=now, max_crashes=self._settings.max_crashes)
            metrics.lost.inc(again)
            logger.warning("%d pages were lost on their way and are sent again", again)
        self._suspicion = Suspicion(missing - lost)
        return RECONCILE_SECONDS

    async def _measure(self) -> None:
        """Show Prometheus what only Redis knows."""
        for queue in (URGENT_QUEUE, QUEUE):
            metrics.queue_depth.labels(queue).set(await self._redis.llen(queue))
        for source in source_names():
            for state in await fleet.limit_states(self._redis, source):
                metrics.show_limit(state)

    async def _align_parks(self, parked: Sequence[Parked]) -> None:
        """SQL remembers parks that a flushed Redis forgot, and knows of those that an operator has lifted."""
        for source in source_names():
            wanted = {entry.name: entry.reason for entry in parked if entry.source == source}
            present = await fleet.parked(self._redis, source)
            for name in wanted.keys() - present.keys():
                await fleet.park(self._redis, source, name, wanted[name])
            for name in present.keys() - wanted.keys():
                await fleet.unpark(self._redis, source, name)
