"""What a schedule learns of its shops, and what follows: pure, with the clock passed in."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from math import ceil, expm1, inf, log1p
from typing import NamedTuple

import msgspec

from models.modes import HAPPY
from models.schedules import ShopState

DAY = 86_400.0

AIMED_SHARE = 0.02
"""Share of a shop's items that an adaptive schedule wants to find changed: it crawls sooner if there were more."""
LARGEST_STEP = 2.0
"""An interval shrinks or grows by no more than this at once."""
RETRY_SHARE = 0.25
"""Part of an interval after which a shop is tried again of which a crawl did not show all."""

PRIOR_SHARE = 0.02
"""Share of a shop's items that may change in a day, as long as no shop is known better."""
PRIOR_DAYS = 0.25
"""Days of watching that this guess is worth."""
MEMORY_DAYS = 30.0
"""Days after which what was learned counts half."""
MOST_SEEN = 0.95
"""Share of changed items above which a crawl tells no more how often they change."""
SMALLEST_ELAPSED = 60 / DAY

EXPLORING = 0.25
"""Share of a budget that suffices to crawl every shop once in the longest interval: else that interval is longer."""
MARGIN = 0.25
"""Calls that a crawl may take beyond those expected, for retries and growth."""
UNKNOWN_CALLS = 5.0


class Bounds(msgspec.Struct, frozen=True):
    """How a schedule may treat a shop: seconds between crawls; `adaptive`: it moves between shortest and longest."""

    shortest: float
    longest: float
    adaptive: bool


class Outcome(msgspec.Struct, frozen=True):
    """A settled whole crawl: its verdict, the changes and different items that it saw, and its calls."""

    shop_crawl_id: int
    settled_at: datetime
    verdict: str
    changes: int
    items: int
    calls: int


def learned(state: ShopState, outcome: Outcome, bounds: Bounds) -> ShopState:
    """What a schedule knows after one more crawl of the shop; only happy ones teach anything but when to try again."""
    if state.shop_crawl_id is not None and outcome.shop_crawl_id <= state.shop_crawl_id:
        return state
    state = msgspec.structs.replace(state, shop_crawl_id=outcome.shop_crawl_id)
    if outcome.verdict not in HAPPY:
        pause = max(bounds.shortest, state.every * RETRY_SHARE)
        return msgspec.structs.replace(state, due_at=outcome.settled_at + timedelta(seconds=pause))
    every = state.every
    if state.crawled_at is not None:  # before that everything was new, which says nothing
        if bounds.adaptive:
            every = next_every(every, outcome, bounds)
        state = _with_rate(state, outcome, (outcome.settled_at - state.crawled_at).total_seconds() / DAY)
    calls = float(outcome.calls) if state.calls is None else (state.calls + outcome.calls) / 2
    pause = every if bounds.adaptive else bounds.shortest
    return msgspec.structs.replace(
        state,
        every=every,
        due_at=outcome.settled_at + timedelta(seconds=pause),
        crawled_at=outcome.settled_at,
        items=outcome.items,
        calls=calls,
    )


def next_every(every: float, outcome: Outcome, bounds: Bounds) -> float:
    """The next interval in seconds: such that about AIMED_SHARE of the items will have changed."""
    share = outcome.changes / max(outcome.items, 1)
    step = min(LARGEST_STEP, max(1 / LARGEST_STEP, AIMED_SHARE / share)) if share else LARGEST_STEP
    return min(bounds.longest, max(bounds.shortest, every * step))


def _with_rate(state: ShopState, outcome: Outcome, days: float) -> ShopState:
    """The changes a day after one more look, by which an item that changed often shows as changed once.

    With n items that each change at rate r, a look after t days finds a share s = 1 - exp(-r t) of them changed: events
    s in s/r days at risk. Events and days are summed, older ones fade.
    """
    items, days = max(outcome.items, 1), max(days, SMALLEST_ELAPSED)
    share = min(outcome.changes / items, MOST_SEEN)
    at_risk = days * share / -log1p(-share) if share else days
    known = (PRIOR_DAYS if state.rate is None else state.observed) * 0.5 ** (days / MEMORY_DAYS)
    before = PRIOR_SHARE if state.rate is None else state.rate / max(state.items or items, 1)
    rate = items * (before * known + share) / (known + at_risk)
    return msgspec.structs.replace(state, rate=rate, observed=known + at_risk)


class Shops(NamedTuple):
    """Shops to choose from, as parallel columns; `age` in days, infinite without a crawl, rates in changes a day."""

    ids: Sequence[int]
    age: Sequence[float]
    items: Sequence[float]
    rate: Sequence[float | None]
    calls: Sequence[float | None]


class Choice(NamedTuple):
    """Shops to crawl now in order of preference, the calls that they may take, and the changes expected."""

    ids: list[int]
    calls: int
    changes: float


def expected_changes(items: float, rate: float, days: float) -> float:
    """Changed items that a crawl finds: an item that changed twice is found once."""
    return -items * expm1(-rate * days / items) if items > 0 else 0.0


def planned_calls(calls: float) -> int:
    """Calls that a crawl may take which is expected to take so many."""
    return ceil(calls * (1 + MARGIN)) + 1


def choose(shops: Shops, allowance: float, daily: float, longest: float) -> Choice:
    """The shops to crawl with the calls that are allowed now.

    Those that have waited for more than `longest` days go first, the oldest ahead; then those of which most changes
    are expected for each call. The first one that does not fit ends the choice: calls are saved up for it. Shops that
    need more than a day's calls are left out.
    """
    calls, items = _filled(shops.calls, UNKNOWN_CALLS), shops.items
    shares = [rate / max(n, 1) for rate, n in zip(shops.rate, items, strict=True) if rate is not None]
    usual = sum(shares) / len(shares) if shares else PRIOR_SHARE
    rates = [usual * n if rate is None else rate for rate, n in zip(shops.rate, items, strict=True)]
    planned = [planned_calls(each) for each in calls]
    longest = max(longest, sum(planned) / (EXPLORING * daily))
    gains = [
        n if age == inf else expected_changes(n, rate, age)
        for n, rate, age in zip(items, rates, shops.age, strict=True)
    ]
    order = sorted(
        (place for place in range(len(planned)) if planned[place] <= daily),
        key=lambda place: (
            (-shops.age[place], 0.0) if shops.age[place] > longest else (0.0, -gains[place] / calls[place])
        ),
    )
    ids, taken, found = [], 0, 0.0
    for place in order:
        if taken + planned[place] > allowance:
            break
        taken += planned[place]
        found += gains[place]
        ids.append(shops.ids[place])
    return Choice(ids, taken, found)


def _filled(values: Sequence[float | None], fallback: float) -> list[float]:
    """The values, with the mean of the known ones for the unknown."""
    known = [value for value in values if value is not None]
    mean = sum(known) / len(known) if known else fallback
    return [max(1.0, mean if value is None else value) for value in values]


def accrued(daily: int, since: datetime, now: datetime, ahead: timedelta) -> int:
    """Calls of today's (UTC) budget that may be planned by now, even spread from midnight or `since` to midnight."""
    midnight = day_start(now)
    elapsed = min(now + ahead, midnight + timedelta(days=1)) - max(midnight, since)
    return max(0, daily * elapsed // timedelta(days=1))


def day_start(now: datetime) -> datetime:
    """When the day of budgets began."""
    return now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
