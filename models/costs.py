"""What calls have cost by any key, exact in Decimal, and which calls are in flight or were never heard of again."""

from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from decimal import Decimal
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from models.billing import FREE
from models.database import is_postgresql, reader
from models.errors import UsageError
from models.tables import call, crawl, daily_use, page, shop, shop_crawl

KEYS: dict[str, tuple[str, ...]] = {
    "day": ("day",),
    "shop": ("source", "shop"),
    "crawl": ("crawl",),
    "credential": ("credential",),
    "outcome": ("outcome",),
    "source": ("source",),
}
"""What calls may be summed by, and what names such a sum."""
IN_TIME = {"day", "crawl"}
SENT: sa.ColumnElement[str] = sa.literal_column("'sent'")  # a parameter would not match the partial index

Key = tuple[str, ...]


class Scope(msgspec.Struct, frozen=True):
    """Which calls to count: all, or those settled at or after a time, of one crawl, of one source."""

    since: datetime | None = None
    crawl: int | None = None
    source: str | None = None


class CostRow(msgspec.Struct, frozen=True):
    """The calls under one key: settled ones, their cost, and their share of all money, or of all calls if all is free.

    `in_flight` calls have left or are about to, `unknown` ones were reserved and never heard of; `set_aside` is the
    money kept back for both, each at the highest price. None: the ledger cannot tell it for this key.
    """

    key: Key
    calls: int
    cost: Decimal
    share: Decimal | None = None
    in_flight: int | None = None
    unknown: int | None = None
    set_aside: Decimal | None = None


class Costs(msgspec.Struct, frozen=True):
    """Sums by a key of KEYS, and the sum of all."""

    by: str
    rows: list[CostRow]
    total: CostRow


class Settled(msgspec.Struct, frozen=True):
    """Settled calls of one crawl under one key, and what they cost in all."""

    crawl: int
    key: Key
    calls: int
    cost: Decimal


class Open(msgspec.Struct, frozen=True):
    """What is open besides the settled calls: in flight, unknown, and the money set aside for them."""

    in_flight: int | None = None
    unknown: int | None = None
    set_aside: Decimal | None = None


NOT_TOLD = Open()


class Reserved(msgspec.Struct, frozen=True):
    """What a budget has counted: calls and money, settled or not."""

    calls: int
    spend: Decimal


def trimmed(value: Decimal) -> Decimal:
    """The same amount without idle zeros and without an exponent: 3.9, not 3.900000, and 100, not 1E+2."""
    value = value.normalize()
    return value.quantize(Decimal(1)) if value == value.to_integral_value() else value


def left_open(reserved: Reserved, calls: int, cost: Decimal, in_flight: int) -> Open:
    """What is open of reservations, given what has been settled of them.

    Never below zero: a page that was just refused a further call is still out without a reservation.
    """
    unknown = max(0, reserved.calls - calls - in_flight)
    return Open(in_flight, unknown, trimmed(max(FREE, reserved.spend - cost)) if unknown or in_flight else FREE)


@asynccontextmanager
async def snapshot(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A connection for reading, all statements of which see the same moment: only then do the figures add up."""
    engine = reader(engine)
    if is_postgresql(engine):
        engine = engine.execution_options(isolation_level="REPEATABLE READ")
    async with engine.connect() as connection:
        yield connection


async def costs(connection: AsyncConnection, by: str, scope: Scope) -> Costs:
    """The calls in scope by a key, read in one `snapshot`. Raises UsageError for an unknown key or crawl."""
    if by not in KEYS:
        raise UsageError(f"cannot sum by {by[:40]!r}; keys: {', '.join(KEYS)}")
    settled = await _settled(connection, by, scope)
    out = await _in_flight(connection, scope)
    crawls = await _open_by_crawl(connection, scope, settled, out)
    opened: dict[Key, Open] = {}
    if by == "crawl":
        opened = {(str(number),): each for number, each in crawls.items()}
    elif by in {"shop", "source"}:
        opened = {key: Open(count) for key, count in _counted(out, by).items()}
    if by == "source" and scope.since is None and scope.crawl is None:
        opened = await _open_by_source(connection, scope, settled, _counted(out, by))
    return _summed(by, settled, opened, _all_of(crawls.values()))


def _summed(by: str, settled: Iterable[Settled], opened: dict[Key, Open], total: Open) -> Costs:
    sums: dict[Key, tuple[int, Decimal]] = defaultdict(lambda: (0, FREE))
    for each in settled:
        calls, cost = sums[each.key]
        sums[each.key] = calls + each.calls, cost + each.cost
    for key, each_open in opened.items():
        if each_open.in_flight or each_open.unknown:
            sums[key] = sums[key]
    all_calls, all_cost = sum(calls for calls, _ in sums.values()), sum((cost for _, cost in sums.values()), FREE)
    # A key with nothing in flight has no entry, but is known to have nothing, where others have one.
    none = Open(0) if by in {"shop", "source"} else NOT_TOLD
    rows = [_row(key, calls, cost, (all_calls, all_cost), opened.get(key, none)) for key, (calls, cost) in sums.items()]
    rows.sort(key=(lambda row: _place(row.key)) if by in IN_TIME else lambda row: (-row.cost, -row.calls, row.key))
    return Costs(by, rows, _row(("total",), all_calls, all_cost, (all_calls, all_cost), total))


def _row(key: Key, calls: int, cost: Decimal, whole: tuple[int, Decimal], opened: Open) -> CostRow:
    part, all_ = (cost, whole[1]) if whole[1] else (Decimal(calls), Decimal(whole[0]))
    share = trimmed((part / all_).quantize(Decimal("0.000001"))) if all_ else None
    return CostRow(key, calls, trimmed(cost), share, opened.in_flight, opened.unknown, opened.set_aside)


def _place(key: Key) -> tuple[int, str]:
    """Numbers in their order, days in theirs."""
    return (int(key[0]) if key[0].isdigit() else 0, key[0])


def _all_of(parts: Iterable[Open]) -> Open:
    """The sum; what is not told of a part is not told of the sum."""
    parts = list(parts)
    unknown, aside = [each.unknown for each in parts], [each.set_aside for each in parts]
    return Open(
        sum(each.in_flight or 0 for each in parts),
        None if None in unknown else sum(each or 0 for each in unknown),
        None if None in aside else sum((each or FREE for each in aside), FREE),
    )


async def _settled(connection: AsyncConnection, by: str, scope: Scope) -> list[Settled]:
    """Settled calls by crawl and key."""
    column = _column(connection, by)
    query = sa.select(
        *(call.c.crawl_id, column.label("key"), call.c.cost),
        *(sa.func.sum(call.c.calls).label("calls"), sa.func.count().label("entries")),
    ).group_by(call.c.crawl_id, column, call.c.cost)
    names = {"shop": [shop.c.source, shop.c.key], "source": [shop.c.source]}.get(by, [])
    query = _named(_within(query, scope), names) if names else _within(query, scope)
    width = len(names) or 1
    return [
        # Money is multiplied here: SQLite, which keeps it as text, would add it up as floats.
        Settled(row.crawl_id, tuple(map(str, row[:width])), int(row.calls), row.cost * int(row.entries))
        for row in await connection.execute(query if names else _key_first(query))
    ]


def _key_first(query: sa.Select[Any]) -> sa.Select[Any]:
    found = query.subquery()
    return sa.select(found.c.key, found.c.crawl_id, found.c.cost, found.c.calls, found.c.entries)


def _named(query: sa.Select[Any], names: Sequence[sa.Column[Any]]) -> sa.Select[Any]:
    """Sums by shop crawl as sums by these columns: shops are looked up after the one pass over the calls."""
    found = query.subquery()
    sums = [sa.func.sum(found.c.calls).label("calls"), sa.func.sum(found.c.entries).label("entries")]
    outer = sa.select(*names, found.c.crawl_id, found.c.cost, *sums).select_from(found)
    outer = outer.join(shop_crawl, shop_crawl.c.id == found.c.key).join(shop, shop.c.id == shop_crawl.c.shop_id)
    return outer.group_by(*names, found.c.crawl_id, found.c.cost)


def _column(connection: AsyncConnection, by: str) -> sa.ColumnElement[Any]:
    if by == "day":
        if is_postgresql(connection):
            return sa.type_coerce(sa.cast(sa.func.timezone("UTC", call.c.at), sa.Date), sa.Date)
        return sa.func.substr(sa.type_coerce(call.c.at, sa.Text), 1, 10)
    plain: dict[str, sa.Column[Any]] = {
        "crawl": call.c.crawl_id,
        "credential": call.c.credential,
        "outcome": call.c.outcome,
    }
    column: sa.Column[Any] = plain.get(by, call.c.shop_crawl_id)
    return column


def _within(query: sa.Select[Any], scope: Scope) -> sa.Select[Any]:
    if scope.since is not None:
        query = query.where(call.c.at >= scope.since)
    if scope.crawl is not None:
        query = query.where(call.c.crawl_id == scope.crawl)
    if scope.source is not None:
        ours = sa.select(shop_crawl.c.id).join(shop, shop.c.id == shop_crawl.c.shop_id)
        query = query.where(call.c.shop_crawl_id.in_(ours.where(shop.c.source == scope.source)))
    return query


class _Out(msgspec.Struct, frozen=True):
    """Pages of one shop that are out now; each has one call reserved."""

    crawl: int
    source: str
    shop: str
    pages: int


async def _in_flight(connection: AsyncConnection, scope: Scope) -> list[_Out]:
    columns = (shop_crawl.c.crawl_id, shop.c.source, shop.c.key)
    query = sa.select(*columns, sa.func.count().label("pages")).select_from(page)
    query = query.join(shop_crawl, shop_crawl.c.id == page.c.shop_crawl_id).join(
        shop, shop.c.id == shop_crawl.c.shop_id
    )
    query = query.where(page.c.state == SENT).group_by(*columns)
    if scope.crawl is not None:
        query = query.where(shop_crawl.c.crawl_id == scope.crawl)
    if scope.source is not None:
        query = query.where(shop.c.source == scope.source)
    return [_Out(row.crawl_id, row.source, row.key, row.pages) for row in await connection.execute(query)]


def _counted(out: Iterable[_Out], by: str) -> dict[Key, int]:
    counts: dict[Key, int] = defaultdict(int)
    for each in out:
        counts[(each.source, each.shop) if by == "shop" else (each.source,)] += each.pages
    return counts


async def _open_by_crawl(
    connection: AsyncConnection, scope: Scope, settled: Sequence[Settled], out: Sequence[_Out]
) -> dict[int, Open]:
    """What each crawl has open; not told of one that the scope shows only a part of."""
    query = sa.select(crawl.c.id, crawl.c.created_at, crawl.c.reserved, crawl.c.spend)
    if scope.crawl is not None:
        query = query.where(crawl.c.id == scope.crawl)
    rows = (await connection.execute(query)).all()
    if scope.crawl is not None and not rows:
        raise UsageError(f"there is no crawl {scope.crawl}: `shopcrawl crawls` lists them")
    calls, cost, pages = defaultdict[int, int](int), defaultdict[int, Decimal](lambda: FREE), defaultdict[int, int](int)
    for each in settled:
        calls[each.crawl] += each.calls
        cost[each.crawl] += each.cost
    for sent in out:
        pages[sent.crawl] += sent.pages
    concerned = calls.keys() | pages.keys()
    if scope.source is None:
        concerned |= {row.id for row in rows if scope.since is None or row.created_at >= scope.since}
    mixed = await _with_other_sources(connection, scope)
    opened = {}
    for row in rows:
        if row.id not in concerned:
            continue
        whole = row.id not in mixed and (scope.since is None or row.created_at >= scope.since)
        told = left_open(Reserved(row.reserved, row.spend), calls[row.id], cost[row.id], pages[row.id])
        opened[row.id] = told if whole else Open(pages[row.id])
    return opened


async def _with_other_sources(connection: AsyncConnection, scope: Scope) -> set[int]:
    """Crawls that have shops of other sources than the one in scope: what they reserved is kept in one sum."""
    if scope.source is None:
        return set()
    query = sa.select(shop_crawl.c.crawl_id).join(shop, shop.c.id == shop_crawl.c.shop_id).distinct()
    if scope.crawl is not None:
        query = query.where(shop_crawl.c.crawl_id == scope.crawl)
    return set(await connection.scalars(query.where(shop.c.source != scope.source)))


async def _open_by_source(
    connection: AsyncConnection, scope: Scope, settled: Iterable[Settled], out: dict[Key, int]
) -> dict[Key, Open]:
    """What each source has open, by what its daily budgets have counted since there are any."""
    calls, cost = defaultdict[Key, int](int), defaultdict[Key, Decimal](lambda: FREE)
    for each in settled:
        calls[each.key] += each.calls
        cost[each.key] += each.cost
    reserved = await reserved_by_source(connection)
    return {
        (source,): left_open(each, calls[(source,)], cost[(source,)], out.get((source,), 0))
        for source, each in reserved.items()
        if scope.source in {None, source}
    }


async def reserved_by_source(connection: AsyncConnection) -> dict[str, Reserved]:
    """Calls and money that each source's budgets have counted in all."""
    sums: dict[str, Reserved] = {}
    query = sa.select(daily_use.c.source, daily_use.c.reserved, daily_use.c.spend).where(daily_use.c.credential == "")
    for row in await connection.execute(query):
        before = sums.get(row.source, Reserved(0, FREE))
        sums[row.source] = Reserved(before.calls + row.reserved, before.spend + row.spend)
    return sums
