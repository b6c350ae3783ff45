"""Budgets in the ledger: calls are reserved before they are made, and settled by what became of them."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from models.billing import Account, Wish, grant
from models.bulk import insert_rows, query_rows
from models.database import is_postgresql
from models.messages import PageTask
from models.settings import Settings
from models.source import source_named, source_names
from models.tables import crawl, daily_use, page, shop_crawl

DailyCaps = Mapping[str, tuple[int | None, Decimal | None]]
"""Calls and money of a day by source; None: no cap."""


class Keys(msgspec.Struct, frozen=True):
    """The accounts that one page's calls are charged to; `shop` is empty for a shop without a budget of its own."""

    shop: str
    crawl: str
    day: str

    @property
    def all(self) -> tuple[str, ...]:
        """From the narrowest budget to the widest; locked in this order, so that nobody waits for each other."""
        return tuple(key for key in (self.shop, self.crawl, self.day) if key)


class Refused(msgspec.Struct, frozen=True):
    """A call that a budget forbids; `until` is set when time alone lifts that."""

    reason: str
    until: datetime | None


def utc_day(now: datetime) -> str:
    """The day that budgets count this moment to."""
    return f"{now.astimezone(UTC):%Y-%m-%d}"


def next_day(now: datetime) -> datetime:
    """When the next day of budgets begins; never on a whole second, whose shorter text would sort wrongly on SQLite."""
    return (now.astimezone(UTC) + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=1)


def daily_caps(settings: Settings) -> DailyCaps:
    """Each source's caps."""
    return {name: source_named(name).daily_caps(settings) for name in source_names()}


def keys_of(task: PageTask, now: datetime) -> Keys:
    """The accounts of a page's calls made now."""
    shop = f"shop:{task.shop_crawl_id}" if task.options.get("max_calls") else ""
    return Keys(shop, f"crawl:{task.crawl_id}", f"day:{utc_day(now)}:{task.source}")


def _shop_caps(tasks: Iterable[PageTask]) -> dict[str, int]:
    """The budgets that shops have of their own, by account."""
    return {f"shop:{task.shop_crawl_id}": int(task.options.get("max_calls") or 0) for task in tasks}


async def reserve(
    connection: AsyncConnection, tasks: Sequence[PageTask], settings: Settings, now: datetime
) -> list[Refused | None]:
    """Reserve one call for each page, in order; for each None, or why it may not be made."""
    keys = [keys_of(task, now) for task in tasks]
    shops, caps = _shop_caps(tasks), daily_caps(settings)
    before = await lock_accounts(connection, {key for each in keys for key in each.all}, caps, shops)
    prices = {source: source_named(source).prices(settings).highest for source in {task.source for task in tasks}}
    wishes = [Wish(each.all, prices[task.source]) for each, task in zip(keys, tasks, strict=True)]
    forbidden, after = grant(wishes, before)
    await write_accounts(connection, before, after)
    return [None if key is None else refusal(key, after[key], now) for key in forbidden]


def refusal(key: str, account: Account, now: datetime) -> Refused:
    """What a reached cap means for a page."""
    return Refused(f"budget of {account.words}", next_day(now) if key.startswith("day:") else None)


async def lock_accounts(
    connection: AsyncConnection, keys: Collection[str], caps: DailyCaps, shop_caps: Mapping[str, int]
) -> dict[str, Account]:
    """These accounts as they are, locked until the transaction ends; of `shop_caps` those are read that `keys` name."""
    found: dict[str, Account] = {}
    for row in await _lock(connection, shop_crawl, _ids(keys, "shop")):
        key = f"shop:{row.id}"
        found[key] = Account("the shop", row.reserved, row.spend, shop_caps.get(key) or None)
    for row in await _lock(connection, crawl, _ids(keys, "crawl")):
        name = f"crawl {row.id}"
        found[f"crawl:{row.id}"] = Account(name, row.reserved, row.spend, row.max_calls, row.max_spend)
    for key in sorted(key for key in keys if key.startswith("day:")):
        _, day, source = key.split(":", 2)
        calls, spend = await _lock_day(connection, day, source)
        found[key] = Account(f"{source} for today", calls, spend, *caps.get(source, (None, None)))
    return found


def _ids(keys: Collection[str], kind: str) -> list[int]:
    return sorted(int(key.partition(":")[2]) for key in keys if key.startswith(f"{kind}:"))


async def _lock(connection: AsyncConnection, table: sa.Table, ids: Sequence[int]) -> Sequence[sa.Row[Any]]:
    columns = [table.c[name] for name in ("id", "reserved", "spend", "max_calls", "max_spend") if name in table.c]
    names = ", ".join(f't."{column.name}"' for column in columns)
    lock = " FOR UPDATE OF t" if is_postgresql(connection) else ""
    sql = f'SELECT {names} FROM {{r}} JOIN "{table.name}" t ON t.id = r.id ORDER BY t.id{lock}'
    return await query_rows(connection, sql, [table.c.id], [{"id": key} for key in ids], returning=columns)


async def _lock_day(connection: AsyncConnection, day: str, source: str, credential: str = "") -> tuple[int, Decimal]:
    row = {"day": day, "source": source, "credential": credential}
    await insert_rows(connection, daily_use, [row], conflict="ON CONFLICT DO NOTHING")
    mine = sa.select(daily_use.c.reserved, daily_use.c.spend).where(_of_day(day, source, credential))
    reserved, spend = (await connection.execute(mine.with_for_update())).one()
    return reserved, spend


def _of_day(day: str, source: str, credential: str) -> sa.ColumnElement[bool]:
    return (daily_use.c.day == day) & (daily_use.c.source == source) & (daily_use.c.credential == credential)


async def write_accounts(
    connection: AsyncConnection, before: Mapping[str, Account], after: Mapping[str, Account]
) -> None:
    """Write the locked accounts that have changed."""
    changed = {key: account for key, account in after.items() if account != before[key]}
    for table, kind in ((shop_crawl, "shop"), (crawl, "crawl")):
        rows = [
            {"id": key, "reserved": changed[f"{kind}:{key}"].calls, "spend": changed[f"{kind}:{key}"].spend}
            for key in _ids(changed, kind)
        ]
        sql = f'UPDATE "{table.name}" SET reserved = r.reserved, spend = r.spend FROM {{r}}'
        columns = [table.c.id, table.c.reserved, table.c.spend]
        await query_rows(connection, f'{sql} WHERE "{table.name}".id = r.id', columns, rows)
    for key in sorted(key for key in changed if key.startswith("day:")):
        _, day, source = key.split(":", 2)
        values = {"reserved": changed[key].calls, "spend": changed[key].spend}
        await connection.execute(sa.update(daily_use).where(_of_day(day, source, "")).values(values))


class Settlement(msgspec.Struct, frozen=True):
    """What became of one sending's reservations: `calls` made at a `cost`, of `reserved` ones at `price` each.

    `wants_more`: one more call is to be reserved.
    """

    task: PageTask
    calls: int
    cost: Decimal
    reserved: int
    price: Decimal
    wants_more: bool

    @property
    def is_plain(self) -> bool:
        """Whether the accounts stay as they are, which is so for nearly every page."""
        return not self.wants_more and self.calls == self.reserved and self.cost == self.price * self.reserved


async def settle(
    connection: AsyncConnection, settlements: Sequence[Settlement], caps: DailyCaps, now: datetime
) -> list[Refused | None]:
    """Settle reservations; for each that wants one more call None if it is granted, else why not."""
    unusual = [each for each in settlements if not each.is_plain]
    if not unusual:
        return [None] * len(settlements)
    keys = {id(each): keys_of(each.task, now) for each in unusual}
    shops = _shop_caps(each.task for each in unusual)
    before = await lock_accounts(connection, {key for each in keys.values() for key in each.all}, caps, shops)
    settled = dict(before)
    for each in unusual:
        for key in keys[id(each)].all:
            more, money = each.calls - each.reserved, each.cost - each.price * each.reserved
            settled[key] = settled[key].charged(more, money)
    wanting = [each for each in unusual if each.wants_more]
    forbidden, after = grant([Wish(keys[id(each)].all, each.price) for each in wanting], settled)
    await write_accounts(connection, before, after)
    refused = {id(each): refusal(key, after[key], now) for each, key in zip(wanting, forbidden, strict=True) if key}
    return [refused.get(id(each)) for each in settlements]


async def take_credits(
    connection: AsyncConnection, source: str, credential: str, *, wanted: int, cap: int, now: datetime
) -> int:
    """Reserve up to `wanted` calls of a credential's daily budget; returns how many there are, 0 when it is used up.

    The less is left, the fewer are taken at once: what a dead worker had taken is lost for the day.
    """
    day = utc_day(now)
    reserved, _ = await _lock_day(connection, day, source, credential)
    left = max(0, cap - reserved)
    granted = min(wanted, left, max(1, left // 32))
    await _add_to_day(connection, day, source, credential, granted)
    return granted


async def return_credits(connection: AsyncConnection, day: str, source: str, credential: str, calls: int) -> None:
    """Give back calls that were reserved and not made."""
    await _add_to_day(connection, day, source, credential, -calls)


async def _add_to_day(connection: AsyncConnection, day: str, source: str, credential: str, calls: int) -> None:
    mine = sa.update(daily_use).where(_of_day(day, source, credential))
    await connection.execute(mine.values(reserved=daily_use.c.reserved + calls))


async def raise_caps(
    connection: AsyncConnection, crawl_id: int, *, max_calls: int | None, max_spend: Decimal | None, now: datetime
) -> bool:
    """Give a crawl other budgets, where given, and let what waited for them go on; False if there is no such crawl."""
    values: dict[str, Any] = {"max_calls": max_calls, "max_spend": max_spend}
    values = {name: value for name, value in values.items() if value is not None}
    mine = sa.update(crawl).where(crawl.c.id == crawl_id)
    found = (await connection.execute(mine.values(**values, reason=None))).rowcount if values else 1
    await release_held(connection, crawl_id, now)
    return found > 0


async def release_held(connection: AsyncConnection, crawl_id: int, now: datetime) -> None:
    """Make pages of a crawl that wait for a budget due again; those of shops without a session stay."""
    # In the order in which everybody locks: shops, then pages, then the crawl.
    open_shops = sa.select(shop_crawl.c.id).where(shop_crawl.c.crawl_id == crawl_id, shop_crawl.c.state == "open")
    held = sa.update(page).where(page.c.shop_crawl_id.in_(open_shops), page.c.state == "held")
    await connection.execute(held.values(state="ready", due_at=now, reason=None))
    going_on = sa.update(crawl).where(crawl.c.id == crawl_id, crawl.c.state == "waiting", sa.exists(open_shops))
    await connection.execute(going_on.values(state="running", reason=None))
