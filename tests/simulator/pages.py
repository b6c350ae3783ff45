"""The body of a good page, and of pages that are good JSON but not the whole truth."""

import json
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from tests.simulator.catalogue import Shop
from tests.simulator.listing import SORTS, Selection
from tests.simulator.market import Market
from tests.simulator.script import Outcome
from tests.simulator.switches import Switches


class Query(NamedTuple):
    """A request's parameters once they make sense; `size` is what is served, `asked_size` what was asked."""

    shop: str
    page: int
    size: int
    asked_size: int
    selection: Selection
    sort_echo: str


class Page(NamedTuple):
    """A rendered page: its body, the items in it as indexes, and the total that it claims."""

    body: bytes
    rows: Sequence[int]
    total: int


class PageCache:
    """Rendered rows by key, the least recently used dropped beyond a number of bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._pages: OrderedDict[tuple[object, ...], bytes] = OrderedDict()

    @property
    def is_full(self) -> bool:
        """Whether another page would push one out."""
        return self._size + 30_000 > self._limit

    def get(self, key: tuple[object, ...]) -> bytes | None:
        """Return what is kept for the key."""
        page = self._pages.get(key)
        if page is not None:
            self._pages.move_to_end(key)
        return page

    def put(self, key: tuple[object, ...], page: bytes) -> None:
        """Keep a page that is not kept yet."""
        self._pages[key] = page
        self._size += len(page)
        while self._size > self._limit:
            self._size -= len(self._pages.popitem(last=False)[1])


def total_text(count: int, style: str) -> str:
    """Render the total as JSON: "2465", 2465, or rounded for display as "1.5万+" and "3500+"."""
    if style == "number":
        return str(count)
    if style == "display" and count >= 10_000:
        return f'"{count // 1000 / 10:g}万+"'
    if style == "display" and count >= 100:
        return f'"{count // 100 * 100}+"'
    return f'"{count}"'


class PageRenderer:
    """Renders pages of a market's shops."""

    def __init__(self, market: Market, cache_bytes: int) -> None:
        self._market = market
        self._cache = PageCache(cache_bytes)

    def warm(self, size: int) -> None:
        """Render the pages of all shops, oldest item first, until the cache is full."""
        for shop in self._market.shops.values():
            for start in range(0, len(shop.alive), size):
                if self._cache.is_full:
                    return
                self._items(shop, shop.alive[start : start + size], self._market.board.of(shop.key).variants)

    def last_page(self, shop: Shop, query: Query) -> int:
        """Return the number of the last page with rows, 1 for an empty shop."""
        return max(1, -(-len(self._rows(shop, query)) // query.size))

    def render(
        self,
        query: Query,
        shop: Shop | None,
        switches: Switches,
        outcome: Outcome,
        draws: Sequence[float],
        request_id: int = 0,
    ) -> Page:
        """Return the page for a query, with a `request_id` unless that is 0; an unknown shop has no items."""
        rows = self._rows(shop, query) if shop else ()
        items = b"[]"
        start, stop = _window(len(rows), query, switches, outcome)
        shown = rows[start:stop]
        if shop is not None and shown:
            items = self._items(shop, shown, switches.variants)
        elif switches.beyond_end == "null":
            items = b"null"
        total = round(len(rows) * switches.total_factor)
        if switches.total_drift and draws:
            total = max(0, total + int(draws[4] * (2 * switches.total_drift + 1)) - switches.total_drift)
        body = _envelope(query, switches, total)
        if items != b"[]" or switches.beyond_end != "missing":
            body = b'%b,"items":%b' % (body, items)
        end = b'},"request_id":"%d"}' % request_id if request_id else b"}}"
        return Page(body + end, shown, total)

    def _rows(self, shop: Shop, query: Query) -> Sequence[int]:
        """The items that the query lists, as indexes: all but the last ones of a shop that hides some."""
        rows = self._market.listing.rows(shop, query.selection)
        hidden = self._market.board.of(shop.key).hidden
        return rows[: len(rows) - int(len(rows) * hidden)] if hidden else rows

    def _items(self, shop: Shop, rows: Sequence[int], variants: float) -> bytes:
        key = (shop.number, shop.revision, variants, *rows)
        page = self._cache.get(key)
        if page is None:
            render, number, version = self._market.factory.render, shop.number, shop.version
            page = b"[%b]" % b",".join([render(number, row, version(row), variants) for row in rows])
            self._cache.put(key, page)
        return page


def _window(count: int, query: Query, switches: Switches, outcome: Outcome) -> tuple[int, int]:
    """Return which rows of `count` a page shows."""
    last = max(1, -(-count // query.size))
    page = query.page
    if outcome.name == "repeat_first" or (page > last and switches.beyond_end == "first"):
        page = 1
    elif outcome.name == "repeat_last" or (page > last and switches.beyond_end == "last"):
        page = last
    start = (page - 1) * query.size
    stop = min(start + query.size, count)
    if outcome.name == "short":
        stop = min(stop, start + outcome.rule.rows)
    elif outcome.name == "partial":
        stop = min(stop, int(count * outcome.rule.fraction))
    return start, stop


def _envelope(query: Query, switches: Switches, total: int) -> bytes:
    """Return the body up to, not including, the items."""
    size = query.size if switches.page_size_echo == "real" else query.asked_size
    selection = query.selection
    counted = "" if switches.total_count == "missing" else f'"total_count":{total_text(total, switches.total_count)},'
    if selection.category or selection.price_start or selection.price_end or query.sort_echo not in SORTS:
        category, low, high, sort = map(
            json.dumps, (selection.category, selection.price_start, selection.price_end, query.sort_echo)
        )
    else:
        category = low = high = '""'
        sort = f'"{query.sort_echo}"'
    return (
        f'{{"code":200,"msg":"success","data":{{"page":{query.page},"page_size":{size},{counted}'
        f'"shop_cat_id":{category},"keyword":"","price_start":{low},"price_end":{high},"sort":{sort}'
    ).encode()
