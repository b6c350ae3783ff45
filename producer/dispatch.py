"""Dispatch: due pages leave the ledger in fair order, a bounded number in flight."""

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from models import budget
from models.bulk import query_rows
from models.messages import NORMAL_PRIORITY, PageTask
from models.settings import Settings
from models.tables import page, shop, shop_crawl, slice_
from producer.planning.second import STEPS as SECOND_PASS

SMALLEST_WINDOW = 100
REMEMBERED_SHOPS = 50_000
LARGEST_DISPATCH = 2_000
# As literals: neither database matches a parameter with a partial index's condition.
READY: sa.ColumnElement[str] = sa.literal_column("'ready'")
SENT: sa.ColumnElement[str] = sa.literal_column("'sent'")


def window(setting: int, capacities: Sequence[int]) -> int:
    """How many messages may be out: as set, else twice what the living workers hold, so that none waits for work."""
    return setting or max(SMALLEST_WINDOW, 2 * sum(capacities))


def fair_shares(room: int, sources: Sequence[str], turn: int = 0) -> dict[str, int]:
    """Divide room evenly; who gets one page more than another changes with every turn."""
    start = turn % len(sources) if sources else 0
    return {
        source: (room + len(sources) - 1 - place) // len(sources)
        for place, source in enumerate([*sources[start:], *sources[:start]])
    }


class ShopFacts(msgspec.Struct, frozen=True):
    """What a message says about its shop besides the page."""

    crawl_id: int
    shop_id: int
    source: str
    shop: str
    options: dict[str, Any]


Window = tuple[int, int]
"""(shop crawl, number of its slice)"""


class Dispatcher:
    """Marks due pages as sent and makes their messages; the caller sends them after the commit."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._shops: OrderedDict[int, ShopFacts] = OrderedDict()
        self._turn = 0
        self._urgent_share = settings.urgent_share
        self._owed = 0.0

    async def sent(self, connection: AsyncConnection) -> int:
        """How many pages are out now."""
        count = await connection.scalar(sa.select(sa.func.count()).where(page.c.state == SENT))
        return int(count or 0)

    async def take_due(
        self,
        connection: AsyncConnection,
        *,
        sources: Sequence[str],
        room: int,
        now: datetime,
        credential: str | None = None,
    ) -> list[PageTask]:
        """Mark up to `room` due pages as sent, shared fairly by these sources, and in each by priority and shop.

        For each a call is reserved; pages that a budget forbids are held, or put off to the next day.

        What a source leaves of its share goes to the others. `credential`: the pages are a probe of this one. Rows
        that another producer is taking are skipped.
        """
        tasks: list[PageTask] = []
        hungry, left = list(sources), min(room, LARGEST_DISPATCH)
        while hungry and left > 0:
            self._turn += 1
            for source, share in fair_shares(left, hungry, self._turn).items():
                rows = await self._mark_fairly(connection, source, share, now)
                await self._learn_shops(connection, {row.shop_crawl_id for row in rows})
                windows = await slice_options(connection, {(row.shop_crawl_id, row.slice) for row in rows if row.slice})
                found = [page_task(row, self._shops[row.shop_crawl_id], windows, credential) for row in rows]
                tasks += await self._reserve(connection, found, now)
                left -= len(rows)
                if len(rows) < share:
                    hungry.remove(source)
        # RETURNING keeps no order; messages leave in the order that was decided.
        return sorted(tasks, key=lambda task: (task.priority, task.page, task.page_id))

    async def _mark_fairly(
        self, connection: AsyncConnection, source: str, room: int, now: datetime
    ) -> Sequence[sa.Row[Any]]:
        """Urgent pages go first, but now and then the others do: many urgent ones must not starve them."""
        self._owed += 1 - self._urgent_share
        if self._owed < 0.999:  # sums of tenths are no whole numbers
            return await self._mark_sent(connection, source, room, now)
        self._owed -= 1
        rows = await self._mark_sent(connection, source, room, now, most_urgent=NORMAL_PRIORITY)
        return [*rows, *await self._mark_sent(connection, source, room - len(rows), now)]

    async def _mark_sent(
        self, connection: AsyncConnection, source: str, room: int, now: datetime, *, most_urgent: int = 0
    ) -> Sequence[sa.Row[Any]]:
        if room <= 0:
            return []
        wanted = [page.c.state == READY, page.c.source == source, page.c.due_at <= now]
        if most_urgent:
            wanted.append(page.c.priority >= most_urgent)
        due = (
            sa.select(page.c.id)
            .where(*wanted)
            .order_by(page.c.priority, page.c.rank, page.c.id)
            .limit(room)
            .with_for_update(skip_locked=True)
            .cte("due")  # runs once: as a plain subquery it may run again for each row and exceed its limit
        )
        update = (
            sa.update(page)
            .where(page.c.id.in_(sa.select(due.c.id)))
            .values(state="sent", fence=page.c.fence + 1, sent_at=now)
            .returning(
                page.c.id,
                page.c.fence,
                page.c.slice,
                page.c.number,
                page.c.page_no,
                page.c.shop_crawl_id,
                page.c.priority,
                page.c.tries,
            )
        )
        return (await connection.execute(update)).all()

    async def _reserve(self, connection: AsyncConnection, tasks: list[PageTask], now: datetime) -> list[PageTask]:
        """The tasks whose calls could be reserved; the others' pages are taken back."""
        forbidden = await budget.reserve(connection, tasks, self._settings, now) if tasks else []
        rows = [
            {
                "id": task.page_id,
                "state": "ready" if refused.until else "held",
                "reason": refused.reason,
                "due_at": refused.until or now,
            }
            for task, refused in zip(tasks, forbidden, strict=True)
            if refused is not None
        ]
        sql = "UPDATE page SET state = r.state, reason = r.reason, due_at = r.due_at, fence = page.fence - 1"
        columns = [page.c.id, page.c.state, page.c.reason, page.c.due_at]
        await query_rows(connection, f"{sql}, sent_at = NULL FROM {{r}} WHERE page.id = r.id", columns, rows)
        return [task for task, refused in zip(tasks, forbidden, strict=True) if refused is None]

    async def _learn_shops(self, connection: AsyncConnection, ids: set[int]) -> None:
        unknown = ids - self._shops.keys()
        if unknown:
            columns = (
                shop_crawl.c.id,
                shop_crawl.c.crawl_id,
                shop_crawl.c.shop_id,
                shop_crawl.c.options,
                shop.c.source,
                shop.c.key,
            )
            query = (
                sa.select(*columns).join(shop, shop.c.id == shop_crawl.c.shop_id).where(shop_crawl.c.id.in_(unknown))
            )
            for row in await connection.execute(query):
                self._shops[row.id] = ShopFacts(row.crawl_id, row.shop_id, row.source, row.key, row.options)
        while len(self._shops) > max(REMEMBERED_SHOPS, len(ids)):
            oldest = next(iter(self._shops))
            if oldest in ids:
                self._shops.move_to_end(oldest)
            else:
                del self._shops[oldest]


def page_task(
    row: sa.Row[Any], facts: ShopFacts, slices: Mapping[Window, dict[str, Any]], credential: str | None = None
) -> PageTask:
    """The message for a row of the page table; `slices` are the options of its shop's slices."""
    number = row.number if row.page_no is None else row.page_no
    options = facts.options
    if row.slice:
        options = from_this_end(options, number) | slices[row.shop_crawl_id, row.slice]
    return PageTask(
        source=facts.source,
        shop=facts.shop,
        page=abs(number),
        page_id=row.id,
        fence=row.fence,
        shop_id=facts.shop_id,
        shop_crawl_id=row.shop_crawl_id,
        crawl_id=facts.crawl_id,
        priority=row.priority,
        tries=row.tries,
        credential=credential,
        options=options,
    )


async def slice_options(connection: AsyncConnection, wanted: Collection[Window]) -> dict[Window, dict[str, Any]]:
    """What a call says about its part of the listing: see `Source.request`."""
    t = slice_.c
    given = [t.start_at, t.end_at, t.cid, t.price_start, t.price_end, t.page_size]
    names = ", ".join(f's."{column.name}"' for column in (t.shop_crawl_id, t.number, t.kind, *given))
    sql = f"SELECT {names} FROM {{r}} JOIN slice s ON s.shop_crawl_id = r.shop_crawl_id AND s.number = r.number"
    rows = [{"shop_crawl_id": key, "number": number} for key, number in sorted(wanted)]
    columns = [t.shop_crawl_id, t.number, t.kind, *given]
    found = await query_rows(connection, sql, columns[:2], rows, returning=columns)
    return {(row.shop_crawl_id, row.number): _part_options(row) for row in found}


def _part_options(row: sa.Row[Any]) -> dict[str, Any]:
    options = {name: row._mapping[name] for name in ("cid", "price_start", "price_end", "page_size")}
    if row.kind not in SECOND_PASS:
        options |= {"start_modified": row.start_at, "end_modified": row.end_at}
    texts = {name: value.isoformat() if isinstance(value, datetime) else value for name, value in options.items()}
    return {name: value for name, value in texts.items() if value is not None}


def from_this_end(options: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The options of a page; a negative one counts from the other end, so that the order is turned round."""
    column, _, direction = str(options.get("order_by", "")).partition(":")
    if number > 0 or not direction:
        return dict(options)
    return {**options, "order_by": f"{column}:{'asc' if direction == 'desc' else 'desc'}"}


async def oldest_due(connection: AsyncConnection, sources: Sequence[str], now: datetime) -> float:
    """Seconds that the page next in line has been due, over all sources; 0 if nothing is due."""
    longest = 0.0
    for source in sources:
        ready = sa.select(page.c.due_at).where(page.c.state == READY, page.c.source == source)
        due_at = await connection.scalar(ready.order_by(page.c.priority, page.c.rank, page.c.id).limit(1))
        longest = max(longest, (now - due_at).total_seconds() if due_at else 0.0)
    return longest
