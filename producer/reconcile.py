"""Reconciliation: a page whose message or worker is gone is found by its absence everywhere, and sent again."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec
import sqlalchemy as sa
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncConnection

from models import fleet
from models.bulk import query_rows
from models.messages import QUEUE, URGENT_QUEUE, parse_message_id
from models.tables import page

# A page may be on its way between the queue and a worker's next heartbeat for this long without being suspect.
GRACE = timedelta(seconds=8)
LARGEST_CHECK = 20_000

Sending = tuple[int, int]
"""(page id, fence) of one sending."""


class _Headers(msgspec.Struct):
    id: str


class _Message(msgspec.Struct):
    headers: _Headers


@dataclass(frozen=True)
class Suspicion:
    """Sendings that were nowhere to be found at one check; only those still missing at the next one are lost."""

    missing: frozenset[Sending] = frozenset()


async def overdue(connection: AsyncConnection, now: datetime) -> frozenset[Sending]:
    """Sendings that have been out for longer than the grace."""
    query = sa.select(page.c.id, page.c.fence).where(page.c.state == "sent", page.c.sent_at < now - GRACE)
    rows = await connection.execute(query.order_by(page.c.sent_at).limit(LARGEST_CHECK))
    return frozenset((row.id, row.fence) for row in rows)


async def alive(redis: Redis, suspects: frozenset[Sending]) -> frozenset[Sending]:
    """Those suspects that a living worker holds or that still wait in a queue."""
    held: set[Sending] = set()
    for worker in await fleet.live_workers(redis):
        held |= worker.held
    rest = suspects - held
    if not rest:
        return suspects
    for queue in (URGENT_QUEUE, QUEUE):
        rest -= sendings(await redis.lrange(queue, 0, LARGEST_CHECK))
    return suspects - rest


async def delivered(redis: Redis, missing: frozenset[Sending]) -> frozenset[Sending]:
    """Those of the missing that had reached a worker: Redis still keeps them as unacknowledged."""
    found: set[Sending] = set()
    async for _, payload in redis.hscan_iter("unacked", count=500):
        found |= sendings([payload])
    return missing & found


def sendings(payloads: Iterable[bytes]) -> set[Sending]:
    """The sendings named in raw queue entries; foreign or broken entries name none."""
    found = set()
    for payload in payloads:
        try:
            text = payload if payload.startswith(b"{") else msgspec.json.encode(msgspec.json.decode(payload)[0])
            sending = parse_message_id(msgspec.json.decode(text, type=_Message).headers.id)
        except (msgspec.MsgspecError, IndexError, KeyError, TypeError):
            continue
        if sending is not None:
            found.add(sending)
    return found


async def send_again(
    connection: AsyncConnection,
    lost: frozenset[Sending],
    crashed: frozenset[Sending],
    *,
    now: datetime,
    max_crashes: int,
) -> int:
    """Make lost pages ready again, unless workers died with one of them too often; returns how many rows changed."""
    rows = [
        {"id": page_id, "fence": fence, "crashes": int((page_id, fence) in crashed)} for page_id, fence in sorted(lost)
    ]
    sql = """
        UPDATE page SET
            crashes = page.crashes + r.crashes,
            due_at = :now,
            state = CASE WHEN page.crashes + r.crashes >= :most THEN 'dead' ELSE 'ready' END,
            reviewed = (page.crashes + r.crashes < :most),
            reason = CASE WHEN page.crashes + r.crashes >= :most THEN 'workers died with it' ELSE page.reason END
        FROM {r} WHERE page.id = r.id AND page.fence = r.fence AND page.state = 'sent' RETURNING page.id
    """
    moment = sa.type_coerce(now, page.c.due_at.type)
    bound = moment.type.dialect_impl(connection.dialect).bind_processor(connection.dialect)
    value = bound(now) if bound else now
    columns = [page.c.id, page.c.fence, page.c.crashes]
    return len(await query_rows(connection, sql, columns, rows, now=value, most=max_crashes))
