"""In which steps pages and settled shop crawls are told, and which changes a corrected history tells."""

from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.changes import Change
from models.retold import changes_told, rewritten
from models.timeline import Entry
from producer.archive.replay import Read, steps
from tests.ledger import START

TRACKED = ("title", "price", "agent_price", "unit")
events = st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=25)


def at(tick: int) -> datetime:
    return START + timedelta(minutes=tick)


def told(found: list[tuple[list[Read], list[Any]]]) -> list[tuple[int, datetime]]:
    """Shop and time of everything in the order in which it is told."""
    return [
        (each.shop_id, each.fetched_at if isinstance(each, Read) else each.settled_at)
        for pages, settled in found
        for each in [*pages, *settled]
    ]


@given(events)
def test_what_happens_to_one_shop_is_told_in_its_order(given_events: list[tuple[int, bool]]) -> None:
    pages = [Read(shop, at(tick), []) for tick, (shop, is_page) in enumerate(given_events) if is_page]
    settled: list[Any] = [
        SimpleNamespace(shop_id=shop, settled_at=at(tick))
        for tick, (shop, is_page) in enumerate(given_events)
        if not is_page
    ]
    order = told(steps(pages, settled))
    assert sorted(order, key=lambda each: each[1]) == [(shop, at(tick)) for tick, (shop, _) in enumerate(given_events)]
    for shop in range(4):
        times = [time for key, time in order if key == shop]
        assert times == sorted(times)


def test_shops_do_not_wait_for_each_other() -> None:
    pages = [Read(shop, at(2 * tick), []) for tick, shop in enumerate((1, 2, 3, 1))]
    settled: list[Any] = [SimpleNamespace(shop_id=shop, settled_at=at(tick)) for shop, tick in ((1, 1), (2, 3), (3, 7))]
    assert [(len(some), len(others)) for some, others in steps(pages, settled)] == [(3, 2), (1, 1)]


ROW = {"shop_id": 1, "item_id": "x", "baseline_at": at(0)}


def entry(tick: int, **values: Any) -> Entry:
    return Entry(at(tick), tick, {"title": "t", "price": 1, "agent_price": 1, "unit": "PCS"} | values)


def test_a_history_tells_its_beginning_and_one_change_for_each_kind_at_a_boundary() -> None:
    timeline = [entry(1), entry(5, price=2, agent_price=3, unit="BOX")]
    assert changes_told(ROW, timeline, at(1), TRACKED) == [
        Change(1, "x", "new", at(1), 1, None, {"title": "t", "price": 1}),
        Change(1, "x", "price", at(5), 5, {"price": 1, "agent_price": 1}, {"price": 2, "agent_price": 3}),
        Change(1, "x", "unit", at(5), 5, {"unit": "PCS"}, {"unit": "BOX"}),
    ]


@pytest.mark.parametrize(
    ("baseline", "first_seen"),
    [(None, at(1)), (at(1), at(1)), (at(2), at(1)), (at(0), at(0))],
    ids=["no complete crawl yet", "seen at its end", "seen before it", "a history that began earlier"],
)
def test_an_item_is_not_new(baseline: datetime | None, first_seen: datetime) -> None:
    assert changes_told(ROW | {"baseline_at": baseline}, [entry(1)], first_seen, TRACKED) == []


def change(kind: str, tick: int, value: int = 0) -> Change:
    return Change(1, "x", kind, at(tick), tick, None, {"price": value})


def test_changes_of_one_history_become_those_of_another_with_as_few_gone_and_added_as_can_be() -> None:
    before = [change("price", 1), change("price", 4), change("title", 4), change("unit", 6)]
    after = [change("price", 1, 9), change("price", 3), change("title", 4), change("stock", 8)]
    pairs, gone, added = rewritten(before, after)
    assert pairs == [(before[0], after[0]), (before[1], after[1])]
    assert gone == [before[3]]
    assert added == [after[3]]


changes = st.lists(st.tuples(st.sampled_from(["price", "title"]), st.integers(0, 5), st.integers(0, 1)), max_size=8)


@given(changes, changes)
def test_rewriting_leaves_exactly_the_changes_of_the_other_history(
    before: list[tuple[str, int, int]], after: list[tuple[str, int, int]]
) -> None:
    old = list({(kind, tick): change(kind, tick, value) for kind, tick, value in before}.values())
    new = list({(kind, tick): change(kind, tick, value) for kind, tick, value in after}.values())
    pairs, gone, added = rewritten(old, new)
    swapped = {(each.kind, each.at): better for each, better in pairs}
    kept = [swapped.get((each.kind, each.at), each) for each in old if each not in gone]
    assert sorted(map(repr, [*kept, *added])) == sorted(map(repr, new))
    assert not ({each.kind for each in gone} & {each.kind for each in added})
