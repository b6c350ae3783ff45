"""How an item was over time, decided purely: a list of entries, and what one more observation makes of it."""

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from models.items import same


class Entry(msgspec.Struct, frozen=True):
    """From when on these values were seen, and by which shop crawl first; they hold until the next entry."""

    at: datetime
    shop_crawl_id: int
    values: Mapping[str, Any]


Timeline = Sequence[Entry]
"""Entries in order of time, no two next to each other alike; the last one holds until now."""


def alike(one: Entry, other: Entry, names: Collection[str]) -> bool:
    """Whether two entries agree in the fields that count."""
    return all(same(one.values.get(name), other.values.get(name)) for name in names)


def completed(timeline: Timeline, seen: Entry) -> Entry:
    """The observation with what it does not tell (None) taken from the values in force just before it."""
    place = bisect_left(timeline, seen.at, key=_at)
    if place == 0 or None not in seen.values.values():
        return seen
    before = timeline[place - 1].values
    whole = {name: before.get(name) if value is None else value for name, value in seen.values.items()}
    return Entry(seen.at, seen.shop_crawl_id, whole)


def corrected(timeline: Timeline, seen: Entry, newest: tuple[datetime, int], names: Collection[str]) -> Timeline:
    """The timeline with one observation more, made no later than the newest one.

    `newest` is when, and by which shop crawl, the last entry's values were seen last: they hold from then on in any
    case. An entry that starts at the very moment of the observation was read from the same answer: it is corrected in
    the fields that count. One that starts earlier is split. Entries next to each other that become alike are one.
    """
    place = bisect_right(timeline, seen.at, key=_at)
    before, after = list(timeline[:place]), list(timeline[place:])
    if before and alike(before[-1], seen, names):
        return timeline
    if before and before[-1].at == seen.at:
        # The other fields may have been seen since, and are not of this moment.
        seen = Entry(
            seen.at, seen.shop_crawl_id, {**before[-1].values, **{name: seen.values.get(name) for name in names}}
        )
        before.pop()
    elif before and not after and seen.at < newest[0]:
        after = [Entry(*newest, before[-1].values)]
    if before and alike(before[-1], seen, names):
        seen = _joined(before.pop(), seen)
    if after and alike(seen, after[0], names):
        seen = _joined(seen, after.pop(0))
    return [*before, seen, *after]


def _joined(one: Entry, other: Entry) -> Entry:
    """Two like neighbours as one: since the first, with the other fields as the second has them."""
    return Entry(one.at, one.shop_crawl_id, other.values)


def _at(entry: Entry) -> datetime:
    return entry.at
