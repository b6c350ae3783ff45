"""What schedules learn, and what they choose: intervals move within their bounds, and calls go where most changes."""

import random
from datetime import UTC, datetime, timedelta
from math import exp, inf

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from benchmarks.budgeted import Plan, budgeted, in_turn, market, oracle
from models.schedules import ShopState
from producer.schedules.rates import (
    DAY,
    EXPLORING,
    Bounds,
    Outcome,
    Shops,
    accrued,
    choose,
    expected_changes,
    learned,
    next_every,
    planned_calls,
)

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ADAPTIVE = Bounds(shortest=3_600, longest=7 * DAY, adaptive=True)
BUDGETED = Bounds(shortest=3_600, longest=30 * DAY, adaptive=False)
KNOWN = ShopState(shop_id=1, every=DAY, due_at=NOW, shop_crawl_id=5, crawled_at=NOW - timedelta(days=1), items=100)


def crawled(changes: int, *, items: int = 100, verdict: str = "complete", number: int = 6, at: float = 0) -> Outcome:
    return Outcome(number, NOW + timedelta(days=at), verdict, changes, items, calls=6)


@pytest.mark.parametrize(("changes", "every"), [(0, 2.0), (1, 2.0), (2, 1.0), (3, 2 / 3), (4, 0.5), (90, 0.5)])
def test_an_interval_shrinks_when_much_changed_and_grows_when_nothing_did(changes: int, every: float) -> None:
    state = learned(KNOWN, crawled(changes), ADAPTIVE)
    assert state.every == pytest.approx(every * DAY)
    assert state.due_at == NOW + timedelta(seconds=state.every)


@given(st.lists(st.integers(0, 500)), st.integers(1, 300))
def test_no_history_moves_an_interval_out_of_its_bounds(history: list[int], items: int) -> None:
    every = DAY
    for changes in history:
        every = next_every(every, crawled(changes, items=items), ADAPTIVE)
        assert ADAPTIVE.shortest <= every <= ADAPTIVE.longest


@pytest.mark.parametrize("verdict", ["partial", "failed", "suspect"])
@pytest.mark.parametrize("bounds", [ADAPTIVE, BUDGETED])
def test_a_crawl_that_did_not_show_all_teaches_nothing_but_is_repeated_sooner(verdict: str, bounds: Bounds) -> None:
    state = learned(KNOWN, crawled(100, verdict=verdict), bounds)
    assert state == replace(KNOWN, shop_crawl_id=6, due_at=NOW + timedelta(hours=6))
    often = learned(replace(KNOWN, every=7_200), crawled(0, verdict=verdict), bounds)
    assert often.due_at == NOW + timedelta(hours=1)


def test_a_first_crawl_in_which_everything_is_new_says_nothing_about_change() -> None:
    fresh = ShopState(shop_id=1, every=DAY, due_at=NOW)
    state = learned(fresh, crawled(100), ADAPTIVE)
    assert (state.every, state.rate, state.crawled_at, state.items, state.calls) == (DAY, None, NOW, 100, 6)


def test_a_crawl_counts_once_and_older_ones_not_at_all() -> None:
    once = learned(KNOWN, crawled(3), ADAPTIVE)
    assert learned(once, crawled(3), ADAPTIVE) == once
    assert learned(once, crawled(50, number=2), ADAPTIVE) == once


@pytest.mark.parametrize("rate", [0.002, 0.05, 0.5])
def test_the_rate_is_found_though_an_item_that_changed_often_shows_once(rate: float) -> None:
    state, chance = KNOWN, random.Random(7)
    for number in range(40):
        days = chance.choice([0.5, 1, 2, 4])
        at = (state.crawled_at or NOW) + timedelta(days=days)
        changes = sum(chance.random() < 1 - exp(-rate * days) for _ in range(1_000))
        state = learned(state, Outcome(10 + number, at, "complete", changes, 1_000, 50), BUDGETED)
    assert state.rate == pytest.approx(1_000 * rate, rel=0.15)


def test_a_shop_that_has_come_to_life_is_noticed() -> None:
    state = KNOWN
    for number in range(100):
        changes = 0 if number < 60 else 20
        state = learned(state, crawled(changes, number=10 + number, at=number), BUDGETED)
    assert state.rate is not None
    assert state.rate > 10


@given(st.floats(1, 10**6), st.floats(0, 10**5), st.floats(0, 1_000))
def test_no_more_changes_are_expected_than_there_are_items_or_changes(items: float, rate: float, days: float) -> None:
    found = expected_changes(items, rate, days)
    assert 0 <= found <= min(items, rate * days) * (1 + 1e-9) + 1e-9


def shops(*rows: tuple[int, float, float, float | None, float | None]) -> Shops:
    """Rows of id, age, items, rate and calls."""
    ids, age, items, rate, calls = zip(*rows, strict=True)
    return Shops(ids, age, items, rate, calls)


def test_calls_go_where_most_changes_are_expected_for_each() -> None:
    choice = choose(shops((1, 1, 100, 2, 5), (2, 1, 100, 50, 5), (3, 1, 10_000, 100, 500)), 1_000, 1_000, 30)
    assert choice.ids == [2, 1, 3]
    assert choice.calls == planned_calls(5) * 2 + planned_calls(500)


def test_calls_are_saved_up_for_a_large_shop_that_is_worth_most() -> None:
    wanted = shops((1, 1, 100, 1, 5), (2, 1, 1_000, 900, 50))
    assert choose(wanted, planned_calls(50) - 1, 1_000, 30).ids == []
    assert choose(wanted, planned_calls(50), 1_000, 30).ids == [2]


def test_a_shop_that_needs_more_than_a_day_has_keeps_nobody_waiting() -> None:
    assert choose(shops((1, 1, 100, 1, 5), (2, 1, 10**6, 10**6, 500)), 50, 100, 30).ids == [1]


def test_no_shop_is_forgotten() -> None:
    quiet = shops((1, 31, 100, 0.001, 5), (2, 1, 100, 90, 5), (3, inf, 0, None, None), (4, 35, 100, 0.001, 5))
    assert choose(quiet, 10**4, 10**4, 30).ids == [3, 4, 1, 2]


def test_a_small_budget_is_not_used_up_by_shops_that_were_not_crawled_for_long() -> None:
    many = shops(*((number, 40, 100, 0.001, 10) for number in range(100)), (100, 1, 100, 90, 10))
    daily = planned_calls(10) * 2
    assert len(many.ids) * planned_calls(10) / (EXPLORING * daily) > 40
    assert choose(many, planned_calls(10), daily, 30).ids == [100]


def test_unknown_shops_are_taken_for_usual_ones() -> None:
    lively = choose(shops((1, 1, 100, 20, 5), (2, 1, 100, 20, 5), (3, 2, 100, None, None)), 10, 1_000, 30)
    assert lively.ids == [3]


@given(st.integers(0, 3), st.floats(0, 48), st.integers(1, 10**6))
def test_a_day_never_accrues_more_than_its_budget_and_never_takes_back(day: int, hours: float, daily: int) -> None:
    since, ahead = NOW, timedelta(minutes=10)
    now = NOW + timedelta(days=day, hours=hours)
    allowed = accrued(daily, since, now, ahead)
    assert 0 <= allowed <= daily
    if (later := now + timedelta(minutes=5)).date() == now.date():
        assert accrued(daily, since, later, ahead) >= allowed


def test_a_budget_is_spread_over_the_day() -> None:
    midnight, ahead = datetime(2026, 3, 2, tzinfo=UTC), timedelta(minutes=10)
    spread = [accrued(1_440, NOW, midnight + timedelta(hours=hours), ahead) for hours in (0, 6, 12, 23.9)]
    assert spread == [10, 370, 730, 1_440]
    assert accrued(1_440, NOW, NOW + timedelta(hours=6), ahead) == 370, "counted from when there was a budget"


def test_a_budgeted_schedule_finds_one_and_a_half_times_what_turns_find() -> None:
    world = market(seed=2, shops=300, spread=2.0)
    plan = Plan(days=60, daily=sum(world.calls) // 20, step=timedelta(hours=4))
    (turn, most_in_turn), (chosen, most) = in_turn(world, plan, 1), budgeted(world, plan, 1)
    assert 1.5 * turn < chosen < 1.05 * oracle(world, plan)
    assert max(most, most_in_turn) <= plan.daily
