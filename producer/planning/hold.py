"""Holding: what needs a new session or a larger budget waits for it, and costs nothing meanwhile."""

from collections.abc import Mapping
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from models.tables import crawl, page, session, shop_crawl


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


async def rest_crawls(connection: AsyncConnection) -> list[int]:
    """Let crawls wait of which all that is left is held for want of a budget; returns their ids."""
    shops = sa.select(shop_crawl.c.id).where(shop_crawl.c.crawl_id == crawl.c.id, shop_crawl.c.state == "open")
    held = _pages_of(shops, page.c.state == sa.literal_column("'held'"))
    moving = _pages_of(shops, page.c.state.in_(["ready", "sent"]) | ~page.c.reviewed)
    why = sa.select(page.c.reason).where(page.c.state == sa.literal_column("'held'"), page.c.shop_crawl_id.in_(shops))
    resting = sa.update(crawl).where(crawl.c.state == "running", held, ~moving)
    rows = await connection.execute(
        resting.values(state="waiting", reason=why.limit(1).scalar_subquery()).returning(crawl.c.id)
    )
    return sorted(row.id for row in rows)


def _pages_of(shops: sa.Select[tuple[int]], condition: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
    return sa.exists().where(page.c.shop_crawl_id.in_(shops), condition)
