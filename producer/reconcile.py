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
LISTED_AT_ONCE = 1_000

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
    is_sent = page.c.state == sa.literal_column("'sent'")  # a literal, so that the partial index fits
    query = sa.select(page.c.id, page.c.fence).where(is_sent, page.c.sent_at < now - GRACE)
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
        rest -= await queued(redis, queue)
    return suspects - rest


async def queued(redis: Redis, queue: str) -> set[Sending]:
    """The sendings that wait in a queue."""
    found: set[Sending] = set()
    start = 0
    # From the newest on: what arrives meanwhile shifts the rest towards us, so that none is missed.
    while payloads := await redis.lrange(queue, start, start + LISTED_AT_ONCE - 1):
        found |= sendings(payloads)
        start += LISTED_AT_ONCE
    return found


async def delivered(redis: Redis, missing: frozenset[Sending]) -> frozenset[Sending]:
    """Those of the missing that had reached a worker: Redis still keeps them as unacknowledged."""
    found: set[Sending] = set()
    async for _, payload in redis.hscan_iter("unacked", count=500):
        found |= sendings([payload])
    return missing & found


def sendings(payloads: Iterable[bytes | str]) -> set[Sending]:
    """The sendings named in raw queue entries; foreign or broken entries name none."""
    found = set()
    for payload in payloads:
        try:
            entry = msgspec.json.decode(payload)
            message = entry[0] if isinstance(entry, list) else entry  # unacknowledged: with exchange and routing key
            sending = parse_message_id(msgspec.convert(message, _Message).headers.id)
        except (msgspec.MsgspecError, IndexError, KeyError, TypeError, ValueError, RecursionError):
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
        {"id": page_id, "fence": fence, "crashes": int((page_id, fence) in crashed), "due_at": now}
        for page_id, fence in sorted(lost)
    ]
    sql = """
        UPDATE page SET
            crashes = page.crashes + r.crashes,
            due_at = r.due_at,
            state = CASE WHEN page.crashes + r.crashes >= :most THEN 'dead' ELSE 'ready' END,
            reviewed = (page.crashes + r.crashes < :most),
            finished_at = CASE WHEN page.crashes + r.crashes >= :most THEN r.due_at END,
            reason = CASE WHEN page.crashes + r.crashes >= :most THEN 'workers died with it' ELSE page.reason END
        FROM {r} WHERE page.id = r.id AND page.fence = r.fence AND page.state = 'sent' RETURNING page.id
    """
    columns = [page.c.id, page.c.fence, page.c.crashes, page.c.due_at]
    return len(await query_rows(connection, sql, columns, rows, most=max_crashes))
