"""The shops of the simulated market: their keys, sizes, and how their goods come, go and change price."""

import csv
from bisect import insort
from collections.abc import Iterator, MutableSequence, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from random import Random
from typing import Literal, TextIO

Profile = Literal["skewed", "uniform"]

# Share of the shops, fewest and most items: about five pages a shop at 20 a page, most of them in few shops.
_SKEW = (
    (0.02, 0, 0),
    (0.52, 1, 40),
    (0.10, 20, 60),  # rounded to full pages: the end of data is then only seen on an empty page
    (0.28, 41, 180),
    (0.07, 181, 700),
    (0.01, 2_000, 2_800),
)
_FULL_PAGES = 2
_PAGE = 20
_NAMES = (
    "jane",
    "babyyy",
    "yiwu",
    "shipin",
    "haoyun",
    "lucky",
    "tianhe",
    "meijia",
    "xinyuan",
    "dgfactory",
    "hzleather",
)


@dataclass(slots=True)
class Life:
    """What happened to one item since the start, by call number."""

    appeared_at: int | None = None
    vanished_at: int | None = None
    was_away: bool = False
    repriced_at: list[int] = field(default_factory=list)


class Shop:
    """One shop; items are indexes in order of creation, those on sale are `alive`."""

    __slots__ = ("alive", "key", "lives", "next_index", "number", "revision")

    def __init__(self, key: str, number: int, size: int) -> None:
        self.key = key
        self.number = number
        self.alive: Sequence[int] = range(size)
        self.next_index = size
        self.revision = 0
        self.lives: dict[int, Life] = {}

    def version(self, index: int) -> int:
        """Return how often an item has changed its price."""
        life = self.lives.get(index)
        return len(life.repriced_at) if life else 0

    def appear(self, call: int) -> int:
        """Put a new item on sale and return its index."""
        index = self.next_index
        self.next_index += 1
        self._mutable().append(index)
        self.lives[index] = Life(appeared_at=call)
        return index

    def vanish(self, index: int, call: int) -> None:
        """Take an item off sale; ValueError if it is not on sale."""
        self._mutable().remove(index)
        life = self._life(index)
        life.vanished_at, life.was_away = call, True

    def restore(self, index: int) -> None:
        """Put a vanished item back at its old place; ValueError if it is on sale."""
        if index in self.alive:
            raise ValueError(f"item {index} is on sale")
        insort(self._mutable(), index)
        self._life(index).vanished_at = None

    def reprice(self, index: int, call: int) -> None:
        """Change price and sales of an item."""
        self.revision += 1
        self._life(index).repriced_at.append(call)

    def vanished(self) -> list[int]:
        """Return the items off sale, oldest first."""
        return sorted(index for index, life in self.lives.items() if life.vanished_at is not None)

    def _life(self, index: int) -> Life:
        return self.lives.setdefault(index, Life())

    def _mutable(self) -> MutableSequence[int]:
        self.revision += 1
        if not isinstance(self.alive, list):
            self.alive = list(self.alive)
        return self.alive


def build_shops(
    seed: int,
    count: int,
    profile: Profile = "skewed",
    *,
    items_min: int | None = None,
    items_max: int | None = None,
    extra: Sequence[tuple[str, int]] = (),
) -> dict[str, Shop]:
    """Return shops by key, equal for equal arguments: `extra` (key, items) first, then `count` drawn ones."""
    random = Random(f"shops:{seed}")
    sizes = [size for _, size in extra] + list(_sizes(random, count, profile, items_min, items_max))
    keys = [key for key, _ in extra] + [_key(seed, number) for number in range(count)]
    return {key: Shop(key, number, size) for number, (key, size) in enumerate(zip(keys, sizes, strict=True))}


def write_shops(shops: dict[str, Shop], out: TextIO) -> None:
    """Write the shop keys as CSV with the header `shop`."""
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["shop"])
    writer.writerows([key] for key in shops)


def _key(seed: int, number: int) -> str:
    digest = blake2b(f"{seed}/{number}".encode(), digest_size=8).hexdigest()
    if number % 2:
        return f"b2b-{2_200_000_000_000 + number}{digest[:10]}"
    return f"{_NAMES[number // 2 % len(_NAMES)]}{number}{digest[:4]}"


def _sizes(random: Random, count: int, profile: Profile, fewest: int | None, most: int | None) -> Iterator[int]:
    if profile == "uniform":
        low = 0 if fewest is None else fewest
        high = max(low, 100 if most is None else most)
        yield from (random.randint(low, high) for _ in range(count))
        return
    ranks = list(range(count))
    random.shuffle(ranks)  # each size class gets its exact share of the shops, spread over the list
    for rank in ranks:
        size = _skewed_size(random, (rank + 0.5) / count)
        size = size if most is None else min(size, most)
        yield size if fewest is None else max(size, fewest)


def _skewed_size(random: Random, position: float) -> int:
    for kind, (share, low, high) in enumerate(_SKEW):
        if position < share:
            size = random.randint(low, high)
            return size // _PAGE * _PAGE if kind == _FULL_PAGES else size
        position -= share
    return 1
