"""Exports items as JSON lines, CSV or Parquet: streamed, sorted, exact in money, and safe to open in a spreadsheet."""

import itertools
from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta
from typing import Any, BinaryIO

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from models.bulk import query_rows
from models.database import reader, unavailable
from models.errors import UsageError
from models.tables import item, item_seen, shop
from producer.formats import FORMATS, Rows, write_rows

BATCH = 2_000
"""Items read at a time: what bounds the memory."""
SHOP_BATCH = 1_000

_INTERNAL = {"shop_id", "shop_crawl_id", "tracked_hash", "rest_hash", "misses"}
_COLUMNS = {column.name: column for column in (*item_seen.c, *item.c) if column.name not in _INTERNAL}
_FIRST = ("item_id", "title", "price")
_LAST = ("first_seen", "last_seen", "changed_at", "gone_at")
_MIDDLE = tuple(name for name in _COLUMNS if name not in {*_FIRST, *_LAST})
EXPORTED: dict[str, sa.Column[Any]] = {
    "source": shop.c.source,
    "shop": shop.c.key,
    **{name: _COLUMNS[name] for name in (*_FIRST, *_MIDDLE, *_LAST)},
}
"""Every column that can be exported, by name and in order."""

_SAME = (item_seen.c.shop_id == item.c.shop_id) & (item_seen.c.item_id == item.c.item_id)


async def export_items(
    engine: AsyncEngine,
    stream: BinaryIO,
    *,
    format: str,
    shops: Sequence[str] | None = None,
    since: datetime | None = None,
    columns: Sequence[str] | None = None,
) -> int:
    """Write items to a binary stream, sorted by source, shop and item id; returns how many were written.

    `shops`: only these shop keys; `since`: only items last seen at or after this time; `columns`: only these, in this
    order. Memory stays flat, and no transaction is open while the stream's reader is slow. A reader that goes away
    ends the export quietly. Raises UsageError for an unknown format, column or shop, UnavailableError for a database
    that cannot be used, ShopcrawlError for a stream that cannot be written.
    """
    names = _chosen(columns)
    if format not in FORMATS:
        raise UsageError(f"unknown format {format[:40]!r}; known formats: {', '.join(FORMATS)}")
    try:
        # The shops are looked up first: a mistyped one leaves no half-written output.
        wanted = None if shops is None else await _shops_named(engine, shops)
        fields = {name: EXPORTED[name].type for name in names}
        return await write_rows(stream, format, fields, _Reader(engine, names, since).batches(wanted))
    except (SQLAlchemyError, OSError) as error:
        raise unavailable(error) from None


def _chosen(columns: Sequence[str] | None) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(EXPORTED if columns is None else columns))
    unknown = [name for name in names if name not in EXPORTED]
    if unknown or not names:
        wrong = f"unknown column {unknown[0][:40]!r}" if unknown else "no column chosen"
        raise UsageError(f"{wrong}; columns: {', '.join(EXPORTED)}")
    return names


class _Shop(msgspec.Struct, frozen=True):
    id: int
    source: str
    key: str


async def _shops_named(engine: AsyncEngine, keys: Sequence[str]) -> list[_Shop]:
    """The shops with these keys, of all sources, in the export's order. Raises UsageError for an unknown key."""
    wanted = sorted(set(keys))
    sql = 'SELECT s.id, s.source, s."key" FROM {r} JOIN shop s ON s."key" = r."key"'
    async with reader(engine).connect() as connection:
        rows = await query_rows(connection, sql, [shop.c.key], [{"key": key} for key in wanted])
    missing = sorted(set(wanted) - {row.key for row in rows})
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UsageError(f"unknown shop: {', '.join(repr(key[:60]) for key in missing[:3])}{more}")
    return sorted((_Shop(row.id, row.source, row.key) for row in rows), key=lambda found: (found.source, found.key))


class _Reader:
    """Reads items in the export's order, in batches of at most BATCH that each take one short transaction."""

    def __init__(self, engine: AsyncEngine, names: Sequence[str], since: datetime | None) -> None:
        self._engine, self._names = engine, names
        # SQLite compares times as text, where a whole second, being shorter, comes after its own fractions.
        self._since = since - timedelta(microseconds=1) if since and not since.microsecond else since
        self._columns = [item.c.shop_id, item.c.item_id, *(EXPORTED[n] for n in names if EXPORTED[n].table is not shop)]
        self._group = 16  # shops read together; follows the size of the shops

    async def batches(self, wanted: Sequence[_Shop] | None) -> AsyncIterator[Rows]:
        """The rows of the wanted shops (None: of all), each with the values of the chosen columns."""
        async for shops in self._shops(wanted):
            start = 0
            while start < len(shops):
                group = shops[start : start + self._group]
                found = await self._fetch(group)
                if len(found) > BATCH and len(group) > 1:
                    self._group = len(group) // 2
                    continue
                start += len(group)
                if len(found) < BATCH // 3:
                    self._group = min(self._group * 2, SHOP_BATCH)
                yield self._rows(group, found)
                while len(found) > BATCH:
                    found = await self._fetch(group, after=found[-1].item_id)
                    yield self._rows(group, found)

    async def _shops(self, wanted: Sequence[_Shop] | None) -> AsyncIterator[Sequence[_Shop]]:
        if wanted is not None:
            yield wanted
            return
        place = sa.tuple_(shop.c.source, shop.c.key)
        query = sa.select(shop.c.id, shop.c.source, shop.c.key).order_by(shop.c.source, shop.c.key).limit(SHOP_BATCH)
        shops = await self._read_shops(query)
        while shops:
            yield shops
            shops = await self._read_shops(query.where(place > sa.tuple_(shops[-1].source, shops[-1].key)))

    async def _read_shops(self, query: sa.Select[Any]) -> list[_Shop]:
        async with reader(self._engine).connect() as connection:
            return [_Shop(row.id, row.source, row.key) for row in await connection.execute(query)]

    async def _fetch(self, group: Sequence[_Shop], after: str | None = None) -> Sequence[sa.Row[Any]]:
        """Items of a group, BATCH + 1 of them at most; in order, and from `after` on, if the group is one shop."""
        both = item.join(item_seen, _SAME)
        query = sa.select(*self._columns).select_from(both).where(item.c.shop_id.in_([found.id for found in group]))
        query = query.limit(BATCH + 1)
        if self._since is not None:
            query = query.where(item_seen.c.last_seen >= self._since)
        if len(group) == 1:
            query = query.order_by(item.c.item_id)
        if after is not None:
            query = query.where(item.c.item_id > after)
        async with reader(self._engine).connect() as connection:
            return (await connection.execute(query)).all()

    def _rows(self, group: Sequence[_Shop], found: Sequence[sa.Row[Any]]) -> Rows:
        places = {entry.id: place for place, entry in enumerate(group)}
        ordered = sorted(found, key=lambda row: (places[row.shop_id], row.item_id))
        return [self._row(group[places[row.shop_id]], row) for row in ordered]

    def _row(self, owner: _Shop, row: sa.Row[Any]) -> list[Any]:
        values = itertools.islice(row, 2, None)
        own = {"source": owner.source, "shop": owner.key}
        return [own[name] if name in own else next(values) for name in self._names]
