"""Reads the changes of items back in the order of their times, a batch at a time."""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from models.database import reader
from models.errors import UsageError
from models.tables import change, item, shop

BATCH = 1_000
"""Changes read at a time: what bounds the memory."""
MOST_COUNTED = 100_000
"""Beyond this many, changes are not counted any further: counting reads them all."""

MOST_SHOPS = 100

KINDS = ("price", "new", "gone", "back", "title", "stock", "status", "unit", "quantity_begin", "category", "image")
"""Every kind of change there is."""


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One change as it is shown and delivered; `before` and `after` hold values by field, money as decimal text."""

    id: int
    kind: str
    source: str
    shop: str
    item_id: str
    at: datetime
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    title: str | None = None
    """The item's title as it is now."""


class Wanted(msgspec.Struct, frozen=True):
    """Changes at or after `since`, of these shops (ids) and kinds; none named: of all."""

    since: datetime
    shops: tuple[int, ...] = ()
    kinds: tuple[str, ...] = ()


class _Place(msgspec.Struct, frozen=True):
    """Where a change stands in the feed."""

    at: datetime
    id: int


_PLACE = (change.c.at.type, change.c.id.type)
_COLUMNS = (
    *(change.c.id, change.c.kind, shop.c.source, shop.c.key.label("shop"), change.c.item_id, change.c.at),
    *(change.c.before, change.c.after, item.c.title),
)


def select_entries(wanted: sa.ColumnElement[bool]) -> sa.Select[Any]:
    """The changes that fit, with the keys of their shops and the titles of their items."""
    same_item = (item.c.shop_id == change.c.shop_id) & (item.c.item_id == change.c.item_id)
    joined = change.join(shop, shop.c.id == change.c.shop_id).outerjoin(item, same_item)
    return sa.select(*_COLUMNS).select_from(joined).where(wanted)


def entries_of(rows: sa.Result[Any]) -> list[Entry]:
    """The rows of `select_entries` as values."""
    return [Entry(**row._mapping) for row in rows]


async def read_changes(engine: AsyncEngine, wanted: Wanted, *, newest: int | None = None) -> AsyncIterator[list[Entry]]:
    """The wanted changes in the order of (time, id), in batches; `newest`: only so many, the newest ones.

    Each batch is one short transaction, so the reader may be slow. What is stored meanwhile is read too, if it belongs
    behind the last batch.
    """
    place = None if newest is None else await _newest_but(engine, wanted, newest)
    while True:
        async with reader(engine).connect() as connection:
            batch = await _batch(connection, wanted, place)
        if batch:
            yield batch
        if len(batch) < BATCH:
            return
        place = _Place(batch[-1].at, batch[-1].id)


async def count_changes(engine: AsyncEngine, wanted: Wanted) -> int:
    """How many changes are wanted; MOST_COUNTED if there are more."""
    query = sa.select(sa.func.count()).select_from(_first(wanted, MOST_COUNTED))
    async with reader(engine).connect() as connection:
        return int(await connection.scalar(query) or 0)


async def shops_named(engine: AsyncEngine, keys: Sequence[str]) -> tuple[int, ...]:
    """The ids of the shops with these keys, of all sources. Raises UsageError for an unknown key, or too many."""
    if len(keys) > MOST_SHOPS:
        raise UsageError(f"more than {MOST_SHOPS} shops: leave them out to read the changes of all")
    query = sa.select(shop.c.id, shop.c.key).where(shop.c.key.in_(keys)).order_by(shop.c.id)
    async with reader(engine).connect() as connection:
        found = (await connection.execute(query)).all()
    missing = sorted(set(keys) - {row.key for row in found})
    if missing:
        raise UsageError(f"unknown shop: {missing[0][:60]!r}")
    return tuple(row.id for row in found)


def check_kinds(kinds: Sequence[str]) -> tuple[str, ...]:
    """Kinds of changes, each of which may be several with commas. Raises UsageError for an unknown one."""
    names = tuple(dict.fromkeys(name.strip() for text in kinds for name in text.split(",")))
    unknown = [name for name in names if name not in KINDS]
    if unknown:
        raise UsageError(f"unknown kind {unknown[0][:40]!r}; kinds: {', '.join(KINDS)}")
    return names


async def _batch(connection: AsyncConnection, wanted: Wanted, after: _Place | None) -> list[Entry]:
    """The first wanted changes behind a place, BATCH at most."""
    ids = sa.select(_first(wanted, BATCH, after).c.id)
    return entries_of(await connection.execute(select_entries(change.c.id.in_(ids)).order_by(change.c.at, change.c.id)))


async def _newest_but(engine: AsyncEngine, wanted: Wanted, number: int) -> _Place | None:
    """Where the newest wanted change stands that is older than the `number` newest ones; None if there is none."""
    places = _first(wanted, number + 1, newest=True)
    query = sa.select(places).order_by(places.c.at.desc(), places.c.id.desc()).offset(number).limit(1)
    async with reader(engine).connect() as connection:
        row = (await connection.execute(query)).one_or_none()
    return None if row is None else _Place(row.at, row.id)


def _first(wanted: Wanted, limit: int, after: _Place | None = None, *, newest: bool = False) -> sa.Subquery:
    """(at, id) of the first wanted changes behind a place, or of the newest ones; `limit` at most.

    One branch for each shop, or else kind: each reads no more rows than it returns, in order, from an index.
    """
    query = sa.select(change.c.at, change.c.id).where(change.c.at >= lowest(wanted.since))
    if after is not None:
        query = query.where(sa.tuple_(change.c.at, change.c.id) > sa.tuple_(after.at, after.id, types=_PLACE))
    branches = [query.where(change.c.kind == kind) for kind in wanted.kinds] or [query]
    if wanted.shops:
        query = query.where(change.c.kind.in_(wanted.kinds)) if wanted.kinds else query
        branches = [query.where(change.c.shop_id == shop_id) for shop_id in wanted.shops]
    parts = [_ordered(branch, change.c, newest).limit(limit).subquery() for branch in branches]
    united = sa.union_all(*map(sa.select, parts)).subquery() if len(parts) > 1 else parts[0]
    return _ordered(sa.select(united), united.c, newest).limit(limit).subquery()


def _ordered(query: sa.Select[Any], columns: Any, newest: bool) -> sa.Select[Any]:
    return query.order_by(*(place.desc() if newest else place for place in (columns.at, columns.id)))


def lowest(since: datetime) -> datetime:
    """A lower bound that lets nothing of this second slip through.

    SQLite compares times as text, where a whole second, being shorter, comes after its own fractions.
    """
    return since if since.microsecond else since - timedelta(microseconds=1)
