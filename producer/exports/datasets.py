"""What can be exported: for each data set its columns, the order of its rows, and where they are stored."""

from collections.abc import Mapping
from typing import Any

import msgspec
import sqlalchemy as sa

from models.sheets import LAST_SEEN, WITH_SHEET
from models.tables import UtcDateTime, item, item_sales, item_seen, item_version, shop, shop_crawl
from producer.exports.formats import Fields

OWNER: Fields = {"source": shop.c.source.type, "shop": shop.c.key.type}
"""What every row begins with: whose it is."""

Columns = Mapping[str, sa.ColumnElement[Any]]


class Part(msgspec.Struct, frozen=True):
    """One place where rows of a data set are stored; all parts of one have the same columns."""

    table: sa.FromClause
    shop_id: sa.Column[int]
    columns: Columns
    only: tuple[sa.ColumnElement[bool], ...] = ()
    """What rows must meet to be a part of it."""
    twin: sa.Table | None = None
    """A table joined by shop and item. Bounds of these are repeated for it: no database concludes that by itself."""


class Dataset(msgspec.Struct, frozen=True):
    """Rows of one kind.

    `key` orders the rows of a shop and tells them apart; `since` is the column by which young rows are chosen.
    """

    name: str
    help: str
    key: tuple[str, ...]
    since: str
    parts: tuple[Part, ...]

    @property
    def fields(self) -> Fields:
        """Every column by name, with its type, in order."""
        return {**OWNER, **{name: column.type for name, column in self.parts[0].columns.items()}}


_KEY = {"shop_id", "item_id", "shop_crawl_id"}
_HEAD = ("title", "price")
_FIELDS = (*_HEAD, *(name for name in item_version.c.keys() if name in item.c and name not in {*_KEY, *_HEAD}))  # noqa: SIM118
_FIGURES = tuple(name for name in item_sales.c.keys() if name in item_seen.c and name not in _KEY)  # noqa: SIM118
_NEVER = sa.cast(sa.null(), UtcDateTime)


def _named(table: sa.FromClause, *names: str) -> dict[str, sa.ColumnElement[Any]]:
    return {name: table.c[name] for name in names}


def _items() -> Part:
    """The current version of each item, its figures, and when it was seen."""
    columns = _named(item, "item_id", *_FIELDS, "extra") | _named(item_seen, *_FIGURES)
    columns |= _named(item, "first_seen") | {"last_seen": LAST_SEEN} | _named(item, "changed_at")
    columns |= _named(item_seen, "gone_at", "figures_at")
    return Part(WITH_SHEET.join(item, _same(item_seen, item)), item.c.shop_id, columns, twin=item_seen)


def _versions(table: sa.Table, valid_from: sa.Column[Any], valid_to: sa.ColumnElement[Any]) -> Part:
    """Versions of items: a row each, from the time it was first seen so to the time it was first seen otherwise."""
    times = {"valid_from": valid_from, "valid_to": valid_to, "crawl": shop_crawl.c.crawl_id}
    columns = _named(table, "item_id") | times | _named(table, *_FIELDS)
    with_crawl = table.outerjoin(shop_crawl, shop_crawl.c.id == table.c.shop_crawl_id)
    return Part(with_crawl, table.c.shop_id, columns)


def _sales(table: sa.Table, at: sa.Column[Any], *only: sa.ColumnElement[bool]) -> Part:
    columns = _named(table, "item_id") | {"at": at} | _named(table, *_FIGURES)
    return Part(table, table.c.shop_id, columns, only)


def _verdicts() -> Part:
    """Settled shop crawls; gains are what a second pass added."""
    c = shop_crawl.c
    columns = {
        "crawl": c.crawl_id,
        **_named(shop_crawl, "kind", "mode", "verdict", "reason", "total_first", "total_last"),
        **_named(shop_crawl, "pages_done", "pages_dead", "rows"),
        "distinct": c.distinct_items,
        "duplicates": c.rows - c.distinct_items,
        "first_distinct": c.first_distinct,
        "gains": c.distinct_items - c.first_distinct,
        "new": c.new_items,
        "changed": c.changed_items,
        "gone": c.gone_items,
        "calls": c.reserved,
        "spend": c.spend,
        "started_at": c.created_at,
        "settled_at": c.settled_at,
    }
    return Part(shop_crawl, c.shop_id, columns, (c.state == "settled", c.kind != "plan"))


def _same(one: sa.Table, other: sa.Table) -> sa.ColumnElement[bool]:
    return (one.c.shop_id == other.c.shop_id) & (one.c.item_id == other.c.item_id)


ITEMS = Dataset(
    "items",
    "Write one row per item: its current fields and figures, and when it was seen.",
    key=("item_id",),
    since="last_seen",
    parts=(_items(),),
)
VERSIONS = Dataset(
    "versions",
    "Write one row per version of an item, with the times between which it was so; the current one has no end.",
    key=("item_id", "valid_from"),
    since="valid_from",
    parts=(
        _versions(item_version, item_version.c.valid_from, item_version.c.valid_to),
        _versions(item, item.c.changed_at, _NEVER),
    ),
)
SALES = Dataset(
    "sales",
    "Write one row per item and time at which its sales figures were first seen so.",
    key=("item_id", "at"),
    since="at",
    parts=(
        _sales(item_sales, item_sales.c.at),
        _sales(item_seen, item_seen.c.figures_at, item_seen.c.figures_at.is_not(None)),
    ),
)
VERDICTS = Dataset(
    "verdicts",
    "Write one row per shop crawl that has ended, with its verdict and counts.",
    key=("crawl",),
    since="settled_at",
    parts=(_verdicts(),),
)

DATASETS = {each.name: each for each in (ITEMS, VERSIONS, SALES, VERDICTS)}
"""Every data set by name."""
