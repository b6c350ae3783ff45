"""Items as they are seen: their rows, and the pure decision what a sighting means against what is stored."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import ROUND_HALF_UP, Decimal
from hashlib import blake2b
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import Any

import msgspec

from models.changes import KINDS, Change
from models.source import Item

FIGURES = ("gmv_30d", "gmv_90d", "sold_30d", "sold_90d", "orders_30d", "rank_score")
"""What moves by itself from day to day: a time series, of which no movement is a change of the item."""
VALUES = tuple(name for name in Item.__struct_fields__ if name not in {"item_id", *FIGURES})
"""What stands in table `item`."""
ANNOUNCED = ("title", "price")
"""What the change `new` tells of an item."""
_STEP = Decimal("0.000001")  # what PostgreSQL keeps of a decimal
_figures = attrgetter(*FIGURES)
_MARKS = tuple(f',"{name}":'.encode() for name in FIGURES)
_encode = msgspec.json.Encoder().encode  # a quarter quicker than the function that makes one

ItemKey = tuple[int, str]


class Sighting(msgspec.Struct, frozen=True, gc=False):
    """One item seen on one page of one shop crawl at one time; its rows are kept as JSON, as they go to the database.

    `seen` is its row of `item_seen`, `row` that of `item`.
    """

    shop_id: int
    shop_crawl_id: int
    seen_at: datetime
    item_id: str
    seen: msgspec.Raw
    row: msgspec.Raw

    @property
    def key(self) -> ItemKey:
        return (self.shop_id, self.item_id)

    @property
    def item(self) -> Item:
        """The item without its figures, read back from its row."""
        return msgspec.json.decode(self.row, type=Item)

    @property
    def figures(self) -> dict[str, Any]:
        """Its figures by name, read back from its row of `item_seen`."""
        seen = msgspec.json.decode(self.seen, type=Item)
        return dict(zip(FIGURES, _figures(seen), strict=True))


class _State(msgspec.Struct, omit_defaults=True):
    """What `item_seen` says of an item, decimals as plain text: on SQLite equal numbers must be equal texts."""

    item_id: str
    content_hash: int
    gmv_30d: str | None = None
    gmv_90d: str | None = None
    sold_30d: int | None = None
    sold_90d: int | None = None
    orders_30d: int | None = None
    rank_score: str | None = None


@dataclass(frozen=True, slots=True)
class Diff:
    """What became of sightings: new items, changes of tracked fields, and those that something newer went before."""

    new: list[Sighting] = field(default_factory=list)
    changed: list[Sighting] = field(default_factory=list)
    late: list[Sighting] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Difference:
    """What a sighting says otherwise than what is stored, by field: (stored, seen)."""

    sighting: Sighting
    tracked: dict[str, tuple[Any, Any]]
    rest: dict[str, tuple[Any, Any]]
    back: bool
    """It counted as gone."""


def digest(content: bytes) -> int:
    """A signed 64-bit digest."""
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "big", signed=True)


def content_hash(item: Item) -> int:
    """A digest of all values as they were sent. It is a hint: equal ones leave nothing to compare."""
    return digest(_without_figures(item, _figures(item)))


def _without_figures(item: Item, figures: tuple[Any, ...]) -> bytes:
    """The item as a JSON object without its figures, which are its last fields."""
    encoded = _encode(item)
    for mark, value in zip(_MARKS, figures, strict=True):
        if value is not None:
            # In a text the quote would stand behind a backslash, and a key of `extra` stands before: the last is ours.
            return encoded[: encoded.rindex(mark)] + b"}"
    return encoded


def plain(value: Decimal) -> str:
    """A decimal's text without idle zeros: equal numbers are equal texts."""
    text = str(value)
    if "E" in text:  # very large or very small
        return format(value.normalize(), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def sightings_of(
    items: Iterable[Item], *, shop_id: int, shop_crawl_id: int, seen_at: datetime
) -> tuple[list[Sighting], int]:
    """The sightings of a page's items, and a digest of all they say, whatever their order.

    Raises TypeError, ValueError or RecursionError for a value that JSON cannot hold.
    """
    ours = {"shop_id": shop_id, "shop_crawl_id": shop_crawl_id}
    seen = _opened(ours | {"last_seen": seen_at})
    row = _opened(ours | {"first_seen": seen_at, "changed_at": seen_at})
    sightings, states = [], []
    for item in items:
        figures = _figures(item)
        values = _without_figures(item, figures)
        state = _encode(_state(item.item_id, digest(values), figures))
        # The item's own fields follow ours, encoded without a detour over a dict.
        raws = msgspec.Raw(seen + state[1:]), msgspec.Raw(row + values[1:])
        sightings.append(Sighting(shop_id, shop_crawl_id, seen_at, item.item_id, *raws))
        states.append(state)
    return sightings, digest(b"".join(sorted(states)))


def sighting_of(item: Item, *, shop_id: int, shop_crawl_id: int, seen_at: datetime) -> Sighting:
    """The sighting of one item; raises what `sightings_of` raises."""
    (sighting,), _digest = sightings_of([item], shop_id=shop_id, shop_crawl_id=shop_crawl_id, seen_at=seen_at)
    return sighting


def _opened(values: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode(values)[:-1] + b","


def _state(item_id: str, content_hash: int, figures: tuple[Any, ...]) -> _State:
    gmv_30d, gmv_90d, sold_30d, sold_90d, orders_30d, rank_score = figures
    return _State(
        item_id, content_hash,
        gmv_30d if gmv_30d is None else plain(gmv_30d), gmv_90d if gmv_90d is None else plain(gmv_90d),
        sold_30d, sold_90d, orders_30d, rank_score if rank_score is None else plain(rank_score),
    )  # fmt: skip


def waves(sightings: Iterable[Sighting]) -> list[list[Sighting]]:
    """Sightings to be applied one wave after the other: in each every item once, in an order that all writers share.

    Of two sightings of an item at one moment the last one given counts.
    """
    latest = {(s.shop_id, s.item_id, s.seen_at): s for s in sightings}
    found: dict[int, list[Sighting]] = defaultdict(list)
    for _key, group in groupby(sorted(latest), key=itemgetter(0, 1)):
        for number, place in enumerate(group):
            found[number].append(latest[place])
    return list(found.values())


def difference(
    stored: Mapping[str, Any], sighting: Sighting, tracked: Collection[str], *, back: bool = False
) -> Difference:
    """Compare a sighting with the stored values; a field that was not sent is no difference."""
    item = sighting.item
    moved = {
        name: (stored[name], value)
        for name in VALUES
        if (value := getattr(item, name)) is not None and not same(stored[name], value)
    }
    return Difference(
        sighting,
        tracked={name: values for name, values in moved.items() if name in tracked},
        rest={name: values for name, values in moved.items() if name not in tracked},
        back=back,
    )


def same(stored: Any, seen: Any) -> bool:
    """Whether two values are equal, decimals as far as the database keeps them."""
    if isinstance(stored, Decimal) and isinstance(seen, Decimal) and stored != seen:
        return stored.quantize(_STEP, ROUND_HALF_UP) == seen.quantize(_STEP, ROUND_HALF_UP)
    return bool(stored == seen)


def changes_of(found: Difference) -> list[Change]:
    """The events that a difference is: one for each kind of field that changed, and perhaps `back`."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for name in found.tracked:
        kinds[KINDS.get(name, name)].append(name)
    changes = [_change(found.sighting, "back")] if found.back else []
    for kind, names in kinds.items():
        before, after = ({name: found.tracked[name][side] for name in names} for side in (0, 1))
        changes.append(_change(found.sighting, kind, before, after))
    return changes


def news_of(sighting: Sighting) -> Change:
    """The event that an item was seen for the first time."""
    item = sighting.item
    shown = {name: value for name in ANNOUNCED if (value := getattr(item, name)) is not None}
    return _change(sighting, "new", None, shown)


def _change(
    sighting: Sighting, kind: str, before: dict[str, Any] | None = None, after: dict[str, Any] | None = None
) -> Change:
    at, shop_crawl_id = sighting.seen_at, sighting.shop_crawl_id
    return Change(sighting.shop_id, sighting.item_id, kind, at, shop_crawl_id, before, after)
