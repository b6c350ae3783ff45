"""The rows that a store's items consist of, in a form in which two stores can be compared."""

from collections import Counter
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from models.sheets import LAST_SEEN, SEEN_BY, WITH_SHEET
from models.tables import change, item, item_sales, item_seen, item_version

# Numbers that the database gives and hashes, which are only hints, may differ.
_HINTS = {"id", "content_hash", "sheet_id"}
_SEEN = [
    LAST_SEEN if column.name == "last_seen" else SEEN_BY if column.name == "shop_crawl_id" else column
    for column in item_seen.c
    if column.name not in _HINTS
]
_QUERIES: dict[str, sa.Select[Any]] = {
    "item_seen": sa.select(*_SEEN).select_from(WITH_SHEET),
    **{
        table.name: sa.select(*(column for column in table.c if column.name not in _HINTS))
        for table in (item, item_version, item_sales, change)
    },
}

Rows = dict[str, list[tuple[Any, ...]]]
"""Rows by table, sorted."""


async def all_rows(engine: AsyncEngine, shop_id: int | None = None) -> Rows:
    """Every row of all items, or of one shop's without its number."""
    found = {}
    async with engine.connect() as connection:
        for name, query in _QUERIES.items():
            mine = query
            if shop_id is not None:
                first, *others = query.selected_columns
                mine = query.where(first == shop_id).with_only_columns(*others)
            rows = [tuple(map(plain, row)) for row in await connection.execute(mine)]
            found[name] = sorted(rows, key=repr)
    return found


def plain(value: Any) -> Any:
    """Values as they compare: numbers may have idle zeros, those in JSON as well."""
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, str) and value.replace(".", "", 1).isdigit() and len(value) < 18:
        return Decimal(value).normalize()
    return value.normalize() if isinstance(value, Decimal) else value


def differing(one: Rows, other: Rows) -> list[tuple[str, str]]:
    """Rows, as text, that only one of two stores has, or has more often, by table."""
    found = []
    for name in one:
        mine, theirs = Counter(map(repr, one[name])), Counter(map(repr, other[name]))
        found += [(name, row) for row in ((mine - theirs) + (theirs - mine)).elements()]
    return found
