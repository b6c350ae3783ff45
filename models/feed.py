"""Reads the changes of items back in the order of their times, a batch at a time."""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from models import changes
from models.database import reader
from models.errors import UsageError
from models.items import VALUES, plain
from models.tables import change, item, shop

BATCH = 1_000
"""Changes read at a time: what bounds the memory."""
PRICES = frozenset(name for name, kind in changes.KINDS.items() if kind == "price")
KINDS = ("new", "gone", "back", *dict.fromkeys(changes.KINDS.get(name, name) for name in VALUES))
"""Every kind of change that there can be."""


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


_PLACE = (change.c.at, change.c.id)
_ROW = (*_PLACE, *(change.c[name] for name in ("shop_id", "item_id", "kind", "before", "after")))


def select_entries(wanted: sa.Select[Any], *order: str) -> sa.Select[Any]:
    """Wanted rows of `change` in the order of these columns, with the shops' keys and the items' titles."""
    row = wanted.subquery().c
    query = sa.select(row.id, row.kind, row.item_id, row.at, row.before, row.after)
    query = query.add_columns(shop.c.source, shop.c.key.label("shop"), item.c.title).join(
        shop, shop.c.id == row.shop_id
    )
    query = query.outerjoin(item, (item.c.shop_id == row.shop_id) & (item.c.item_id == row.item_id))
    return query.order_by(*(row[name] for name in order))


def entries_of(rows: sa.Result[Any]) -> list[Entry]:
    """The rows of `select_entries` as values."""
    return [
        Entry(**{**row._mapping, "before": _plain_prices(row.before), "after": _plain_prices(row.after)})
        for row in rows
    ]


def _plain_prices(values: dict[str, Any] | None) -> dict[str, Any] | None:
    """3.9, not 3.900000: PostgreSQL fills up decimals."""
    if values is None or PRICES.isdisjoint(values):
        return values
    return {
        name: plain(Decimal(value)) if name in PRICES and isinstance(value, str) else value
        for name, value in values.items()
    }


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


async def count_changes(engine: AsyncEngine, wanted: Wanted, most: int) -> int:
    """How many changes are wanted, counted up to `most`: counting reads them all."""
    query = sa.select(sa.func.count()).select_from(_first(_PLACE, wanted, most).subquery())
    async with reader(engine).connect() as connection:
        return int(await connection.scalar(query) or 0)


def check_kinds(kinds: Sequence[str]) -> tuple[str, ...]:
    """Kinds of changes, each of which may be several with commas. Raises UsageError for an unknown one."""
    names = tuple(dict.fromkeys(name.strip() for text in kinds for name in text.split(",")))
    unknown = [name for name in names if name not in KINDS]
    if unknown:
        raise UsageError(f"unknown kind {unknown[0][:40]!r}; kinds: {', '.join(KINDS)}")
    return names


async def _batch(connection: AsyncConnection, wanted: Wanted, after: _Place | None) -> list[Entry]:
    """The first wanted changes behind a place, BATCH at most."""
    query = select_entries(_first(_ROW, wanted, BATCH, after), "at", "id")
    return entries_of(await connection.execute(query))


async def _newest_but(engine: AsyncEngine, wanted: Wanted, number: int) -> _Place | None:
    """Where the newest wanted change stands that is older than the `number` newest ones; None if there is none."""
    query = _first(_PLACE, wanted, number + 1, newest=True).offset(number).limit(1)
    async with reader(engine).connect() as connection:
        row = (await connection.execute(query)).one_or_none()
    return None if row is None else _Place(row.at, row.id)


def _first(
    columns: Sequence[sa.Column[Any]],
    wanted: Wanted,
    limit: int,
    after: _Place | None = None,
    *,
    newest: bool = False,
) -> sa.Select[Any]:
    """The first wanted changes behind a place, or the newest ones; `limit` at most.

    One branch for each shop, or else kind: each reads no more rows than it returns, in order, from an index.
    """
    query = sa.select(*columns).where(change.c.at >= lowest(wanted.since))
    if after is not None:
        types = [column.type for column in _PLACE]
        query = query.where(sa.tuple_(*_PLACE) > sa.tuple_(after.at, after.id, types=types))
    branches = [query.where(change.c.kind == kind) for kind in wanted.kinds] or [query]
    if wanted.shops:
        query = query.where(change.c.kind.in_(wanted.kinds)) if wanted.kinds else query
        branches = [query.where(change.c.shop_id == shop_id) for shop_id in wanted.shops]
    parts = [_ordered(branch, change.c, newest).limit(limit) for branch in branches]
    if len(parts) == 1:
        return parts[0]
    united = sa.union_all(*(sa.select(part.subquery()) for part in parts)).subquery()
    return _ordered(sa.select(united), united.c, newest).limit(limit)


def _ordered(query: sa.Select[Any], columns: Any, newest: bool) -> sa.Select[Any]:
    return query.order_by(*(place.desc() if newest else place for place in (columns.at, columns.id)))


def lowest(since: datetime) -> datetime:
    """A lower bound that lets nothing of this second slip through.

    SQLite compares times as text, where a whole second, being shorter, comes after its own fractions.
    """
    return since if since.microsecond else since - timedelta(microseconds=1)
