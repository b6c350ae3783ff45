"""Stores for tests: items, their past and their crawls written row by row, as a crawler would have left them."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from models.bulk import insert_rows
from models.crawls import ShopRequest, shop_ids
from models.source import Item
from models.tables import item, item_seen

SEEN = datetime(2026, 5, 1, 12, 0, 0, 250_000, tzinfo=UTC)
_CONFLICT = "ON CONFLICT (shop_id, item_id) DO NOTHING"


async def shop_id_of(engine: AsyncEngine, key: str, source: str = "tmapi") -> int:
    """The id of a shop, which is made if it is new."""
    async with engine.begin() as connection:
        return (await shop_ids(connection, [ShopRequest(source, key, {})], SEEN))[source, key]


async def add_rows(engine: AsyncEngine, table: sa.Table, rows: Sequence[dict[str, Any]]) -> None:
    """Insert rows that all have the same columns."""
    async with engine.begin() as connection:
        await insert_rows(connection, table, rows)


async def stock(
    engine: AsyncEngine,
    key: str,
    items: Sequence[Item],
    *,
    source: str = "tmapi",
    at: datetime = SEEN,
    seen: dict[str, Any] | None = None,
) -> int:
    """Put items into a shop as if all were seen at `at`, with more columns of `item_seen`; returns the shop's id."""
    shop_id = await shop_id_of(engine, key, source)
    common = {"shop_id": shop_id, "shop_crawl_id": 1, "first_seen": at, "last_seen": at, "changed_at": at}
    common |= {name: 0 for name in item_seen.c.keys() if name.endswith("hash")}  # noqa: SIM118 (columns, not names)
    common |= {"figures_at": at, "misses": 0, **(seen or {})}
    values = [common | msgspec.structs.asdict(each) for each in items]
    async with engine.begin() as connection:
        for table in (item, item_seen):
            rows = [{name: row[name] for name in table.c.keys() if name in row} for row in values]  # noqa: SIM118 (as above)
            await insert_rows(connection, table, rows, conflict=_CONFLICT)
    return shop_id
