"""What tests around a shared Redis start with: a client of it, and limiters as several processes have them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from redis.asyncio import Redis

from worker.limiter import Limiter


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """A client of an empty Redis."""
    async with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
async def start(redis: Redis) -> AsyncIterator[Callable[..., Awaitable[Limiter]]]:
    """Start limiters as different processes would have them; all are stopped at the end."""
    started: list[Limiter] = []

    async def start_one(process: str, *, beat: float = 0.2, **options: float) -> Limiter:
        limiter = Limiter(redis, process=process, beat=beat, **options)
        await limiter.start()
        started.append(limiter)
        return limiter

    yield start_one
    await asyncio.gather(*(limiter.stop() for limiter in started))
