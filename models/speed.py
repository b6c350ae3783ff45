"""How fast pages were had lately, by the times of the newest calls in the ledger."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import pairwise

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from models.tables import call, shop, shop_crawl

NEWEST_CALLS = 5_000
LOOKED_AT = 4 * NEWEST_CALLS
"""Newest rows among which those of one crawl or source are looked for, so that looking stays cheap."""
LONGEST_GAP = timedelta(seconds=30)
"""Longer silences are pauses: nothing ran, or everything was parked."""
FEWEST_PAGES = 20
GOOD = "200"


class Speed(msgspec.Struct, frozen=True):
    """Pages had per second while work went on, from so many calls, the newest of them at a time."""

    per_second: float
    calls: int
    newest: datetime


def speed(calls: Sequence[tuple[datetime, bool]]) -> Speed | None:
    """The speed from the calls' times and whether each brought its page; None if they are too few to tell."""
    ordered = sorted(calls)
    steps = [(later[0] - earlier[0], later[1]) for earlier, later in pairwise(ordered)]
    steps = [(gap, good) for gap, good in steps if gap <= LONGEST_GAP]
    seconds, pages = sum((gap for gap, _ in steps), timedelta()).total_seconds(), sum(good for _, good in steps)
    if pages < FEWEST_PAGES or seconds < 1:
        return None
    return Speed(pages / seconds, len(ordered), ordered[-1][0])


def possible(per_second: float, in_flight: float, limit: float) -> float | None:
    """Pages per second that a limit allows, when so many calls in flight bring so many; None if none are in flight."""
    return per_second * max(1.0, limit / in_flight) if in_flight > 0 and limit > 0 else None


async def recent_speed(
    connection: AsyncConnection,
    *,
    source: str | None = None,
    crawl: int | None = None,
    since: datetime | None = None,
) -> Speed | None:
    """The speed of a source or a crawl by its newest calls; None if they are too few."""
    newest = sa.select(call).order_by(call.c.id.desc()).limit(LOOKED_AT).subquery()
    query = sa.select(newest.c.at, newest.c.outcome).order_by(newest.c.id.desc()).limit(NEWEST_CALLS)
    if source is not None:
        query = query.join(shop_crawl, shop_crawl.c.id == newest.c.shop_crawl_id)
        query = query.join(shop, shop.c.id == shop_crawl.c.shop_id).where(shop.c.source == source)
    if crawl is not None:
        query = query.where(newest.c.crawl_id == crawl)
    if since is not None:
        query = query.where(newest.c.at >= since)
    return speed([(row.at, row.outcome == GOOD) for row in await connection.execute(query)])
