"""The limiter before a gated API it knows nothing about: it finds the gate, uses it, and is rarely refused."""

import asyncio
import itertools
import random

from redis.asyncio import Redis

from models.source import Credential, Limits
from worker.limiter import Limiter

CREDENTIALS = (Credential("one", "canary"),)
LIMITS = Limits(rate=0, start=4, floor=1, ceiling=200)


class Gate:
    """An API that refuses calls beyond `width` in flight."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.inside = self.good = self.refused = self.busy = 0

    async def call(self) -> bool:
        """Make one call; False if refused."""
        await asyncio.sleep(0.001)
        if self.inside >= self.width:
            self.refused += 1
            await asyncio.sleep(0.001)
            return False
        self.inside += 1
        await asyncio.sleep(random.uniform(0.02, 0.08))
        self.inside -= 1
        self.good += 1
        return True


async def fetch(limiter: Limiter, gate: Gate, page_id: int) -> None:
    claim: tuple[int, int] | None = (page_id, 1)
    fetched = False
    while not fetched:
        permit = await limiter.acquire("tmapi", CREDENTIALS, LIMITS, priority=5, claim=claim)
        claim = None
        fetched = await gate.call()
        permit.release(ok=fetched, throttled=not fetched)
    limiter.finished(page_id)


async def fetch_until(limiter: Limiter, gate: Gate, pages: "itertools.count[int]", good: int) -> None:
    while gate.good < good:
        await fetch(limiter, gate, next(pages))


async def test_a_gate_is_found_used_and_rarely_hit_even_when_it_moves(redis_url: str) -> None:
    random.seed(7)
    gate, pages = Gate(20), itertools.count()
    async with Redis.from_url(redis_url) as redis:
        limiters = [Limiter(redis, process=name) for name in ("a", "b")]
        for limiter in limiters:
            await limiter.start()
        for width, good in ((20, 900), (40, 2400), (10, 2600)):
            gate.width = width
            before = gate.good + gate.refused, gate.refused
            await asyncio.gather(*(fetch_until(each, gate, pages, good) for each in limiters for _ in range(100)))
            calls, refused = gate.good + gate.refused - before[0], gate.refused - before[1]
            if width == 20:
                assert refused <= 0.04 * calls
        round_trips = sum(limiter.calls for limiter in limiters)
        await asyncio.gather(*(limiter.stop() for limiter in limiters))
    assert gate.refused <= 0.05 * gate.good
    assert round_trips <= 0.2 * gate.good
