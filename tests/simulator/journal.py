"""What every answer showed and how the goods moved, in one order: the whole truth, kept only when it is asked for."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from tests.simulator.items import ItemFactory, money


class Answer:
    """The rows of one answer, as indexes and versions; `delivered` once a client has all of it."""

    __slots__ = ("call", "delivered", "number", "page", "rows", "shop", "size", "sort", "total", "versions")

    def __init__(self, number: int, call: int, shop: int, page: int, size: int, sort: str) -> None:
        self.number = number
        self.call = call
        self.shop = shop
        self.page = page
        self.size = size
        self.sort = sort
        self.rows: Sequence[int] = ()
        self.versions: Sequence[int] = ()
        self.total = 0
        self.delivered = False

    def report(self, key: str, factory: ItemFactory) -> dict[str, Any]:
        """Return the answer as JSON values."""
        shown = [
            [str(factory.item_id(self.shop, row)), money(factory.price(self.shop, row, version))]
            for row, version in zip(self.rows, self.versions, strict=True)
        ]
        facts = {"number": self.number, "call": self.call, "shop": key, "page": self.page}
        return facts | {
            "size": self.size,
            "sort": self.sort,
            "total": self.total,
            "delivered": self.delivered,
            "items": shown,
        }


class Journal:
    """Answers and moves of the goods, numbered in the order in which they happened."""

    def __init__(self) -> None:
        self._entries: list[Answer | tuple[int, int, str, int]] = []

    def answer(self, call: int, shop: int, page: int, size: int, sort: str) -> Answer:
        """Begin the entry of an answer that is being rendered; `sort` is empty if it lists only some of the shop."""
        entry = Answer(len(self._entries) + 1, call, shop, page, size, sort)
        self._entries.append(entry)
        return entry

    def move(self, shop: int, kind: str, index: int) -> None:
        """Write down that an item appeared, vanished, came back or changed its price."""
        self._entries.append((len(self._entries) + 1, shop, kind, index))

    def lines(self, keys: Sequence[str], factory: ItemFactory) -> Iterator[bytes]:
        """Yield the entries, one JSON object a line; `keys` are the shops' by number."""
        for entry in self._entries:
            if isinstance(entry, Answer):
                values = entry.report(keys[entry.shop], factory)
            else:
                number, shop, kind, index = entry
                item = str(factory.item_id(shop, index))
                values = {"number": number, "shop": keys[shop], "move": kind, "item_id": item}
            yield json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
