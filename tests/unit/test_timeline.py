"""What one more observation makes of an item's history: a table of cases, and histories invented by Hypothesis."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.timeline import Entry, Timeline, completed, corrected

START = datetime(2026, 3, 1, tzinfo=UTC)
NAMES = ("price", "unit")


def entry(at: int, price: int | None, unit: str | None = "PCS", rest: object = None) -> Entry:
    """An observation `at` hours after START, made by a shop crawl of that number."""
    return Entry(START + timedelta(hours=at), at, {"price": price, "unit": unit, "props": rest})


def hours(timeline: Sequence[Entry]) -> list[tuple[int, Any]]:
    return [(each.shop_crawl_id, each.values["price"]) for each in timeline]


CASES = {
    "equal to the entry that covers it": ((3, 1), [(1, 1), (5, 2)]),
    "other values inside a past entry": ((3, 9), [(1, 1), (3, 9), (5, 2)]),
    "other values at the start of an entry": ((5, 9), [(1, 1), (5, 9)]),
    "the predecessor's values at the start of an entry": ((5, 1), [(1, 1)]),
    "the successor's values inside an entry": ((3, 2), [(1, 1), (3, 2)]),
    "the successor's values at the start of an entry": ((1, 2), [(1, 2)]),
    "before everything, like the first entry": ((0, 1), [(0, 1), (5, 2)]),
    "before everything, other values": ((0, 9), [(0, 9), (1, 1), (5, 2)]),
    "inside the newest entry, which was seen since": ((7, 9), [(1, 1), (5, 2), (7, 9), (9, 2)]),
    "the newest observation, read otherwise": ((9, 9), [(1, 1), (5, 2), (9, 9)]),
}


@pytest.mark.parametrize("case", CASES)
def test_an_observation_corrects_what_it_contradicts_and_nothing_else(case: str) -> None:
    (at, price), expected = CASES[case]
    timeline = [entry(1, 1), entry(5, 2)]
    assert hours(corrected(timeline, entry(at, price), (START + timedelta(hours=9), 9), NAMES)) == expected


def test_fields_that_do_not_count_stay_as_they_were_seen_last() -> None:
    timeline = [entry(5, 2, rest="new")]
    newest = (START + timedelta(hours=9), 9)
    (moved,) = corrected(timeline, entry(1, 2, rest="old"), newest, NAMES)
    assert (moved.at, moved.values["props"]) == (START + timedelta(hours=1), "new")
    (in_place,) = corrected(timeline, entry(5, 7, rest="old"), newest, NAMES)
    assert (in_place.values["price"], in_place.values["props"]) == (7, "new")


def test_what_an_observation_does_not_tell_is_as_it_was_just_before() -> None:
    timeline = [entry(1, 1, "PCS"), entry(5, 2, "BOX")]
    assert completed(timeline, entry(5, 3, None)).values["unit"] == "PCS"
    assert completed(timeline, entry(6, 3, None)).values["unit"] == "BOX"
    assert completed(timeline, entry(1, 3, None)).values["unit"] is None


Decoder = Callable[[tuple[int, int | None]], tuple[int | None, str | None]]
raw = st.lists(st.tuples(st.integers(0, 3), st.one_of(st.none(), st.integers(0, 1))), min_size=1, max_size=9)
tables = st.fixed_dictionaries({number: st.integers(0, 2) for number in range(4)})


def decoder(table: dict[int, int], *, knows_unit: bool) -> Decoder:
    """One that reads prices by a table, and a unit that may not be sent."""

    def decode(value: tuple[int, int | None]) -> tuple[int | None, str | None]:
        number, unit = value
        return table[number], None if unit is None or not knows_unit else f"unit {unit}"

    return decode


def observations(values: Sequence[tuple[int, int | None]], decode: Decoder) -> list[Entry]:
    return [entry(at, *decode(value)) for at, value in enumerate(values)]


class History:
    """What a crawler keeps: it follows new observations, and hands late ones to `corrected`."""

    def __init__(self) -> None:
        self.timeline: Timeline = []
        self.newest = (START - timedelta(hours=1), -1)

    def observe(self, *seen: Entry) -> "History":
        for each in seen:
            whole = completed(self.timeline, each)
            if each.at > self.newest[0]:
                self.newest = (each.at, each.shop_crawl_id)
                if not self.timeline or not self._like_last(whole):
                    self.timeline = [*self.timeline, whole]
            else:
                self.timeline = corrected(self.timeline, whole, self.newest, NAMES)
        return self

    def _like_last(self, seen: Entry) -> bool:
        return all(self.timeline[-1].values[name] == seen.values[name] for name in NAMES)


@given(raw, tables, st.data())
def test_seeing_again_what_was_seen_changes_nothing_in_any_order(
    values: list[tuple[int, int | None]], table: dict[int, int], data: st.DataObject
) -> None:
    seen = observations(values, decoder(table, knows_unit=True))
    history = History().observe(*seen)
    before = list(history.timeline)
    again = data.draw(st.lists(st.sampled_from(seen), max_size=20))
    assert history.observe(*again).timeline == before


@given(raw, tables, tables, st.booleans(), st.booleans())
def test_another_decoder_over_all_observations_leaves_the_history_it_would_have_made(
    values: list[tuple[int, int | None]], old: dict[int, int], new: dict[int, int], before: bool, now: bool
) -> None:
    history = History().observe(*observations(values, decoder(old, knows_unit=before)))
    again = observations(values, decoder(new, knows_unit=now))
    assert history.observe(*again).timeline == History().observe(*again).timeline


@given(raw, tables, st.data())
def test_observations_that_came_in_any_order_are_put_right_by_seeing_all_in_theirs(
    values: list[tuple[int, int | None]], table: dict[int, int], data: st.DataObject
) -> None:
    seen = observations(values, decoder(table, knows_unit=True))
    history = History().observe(*data.draw(st.permutations(seen)))
    assert history.observe(*seen).timeline == History().observe(*seen).timeline


@given(raw, tables, st.data())
def test_a_history_is_always_in_order_without_like_neighbours_and_ends_as_seen_last(
    values: list[tuple[int, int | None]], table: dict[int, int], data: st.DataObject
) -> None:
    seen = [entry(at, price, "PCS") for at, (price, _) in enumerate(values)]
    history = History()
    for each in data.draw(st.permutations(seen)):
        history.observe(each)
        pairs = list(zip(history.timeline, history.timeline[1:], strict=False))
        assert all(one.at < two.at for one, two in pairs)
        assert all(one.values["price"] != two.values["price"] for one, two in pairs)
        newest = seen[history.newest[1]]
        assert history.timeline[-1].values["price"] == newest.values["price"]
