"""Housekeeping: sales figures that are old enough go, and so do sheets on which no item was seen last any more."""

from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from models.database import Clock, reader
from models.settings import Settings
from models.tables import item_sales, item_seen, sheet

BATCH = 2_000
SHOPS = 20
BUSY_PAUSE = 1.0
IDLE_PAUSE = 3600.0
SETTLED = timedelta(hours=1)
"""A sheet younger than that may still be on its way."""


class Housekeeping:
    """Clears up in small steps, each of them a short transaction, and rests for an hour when all is done."""

    def __init__(self, settings: Settings, engine: AsyncEngine, clock: Clock) -> None:
        self._keep = timedelta(days=settings.sales_retention)
        self._engine, self._clock = engine, clock
        self._shop_id = 0

    async def step(self) -> float:
        """Clear up a little; returns the pause until the next step."""
        now = self._clock.now()
        dropped = await self._drop_sales(now - self._keep) if self._keep else 0
        shops = await self._shops()
        for shop_id in shops:
            async with self._engine.begin() as connection:
                await drop_sheets(connection, shop_id, now - SETTLED)
        self._shop_id = shops[-1] if shops else 0
        return BUSY_PAUSE if shops or dropped == BATCH else IDLE_PAUSE

    async def _drop_sales(self, before: datetime) -> int:
        old = sa.select(item_sales.c.shop_id).where(item_sales.c.at < before).limit(1)
        async with reader(self._engine).connect() as connection:  # a look that holds nobody up
            if (await connection.execute(old)).first() is None:
                return 0
        async with self._engine.begin() as connection:
            return await drop_sales(connection, before, batch=BATCH)

    async def _shops(self) -> list[int]:
        """The next shops with sheets that move no more."""
        query = sa.select(sheet.c.shop_id).where(sheet.c.digest.is_(None), sheet.c.shop_id > self._shop_id)
        query = query.distinct().order_by(sheet.c.shop_id).limit(SHOPS)
        async with reader(self._engine).connect() as connection:
            return list(await connection.scalars(query))


async def drop_sales(connection: AsyncConnection, before: datetime, *, batch: int) -> int:
    """Delete at most `batch` past sales figures that were first seen before then; returns how many."""
    key = sa.tuple_(*item_sales.primary_key)
    old = sa.select(*item_sales.primary_key).where(item_sales.c.at < before).limit(batch)
    return (await connection.execute(sa.delete(item_sales).where(key.in_(old)))).rowcount


async def drop_sheets(connection: AsyncConnection, shop_id: int, before: datetime) -> int:
    """Delete a shop's sheets that move no more, were seen last before then, and have no items; returns how many."""
    in_use = sa.select(item_seen.c.sheet_id).where(item_seen.c.shop_id == shop_id, item_seen.c.sheet_id.is_not(None))
    idle = (sheet.c.shop_id == shop_id) & sheet.c.digest.is_(None) & (sheet.c.last_seen < before)
    return (await connection.execute(sa.delete(sheet).where(idle, sheet.c.id.not_in(in_use)))).rowcount
