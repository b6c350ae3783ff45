"""Schedules as stored: which shops they are about, what they know of each, and what their crawls may still call."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from models.bulk import insert_rows, query_rows
from models.modes import FULL
from models.tables import call, crawl, page, schedule, schedule_shop, shop, shop_crawl

INTERVAL, CRON, ADAPTIVE, BUDGETED = "interval", "cron", "adaptive", "budgeted"
CRAWLS_REMEMBERED = 10
"""Crawls of a shop that a new schedule learns from."""


class ShopState(msgspec.Struct, frozen=True, kw_only=True):
    """What a schedule knows of a shop: the columns of `schedule_shop`."""

    shop_id: int
    every: float
    due_at: datetime
    shop_crawl_id: int | None = None
    crawled_at: datetime | None = None
    items: int | None = None
    rate: float | None = None
    observed: float = 0
    calls: float | None = None


class ScheduledShop(msgspec.Struct, frozen=True):
    """A shop that a schedule is about, with the options of its newest full crawl; None: it has had none."""

    id: int
    source: str
    key: str
    options: dict[str, Any] | None


class Charge(msgspec.Struct, frozen=True):
    """What one crawl of a budgeted schedule takes from the day's calls; `wanted` pages wait for more of them."""

    crawl_id: int
    calls: int
    max_calls: int
    wanted: int


_STATE = [schedule_shop.c[name] for name in ShopState.__struct_fields__]
_EARLIER = shop_crawl.alias()
_KNOWN = sa.exists().where(_EARLIER.c.shop_id == shop.c.id, _EARLIER.c.kind != "plan")
_HISTORY = [
    shop.c.source,
    *(
        shop_crawl.c[name]
        for name in (
            "id", "shop_id", "mode", "options", "verdict", "settled_at", "new_items", "changed_items", "gone_items",
            "distinct_items", "pages_done", "pages_dead",
        )
    ),
]  # fmt: skip


async def add_schedule(connection: AsyncConnection, values: dict[str, Any]) -> int:
    """Store a schedule; returns its id."""
    result = await connection.execute(sa.insert(schedule).values(values).returning(schedule.c.id))
    return int(result.scalar_one())


async def schedules(connection: AsyncConnection, schedule_id: int | None = None) -> Sequence[sa.Row[Any]]:
    """All schedules, or the one with this id, with the key of their `shop` if they are about one."""
    query = sa.select(schedule, shop.c.key.label("shop"), shop.c.source.label("shop_source"))
    query = query.join(shop, shop.c.id == schedule.c.shop_id, isouter=True).order_by(schedule.c.id)
    return (await connection.execute(query if schedule_id is None else query.where(schedule.c.id == schedule_id))).all()


async def remove_schedule(connection: AsyncConnection, schedule_id: int) -> bool:
    """Remove a schedule; its crawls stay. False if there is none."""
    mine = sa.select(schedule.c.id).where(schedule.c.id == schedule_id).with_for_update()
    if await connection.scalar(mine) is None:
        return False
    started = sa.update(crawl).where(crawl.c.schedule_id == schedule_id)
    await connection.execute(started.values(schedule_id=None))  # SQLite may give the id to another one
    await connection.execute(sa.delete(schedule_shop).where(schedule_shop.c.schedule_id == schedule_id))
    await connection.execute(sa.delete(schedule).where(schedule.c.id == schedule_id))
    return True


async def update_schedule(connection: AsyncConnection, schedule_id: int, **values: Any) -> bool:
    """Set columns of a schedule; False if there is none."""
    result = await connection.execute(sa.update(schedule).where(schedule.c.id == schedule_id).values(**values))
    return bool(result.rowcount)


async def next_look(connection: AsyncConnection) -> datetime | None:
    """When the next schedule is due; None: no schedule is enabled."""
    earliest: datetime | None = await connection.scalar(sa.select(_EARLIEST).where(schedule.c.enabled))
    return earliest


_EARLIEST = sa.func.min(schedule.c.next_at, type_=schedule.c.next_at.type)


async def take_due(connection: AsyncConnection, now: datetime) -> sa.Row[Any] | None:
    """The schedule that has been due longest, locked; those that another producer works on are left to it."""
    due = sa.select(schedule).where(schedule.c.enabled, schedule.c.next_at <= now).order_by(schedule.c.next_at)
    return (await connection.execute(due.limit(1).with_for_update(skip_locked=True))).first()


def _in_scope(row: sa.Row[Any]) -> list[sa.ColumnElement[bool]]:
    """The shops that a schedule is about: one by name, else those that have been crawled."""
    if row.shop_id is not None:
        return [shop.c.id == row.shop_id]
    # Not in the index's own words: it would be read to its end for each batch.
    return [_KNOWN, *([shop.c.source + "" == row.source] if row.source else [])]


async def count_shops(connection: AsyncConnection, row: sa.Row[Any]) -> int:
    """How many shops a schedule is about."""
    return int(await connection.scalar(sa.select(sa.func.count()).select_from(shop).where(*_in_scope(row))) or 0)


async def shops_after(connection: AsyncConnection, row: sa.Row[Any], cursor: int, limit: int) -> list[int]:
    """Ids of the shops that a schedule is about, behind the cursor, in their order."""
    query = sa.select(shop.c.id).where(*_in_scope(row), shop.c.id > cursor).order_by(shop.c.id).limit(limit)
    return list(await connection.scalars(query))


async def scheduled_shops(connection: AsyncConnection, ids: Iterable[int]) -> list[ScheduledShop]:
    """These shops with the options by which they are crawled again."""
    sql = (
        'SELECT s.id, s.source, s."key", c.options FROM {r} JOIN shop s ON s.id = r.id LEFT JOIN shop_crawl c ON c.id ='
        f" (SELECT max(n.id) FROM shop_crawl n WHERE n.shop_id = r.id AND n.mode = '{FULL}' AND n.kind <> 'plan')"
        " ORDER BY s.id"
    )
    columns = [shop.c.id, shop.c.source, shop.c.key, shop_crawl.c.options]
    rows = await query_rows(connection, sql, columns[:1], [{"id": key} for key in ids], returning=columns)
    return [ScheduledShop(row.id, row.source, row.key, row.options) for row in rows]


async def newest_crawls(connection: AsyncConnection, ids: Iterable[int]) -> Sequence[sa.Row[Any]]:
    """The last settled crawls of these shops, oldest first."""
    names = ", ".join(f"c.{column.name}" for column in _HISTORY[1:])
    sql = (
        f"SELECT s.source, {names} FROM {{r}} JOIN shop s ON s.id = r.id JOIN shop_crawl c ON c.shop_id = s.id"
        " WHERE c.id IN (SELECT n.id FROM shop_crawl n WHERE n.shop_id = s.id AND n.settled_at IS NOT NULL"
        f" AND n.kind <> 'plan' ORDER BY n.settled_at DESC LIMIT {CRAWLS_REMEMBERED}) ORDER BY c.id"
    )
    return await query_rows(connection, sql, [shop.c.id], [{"id": key} for key in ids], returning=_HISTORY)


async def settled_since(
    connection: AsyncConnection, row: sa.Row[Any], since: datetime, limit: int
) -> Sequence[sa.Row[Any]]:
    """Crawls of the schedule's shops that were settled since then, in that order."""
    names = ", ".join(f"c.{column.name}" for column in _HISTORY[1:])
    scope = {"c.shop_id": row.shop_id, "s.source": row.source}
    given = {name: value for name, value in scope.items() if value is not None}
    conditions = "".join(f" AND {name} = :{name[2:]}" for name in given)
    # CROSS JOIN: in this order also on SQLite, which would begin with all shops.
    sql = (
        f"SELECT s.source, {names} FROM shop_crawl c CROSS JOIN shop s WHERE s.id = c.shop_id AND c.kind <> 'plan'"
        f" AND c.settled_at >= :since{conditions} ORDER BY c.settled_at, c.id LIMIT {limit}"
    )
    bound = sa.text(sql).bindparams(sa.bindparam("since", type_=shop_crawl.c.settled_at.type)).columns(*_HISTORY)
    return (
        await connection.execute(bound, {"since": since, **{name[2:]: value for name, value in given.items()}})
    ).all()


async def states(connection: AsyncConnection, schedule_id: int, ids: Iterable[int]) -> dict[int, ShopState]:
    """What a schedule knows of these shops, as far as it knows them."""
    names = ", ".join(f"t.{column.name}" for column in _STATE)
    sql = (
        f"SELECT {names} FROM {{r}} CROSS JOIN schedule_shop t WHERE t.shop_id = r.id AND t.schedule_id = :schedule_id"
    )
    rows = [{"id": key} for key in sorted(set(ids))]
    found = await query_rows(connection, sql, [shop.c.id], rows, returning=_STATE, schedule_id=schedule_id)
    return {row.shop_id: ShopState(**row._mapping) for row in found}


async def save_states(connection: AsyncConnection, schedule_id: int, known: Iterable[ShopState]) -> None:
    """Write what a schedule knows of shops."""
    rows = [{"schedule_id": schedule_id, **msgspec.structs.asdict(state)} for state in known]
    changes = ", ".join(f"{column.name} = excluded.{column.name}" for column in _STATE[1:])
    await insert_rows(
        connection, schedule_shop, rows, conflict=f"ON CONFLICT (schedule_id, shop_id) DO UPDATE SET {changes}"
    )


async def due_states(connection: AsyncConnection, schedule_id: int, now: datetime, limit: int) -> list[ShopState]:
    """The shops that have been due longest."""
    mine = sa.select(*_STATE).where(schedule_shop.c.schedule_id == schedule_id, schedule_shop.c.due_at <= now)
    rows = await connection.execute(mine.order_by(schedule_shop.c.due_at, schedule_shop.c.shop_id).limit(limit))
    return [ShopState(**row._mapping) for row in rows]


async def next_due(connection: AsyncConnection, schedule_id: int, now: datetime, limit: int) -> list[datetime]:
    """When the next shops are due."""
    due_at = schedule_shop.c.due_at
    query = sa.select(due_at).where(schedule_shop.c.schedule_id == schedule_id, due_at > now)
    return list(await connection.scalars(query.order_by(due_at).limit(limit)))


async def idle_states(connection: AsyncConnection, schedule_id: int, now: datetime) -> Sequence[sa.Row[Any]]:
    """The columns `shop_id`, `crawled_at`, `items`, `rate` and `calls` of shops due now and not being re-crawled."""
    # As text: neither database matches a parameter with a partial index's condition.
    pending = sa.exists().where(
        shop_crawl.c.shop_id == schedule_shop.c.shop_id, sa.text("kind = 'recrawl' AND state <> 'settled'")
    )
    t = schedule_shop.c
    columns = [t[name] for name in ("shop_id", "crawled_at", "items", "rate", "calls")]
    query = sa.select(*columns)
    query = query.where(t.schedule_id == schedule_id, t.due_at <= now, ~pending).order_by(t.shop_id)
    return (await connection.execute(query)).all()


async def charges(connection: AsyncConnection, schedule_id: int, midnight: datetime) -> list[Charge]:
    """What the schedule's crawls take from the calls of the day that began at `midnight`.

    A crawl that goes on may use all of its budget today, but for what was settled before; a finished one has used what
    it reserved.
    """
    before = sa.select(sa.func.coalesce(sa.func.sum(call.c.calls), 0)).where(
        call.c.crawl_id == crawl.c.id, call.c.at < midnight
    )
    earlier = sa.case((crawl.c.created_at < midnight, before.scalar_subquery()), else_=0)
    waiting = (
        sa.select(sa.func.count())
        .select_from(shop_crawl)
        .join(page, page.c.shop_crawl_id == shop_crawl.c.id)
        .where(shop_crawl.c.crawl_id == crawl.c.id, shop_crawl.c.state == "open", page.c.state == _HELD)
    )
    wanted = sa.case((crawl.c.state == "waiting", waiting.scalar_subquery()), else_=0)
    query = sa.select(
        crawl.c.id,
        crawl.c.finished_at,
        crawl.c.max_calls,
        crawl.c.reserved,
        earlier.label("earlier"),
        wanted.label("wanted"),
    ).where(crawl.c.schedule_id == schedule_id, crawl.c.finished_at.is_(None) | (crawl.c.finished_at >= midnight))
    return [
        Charge(
            row.id,
            max(0, (row.reserved if row.finished_at else row.max_calls) - int(row.earlier)),
            row.max_calls,
            int(row.wanted),
        )
        for row in await connection.execute(query.order_by(crawl.c.id))
    ]


_HELD: sa.ColumnElement[str] = sa.literal_column("'held'")


async def give_back(connection: AsyncConnection, schedule_id: int) -> None:
    """Let crawls that wait, for sessions or calls, keep no calls that they have not reserved."""
    waiting = sa.update(crawl).where(crawl.c.schedule_id == schedule_id, crawl.c.state == "waiting")
    await connection.execute(waiting.where(crawl.c.max_calls > crawl.c.reserved).values(max_calls=crawl.c.reserved))
