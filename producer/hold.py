"""Holding: a shop whose session is missing or refused waits for a new one, and costs nothing meanwhile."""

from collections.abc import Mapping
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from models.tables import page, session, shop_crawl


async def hold(connection: AsyncConnection, reasons: Mapping[int, str], now: datetime) -> None:
    """Hold these shop crawls, for a reason each; those whose shop has got a new session meanwhile go on at once."""
    if not reasons:
        return
    usable = sa.select(shop_crawl.c.id).join(session, session.c.shop_id == shop_crawl.c.shop_id)
    usable = usable.where(shop_crawl.c.id.in_(reasons), session.c.refused_at.is_(None))
    going_on = set(await connection.scalars(usable))
    theirs = sa.update(page).where(page.c.shop_crawl_id.in_(going_on), page.c.state == "held")
    await connection.execute(theirs.values(state="ready", due_at=now))
    for key in reasons.keys() - going_on:
        mine = sa.update(shop_crawl).where(shop_crawl.c.id == key, shop_crawl.c.state == "open")
        await connection.execute(mine.values(state="held", reason=reasons[key]))
        waiting = sa.update(page).where(page.c.shop_crawl_id == key, page.c.state == "ready")
        await connection.execute(waiting.values(state="held"))
