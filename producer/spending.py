"""Tells Prometheus what each source's calls have cost, without reading the whole ledger again each time."""

import time
from collections import Counter
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from models.costs import SENT, left_open, reserved_by_source, snapshot
from models.database import Clock
from models.tables import call, crawl, page, shop, shop_crawl
from producer import metrics

EVERY = 15.0
LARGEST_LOAD = 0.02
"""Share of the time that reading may take."""
LATE_ANSWERS = timedelta(minutes=10)
"""After its end a crawl is counted once more, then its sum is kept."""


class Spending:
    """Sums of settled calls; those of crawls that have long finished are kept, for nothing is added to them."""

    def __init__(self, engine: AsyncEngine, clock: Clock) -> None:
        self._engine, self._clock = engine, clock
        self._kept: Counter[str] = Counter()
        self._kept_until: datetime | None = None

    async def measure(self) -> float:
        """Set the gauges; returns the pause until the next time."""
        started, kept_until = time.monotonic(), self._clock.now() - LATE_ANSWERS
        async with snapshot(self._engine) as connection:
            finished = await self._settled(connection, crawl.c.finished_at < kept_until)
            others = await self._settled(
                connection, sa.or_(crawl.c.finished_at.is_(None), crawl.c.finished_at >= kept_until)
            )
            reserved = await reserved_by_source(connection)
            out = await _out(connection)
        self._kept, self._kept_until = self._kept + finished, kept_until
        settled = self._kept + others
        for source, each in reserved.items():
            unknown = left_open(each, settled[source], each.spend, out[source]).unknown
            metrics.show_calls(source, each, settled[source], unknown or 0)
        return max(EVERY, (time.monotonic() - started) / LARGEST_LOAD)

    async def _settled(self, connection: AsyncConnection, wanted: sa.ColumnElement[bool]) -> Counter[str]:
        """Settled calls by source, of wanted crawls that are not in the kept sum."""
        crawls = sa.select(crawl.c.id).where(wanted)
        if self._kept_until is not None:
            crawls = crawls.where(sa.or_(crawl.c.finished_at.is_(None), crawl.c.finished_at >= self._kept_until))
        made = sa.select(call.c.shop_crawl_id, sa.func.sum(call.c.calls).label("calls"))
        made = made.where(call.c.crawl_id.in_(crawls)).group_by(call.c.shop_crawl_id)
        found = made.subquery()
        query = sa.select(shop.c.source, sa.func.sum(found.c.calls).label("calls")).select_from(found)
        query = query.join(shop_crawl, shop_crawl.c.id == found.c.shop_crawl_id)
        query = query.join(shop, shop.c.id == shop_crawl.c.shop_id).group_by(shop.c.source)
        return Counter({row.source: int(row.calls) for row in await connection.execute(query)})


async def _out(connection: AsyncConnection) -> Counter[str]:
    query = sa.select(page.c.source, sa.func.count().label("pages")).where(page.c.state == SENT)
    return Counter({row.source: row.pages for row in await connection.execute(query.group_by(page.c.source))})
