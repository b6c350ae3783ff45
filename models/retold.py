"""Which changes a history tells, and what makes those of one history those of another; purely."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any

import msgspec

from models.changes import Change
from models.items import ANNOUNCED, Difference, Sighting, changes_of
from models.timeline import Timeline, alike

_NOTHING = msgspec.Raw(b"")


def changes_told(
    row: Mapping[str, Any], timeline: Timeline, first_seen: datetime, tracked: Collection[str]
) -> list[Change]:
    """The changes that a part of an item's timeline tells: `new` at its beginning, and those at each boundary.

    `row` has the item's `shop_id` and `item_id`, and its shop's `baseline_at`.
    """
    shop_id, item_id, baseline = row["shop_id"], row["item_id"], row["baseline_at"]
    found = []
    first = timeline[0]
    if first.at == first_seen and baseline is not None and first_seen > baseline:
        shown = {name: value for name in ANNOUNCED if (value := first.values[name]) is not None}
        found.append(Change(shop_id, item_id, "new", first.at, first.shop_crawl_id, None, shown))
    for one, two in pairwise(timeline):
        names = [name for name in tracked if not alike(one, two, (name,))]
        sides = {name: (one.values.get(name), two.values.get(name)) for name in names}
        sighting = Sighting(shop_id, two.shop_crawl_id, two.at, item_id, _NOTHING, _NOTHING)
        found += changes_of(Difference(sighting, sides, {}, back=False))
    return found


def rewritten(
    before: Sequence[Change], after: Sequence[Change]
) -> tuple[list[tuple[Change, Change]], list[Change], list[Change]]:
    """What makes one list of changes the other: (changes that become others of their kind, those gone, those added).

    One at the same time goes first: it is the same event, told better.
    """
    old = {(each.kind, each.at): each for each in before}
    new = {(each.kind, each.at): each for each in after}
    pairs = [(old.pop(place), new.pop(place)) for place in list(old) if place in new]
    pairs = [(one, two) for one, two in pairs if one != two]
    for kind in sorted({kind for kind, _at in old}):
        lost = sorted(place for place in old if place[0] == kind)
        won = sorted(place for place in new if place[0] == kind)
        pairs += [(old.pop(one), new.pop(two)) for one, two in zip(lost, won, strict=False)]
    return pairs, list(old.values()), list(new.values())
