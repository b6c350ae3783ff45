"""One seller's goods in order: selections by time, category and text, and edits while they are read."""

from array import array
from collections import OrderedDict
from collections.abc import Iterable
from random import Random
from typing import NamedTuple

from tests.simulator.top.blocks import SortedBlocks
from tests.simulator.top.goods import Goods

_ROW_BITS = 31
_ROW = 2**_ROW_BITS - 1
_KEPT_ORDERS = 32  # beside the main one; eight bytes a row each


class Selection(NamedTuple):
    """Which rows are asked for, and in which order; times are seconds since the epoch, `until` is not included."""

    column: str = "list_time"
    descending: bool = True
    since: int = 0
    until: int = 2**32
    cid: int | None = None
    text: str = ""


class _Order(NamedTuple):
    """An order over the rows that match: `window` (since, until) only where the order is not by modified."""

    column: str
    cid: int | None
    text: str
    window: tuple[int, int] | None = None


_MAIN = _Order("modified", None, "")


class Warehouse:
    """Answers selections with rows, from indexes that follow every edit."""

    def __init__(self, goods: Goods) -> None:
        self.goods = goods
        keys = array("q", (at << _ROW_BITS | row for row, at in enumerate(goods.modified)))
        self._main = SortedBlocks(keys)
        self._orders: OrderedDict[_Order, SortedBlocks] = OrderedDict()

    def __len__(self) -> int:
        return len(self._main)

    def page(self, wanted: Selection, start: int, size: int, ties: Random | None = None) -> tuple[int, list[int]]:
        """Return how many rows match, and `size` of them from the `start`-th on; `ties` draws the order of equals."""
        order, low, high = self._span(wanted)
        first = max(low, high - start - size) if wanted.descending else min(high, low + start)
        last = high - start if wanted.descending else min(high, first + size)
        keys = order.cut(first, last) if first < last else array("q")
        if ties is not None and keys:
            keys = _shuffled(order, keys, (low, high), first, ties)
        rows = [key & _ROW for key in keys]
        return high - low, rows[::-1] if wanted.descending else rows

    # -- changes ---------------------------------------------------------------------------------------------------

    def edit(self, row: int, now: int, *, reprice: bool) -> None:
        """Modify a row now: it takes another place in every order by modified."""
        self._forget_windows()
        places = self._places(row)
        for order, index in places:
            if order.column == "modified":
                index.remove(self._key(row, order))
        self.goods.modified[row] = now
        for order, index in places:
            if order.column == "modified":
                index.add(self._key(row, order))
        self.goods.edits[row] += 1
        self.goods.repriced[row] += reprice

    def appear(self, now: int) -> int:
        """Put a new row into the warehouse and return it."""
        row = len(self.goods)
        self.goods.modified.append(now)
        self._enter(row)
        return row

    def vanish(self, row: int) -> None:
        """Take a row out of the warehouse; KeyError if it is not there."""
        if row in self.goods.gone:
            raise KeyError(row)
        self._forget_windows()
        for order, index in self._places(row):
            index.remove(self._key(row, order))
        self.goods.gone.add(row)
        self.goods.was_away.add(row)

    def restore(self, row: int, now: int) -> None:
        """Put a vanished row back, modified now; KeyError if it is there."""
        self.goods.gone.remove(row)
        self.goods.modified[row] = now
        self._enter(row)

    def pick(self, count: int, random: Random) -> list[int]:
        """Return that many rows at random, all of them if there are fewer."""
        if count * 2 > len(self):
            there = [row for row in range(len(self.goods)) if row not in self.goods.gone]
            return random.sample(there, min(count, len(there)))
        chosen: dict[int, None] = {}
        while len(chosen) < count:
            row = random.randrange(len(self.goods))
            if row not in self.goods.gone:
                chosen[row] = None
        return list(chosen)

    def pick_gone(self, count: int, random: Random) -> list[int]:
        """Return that many vanished rows at random, all of them if there are fewer."""
        gone = sorted(self.goods.gone) if count else []
        return random.sample(gone, min(count, len(gone)))

    def _enter(self, row: int) -> None:
        self._forget_windows()
        for order, index in self._places(row):
            index.add(self._key(row, order))

    # -- orders ----------------------------------------------------------------------------------------------------

    def _span(self, wanted: Selection) -> tuple[SortedBlocks, int, int]:
        """Return an order and the ranks between which it holds the selection."""
        bounded = (wanted.since, wanted.until) != (0, 2**32)
        if wanted.column != "modified":
            window = (wanted.since, wanted.until) if bounded else None
            index = self._order(_Order(wanted.column, wanted.cid, wanted.text, window))
            return index, 0, len(index)
        index = self._order(_Order("modified", wanted.cid, wanted.text))
        low, high = (index.rank(at << _ROW_BITS) for at in (wanted.since, wanted.until))
        return index, low, max(low, high)

    def _order(self, order: _Order) -> SortedBlocks:
        if order == _MAIN:
            return self._main
        index = self._orders.get(order)
        if index is None:
            keys = sorted(self._key(row, order) for row in self._candidates(order) if self._matches(row, order))
            index = self._orders[order] = SortedBlocks(array("q", keys))
            if len(self._orders) > _KEPT_ORDERS:
                self._orders.popitem(last=False)
        self._orders.move_to_end(order)
        return index

    def _candidates(self, order: _Order) -> Iterable[int]:
        since, until = order.window or (0, 2**32)
        keys = self._main.cut(self._main.rank(since << _ROW_BITS), self._main.rank(until << _ROW_BITS))
        return (key & _ROW for key in keys)

    def _matches(self, row: int, order: _Order) -> bool:
        if order.cid is not None and self.goods.cid(row) != order.cid:
            return False
        return not order.text or order.text in self.goods.title(row)

    def _key(self, row: int, order: _Order) -> int:
        return self.goods.column(row, order.column) << _ROW_BITS | row

    def _places(self, row: int) -> list[tuple[_Order, SortedBlocks]]:
        others = [(order, index) for order, index in self._orders.items() if self._matches(row, order)]
        return [(_MAIN, self._main), *others]

    def _forget_windows(self) -> None:
        """Drop orders that a change of modified times may fill or empty."""
        for order in [order for order in self._orders if order.window is not None]:
            del self._orders[order]


def _shuffled(
    order: SortedBlocks, keys: "array[int]", span: tuple[int, int], first: int, random: Random
) -> "array[int]":
    """Put rows with equal values into an order drawn anew, those beyond the page's edges taking part."""
    mixed = array("q")
    while len(mixed) < len(keys):
        value = keys[len(mixed)] >> _ROW_BITS
        low = max(span[0], order.rank(value << _ROW_BITS))
        high = min(span[1], order.rank((value + 1) << _ROW_BITS))
        count = min(high, first + len(keys)) - (first + len(mixed))
        mixed.extend(random.sample(order.cut(low, high), count))
    return mixed
