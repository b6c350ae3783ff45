"""What is known of one shop or one item: its crawls, its figures and its past, read by keys alone."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from difflib import get_close_matches
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from models.costs import trimmed
from models.database import reader
from models.durations import EPOCH
from models.errors import UsageError
from models.feed import Entry, Wanted, entries_of, read_changes, select_entries
from models.items import FIGURES, VALUES
from models.modes import shows_all
from models.sheets import LAST_SEEN, WITH_SHEET
from models.tables import (
    change,
    item,
    item_sales,
    item_seen,
    item_version,
    schedule,
    schedule_shop,
    shop,
    shop_crawl,
)

CRAWLS_READ = 40
CHANGES_READ = 5
EVENTS = ("new", "gone", "back")
EVENTS_READ = 10
VERSIONS_READ = 200
SALES_READ = 200
MOST_COUNTED = 50_000
"""Items of a larger shop are not counted: that reads them all."""
HINTED = 3
MOST_COMPARED = 20_000
"""Keys among which similar ones are looked for."""

_VERSIONED = tuple(name for name in VALUES if name in item_version.c)


class ShopCrawl(msgspec.Struct, frozen=True):
    """One settled crawl of a shop; `whole`: it asked for all items of the shop; `calls` as reserved."""

    crawl: int
    kind: str
    mode: str
    whole: bool
    verdict: str | None
    reason: str | None
    settled_at: datetime
    distinct: int
    total: int | None
    new: int
    changed: int
    gone: int
    calls: int


class NextCrawl(msgspec.Struct, frozen=True):
    """When a schedule looks at the shop next."""

    at: datetime
    schedule: int
    kind: str
    mode: str


class ItemCounts(msgspec.Struct, frozen=True):
    """Stored items of a shop that are there, and those that are gone."""

    present: int
    gone: int


class ShopProfile(msgspec.Struct, frozen=True):
    """A shop: `crawls` newest first, `changes` newest last; `items` is None if there are more than MOST_COUNTED.

    `running` is the number of a crawl that has not settled it yet.
    """

    source: str
    shop: str
    watermark: datetime | None
    baseline_at: datetime | None
    known_items: int | None
    items: ItemCounts | None
    running: int | None
    next: NextCrawl | None
    crawls: list[ShopCrawl]
    changes: list[Entry]


class Version(msgspec.Struct, frozen=True):
    """An item's fields and the time in which they were so; `valid_to` is None for the current ones."""

    valid_from: datetime
    valid_to: datetime | None
    fields: dict[str, Any]


class Sales(msgspec.Struct, frozen=True):
    """Sales figures, and when they were first seen so."""

    at: datetime
    figures: dict[str, Any]


class ItemProfile(msgspec.Struct, frozen=True):
    """An item: `versions` and `sales` newest first, the current ones among them, the older ones up to a limit.

    `events` tell when it was new, gone and back, newest last.
    """

    source: str
    shop: str
    item_id: str
    first_seen: datetime
    last_seen: datetime
    gone_at: datetime | None
    events: list[Entry]
    versions: list[Version]
    sales: list[Sales]

    @property
    def current(self) -> Mapping[str, Any]:
        """The fields as they are now."""
        return self.versions[0].fields


async def shop_profile(engine: AsyncEngine, key: str, source: str | None = None) -> ShopProfile:
    """What is known of a shop. Raises UsageError if there is none, or one in each of several sources."""
    async with reader(engine).connect() as connection:
        found = await _find_shop(connection, key, source)
        crawls = await _crawls(connection, found)
        profile = ShopProfile(
            source=found.source,
            shop=found.key,
            watermark=found.watermark,
            baseline_at=found.baseline_at,
            known_items=found.known_items,
            items=await _counts(connection, found.id),
            running=await _running(connection, found.id),
            next=await _next(connection, found),
            crawls=crawls,
            changes=[],
        )
    newest = read_changes(engine, Wanted(EPOCH, shops=(found.id,)), newest=CHANGES_READ)
    changes = [entry async for batch in newest for entry in batch]
    return msgspec.structs.replace(profile, changes=changes[-CHANGES_READ:])


async def item_profile(engine: AsyncEngine, key: str, item_id: str, source: str | None = None) -> ItemProfile:
    """What is known of an item. Raises UsageError if there is no such shop or item."""
    async with reader(engine).connect() as connection:
        found = await _find_shop(connection, key, source)
        same = (item_seen.c.shop_id == item.c.shop_id) & (item_seen.c.item_id == item.c.item_id)
        seen = [LAST_SEEN.label("last_seen"), *(item_seen.c[name] for name in ("gone_at", "figures_at", *FIGURES))]
        query = sa.select(*item.c, *seen).select_from(WITH_SHEET.join(item, same)).where(*_is(item, found.id, item_id))
        row = (await connection.execute(query)).one_or_none()
        if row is None:
            query = sa.select(item.c.item_id).where(item.c.shop_id == found.id).limit(MOST_COMPARED)
            similar = closest(item_id, (await connection.scalars(query)).all())
            raise UsageError(f"shop {key[:60]!r} has no item {item_id[:60]!r}{_hint(similar)}")
        return ItemProfile(
            source=found.source,
            shop=found.key,
            item_id=row.item_id,
            first_seen=row.first_seen,
            last_seen=row.last_seen,
            gone_at=row.gone_at,
            events=await _events(connection, row),
            versions=[Version(row.changed_at, None, _values(row, VALUES)), *await _versions(connection, row)],
            sales=[*_figures(row, row.figures_at), *await _sales(connection, row)],
        )


async def _find_shop(connection: AsyncConnection, key: str, source: str | None) -> sa.Row[Any]:
    rows = (await connection.execute(sa.select(shop).where(shop.c.key == key).order_by(shop.c.source))).all()
    fitting = [row for row in rows if source is None or row.source == source]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise UsageError(f"shop {key[:60]!r} is in {_listed([row.source for row in rows])}: choose one with --source")
    if rows:
        raise UsageError(f"shop {key[:60]!r} is not in {source}, but in {_listed([row.source for row in rows])}")
    known = (await connection.scalars(sa.select(shop.c.key).limit(MOST_COMPARED))).all()
    raise UsageError(f"unknown shop {key[:60]!r}{_hint(closest(key, known))}")


def closest(wanted: str, known: Sequence[str]) -> list[str]:
    """Up to HINTED of the known keys that look like the wanted one: first those that contain it."""
    containing = sorted((key for key in known if wanted and wanted in key), key=lambda key: (len(key), key))[:HINTED]
    return list(dict.fromkeys([*containing, *get_close_matches(wanted, known, HINTED)]))[:HINTED]


def _hint(similar: Sequence[str]) -> str:
    return f"; did you mean {_listed([repr(key[:60]) for key in similar], 'or')}?" if similar else ""


def _listed(words: Sequence[str], last: str = "and") -> str:
    return f" {last} ".join(filter(None, (", ".join(words[:-1]), words[-1])))


async def _crawls(connection: AsyncConnection, found: sa.Row[Any]) -> list[ShopCrawl]:
    query = (
        sa.select(shop_crawl)
        .where(shop_crawl.c.shop_id == found.id, shop_crawl.c.settled_at.is_not(None), shop_crawl.c.kind != "plan")
        .order_by(shop_crawl.c.settled_at.desc())
        .limit(CRAWLS_READ)
    )
    return [
        ShopCrawl(
            crawl=row.crawl_id,
            kind=row.kind,
            mode=row.mode,
            whole=shows_all(found.source, row.options, row.mode),
            verdict=row.verdict,
            reason=row.reason,
            settled_at=row.settled_at,
            distinct=row.distinct_items,
            total=row.total_first if row.total_last is None else row.total_last,
            new=row.new_items,
            changed=row.changed_items,
            gone=row.gone_items,
            calls=row.reserved,
        )
        for row in await connection.execute(query)
    ]


async def _running(connection: AsyncConnection, shop_id: int) -> int | None:
    c = shop_crawl.c
    query = sa.select(sa.func.max(c.crawl_id)).where(c.shop_id == shop_id, c.settled_at.is_(None), c.kind != "plan")
    newest: int | None = await connection.scalar(query)
    return newest


async def _counts(connection: AsyncConnection, shop_id: int) -> ItemCounts | None:
    some = sa.select(item_seen.c.gone_at).where(item_seen.c.shop_id == shop_id).limit(MOST_COUNTED + 1).subquery()
    row = (await connection.execute(sa.select(sa.func.count(), sa.func.count(some.c.gone_at)).select_from(some))).one()
    stored, gone = row
    return None if stored > MOST_COUNTED else ItemCounts(stored - gone, gone)


async def _next(connection: AsyncConnection, found: sa.Row[Any]) -> NextCrawl | None:
    """What of all schedules that concern this shop comes first; one may have a date of its own for each shop."""
    own = (schedule_shop.c.schedule_id == schedule.c.id) & (schedule_shop.c.shop_id == found.id)
    of_source = schedule.c.source.is_(None) | (schedule.c.source == found.source)
    query = sa.select(schedule, schedule_shop.c.due_at).select_from(schedule.outerjoin(schedule_shop, own))
    query = query.where(
        schedule.c.enabled, sa.or_(schedule.c.shop_id == found.id, schedule.c.shop_id.is_(None) & of_source)
    )
    rows = await connection.execute(query)
    dates = [NextCrawl(row.due_at or row.next_at, row.id, row.kind, row.mode) for row in rows]
    return min(dates, key=lambda date: (date.at, date.schedule), default=None)


async def _events(connection: AsyncConnection, row: sa.Row[Any]) -> list[Entry]:
    newest = sa.select(change).where(*_is(change, row.shop_id, row.item_id), change.c.kind.in_(EVENTS))
    newest = newest.order_by(change.c.at.desc()).limit(EVENTS_READ)
    return entries_of(await connection.execute(select_entries(newest, "at", "id")))


async def _versions(connection: AsyncConnection, row: sa.Row[Any]) -> list[Version]:
    query = sa.select(item_version).where(*_is(item_version, row.shop_id, row.item_id))
    query = query.order_by(item_version.c.valid_from.desc()).limit(VERSIONS_READ)
    rows = await connection.execute(query)
    return [Version(past.valid_from, past.valid_to, _values(past, _VERSIONED)) for past in rows]


async def _sales(connection: AsyncConnection, row: sa.Row[Any]) -> list[Sales]:
    query = sa.select(item_sales).where(*_is(item_sales, row.shop_id, row.item_id))
    query = query.order_by(item_sales.c.at.desc()).limit(SALES_READ)
    return [sales for past in await connection.execute(query) for sales in _figures(past, past.at)]


def _figures(row: sa.Row[Any], at: datetime | None) -> list[Sales]:
    return [] if at is None else [Sales(at, _values(row, FIGURES))]


def _is(table: sa.Table, shop_id: int, item_id: str) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    return table.c.shop_id == shop_id, table.c.item_id == item_id


def _values(row: sa.Row[Any], names: Sequence[str]) -> dict[str, Any]:
    """Values by name; amounts without idle zeros."""
    values = ((name, row._mapping[name]) for name in names)
    return {name: trimmed(value) if isinstance(value, Decimal) else value for name, value in values}
