"""Which items a query selects, and in which order."""

from collections import OrderedDict
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from random import Random
from typing import NamedTuple

from tests.simulator.catalogue import Shop
from tests.simulator.items import ItemFactory

SORTS = frozenset({"default", "sales", "price_up", "price_down", "time_up", "time_down"})
_KEPT_ENTRIES = 4_000_000  # item indexes held over all remembered orders; about 100 MB at worst


class BadQueryError(ValueError):
    """A parameter the API refuses with 422; the text names it."""


class Selection(NamedTuple):
    """What is listed of a shop, and how; `sort` is always one of SORTS."""

    sort: str = "time_up"
    category: str = ""
    price_start: str = ""
    price_end: str = ""


class Listing:
    """Answers selections with item indexes, remembering orders that were costly to compute."""

    def __init__(self, factory: ItemFactory) -> None:
        self._factory = factory
        self._orders: OrderedDict[tuple[int, Selection], tuple[int, Sequence[int]]] = OrderedDict()
        self._entries = 0

    def rows(self, shop: Shop, selection: Selection) -> Sequence[int]:
        """Return the indexes of the items on sale that match, in order."""
        if selection == ("time_up", "", "", ""):
            return shop.alive
        if selection == ("time_down", "", "", ""):
            return shop.alive[::-1]
        key = (shop.number, selection)
        known = self._orders.get(key)
        if known is not None and known[0] == shop.revision:
            self._orders.move_to_end(key)
            return known[1]
        order = self._compute(shop, selection)
        self._remember(key, shop.revision, order)
        return order

    def shuffle(self, shop: Shop, selection: Selection, share: float, random: Random) -> None:
        """Move that share of the rows of a popularity order to other places, as sales do between two calls."""
        if selection.sort not in {"default", "sales"}:
            return
        order = list(self.rows(shop, selection))
        for _ in range(round(len(order) * share)):
            row = order.pop(random.randrange(len(order)))
            order.insert(random.randrange(len(order) + 1), row)
        self._remember((shop.number, selection), shop.revision, order)

    def _compute(self, shop: Shop, selection: Selection) -> Sequence[int]:
        low, high = cents(selection.price_start, "price_start"), cents(selection.price_end, "price_end")
        rows = [index for index in shop.alive if self._matches(shop, index, selection.category, low, high)]
        match selection.sort:
            case "price_up" | "price_down":
                rows.sort(key=lambda index: self._price(shop, index), reverse=selection.sort == "price_down")
            case "default" | "sales":
                rows.sort(key=lambda index: -self._factory.sales(shop.number, index, shop.version(index)))
            case "time_down":
                rows.reverse()
        return rows

    def _matches(self, shop: Shop, index: int, category: str, low: Decimal | None, high: Decimal | None) -> bool:
        if category and category not in self._factory.categories(shop.number, index):
            return False
        if low is None and high is None:
            return True
        price = self._price(shop, index)
        return (low is None or price >= low) and (high is None or price <= high)

    def _price(self, shop: Shop, index: int) -> int:
        return self._factory.price(shop.number, index, shop.version(index))

    def _remember(self, key: tuple[int, Selection], revision: int, order: Sequence[int]) -> None:
        if key in self._orders:
            self._entries -= len(self._orders.pop(key)[1])
        self._orders[key] = (revision, order)
        self._entries += len(order)
        while self._entries > _KEPT_ENTRIES and len(self._orders) > 1:
            self._entries -= len(self._orders.popitem(last=False)[1][1])


def cents(text: str, name: str) -> Decimal | None:
    """Read a price bound, None if it is empty; BadQueryError with its name if it is no number."""
    if not text:
        return None
    try:
        value = Decimal(text)
    except InvalidOperation:
        raise BadQueryError(name) from None
    if not value.is_finite():
        raise BadQueryError(name)
    return value * 100
