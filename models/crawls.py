"""Crawls as an operator asks for them: made in one transaction, found again by the same command, never doubled."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from hashlib import sha256
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from models.budget import raise_caps
from models.bulk import insert_rows, query_rows
from models.database import is_postgresql
from models.messages import NORMAL_PRIORITY, URGENT_PRIORITY
from models.modes import FULL, WHOLE, Mode, Wanted, readings
from models.settings import Settings
from models.source import source_named
from models.tables import crawl, page, shop, shop_crawl, slice_
from models.windows import first_slice


class ShopRequest(msgspec.Struct, frozen=True):
    """One shop to crawl, with its validated options."""

    source: str
    key: str
    options: dict[str, Any]


class Budget(msgspec.Struct, frozen=True):
    """What a crawl may cost at most; None: no cap."""

    max_calls: int | None = None
    max_spend: Decimal | None = None


NO_BUDGET = Budget()


class Submission(msgspec.Struct, frozen=True):
    """What became of a request: the crawl it is now, whether that crawl ran already, and how many shops it took in."""

    crawl_id: int
    resumed: bool
    shops: int
    pending: int = 0
    """Shops left out because a re-crawl of them is pending already."""
    fresh: int = 0
    """Shops left out because their data is not as old as that."""


def fingerprint(kind: str, shops: Sequence[ShopRequest]) -> str:
    """A digest of what is asked for, independent of the order of shops."""
    lines = sorted(msgspec.json.encode(shop_request, order="deterministic") for shop_request in shops)
    return sha256(kind.encode() + b"\n".join(lines)).hexdigest()


async def submit_crawl(
    connection: AsyncConnection,
    shops: Sequence[ShopRequest],
    *,
    now: datetime,
    settings: Settings,
    priority: int = NORMAL_PRIORITY,
    budget: Budget = NO_BUDGET,
    mode: Mode = WHOLE,
) -> Submission:
    """Start a crawl of these shops, or find the unfinished one that the same request started before.

    A crawl that is found keeps its budget unless another one is given. There is none (id 0) if no shop needs one.
    """
    mark = fingerprint(mode.mark("crawl"), shops)
    if is_postgresql(connection):  # the same command twice at once: the second one waits and finds the first one's
        await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(mark, 0))))
    running = sa.select(crawl.c.id).where(crawl.c.fingerprint == mark, crawl.c.state != "finished")
    found = await connection.scalar(running.order_by(crawl.c.id.desc()).limit(1))
    if found is not None:
        if budget != NO_BUDGET:
            await raise_caps(connection, found, max_calls=budget.max_calls, max_spend=budget.max_spend, now=now)
        return Submission(found, resumed=True, shops=len(shops))
    crawl_id = await _new_crawl(connection, "crawl", mark, priority, now, budget)
    taken, fresh = await _add_shops(
        connection, crawl_id, "crawl", shops, priority=priority, now=now, settings=settings, mode=mode
    )
    if taken == 0 and fresh:
        await connection.execute(sa.delete(crawl).where(crawl.c.id == crawl_id))
        return Submission(0, resumed=False, shops=0, fresh=fresh)
    return Submission(crawl_id, resumed=False, shops=taken, fresh=fresh)


async def submit_recrawl(
    connection: AsyncConnection,
    shops: Sequence[ShopRequest],
    *,
    now: datetime,
    settings: Settings,
    priority: int = URGENT_PRIORITY,
    budget: Budget = NO_BUDGET,
    mode: Mode = WHOLE,
    schedule_id: int | None = None,
) -> Submission:
    """Re-crawl these shops ahead of other work; shops whose re-crawl is pending already are left to that one.

    There is no crawl (id 0) if no shop needs one.
    """
    shops = sorted(shops, key=lambda request: (request.source, request.key))  # one order for all: no deadlocks
    mark = fingerprint(mode.mark("recrawl"), shops)
    crawl_id = await _new_crawl(connection, "recrawl", mark, priority, now, budget, schedule_id)
    taken, fresh = await _add_shops(
        connection, crawl_id, "recrawl", shops, priority=priority, now=now, settings=settings, mode=mode
    )
    left = len(shops) - taken - fresh
    if taken == 0:
        await connection.execute(sa.delete(crawl).where(crawl.c.id == crawl_id))
        pending = await _pending_recrawl(connection, shops) if left else None
        return Submission(pending or 0, resumed=pending is not None, shops=0, pending=left, fresh=fresh)
    return Submission(crawl_id, resumed=False, shops=taken, pending=left, fresh=fresh)


async def submit_plan(
    connection: AsyncConnection, shops: Sequence[ShopRequest], *, now: datetime, settings: Settings
) -> Submission:
    """Count these shops' items: one call for each, ahead of other work; nothing more is fetched."""
    crawl_id = await _new_crawl(connection, "plan", fingerprint("plan", shops), URGENT_PRIORITY, now)
    taken, _ = await _add_shops(
        connection, crawl_id, "plan", shops, priority=URGENT_PRIORITY, now=now, settings=settings
    )
    return Submission(crawl_id, resumed=False, shops=taken)


async def _new_crawl(
    connection: AsyncConnection,
    kind: str,
    mark: str,
    priority: int,
    now: datetime,
    budget: Budget = NO_BUDGET,
    schedule_id: int | None = None,
) -> int:
    values = {
        "kind": kind,
        "state": "running",
        "fingerprint": mark,
        "priority": priority,
        "options": {},
        "max_calls": budget.max_calls,
        "max_spend": budget.max_spend,
        "schedule_id": schedule_id,
        "created_at": now,
    }
    result = await connection.execute(sa.insert(crawl).values(values).returning(crawl.c.id))
    return int(result.scalar_one())


async def _add_shops(
    connection: AsyncConnection,
    crawl_id: int,
    kind: str,
    shops: Sequence[ShopRequest],
    *,
    priority: int,
    now: datetime,
    settings: Settings,
    mode: Mode = WHOLE,
) -> tuple[int, int]:
    """Insert shops, shop crawls and each one's first page; returns how many were new, and how many need no crawl."""
    known = await shop_rows(connection, shops, now)
    wanted = {
        known[request.source, request.key].id: Wanted(
            request.source, request.options, known[request.source, request.key].watermark
        )
        for request in shops
    }
    reading = await readings(connection, wanted, mode, now=now, settings=settings)
    rules = {source: source_named(source).windows(settings) for source in {request.source for request in shops}}
    rows = [
        {
            "crawl_id": crawl_id,
            "shop_id": key,
            "kind": kind,
            "mode": how.mode,
            "state": "open",
            "priority": priority,
            "options": how.options,
            "planned": 1,
            "slices": int(rules[wanted[key].source] is not None),
            "pages_made": int(rules[wanted[key].source] is not None),
            "created_at": now,
        }
        for key, how in reading.items()
    ]
    added = await insert_rows(connection, shop_crawl, rows, conflict="ON CONFLICT DO NOTHING", returning="id, shop_id")
    first_pages, first_slices = [], []
    for row in sorted(added, key=lambda r: r.id):
        source, watermark, part = wanted[row.shop_id].source, wanted[row.shop_id].watermark, 0
        if (windows := rules[source]) is not None:
            options = reading[row.shop_id].options
            first_slices.append({"shop_crawl_id": row.id, **first_slice(options, watermark, windows, now)})
            part = 1
        first_pages.append({**new_page(row.id, source, 1, priority, now), "slice": part})
    await insert_rows(connection, slice_, first_slices)
    await insert_rows(connection, page, first_pages)
    return len(added), len(wanted) - len(reading)


def new_page(
    shop_crawl_id: int, source: str, number: int, priority: int, due: datetime, *, held: bool = False
) -> dict[str, Any]:
    """The row of a page, due at a time; `held`: not before its shop has a session."""
    return {
        "shop_crawl_id": shop_crawl_id,
        "source": source,
        "number": number,
        "priority": priority,
        "rank": number,
        "state": "held" if held else "ready",
        "reviewed": True,
        "fence": 0,
        "tries": 0,
        "crashes": 0,
        "due_at": due,
    }


async def shop_ids(
    connection: AsyncConnection, shops: Sequence[ShopRequest], now: datetime
) -> dict[tuple[str, str], int]:
    """The ids of these shops by (source, key); shops never seen before are added."""
    return {key: row.id for key, row in (await shop_rows(connection, shops, now)).items()}


async def shop_rows(
    connection: AsyncConnection, shops: Sequence[ShopRequest], now: datetime
) -> dict[tuple[str, str], sa.Row[Any]]:
    """The `id` and `watermark` of these shops by (source, key); shops never seen before are added."""
    rows = [{"source": request.source, "key": request.key, "created_at": now} for request in shops]
    rows.sort(key=lambda row: (row["source"], row["key"]))
    await insert_rows(connection, shop, rows, conflict="ON CONFLICT (source, key) DO NOTHING")
    columns = [shop.c.id, shop.c.source, shop.c.key, shop.c.watermark]
    sql = (
        'SELECT s.id, s.source, s."key", s.watermark FROM {r} JOIN shop s ON s.source = r.source AND s."key" = r."key"'
    )
    found = await query_rows(connection, sql, [shop.c.source, shop.c.key], rows, returning=columns)
    return {(row.source, row.key): row for row in found}


async def _pending_recrawl(connection: AsyncConnection, shops: Sequence[ShopRequest]) -> int | None:
    pending = sa.select(sa.func.max(shop_crawl.c.crawl_id)).join(shop, shop.c.id == shop_crawl.c.shop_id)
    keys = [request.key for request in shops]
    is_pending = (shop_crawl.c.kind == "recrawl") & (shop_crawl.c.state != "settled")
    newest: int | None = await connection.scalar(pending.where(is_pending, shop.c.key.in_(keys[:500])))
    return newest


def _newest(column: str, *conditions: sa.ColumnElement[bool]) -> sa.ScalarSelect[int]:
    """The id of a shop's shop crawl with the highest value in `column`; those without a value do not count.

    Looked up by shop, through its index: joined as a whole, all are read once for each shop if statistics are missing.
    """
    ids = sa.select(shop_crawl.c.id).where(shop_crawl.c.shop_id == shop.c.id, shop_crawl.c.kind != "plan", *conditions)
    ids = ids.where(shop_crawl.c[column].is_not(None)).order_by(shop_crawl.c[column].desc()).limit(1)
    return ids.correlate(shop).scalar_subquery()


async def known_shops(
    connection: AsyncConnection,
    *,
    now: datetime,
    source: str | None = None,
    keys: Sequence[str] | None = None,
    verdicts: Sequence[str] | None = None,
    older_than: timedelta | None = None,
) -> list[ShopRequest]:
    """Shops asked for before, with their newest options, that fit every filter given.

    Verdict and age are those of a shop's newest settled crawl: without one it fits neither filter.
    """
    # Crawls of mode `new` have options of their own, and there is a full one before each of them.
    newest, settled = shop_crawl.alias("newest"), shop_crawl.alias("settled")
    query = (
        sa.select(shop.c.source, shop.c.key, newest.c.options)
        .select_from(shop)
        .join(newest, newest.c.id == _newest("id", shop_crawl.c.mode == FULL))
        .join(settled, settled.c.id == _newest("settled_at"), isouter=True)
    )
    if source is not None:
        query = query.where(shop.c.source == source)
    if keys is not None:
        query = query.where(shop.c.key.in_(keys))
    if verdicts is not None:
        query = query.where(settled.c.verdict.in_(verdicts))
    if older_than is not None:
        query = query.where(settled.c.settled_at < now - older_than)
    rows = await connection.execute(query.order_by(shop.c.id))
    return [ShopRequest(row.source, row.key, row.options) for row in rows]


async def unfinished_crawls(connection: AsyncConnection) -> list[int]:
    """Ids of the crawls that have not finished, oldest first."""
    rows = await connection.scalars(sa.select(crawl.c.id).where(crawl.c.state != "finished").order_by(crawl.c.id))
    return list(rows)
