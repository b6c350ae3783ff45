"""The oracle of the truth tests agrees with an honest reader, and finds out every dishonest one."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.truth import Answer, Event, Move, Story

SHOP = "a"
START = datetime(2026, 3, 1, tzinfo=UTC)


@dataclass
class Toy:
    """One shop of a few items, and a reader of it that remembers prices, misses and who is gone.

    A complete crawl sees everything at once; a partial one sees some items and then others, while the goods move.
    """

    sale: dict[str, int]
    answers: list[Answer] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    verdicts: dict[tuple[str, int], str] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    known: dict[str, str] = field(default_factory=dict)
    misses: dict[str, int] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    away: list[str] = field(default_factory=list)
    number: int = 0
    crawl: int = 0
    born: int = 0

    def step(self) -> int:
        self.number += 1
        return self.number

    def move(self, kind: str, item: str) -> None:
        """Let the goods move."""
        self.moves.append(Move(self.step(), SHOP, kind, item))
        if kind == "vanish":
            self.away.append(item)
            del self.sale[item]
        elif kind == "restore":
            self.away.remove(item)
        if kind != "vanish":
            self.sale[item] = self.step()

    def move_somehow(self, random: Random) -> None:
        """Let the goods move by chance."""
        kind = random.choice(("appear", "vanish", "restore", "reprice"))
        if kind == "appear":
            self.born += 1
            self.move(kind, f"born-{self.born}")
        elif pool := sorted(self.away if kind == "restore" else self.sale):
            self.move(kind, random.choice(pool))

    def answer(self, items: Sequence[str]) -> None:
        """Show these items to the reader."""
        number = self.step()
        at = START + timedelta(seconds=number)
        shown = [(item, str(self.sale[item])) for item in items]
        whole = sorted(items) == sorted(self.sale)
        self.answers.append(Answer(number, SHOP, self.crawl, at, shown, whole, whole, whole))
        had_baseline = "complete" in self.verdicts.values()
        for item, price in shown:
            before = self.known.get(item)
            if before is None and had_baseline:
                self.events.append(Event("new", SHOP, item, self.crawl, at))
            if before is not None and before != price:
                self.events.append(Event("price", SHOP, item, self.crawl, at, before, price))
            if item in self.gone:
                self.events.append(Event("back", SHOP, item, self.crawl, at))
            self.known[item] = price
            self.misses[item] = 0
            self.gone.discard(item)

    def whole(self) -> None:
        """Crawl everything at once."""
        self.crawl += 1
        self.answer(sorted(self.sale))
        self.verdicts[SHOP, self.crawl] = "complete"
        for item in self.known.keys() - self.sale.keys():
            self.misses[item] += 1
            if self.misses[item] >= 2 and item not in self.gone:
                self.gone.add(item)
                self.events.append(Event("gone", SHOP, item, self.crawl))

    def part(self, random: Random) -> None:
        """Crawl some of it while it moves."""
        self.crawl += 1
        for _ in range(3):
            self.answer(random.sample(sorted(self.sale), random.randint(0, len(self.sale))))
            self.move_somehow(random)
        self.verdicts[SHOP, self.crawl] = random.choice(("partial", "drifted", "failed", "suspect"))

    @property
    def story(self) -> Story:
        goods = {(SHOP, item) for answer in self.answers for item, _ in answer.items}
        return Story(sorted(goods | {(SHOP, item) for item in self.sale}), self.answers, self.moves, self.verdicts)

    def right(self, events: Sequence[Event] | None = None) -> dict[str, bool]:
        """Which kinds of events are as they should be."""
        judged = self.story.judge(self.events if events is None else events)
        return {kind: account.is_right for kind, account in judged.items()}


@given(st.integers(0, 2**32), st.lists(st.sampled_from(["whole", "part", "move", "move"]), max_size=25))
def test_the_events_of_an_honest_reader_are_right(seed: int, steps: list[str]) -> None:
    random, toy = Random(seed), Toy({f"item-{number}": 1 for number in range(4)})
    for step in steps:
        if step == "whole":
            toy.whole()
        elif step == "part":
            toy.part(random)
        else:
            toy.move_somehow(random)
    assert set(toy.right().values()) == {True}
    assert not toy.story.overlooked()
    gone = [event for event in toy.events if event.kind == "gone"]
    assert not toy.story.unlucky(gone)
    assert {item for _, item in toy.story.prices()} == toy.known.keys()
    assert all(history[-1][1] == toy.known[item] for (_, item), history in toy.story.prices().items())


@pytest.fixture
def eventful() -> Toy:
    """Everything happens once, to one item each, in six whole crawls."""
    toy = Toy({"dear": 1, "stays": 1, "leaves": 1, "returns": 1})
    toy.whole()
    toy.move("vanish", "leaves")
    toy.move("vanish", "returns")
    toy.move("reprice", "dear")
    toy.move("appear", "newcomer")
    for _ in range(4):
        toy.whole()
    toy.move("restore", "returns")
    toy.whole()
    return toy


def test_everything_that_happened_is_expected(eventful: Toy) -> None:
    judged = eventful.story.judge(eventful.events)
    counts = {kind: (account.expected, account.found) for kind, account in judged.items()}
    assert counts == {"new": (1, 1), "price": (2, 2), "gone": (2, 2), "back": (1, 1), "other": (0, 0)}
    assert all(account.is_right for account in judged.values())


@pytest.mark.parametrize("kind", ["new", "price", "gone", "back"])
def test_an_event_that_is_left_out_told_twice_or_about_another_item_is_found_out(eventful: Toy, kind: str) -> None:
    place = next(place for place, event in enumerate(eventful.events) if event.kind == kind)
    event, others = eventful.events[place], eventful.events[:place] + eventful.events[place + 1 :]
    for told in (others, [*others, event, event], [*others, event._replace(item="stays")]):
        assert not eventful.right(told)[kind]


@pytest.mark.parametrize("kind", ["new", "price", "back"])
def test_an_event_with_another_time_is_misdated(eventful: Toy, kind: str) -> None:
    told = [event._replace(at=START) if event.kind == kind else event for event in eventful.events]
    account = eventful.story.judge(told)[kind]
    assert account.misdated
    assert not (account.missed or account.false)


def test_an_event_of_a_kind_that_cannot_happen_is_false(eventful: Toy) -> None:
    assert not eventful.right([*eventful.events, Event("title", SHOP, "stays", 2)])["other"]


def test_an_item_found_gone_too_early_or_in_a_crawl_that_is_not_complete_is_a_false_delisting(eventful: Toy) -> None:
    gone = next(event for event in eventful.events if event.kind == "gone")
    for crawl, right in ((1, False), (2, False), (3, True), (4, True), (5, True)):
        account = eventful.story.judge_gone([gone._replace(crawl=crawl)])
        assert (account.false == []) == right
    eventful.verdicts[SHOP, 2] = "partial"
    assert eventful.story.judge_gone([gone]).false == [gone]


def test_an_item_found_gone_that_was_only_overlooked_is_a_false_delisting() -> None:
    toy = Toy({"first": 1, "second": 1})
    toy.whole()
    for _ in range(2):
        toy.crawl += 1
        toy.answer(["first"])
        toy.verdicts[SHOP, toy.crawl] = "complete"
    false = Event("gone", SHOP, "second", 3)
    assert toy.story.judge_gone([false]).false == [false]
    assert toy.story.overlooked() == {(SHOP, 2): 1, (SHOP, 3): 1}


def test_an_item_that_came_back_behind_the_readers_back_was_found_gone_rightly() -> None:
    toy = Toy({"first": 1, "second": 1})
    toy.whole()
    toy.move("vanish", "second")
    toy.whole()
    toy.whole()
    toy.move("restore", "second")
    toy.answer(["first"])
    gone = Event("gone", SHOP, "second", 3)
    account = toy.story.judge_gone([gone])
    assert (account.false, account.missed, account.expected) == ([], [], 0)
    assert toy.story.unlucky([gone]) == [gone]


def test_an_item_need_not_be_found_gone_where_nobody_looked() -> None:
    toy = Toy({"first": 1, "second": 1, "third": 1})
    toy.whole()
    toy.move("vanish", "second")
    for crawls in range(1, 9):
        toy.crawl += 1
        toy.answer(["first"])
        toy.answer(["third"] if crawls % 2 else ["first", "third"])
        toy.verdicts[SHOP, toy.crawl] = "complete"
        assert len(toy.story.judge_gone([]).missed) == (crawls >= 8), "every other crawl saw what was beside it"


def test_an_item_must_be_found_gone_after_enough_complete_crawls_without_it() -> None:
    toy = Toy({"first": 1, "second": 1})
    toy.whole()
    toy.move("vanish", "second")
    for crawls in range(1, 6):
        toy.whole()
        assert len(toy.story.judge_gone([]).missed) == (crawls >= 4)
    late = Event("gone", SHOP, "second", 6)
    assert toy.story.judge_gone([late]).missed
    assert not toy.story.judge_gone([late._replace(crawl=5)]).missed
