"""The producer's part in the limits: SQL remembers them, so that neither a lost Redis nor a restart costs anything."""

from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from models import fleet, limits
from models.database import Clock, reader
from models.source import source_names


async def keep_limits(engine: AsyncEngine, redis: Redis, clock: Clock) -> None:
    """Bring Redis in line with what an operator has set, give it back what it forgot, and remember what is new."""
    for source in source_names():
        present = await fleet.orders(redis, source)  # before SQL is read: an order given meanwhile is not undone
        async with reader(engine).connect() as connection:
            wanted, known = await limits.orders(connection, source), await limits.remembered(connection, source)
        for scope in wanted.keys() | present.keys():
            if wanted.get(scope) != present.get(scope):
                await fleet.set_order(redis, source, scope, wanted.get(scope, {}))
        for name, learnt in known.items():
            await fleet.restore(redis, source, name, learnt)
        found = await fleet.learnt(redis, source)
        news = {name: learnt for name, learnt in found.items() if learnt.limit and learnt != known.get(name)}
        if news:
            async with engine.begin() as connection:
                for name, learnt in sorted(news.items()):
                    await limits.remember(connection, source, name, learnt, clock.now())
