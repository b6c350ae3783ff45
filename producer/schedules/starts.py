"""Schedules at work: the re-crawls that are due are started, each once, however many producers look."""

import logging
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from itertools import islice
from math import inf
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from models import schedules
from models.budget import raise_caps
from models.crawls import NO_BUDGET, Budget, ShopRequest, Submission, submit_recrawl
from models.database import Clock, reader
from models.errors import ShopcrawlError
from models.messages import NORMAL_PRIORITY
from models.modes import Mode, is_whole
from models.schedules import ADAPTIVE, BUDGETED, CRON, INTERVAL, ShopState
from models.settings import Settings
from models.source import source_named, source_names
from producer.schedules.rates import (
    DAY,
    Bounds,
    Choice,
    Outcome,
    Shops,
    accrued,
    choose,
    day_start,
    learned,
)
from producer.schedules.times import cron_times, next_cron, next_interval

logger = logging.getLogger(__name__)

LOOK_SECONDS = 3.0
BATCH = 2_000
"""Shops that are started, or that a schedule gets to know, in one transaction."""
LEARNED_AT_ONCE = 10_000  # far more than are settled at the same moment, so that each look goes further
OVERLAP = timedelta(minutes=5)
"""What was settled so long before a look is looked at again: its transaction may have come to its end since."""
ADAPTIVE_LOOK = timedelta(minutes=1)
BUDGETED_LOOK = timedelta(minutes=10)
AFTER_ERROR = timedelta(hours=1)
TIMES_SHOWN = 5
EXAMPLES = 10
DEFAULT_EVERY = timedelta(days=1)


class Due(msgspec.Struct, frozen=True):
    """What a schedule starts now: shops by id, the calls that they may take, and the changes expected if it knows.

    `more`: there is more to be done at once.
    """

    shops: list[int]
    more: bool = False
    budget: Budget = NO_BUDGET
    changes: float | None = None


class Schedules:
    """The producer's part: several may look at one PostgreSQL."""

    def __init__(self, settings: Settings, engine: AsyncEngine, clock: Clock) -> None:
        self._settings, self._engine, self._clock = settings, engine, clock

    async def step(self) -> float:
        """Do what one due schedule wants; returns the pause until the next look in seconds."""
        now = self._clock.now()
        async with reader(self._engine).connect() as connection:
            due_at = await schedules.next_look(connection)
        if due_at is None or due_at > now:
            return LOOK_SECONDS
        async with self._engine.begin() as connection:
            row = await schedules.take_due(connection, now)
            if row is None:
                return LOOK_SECONDS
            try:
                async with connection.begin_nested():
                    started = await work(connection, row, self._settings, now)
            except ShopcrawlError as error:  # one that cannot work must not keep the others from it
                logger.warning("schedule %d rests for an hour: %s", row.id, error)
                await schedules.update_schedule(connection, row.id, next_at=now + AFTER_ERROR)
                return 0
        if started is not None and started.shops:
            logger.info("schedule %d started crawl %d: %d shops", row.id, started.crawl_id, started.shops)
        return 0


async def work(connection: AsyncConnection, row: sa.Row[Any], settings: Settings, now: datetime) -> Submission | None:
    """Start what this schedule wants now and set when it is looked at next, in the caller's transaction."""
    due = await look(connection, row, now)
    started = await _start(connection, row, due, settings, now) if due.shops else None
    values: dict[str, Any] = {"last_crawl_id": started.crawl_id} if started and started.shops else {}
    if row.kind in {INTERVAL, CRON}:
        values["cursor"] = due.shops[-1] if due.more else 0
    if not due.more:
        values["next_at"] = next_time(row, now)
    if values:
        await schedules.update_schedule(connection, row.id, **values)
    return started


def next_time(row: sa.Row[Any], now: datetime) -> datetime:
    """When a schedule is looked at after `now`. Raises UsageError."""
    if row.kind == CRON:
        return next_cron(row.cron, row.timezone, now)
    if row.kind == INTERVAL:
        return next_interval(row.next_at, timedelta(seconds=row.every), now)
    return now + (ADAPTIVE_LOOK if row.kind == ADAPTIVE else BUDGETED_LOOK)


async def look(connection: AsyncConnection, row: sa.Row[Any], now: datetime) -> Due:
    """What a due schedule wants to be crawled now; adaptive and budgeted ones learn before they choose."""
    if row.kind in {INTERVAL, CRON}:
        ids = await schedules.shops_after(connection, row, row.cursor, BATCH)
        return Due(ids, more=len(ids) == BATCH)
    if await learn(connection, row, now):
        return Due([], more=True)
    if row.kind == BUDGETED:
        return await _affordable(connection, row, now)
    due = await schedules.due_states(connection, row.id, now, BATCH)
    return Due([state.shop_id for state in due], more=len(due) == BATCH)


async def _start(
    connection: AsyncConnection, row: sa.Row[Any], due: Due, settings: Settings, now: datetime
) -> Submission:
    found = await schedules.scheduled_shops(connection, due.shops)
    requests = [_request(each, settings) for each in found if each.source in source_names()]
    if row.kind in {ADAPTIVE, BUDGETED}:
        known = await schedules.states(connection, row.id, due.shops)
        bounds = bounds_of(row)
        pause = {key: state.every if bounds.adaptive else bounds.shortest for key, state in known.items()}
        later = [
            msgspec.structs.replace(state, due_at=now + timedelta(seconds=pause[key])) for key, state in known.items()
        ]
        await schedules.save_states(connection, row.id, later)
    return await submit_recrawl(
        connection,
        requests,
        now=now,
        settings=settings,
        priority=NORMAL_PRIORITY,
        budget=due.budget,
        mode=Mode(row.mode),
        schedule_id=row.id,
    )


def _request(found: schedules.ScheduledShop, settings: Settings) -> ShopRequest:
    adapter = source_named(found.source)
    options = adapter.options({}, settings) if found.options is None else adapter.whole(found.options)
    return ShopRequest(found.source, found.key, options)


def bounds_of(row: sa.Row[Any]) -> Bounds:
    """How this schedule may treat its shops."""
    return Bounds(row.shortest, row.longest, row.kind == ADAPTIVE)


async def learn(connection: AsyncConnection, row: sa.Row[Any], now: datetime) -> bool:
    """Get to know shops and learn from their settled crawls; returns whether there are more of either."""
    if row.learned_at is None:
        ids = await schedules.shops_after(connection, row, row.cursor, BATCH)
        rows = await schedules.newest_crawls(connection, ids)
        await _save_learned(connection, row, ids, rows, now)
        more = len(ids) == BATCH
        # What was settled while it got to know them is learned from next.
        known = {"cursor": ids[-1]} if more else {"learned_at": row.created_at - OVERLAP}
        await schedules.update_schedule(connection, row.id, **known)
        return True
    rows = await schedules.settled_since(connection, row, row.learned_at, LEARNED_AT_ONCE)
    more = len(rows) == LEARNED_AT_ONCE
    await _save_learned(connection, row, {each.shop_id for each in rows}, rows, now)
    await schedules.update_schedule(connection, row.id, learned_at=rows[-1].settled_at if more else now - OVERLAP)
    return more


async def _save_learned(
    connection: AsyncConnection, row: sa.Row[Any], ids: Iterable[int], rows: Sequence[sa.Row[Any]], now: datetime
) -> None:
    """Write what these shops' crawls teach; shops that the schedule does not know yet begin with what it was told."""
    ids, bounds = list(ids), bounds_of(row)
    before = await schedules.states(connection, row.id, ids)
    every = row.every or DEFAULT_EVERY.total_seconds()
    after = {key: before.get(key) or ShopState(shop_id=key, every=every, due_at=now) for key in sorted(ids)}
    for each in sorted(rows, key=lambda each: each.id):
        if each.source in source_names() and is_whole(each.source, each.options, each.mode):
            after[each.shop_id] = learned(after[each.shop_id], _outcome(each), bounds)
    await schedules.save_states(connection, row.id, [state for key, state in after.items() if state != before.get(key)])


def _outcome(row: sa.Row[Any]) -> Outcome:
    changes = row.new_items + row.changed_items + row.gone_items
    return Outcome(row.id, row.settled_at, row.verdict, changes, row.distinct_items, row.pages_done + row.pages_dead)


async def _affordable(connection: AsyncConnection, row: sa.Row[Any], now: datetime) -> Due:
    """The shops worth most of the calls that are left; crawls that wait for calls get theirs before."""
    await schedules.give_back(connection, row.id)
    charged = await schedules.charges(connection, row.id, day_start(now))
    left = accrued(row.daily_calls, row.created_at, now, BUDGETED_LOOK) - sum(each.calls for each in charged)
    for each in charged:
        granted = min(each.wanted, left)
        if granted > 0:
            left -= granted
            await raise_caps(connection, each.crawl_id, max_calls=each.max_calls + granted, max_spend=None, now=now)
    if left <= 0:
        return Due([])
    choice = await chosen(connection, row, now, left)
    return Due(choice.ids, budget=Budget(choice.calls), changes=choice.changes)


class Preview(msgspec.Struct, frozen=True):
    """What a schedule would start now, or at its next time if it is not due; `shops` is how many it is about.

    `times`: when it is due next, of an adaptive one when its next shops are; `calls` and `changes` are those of what it
    would start, as far as it knows. `examples`: the first shops as (source, shop).
    """

    schedule: int
    shops: int
    times: list[datetime]
    starts: int
    examples: list[tuple[str, str]]
    calls: int | None = None
    changes: float | None = None


async def preview(connection: AsyncConnection, schedule_id: int, now: datetime) -> Preview | None:
    """What a schedule would do; the caller rolls back what it learns on the way. None: there is no such schedule."""
    while True:
        found = await schedules.schedules(connection, schedule_id)
        if not found:
            return None
        due = await look(connection, found[0], now)
        if due.shops or not due.more:
            break
    row = found[0]
    shops = await schedules.count_shops(connection, row)
    named = await schedules.scheduled_shops(connection, due.shops[:EXAMPLES])
    starts = shops if row.kind in {INTERVAL, CRON} else len(due.shops)
    times = await _next_times(connection, row, now)
    examples = [(each.source, each.key) for each in named]
    return Preview(row.id, shops, times, starts, examples, due.budget.max_calls, due.changes)


async def _next_times(connection: AsyncConnection, row: sa.Row[Any], now: datetime) -> list[datetime]:
    if row.kind == CRON:
        return list(islice(cron_times(row.cron, row.timezone, now), TIMES_SHOWN))
    if row.kind == INTERVAL:
        first = max(row.next_at, now)
        return [first + timedelta(seconds=row.every) * each for each in range(TIMES_SHOWN)]
    if row.kind == ADAPTIVE:
        return await schedules.next_due(connection, row.id, now, TIMES_SHOWN)
    return [max(row.next_at, now)]


async def chosen(connection: AsyncConnection, row: sa.Row[Any], now: datetime, allowance: int) -> Choice:
    """The choice of a budgeted schedule with so many calls."""
    found = await schedules.idle_states(connection, row.id, now)
    shops = Shops(
        ids=[each.shop_id for each in found],
        age=[(now - each.crawled_at).total_seconds() / DAY if each.crawled_at else inf for each in found],
        items=[each.items or 0 for each in found],
        rate=[each.rate for each in found],
        calls=[each.calls for each in found],
    )
    return choose(shops, allowance, row.daily_calls, row.longest / DAY)
