"""How many more changes a budgeted schedule finds than crawling the same shops in turn with the same calls."""

import argparse
import math
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from statistics import median

from benchmarks.figures import Figure, report
from models.schedules import ShopState
from producer.schedules.rates import DAY, Bounds, Outcome, Shops, accrued, choose, learned

NAME = "budgeted"
START = datetime(2026, 3, 1, tzinfo=UTC)
PAGE = 20
MEDIAN_ITEMS = 200
SPREAD_OF_ITEMS = 1.2
MEDIAN_RATE = 0.005
"""Changes of one item a day in the shop in the middle: once in 200 days."""
BOUNDS = Bounds(shortest=3_600, longest=30 * DAY, adaptive=False)
FEWEST_TIMES = 1.5


@dataclass(frozen=True)
class Market:
    """Shops with their items and the changes that one item has in a day, which nobody is told."""

    items: Sequence[int]
    rates: Sequence[float]

    @property
    def calls(self) -> list[int]:
        """Calls that a crawl of each shop takes."""
        return [items // PAGE + 1 for items in self.items]


@dataclass(frozen=True)
class Plan:
    """How long and with how many calls a day; looks are `step` apart."""

    days: int
    daily: int
    step: timedelta = timedelta(hours=1)

    def looks(self) -> Iterator[datetime]:
        """The times at which calls are spent."""
        return (START + self.step * number for number in range(self.days * int(timedelta(days=1) / self.step)))


def market(seed: int, shops: int, spread: float) -> Market:
    """Shops whose sizes and rates are log-normal; `spread` is the standard deviation of the rates' logarithm."""
    chance = random.Random(seed)
    items = [max(5, int(chance.lognormvariate(math.log(MEDIAN_ITEMS), SPREAD_OF_ITEMS))) for _ in range(shops)]
    return Market(items, [chance.lognormvariate(math.log(MEDIAN_RATE), spread) for _ in range(shops)])


def seen_changes(chance: random.Random, items: int, rate: float, days: float) -> int:
    """Items of which a crawl sees that they changed, at least once, in so many days."""
    share = -math.expm1(-rate * days)
    deviation = math.sqrt(items * share * (1 - share))
    if deviation > 5:  # the normal distribution is close enough and much faster
        return min(items, max(0, round(chance.gauss(items * share, deviation))))
    return sum(chance.random() < share for _ in range(items))


def in_turn(world: Market, plan: Plan, seed: int) -> tuple[int, int]:
    """Changes found, and the most calls of a day, when every shop has its turn."""
    chance, calls = random.Random(seed), world.calls
    crawled_at, found, turn = [START] * len(calls), 0, 0
    spent: dict[int, int] = {}
    for now in plan.looks():
        day = (now - START).days
        while calls[turn % len(calls)] <= accrued(plan.daily, START, now, plan.step) - spent.get(day, 0):
            place, turn = turn % len(calls), turn + 1
            spent[day] = spent.get(day, 0) + calls[place]
            days = (now - crawled_at[place]).total_seconds() / DAY
            found += seen_changes(chance, world.items[place], world.rates[place], days)
            crawled_at[place] = now
    return found, max(spent.values())


def budgeted(world: Market, plan: Plan, seed: int) -> tuple[int, int]:
    """Changes found, and the most calls of a day, when the schedule chooses; it learns from what its crawls see."""
    chance, calls, found, number = random.Random(seed), world.calls, 0, len(world.items)
    states = [_first_state(place, items, calls[place]) for place, items in enumerate(world.items)]
    spent: dict[int, int] = {}
    for now in plan.looks():
        day = (now - START).days
        left = accrued(plan.daily, START, now, plan.step) - spent.get(day, 0)
        for place in choose(_columns(states, now), left, plan.daily, BOUNDS.longest / DAY).ids:
            state, number = states[place], number + 1
            days = (now - (state.crawled_at or START)).total_seconds() / DAY
            changes = seen_changes(chance, world.items[place], world.rates[place], days)
            outcome = Outcome(number, now, "complete", changes, world.items[place], calls[place])
            states[place] = learned(state, outcome, BOUNDS)
            spent[day] = spent.get(day, 0) + calls[place]
            found += changes
    return found, max(spent.values())


def _first_state(place: int, items: int, calls: int) -> ShopState:
    """A shop that has been crawled once, which shows its size and no change."""
    state = ShopState(shop_id=place, every=DAY, due_at=START)
    return learned(state, Outcome(place, START, "complete", items, items, calls), BOUNDS)


def _columns(states: Sequence[ShopState], now: datetime) -> Shops:
    due = [state for state in states if state.due_at <= now]
    return Shops(
        ids=[state.shop_id for state in due],
        age=[(now - (state.crawled_at or START)).total_seconds() / DAY for state in due],
        items=[state.items or 0 for state in due],
        rate=[state.rate for state in due],
        calls=[state.calls for state in due],
    )


def oracle(world: Market, plan: Plan) -> float:
    """Changes that no schedule can exceed on average, even if it knew every rate and could crawl a part of a shop.

    Each shop is crawled at a steady pace, at which one more call a day would bring the same everywhere.
    """
    low, high = 1e-9, float(PAGE)
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if _steady(world, middle)[0] > plan.daily else (low, middle)
    return _steady(world, high)[1] * plan.days


def _steady(world: Market, worth: float) -> tuple[float, float]:
    """Calls and changes found a day, when one more call a day is worth so many changes in every shop."""
    calls, changes = 0.0, 0.0
    for items, rate, pages in zip(world.items, world.rates, world.calls, strict=True):
        wanted = worth * pages / items
        if wanted >= 1:
            continue
        low, high = 0.0, 80.0
        for _ in range(60):  # 1 - (1 + z) exp(-z) grows with z
            middle = (low + high) / 2
            low, high = (middle, high) if 1 - (1 + middle) * math.exp(-middle) < wanted else (low, middle)
        crawls = rate / high
        calls, changes = calls + crawls * pages, changes - crawls * items * math.expm1(-high)
    return calls, changes


def measure(options: argparse.Namespace) -> bool:
    """Simulate, print and keep the figures; returns whether the limit was kept."""
    figures = []
    for spread, limit in ((options.spread, FEWEST_TIMES), (1.5, None), (1.0, None)):
        worlds = [market(seed, options.shops, spread) for seed in range(1, options.seeds + 1)]
        gains, bounds, found = [], [], []
        for seed, world in enumerate(worlds, 1):
            plan = Plan(options.days, max(1, sum(world.calls) // options.round))
            turn, chosen = in_turn(world, plan, seed)[0], budgeted(world, plan, seed)[0]
            gains.append(chosen / turn)
            bounds.append(oracle(world, plan) / turn)
            found.append(chosen)
        figures += [
            Figure(f"changes found, of those in turn (spread {spread:g})", median(gains), "times", limit),
            Figure(f"  that nobody can exceed (spread {spread:g})", median(bounds), "times"),
            Figure(f"  changes found (spread {spread:g})", median(found), "changes"),
        ]
    return report(NAME, figures, vars(options))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.budgeted", description=__doc__)
    options.add_argument("--shops", type=int, default=1_000)
    options.add_argument("--days", type=int, default=60)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--round", type=int, default=20, help="days in which the calls suffice for every shop once")
    options.add_argument("--spread", type=float, default=2.0, help="standard deviation of the rates' logarithm")
    return options


def main() -> bool:
    """Run as the command line says."""
    return measure(parser().parse_args())


if __name__ == "__main__":
    sys.exit(not main())
