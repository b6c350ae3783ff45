"""The fleet-wide limiter: a process asks Redis for its share of each limit and hands out permits from it."""

import asyncio
import itertools
import logging
from collections.abc import Sequence
from functools import partial

from redis.asyncio import Redis

from models import fleet
from models.background import stop_tasks
from models.source import Credential, Limits
from worker.bans import AllBanned
from worker.limiter_call import Answer, Call, read_answer, script_arguments, script_text
from worker.limiter_pool import PATIENCE, Pool, Terms
from worker.permits import AllParked, DuplicateDelivery, Permit, Waiter

__all__ = ["AllBanned", "AllParked", "DuplicateDelivery", "Limiter", "Permit"]

log = logging.getLogger(__name__)


class Limiter:
    """Permits for calls, within limits that the whole fleet shares; one per process.

    `redis` must give bytes. A process that falls silent for `lease` seconds loses its share; `beat` is the longest
    pause between two calls; a ban that lasts longer than `patience` seconds is not waited for. Urgent pages get
    `urgent_share` of the permits while others wait too.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        process: str,
        lease: float = 8.0,
        beat: float = 2.0,
        patience: float = 5.0,
        urgent_share: float = 0.9,
    ) -> None:
        self._terms = Terms(process, lease, beat, patience, urgent_share)
        self._redis = redis
        self._script = redis.register_script(script_text())
        self._pools: dict[str, Pool] = {}
        self._order = itertools.count()
        self._running = False
        self._listener: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Be ready to serve."""
        self._running = True
        self._listener = asyncio.create_task(fleet.follow_news(self._redis, self._hear_news), name="limiter:news")

    async def stop(self) -> None:
        """Cancel those who wait and give this process's share back."""
        self._running = False
        if self._listener:
            await stop_tasks([self._listener])
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
        """Wait for the right to make one call: urgent ones mostly before the others, then as they came.

        `claim` is the (page_id, fence) to take up. `only` names the credential to use although it is parked. Raises
        DuplicateDelivery if that claim or a newer one was made, AllParked if no credential may be used, AllBanned if
        none may be used for longer than `patience`.
        """
        if not credentials or (only and all(only != credential.name for credential in credentials)):
            raise AllParked({only: "not configured here"} if only else {})
        pool = self._pool(source)
        pool.meet(credentials, limits)
        waiter = Waiter((priority, next(self._order)), claim, only, self._terms.process)
        pool.enter(waiter)
        try:
            return await waiter.future
        except asyncio.CancelledError:
            pool.abandon(waiter)
            raise

    def _pool(self, source: str) -> Pool:
        if not self._running:
            raise RuntimeError("the limiter is not started")
        if source not in self._pools:
            self._pools[source] = Pool(source, self._terms, partial(self._ask, source))
        return self._pools[source]

    def _hear_news(self, source: str | None) -> None:
        for name, pool in self._pools.items():
            if source in {name, None}:
                pool.hear_news()

    async def _ask(self, source: str, call: Call) -> Answer:
        keys, args = script_arguments(source, call)
        return read_answer(await self._script(keys=keys, args=args))

    def unclaim(self, page_id: int, fence: int) -> None:
        """Forget this process's claim, so that the same sending may be taken up again; told with the next call."""
        for pool in itertools.islice(self._pools.values(), 1):
            pool.unclaimed.append((str(page_id), f"{fence} {self._terms.process}:"))
            pool.nudge(PATIENCE)

    def finished(self, page_id: int) -> None:
        """Keep the claim of a stored page for FINISHED_TTL seconds only; told with the next call."""
        for pool in itertools.islice(self._pools.values(), 1):
            pool.finished.append(str(page_id))

    async def park(self, source: str, credential_name: str, reason: str) -> None:
        """Send nothing more with this credential: this process at once, the others within milliseconds."""
        pool = self._pools.get(source)
        lane = pool.lanes.get(credential_name) if pool else None
        if pool is None or lane is None:
            await fleet.park(self._redis, source, credential_name, reason)
            return
        lane.parked = lane.park_unsent = reason
        pool.nudge(0)

    async def unpark(self, source: str, credential_name: str) -> None:
        """Use this credential again: the whole fleet learns of it within milliseconds."""
        await fleet.unpark(self._redis, source, credential_name)

    def ban(self, source: str, credential_name: str | None, seconds: float, reason: str) -> None:
        """Make no call with this credential (None: any) for so long: this process at once, the others when told."""
        if not self._running:
            return  # whoever is refused next tells
        scope = fleet.WHOLE_SOURCE if credential_name is None else credential_name
        if self._pool(source).ban(scope, seconds, reason):
            level = logging.WARNING if seconds > self._terms.patience else logging.INFO
            log.log(level, "%s is banned (scope %s) for %.0f s: %s", source, scope, seconds, reason)

    @property
    def calls(self) -> int:
        """Calls made to Redis so far."""
        return sum(pool.calls for pool in self._pools.values())
