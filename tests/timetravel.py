"""Living through long waits: every stored deadline is moved back instead."""

from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from models import fleet
from models.source import source_names
from models.tables import page


async def let_time_pass(engine: AsyncEngine, redis: Redis, seconds: float) -> None:
    """Move when pages are due and when bans end `seconds` towards the past, and have every process notice."""
    async with engine.begin() as connection:
        due = (await connection.execute(sa.select(page.c.due_at).where(page.c.state == "ready").distinct())).scalars()
        for at in sorted(due):  # earliest first, so that none is moved twice
            moved = sa.update(page).where(page.c.state == "ready", page.c.due_at == at)
            await connection.execute(moved.values(due_at=at - timedelta(seconds=seconds)))
    for source in source_names():
        found: dict[Any, Any] = await redis.hgetall(fleet.bans_key(source))
        for scope, value in found.items():
            end, _, reason = value.decode().partition(" ")
            await redis.hset(fleet.bans_key(source), scope, f"{float(end) - seconds * 1000:.0f} {reason}")
        await redis.publish(fleet.NEWS, source)
