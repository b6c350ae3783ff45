"""What a crawl would cost: calls for each shop, from a count made now or from its last crawl."""

from collections.abc import Iterable, Mapping, Sequence
from math import ceil
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from models.bulk import query_rows
from models.crawls import ShopRequest
from models.settings import Settings
from models.source import WindowRules, source_named
from models.tables import shop, shop_crawl
from producer.forecast import Forecast
from producer.planning.windows import Reading

# Bounds that windows share, windows that are not full, and counts of windows that had to be split.
WINDOW_OVERHEAD = 0.06
CRAWLS_CONSIDERED = 10


class ShopEstimate(msgspec.Struct, frozen=True):
    """One shop: items it claims to have, calls to read them all, and where the figure is from; None: not known."""

    source: str
    shop: str
    items: int | None
    calls: int | None
    basis: str


class Estimate(msgspec.Struct, frozen=True):
    """All shops and their sums; `spent` calls were made for counting, `unknown` shops are not in the sums."""

    shops: list[ShopEstimate]
    items: int
    calls: int
    unknown: int
    spent: int
    forecast: Forecast | None = None

    @property
    def calls_by_source(self) -> dict[str, int]:
        """Calls of each source, as far as they are known."""
        calls: dict[str, int] = {}
        for each in self.shops:
            calls[each.source] = calls.get(each.source, 0) + (each.calls or 0)
        return calls


def listed_calls(items: int, page_size: int) -> int:
    """Calls to read pages one after the other; a last page that is full needs an empty one behind it as proof."""
    return items // page_size + 1


def windowed_calls(items: int, page_size: int, rules: WindowRules) -> int:
    """Calls to read a listing by windows of time, about."""
    reading = Reading(rules, page_size, rules.reach)
    pages = max(1, reading.pages(items))
    return pages if pages <= reading.farthest else ceil(pages * (1 + WINDOW_OVERHEAD))


def total(shops: Sequence[ShopEstimate], spent: int) -> Estimate:
    """The sums over shops."""
    known = [each for each in shops if each.calls is not None]
    items, calls = sum(each.items or 0 for each in known), sum(each.calls or 0 for each in known)
    return Estimate(list(shops), items, calls, len(shops) - len(known), spent)


async def counted(connection: AsyncConnection, crawl_id: int, settings: Settings, spent: int) -> Estimate:
    """The estimate from the counts that a crawl of kind `plan` made."""
    query = sa.select(shop.c.source, shop.c.key, shop_crawl).join(shop, shop.c.id == shop_crawl.c.shop_id)
    rows = await connection.execute(query.where(shop_crawl.c.crawl_id == crawl_id).order_by(shop_crawl.c.id))
    return total([_estimate(row, settings, "counted now") for row in rows], spent)


async def remembered(connection: AsyncConnection, shops: Iterable[ShopRequest], settings: Settings) -> Estimate:
    """The estimate from each shop's last settled crawl, without a call."""
    wanted = {(request.source, request.key): request for request in shops}
    columns = [shop.c.source, shop.c.key, *shop_crawl.c]
    names = ", ".join(f'c."{column.name}"' for column in shop_crawl.c)
    sql = (
        f'SELECT s.source, s."key", {names} FROM {{r}} JOIN shop s ON s.source = r.source AND s."key" = r."key"'
        " JOIN shop_crawl c ON c.shop_id = s.id WHERE c.id IN (SELECT l.id FROM shop_crawl l WHERE l.shop_id = s.id"
        f" AND l.settled_at IS NOT NULL AND l.total_last IS NOT NULL ORDER BY l.id DESC LIMIT {CRAWLS_CONSIDERED})"
        " ORDER BY c.id"
    )
    rows = [{"source": source, "key": key} for source, key in wanted]
    known = {}
    for row in await query_rows(connection, sql, columns[:2], rows, returning=columns):
        if _filters(row.source, row.options) == _filters(row.source, wanted[row.source, row.key].options):
            known[row.source, row.key] = _estimate(row, settings, f"crawl {row.crawl_id}")
    unknown = (ShopEstimate(*key, None, None, "never crawled like this") for key in wanted if key not in known)
    return total([*known.values(), *unknown], 0)


def _filters(source: str, options: Mapping[str, Any]) -> list[Any]:
    """What a crawl leaves out: the count of a part says nothing about the whole."""
    return [options.get(name) for name in source_named(source).filter_names]


def _estimate(row: sa.Row[Any], settings: Settings, basis: str) -> ShopEstimate:
    items = row.total_last if row.total_last is not None else row.total_first
    if items is None:
        return ShopEstimate(row.source, row.key, None, None, row.reason or "not counted")
    rules, asked = source_named(row.source).windows(settings), row.options["page_size"]
    calls = listed_calls(items, row.page_size or asked) if rules is None else windowed_calls(items, asked, rules)
    return ShopEstimate(row.source, row.key, items, min(calls, row.options["max_pages"]), basis)
