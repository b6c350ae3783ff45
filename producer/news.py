"""Tells the log of shops that did not end complete, and of crawls that finished with their figures."""

import logging
from collections.abc import Sequence
from datetime import datetime

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from models.status import crawl_status
from models.tables import shop, shop_crawl
from producer.planning.review import Reviewed

logger = logging.getLogger(__name__)


async def tell(connection: AsyncConnection, reviewed: Reviewed, *, now: datetime) -> None:
    """Write a line for each such shop and crawl; call it once the review is committed."""
    if reviewed.unhappy:
        await _tell_shops(connection, reviewed.unhappy)
    for crawl_id in reviewed.finished:
        status = await crawl_status(connection, crawl_id, now=now)
        figures = msgspec.to_builtins(status)
        event = "crawl finished" if status.is_finished else "crawl waits"
        logger.info(event, extra={name: value for name, value in figures.items() if name != "state"})


async def _tell_shops(connection: AsyncConnection, ids: Sequence[int]) -> None:
    columns = (shop_crawl.c.crawl_id, shop.c.key, shop_crawl.c.verdict, shop_crawl.c.reason)
    query = sa.select(*columns).join(shop, shop.c.id == shop_crawl.c.shop_id).where(shop_crawl.c.id.in_(ids))
    for row in await connection.execute(query.order_by(shop_crawl.c.id)):
        fields = {"crawl": row.crawl_id, "shop": row.key, "verdict": row.verdict, "reason": row.reason}
        level = logging.WARNING if row.verdict == "suspect" else logging.INFO
        logger.log(level, "shop settled", extra=fields)
