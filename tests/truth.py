"""What a reader of a moving market could have observed, worked out from its answers by the rules alone."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

SLACK = 2
"""Complete crawls that an honest reader may take longer than needed: not every absence is proved by every crawl."""

Key = tuple[str, str]
"""(shop, item id)"""


class Answer(NamedTuple):
    """What one answer showed: `number` is its place among all that happened, `at` when the reader had it."""

    number: int
    shop: str
    crawl: int
    at: datetime
    items: Sequence[tuple[str, str]]
    """Item id and price of each row."""
    in_order: bool = False
    """It shows a stretch of all items in the order of the goods, as it was at one moment."""
    begins: bool = False
    ends: bool = False
    """It shows the first items, or the last ones."""


class Move(NamedTuple):
    """The goods moved: an item appeared, vanished, came back (`restore`) or changed its price (`reprice`)."""

    number: int
    shop: str
    kind: str
    item: str


class Event(NamedTuple):
    """A change as the store has it, or as it should have it; `before` and `after` are prices."""

    kind: str
    shop: str
    item: str
    crawl: int
    at: datetime | None = None
    before: str | None = None
    after: str | None = None

    @property
    def undated(self) -> "Event":
        """The event without its time."""
        return self._replace(at=None)


class Delivery(NamedTuple):
    """One item in one answer."""

    at: datetime
    crawl: int
    price: str


@dataclass
class Account:
    """Events of one kind: how many there should be, how many there are, and which are missing, too many or misdated."""

    expected: int = 0
    found: int = 0
    missed: list[Event] = field(default_factory=list)
    false: list[Event] = field(default_factory=list)
    misdated: list[Event] = field(default_factory=list)

    @property
    def is_right(self) -> bool:
        """Whether every event is there, dated right, and no other."""
        return not (self.missed or self.false or self.misdated)


@dataclass
class Story:
    """Everything that happened to a market and its reader.

    `goods` are all items that were ever on sale, in order, `verdicts` the reader's own, by shop and crawl. An item
    counts as gone after `gone_after` complete crawls without it. It has to at the latest after `slack` more, if it was
    off sale all the time and each of these crawls had the stretch in which it would have stood.
    """

    goods: Sequence[Key]
    answers: Sequence[Answer]
    moves: Sequence[Move]
    verdicts: dict[tuple[str, int], str]
    gone_after: int = 2
    slack: int = SLACK

    @cached_property
    def deliveries(self) -> dict[Key, list[Delivery]]:
        """When each item was had, in the order in which the reader had the answers."""
        found: dict[Key, list[Delivery]] = defaultdict(list)
        for answer in sorted(self.answers, key=lambda answer: (answer.at, answer.number)):
            for item, price in answer.items:
                found[answer.shop, item].append(Delivery(answer.at, answer.crawl, price))
        return dict(found)

    @cached_property
    def windows(self) -> dict[tuple[str, int], tuple[int, int]]:
        """From which answer to which a crawl looked at a shop."""
        found: dict[tuple[str, int], tuple[int, int]] = {}
        for answer in self.answers:
            first, last = found.get((answer.shop, answer.crawl), (answer.number, answer.number))
            found[answer.shop, answer.crawl] = (min(first, answer.number), max(last, answer.number))
        return found

    @cached_property
    def turns(self) -> dict[Key, list[tuple[int, bool]]]:
        """From when on each item that ever moved was on sale, or not, in order."""
        found: dict[Key, list[tuple[int, bool]]] = {}
        for move in sorted(self.moves, key=lambda move: move.number):
            if move.kind == "reprice":
                continue
            turns = found.setdefault((move.shop, move.item), [(0, move.kind != "appear")])
            turns.append((move.number, move.kind != "vanish"))
        return found

    def states(self, key: Key, first: int, last: int) -> set[bool]:
        """Whether the item was on sale from `first` to `last`: always, never or both."""
        turns = self.turns.get(key, [(0, True)])
        before = [on_sale for number, on_sale in turns if number <= first][-1]
        return {before} | {on_sale for number, on_sale in turns if first < number <= last}

    @cached_property
    def places(self) -> dict[Key, int]:
        """Where each item stands in the order of all goods."""
        return {key: place for place, key in enumerate(self.goods)}

    @cached_property
    def stretches(self) -> dict[tuple[str, int], list[tuple[int, int]]]:
        """From which place to which each crawl looked at a shop at one moment without a gap."""
        found: dict[tuple[str, int], list[tuple[int, int]]] = defaultdict(list)
        for answer in self.answers:
            places = [self.places[answer.shop, item] for item, _ in answer.items]
            if answer.in_order and places:
                first = -1 if answer.begins else places[0]
                found[answer.shop, answer.crawl].append((first, len(self.goods) if answer.ends else places[-1]))
        return dict(found)

    def looked(self, key: Key, crawl: int) -> bool:
        """Whether a crawl looked where the item would have stood."""
        place = self.places[key]
        return any(first < place < last for first, last in self.stretches.get((key[0], crawl), []))

    def complete(self, shop: str) -> list[int]:
        """The shop's complete crawls that looked at it, in order."""
        return self._complete.get(shop, [])

    @cached_property
    def _complete(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = defaultdict(list)
        for shop, crawl in sorted(self.windows):
            if self.verdicts[shop, crawl] == "complete":
                found[shop].append(crawl)
        return dict(found)

    def prices(self) -> dict[Key, list[tuple[datetime, str]]]:
        """The prices of each item and when each was first seen: its history."""
        return {key: list(_runs(found)) for key, found in self.deliveries.items()}

    def new_events(self) -> list[Event]:
        """Items first had after the shop's first complete crawl."""
        firsts = ((key, found[0]) for key, found in self.deliveries.items())
        return [
            Event("new", shop, item, first.crawl, first.at)
            for (shop, item), first in firsts
            if self.complete(shop) and first.crawl > self.complete(shop)[0]
        ]

    def price_events(self) -> list[Event]:
        """Successive deliveries of an item with different prices."""
        return [
            Event("price", shop, item, new.crawl, new.at, old.price, new.price)
            for (shop, item), found in self.deliveries.items()
            for old, new in pairwise(found)
            if old.price != new.price
        ]

    def back_events(self, gone: Iterable[Event]) -> list[Event]:
        """Items had again after they were found gone."""
        events = []
        for event in gone:
            later = [had for had in self.deliveries.get((event.shop, event.item), []) if had.crawl > event.crawl]
            events += [Event("back", event.shop, event.item, had.crawl, had.at) for had in later[:1]]
        return events

    def spells(self) -> Iterator[tuple[Key, list[int]]]:
        """For each time that an item was not had for a while: the complete crawls without it, in order."""
        for key, found in self.deliveries.items():
            crawls = sorted({had.crawl for had in found})
            complete = self.complete(key[0])
            for last, following in zip(crawls, [*crawls[1:], None], strict=True):
                yield key, [crawl for crawl in complete if last < crawl and (following is None or crawl < following)]

    def judge_gone(self, gone: Sequence[Event]) -> Account:
        """Which of these are false, and which must be there: `expected` counts only the latter."""
        account = Account(found=len(gone))
        by_item: dict[Key, list[Event]] = defaultdict(list)
        for event in gone:
            by_item[event.shop, event.item].append(event)
        for key, without in self.spells():
            found = [event for event in by_item.get(key, []) if event.crawl in without]
            true = [event for event in found[:1] if self._is_gone(key, without, event.crawl)]
            account.false += found[len(true) :]
            for event in found:
                by_item[key].remove(event)
            deadline = self._deadline(key, without)
            if deadline is not None:
                account.expected += 1
                if not any(event.crawl <= deadline for event in true):
                    account.missed.append(Event("gone", *key, deadline))
        account.false += [event for events in by_item.values() for event in events]
        return account

    def _is_gone(self, key: Key, without: Sequence[int], crawl: int) -> bool:
        """Whether the item was off sale at some time in that complete crawl and in enough of those before it."""
        off = [c for c in without if c <= crawl and False in self.states(key, *self.windows[key[0], c])]
        return len(off) >= self.gone_after and off[-1] == crawl

    def _deadline(self, key: Key, without: Sequence[int]) -> int | None:
        """The crawl by which the item must have been found gone, if it was off sale all through enough of them."""
        needed = self.gone_after + self.slack
        looked = [crawl for crawl in without if self.looked(key, crawl)]
        for place in range(len(looked) - needed + 1):
            first, last = looked[place], looked[place + needed - 1]
            if self.states(key, self.windows[key[0], first][0], self.windows[key[0], last][1]) == {False}:
                return last
        return None

    def unlucky(self, gone: Iterable[Event]) -> list[Event]:
        """Those found gone that came back before the crawl ended, where it had looked already: none could know."""
        return [
            event
            for event in gone
            if self.states((event.shop, event.item), *[self.windows[event.shop, event.crawl][1]] * 2) == {True}
        ]

    def overlooked(self) -> Counter[tuple[str, int]]:
        """Items on sale all through a complete crawl that did not have them, by shop and crawl."""
        had = {(shop, had.crawl, item) for (shop, item), found in self.deliveries.items() for had in found}
        return Counter(
            (shop, crawl)
            for shop, item in self.goods
            for crawl in self.complete(shop)
            if (shop, crawl, item) not in had and self.states((shop, item), *self.windows[shop, crawl]) == {True}
        )

    def judge(self, events: Sequence[Event]) -> dict[str, Account]:
        """Hold all events of a store against what could be observed, by kind; `other` is what cannot have happened."""
        of = {kind: [event for event in events if event.kind == kind] for kind in ("new", "price", "gone", "back")}
        accounts = {
            "new": _compare(self.new_events(), of["new"]),
            "price": _compare(self.price_events(), of["price"]),
            "gone": self.judge_gone(of["gone"]),
            "back": _compare(self.back_events(of["gone"]), of["back"]),
        }
        other = [event for event in events if event.kind not in of]
        return accounts | {"other": Account(found=len(other), false=other)}


def _runs(found: Sequence[Delivery]) -> Iterator[tuple[datetime, str]]:
    before = None
    for had in found:
        if had.price != before:
            yield had.at, had.price
        before = had.price


def _compare(expected: Sequence[Event], found: Sequence[Event]) -> Account:
    """Events match whatever their times; of those that match, the ones with another time are misdated."""
    wanted, had = Counter(event.undated for event in expected), Counter(event.undated for event in found)
    missed, false = wanted - had, had - wanted
    stray = Counter(found) - Counter(expected)
    misdated = [event for event in stray.elements() if event.undated not in false]
    return Account(len(expected), len(found), list(missed.elements()), list(false.elements()), misdated)
