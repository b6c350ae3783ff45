"""Schedules at work: each due time starts one crawl, intervals follow what changes, and budgets are never exceeded."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from models.background import background
from models.database import Clock
from models.messages import NORMAL_PRIORITY
from models.schedules import add_schedule, charges, remove_schedule, schedules, update_schedule
from models.tables import call, crawl, page, schedule, schedule_shop, shop, shop_crawl
from producer.loop import Producer
from producer.planning.hold import rest_crawls
from producer.schedules import starts as at_work
from producer.schedules.rates import DAY, day_start
from producer.schedules.starts import Schedules, preview
from tests.ledger import SETTINGS, START, after, engine_for, requests, rows, submit

HOUR = 3_600.0
LOOK = at_work.BUDGETED_LOOK


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    async with engine_for(database_url) as engine:
        yield engine


class SetClock(Clock):
    """A clock that stands where it is set, in seconds after START."""

    def __init__(self, seconds: float = 0) -> None:
        super().__init__()
        self.seconds = seconds

    def now(self) -> datetime:
        return after(self.seconds) + timedelta(microseconds=1)


async def step(engine: AsyncEngine, seconds: float) -> None:
    """Let a producer do all that is due at this time."""
    producer = Schedules(SETTINGS, engine, SetClock(seconds))
    for _ in range(50):
        if await producer.step():
            return
    raise AssertionError("a schedule keeps the producer busy without end")


async def add(engine: AsyncEngine, kind: str, **given: Any) -> int:
    values: dict[str, Any] = {"kind": kind, "mode": "full", "next_at": after(-1), "created_at": after(0), **given}
    if kind in {"adaptive", "budgeted"}:
        values = {"shortest": HOUR, "longest": 30 * DAY, **values}
    async with engine.begin() as connection:
        return await add_schedule(connection, values)


async def settle(
    connection: AsyncConnection,
    crawl_id: int,
    at: float,
    *,
    verdict: str = "complete",
    changes: int = 0,
    pages: int = 5,
) -> None:
    """End a crawl with so many calls, as producer and workers would."""
    mine = shop_crawl.c.crawl_id == crawl_id
    ended = {"state": "settled", "verdict": verdict, "settled_at": after(at), "pages_done": pages}
    await connection.execute(
        sa.update(shop_crawl).where(mine).values(**ended, distinct_items=100, changed_items=changes)
    )
    await connection.execute(sa.update(page).where(_pages(crawl_id)).values(state="done"))
    shops = await connection.scalar(sa.select(sa.func.count()).where(mine)) or 0
    values = {"state": "finished", "finished_at": after(at), "reserved": shops * pages}
    await connection.execute(sa.update(crawl).where(crawl.c.id == crawl_id).values(values))
    await connection.execute(sa.insert(call).values(_call(crawl_id, shops * pages, at)))


def _pages(crawl_id: int) -> sa.ColumnElement[bool]:
    return page.c.shop_crawl_id.in_(sa.select(shop_crawl.c.id).where(shop_crawl.c.crawl_id == crawl_id))


def _call(crawl_id: int, calls: int, at: float) -> dict[str, Any]:
    ids = {"crawl_id": crawl_id, "shop_crawl_id": 0, "page_id": 0}
    return {**ids, "credential": "key-1", "outcome": "200", "calls": calls, "at": after(at)}


async def crawled(engine: AsyncEngine, *keys: str, at: float = -DAY, **how: Any) -> None:
    """Crawl these shops before."""
    crawl_id = await submit(engine, *keys)
    async with engine.begin() as connection:
        await settle(connection, crawl_id, at, **how)


async def started(engine: AsyncEngine, schedule_id: int) -> list[list[str]]:
    """The shops of each crawl that a schedule has started."""
    keys = {row.id: row.key for row in await rows(engine, shop)}
    found = await rows(engine, crawl, crawl.c.schedule_id == schedule_id)
    return [
        [keys[row.shop_id] for row in await rows(engine, shop_crawl, shop_crawl.c.crawl_id == each.id)]
        for each in found
    ]


async def settle_started(engine: AsyncEngine, at: float, **how: Any) -> None:
    """End every crawl that schedules have started."""
    for each in await rows(engine, crawl, crawl.c.state == "running", crawl.c.schedule_id.is_not(None)):
        async with engine.begin() as connection:
            await settle(connection, each.id, at, **how)


async def row_of(engine: AsyncEngine, schedule_id: int) -> sa.Row[Any]:
    async with engine.connect() as connection:
        return (await schedules(connection, schedule_id))[0]


async def test_a_due_time_starts_one_crawl_however_many_producers_look(engine: AsyncEngine) -> None:
    await crawled(engine, "a", "b")
    schedule_id = await add(engine, "interval", every=HOUR)
    await asyncio.gather(*(step(engine, 60) for _ in range(4)))
    assert await started(engine, schedule_id) == [["a", "b"]]
    (crawl_row,) = await rows(engine, crawl, crawl.c.schedule_id == schedule_id)
    assert (crawl_row.kind, crawl_row.priority) == ("recrawl", NORMAL_PRIORITY)
    row = await row_of(engine, schedule_id)
    assert (row.next_at, row.last_crawl_id, row.cursor) == (after(HOUR - 1), crawl_row.id, 0)
    await step(engine, HOUR - 5)
    await step(engine, HOUR + 1)
    assert await started(engine, schedule_id) == [["a", "b"]], "their re-crawl is pending"
    await settle_started(engine, HOUR + 2)
    await step(engine, 2 * HOUR + 1)
    assert await started(engine, schedule_id) == [["a", "b"], ["a", "b"]]


async def test_running_producers_start_what_is_due(engine: AsyncEngine, redis_url: str) -> None:
    await crawled(engine, "a")
    clock = Clock()
    await clock.synchronise(engine)
    schedule_id = await add(engine, "interval", every=DAY, next_at=clock.now())
    settings = SETTINGS.model_copy(update={"redis_url": SecretStr(redis_url)})
    async with background(*(Producer(settings, engine, clock).run() for _ in range(2))), asyncio.timeout(30):
        while not await started(engine, schedule_id):  # noqa: ASYNC110 - what is awaited happens in the database
            await asyncio.sleep(0.05)
    assert await started(engine, schedule_id) == [["a"]]
    assert (await row_of(engine, schedule_id)).next_at > clock.now()


async def test_times_missed_while_no_producer_ran_are_made_up_once(engine: AsyncEngine) -> None:
    await crawled(engine, "a", "b")
    ids = {row.key: row.id for row in await rows(engine, shop)}
    interval = await add(engine, "interval", every=HOUR, shop_id=ids["a"])
    cron = await add(engine, "cron", cron="0 3 * * *", timezone="Asia/Shanghai", shop_id=ids["b"])
    for seconds in (5 * DAY + 120, 5 * DAY + 180):
        await step(engine, seconds)
        await settle_started(engine, seconds)
    assert (await started(engine, interval), await started(engine, cron)) == ([["a"]], [["b"]])
    assert (await row_of(engine, interval)).next_at == after(5 * DAY + HOUR - 1)
    assert f"{(await row_of(engine, cron)).next_at:%m-%d %H:%M}" == "03-06 19:00"


async def test_a_schedule_is_about_the_shops_it_names(engine: AsyncEngine) -> None:
    await crawled(engine, "a", "b")
    shops = {row.key: row.id for row in await rows(engine, shop)}
    one = await add(engine, "interval", every=HOUR, shop_id=shops["b"])
    source = await add(engine, "interval", every=HOUR, source="top")
    await step(engine, 1)
    assert (await started(engine, one), await started(engine, source)) == ([["b"]], [])


async def test_a_shop_that_was_never_crawled_is_crawled_with_the_usual_options(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(sa.insert(shop).values(source="tmapi", key="new", created_at=START))
    everybody = await add(engine, "interval", every=HOUR)
    await step(engine, 1)
    assert await started(engine, everybody) == [], "all are those that were ever crawled"
    one = await add(engine, "interval", every=HOUR, shop_id=(await rows(engine, shop))[0].id)
    await step(engine, 1)
    assert await started(engine, one) == [["new"]]
    (row,) = await rows(engine, shop_crawl)
    assert row.options == {"sort": "time_up", "page_size": SETTINGS.page_size, "max_pages": SETTINGS.max_pages}


async def test_many_shops_are_started_in_batches_and_each_once(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(at_work, "BATCH", 3)
    keys = [f"shop-{number}" for number in range(8)]
    await crawled(engine, *keys)
    schedule_id = await add(engine, "interval", every=HOUR)
    await asyncio.gather(step(engine, 1), step(engine, 1))
    batches = await started(engine, schedule_id)
    assert [len(batch) for batch in batches] == [3, 3, 2]
    assert sorted(key for batch in batches for key in batch) == keys
    assert (await row_of(engine, schedule_id)).cursor == 0


async def test_a_schedule_may_read_only_what_is_new(engine: AsyncEngine) -> None:
    await crawled(engine, "a")
    await add(engine, "interval", every=HOUR, mode="new")
    await step(engine, 1)
    (row,) = await rows(engine, shop_crawl, shop_crawl.c.kind == "recrawl")
    assert (row.mode, row.options["sort"]) == ("new", "time_down")


async def test_a_disabled_schedule_rests_and_a_removed_one_leaves_its_crawls(engine: AsyncEngine) -> None:
    await crawled(engine, "a")
    schedule_id = await add(engine, "adaptive", every=HOUR)
    async with engine.begin() as connection:
        await update_schedule(connection, schedule_id, enabled=False)
    await step(engine, DAY)
    assert await started(engine, schedule_id) == []
    async with engine.begin() as connection:
        await update_schedule(connection, schedule_id, enabled=True)
    await step(engine, DAY)
    assert await started(engine, schedule_id) == [["a"]]
    async with engine.begin() as connection:
        assert await remove_schedule(connection, schedule_id)
        assert not await remove_schedule(connection, schedule_id)
    assert await rows(engine, schedule) == await rows(engine, schedule_shop) == []
    assert [row.schedule_id for row in await rows(engine, crawl)] == [None, None]
    assert len(await rows(engine, shop_crawl)) == 2


async def test_one_that_cannot_work_keeps_no_other_from_it(engine: AsyncEngine) -> None:
    await crawled(engine, "a")
    broken = await add(engine, "cron", cron="0 3 * * *", timezone="Nowhere/Here", next_at=after(-5))
    sound = await add(engine, "interval", every=HOUR)
    await step(engine, 1)
    assert (await started(engine, broken), await started(engine, sound)) == ([], [["a"]])
    assert (await row_of(engine, broken)).next_at > after(HOUR)


async def test_an_adaptive_interval_follows_what_changes(engine: AsyncEngine) -> None:
    await crawled(engine, "lively", "quiet", at=-2 * DAY)
    schedule_id = await add(engine, "adaptive", every=DAY)
    shops = {row.key: row.id for row in await rows(engine, shop)}
    await step(engine, 0)
    assert await started(engine, schedule_id) == [["lively", "quiet"]]
    (first,) = await rows(engine, crawl, crawl.c.schedule_id == schedule_id)
    async with engine.begin() as connection:
        await settle(connection, first.id, 60)
        lively = (shop_crawl.c.crawl_id == first.id) & (shop_crawl.c.shop_id == shops["lively"])
        await connection.execute(
            sa.update(shop_crawl).where(lively).values(changed_items=30, new_items=5, gone_items=5)
        )
    await step(engine, 120)
    states = {row.shop_id: row for row in await rows(engine, schedule_shop)}
    assert states[shops["lively"]].every == DAY / 2
    assert states[shops["quiet"]].every == 2 * DAY
    assert states[shops["lively"]].due_at == after(60 + DAY / 2)
    for seconds, expected in ((60 + DAY / 2 - 70, 1), (60 + DAY / 2 + 70, 2)):
        await step(engine, seconds)
        assert len(await started(engine, schedule_id)) == expected
    assert (await started(engine, schedule_id))[1] == ["lively"]


async def test_a_shop_crawled_later_by_others_joins_and_teaches(engine: AsyncEngine) -> None:
    schedule_id = await add(engine, "adaptive", every=DAY)
    await step(engine, 0)
    crawl_id = await submit(engine, "newcomer")
    async with engine.begin() as connection:
        await settle(connection, crawl_id, 100)
    await step(engine, 200)
    (state,) = await rows(engine, schedule_shop)
    assert (state.due_at, state.crawled_at, state.rate) == (after(100 + DAY), after(100), None)
    again = await submit(engine, "newcomer")
    async with engine.begin() as connection:
        await settle(connection, again, HOUR, verdict="partial")
        await connection.execute(sa.update(shop_crawl).where(shop_crawl.c.crawl_id == again).values(changed_items=99))
    await step(engine, HOUR + 60)
    (state,) = await rows(engine, schedule_shop)
    assert (state.every, state.due_at, state.crawled_at) == (DAY, after(HOUR + DAY / 4), after(100))
    assert await started(engine, schedule_id) == []


async def test_a_new_schedule_learns_from_the_crawls_there_were(engine: AsyncEngine) -> None:
    for day in range(10, 0, -1):
        await crawled(engine, "a", at=-day * DAY, changes=10)
    await add(engine, "budgeted", daily_calls=1)
    await step(engine, 0)
    (state,) = await rows(engine, schedule_shop)
    assert 8 < state.rate < 12
    assert (state.items, state.calls, state.crawled_at) == (100, 5, after(-DAY))


async def test_a_budget_is_never_exceeded_in_a_day_and_goes_where_changes_are(engine: AsyncEngine) -> None:
    names = [f"shop-{number:02}" for number in range(20)]
    for day in (3, 2, 1):
        for name in names:
            await crawled(engine, name, at=-day * DAY, changes=0 if int(name[-2:]) % 4 else 20)
    daily = 30
    schedule_id = await add(engine, "budgeted", daily_calls=daily)
    for number in range(3 * 24):  # an hour's calls at a time, for three days
        seconds = number * HOUR
        await step(engine, seconds)
        async with engine.connect() as connection:
            charged = await charges(connection, schedule_id, day_start(after(seconds)))
        assert sum(each.calls for each in charged) <= daily
        await settle_started(engine, seconds + 60)
    found = await rows(
        engine, call, call.c.crawl_id.in_(sa.select(crawl.c.id).where(crawl.c.schedule_id == schedule_id))
    )
    per_day: dict[str, int] = {}
    for each in found:
        per_day[f"{each.at:%d}"] = per_day.get(f"{each.at:%d}", 0) + each.calls
    assert max(per_day.values()) <= daily
    assert sum(per_day.values()) >= 2 * daily
    crawls = [batch for batch in await started(engine, schedule_id) if batch]
    assert crawls[0][0] in names[::4]
    assert all(row.max_calls is not None for row in await rows(engine, crawl, crawl.c.schedule_id == schedule_id))


async def test_calls_that_span_midnight_count_to_both_days_until_they_are_settled(engine: AsyncEngine) -> None:
    schedule_id = await add(engine, "budgeted", daily_calls=100)
    values = {"fingerprint": "x", "priority": 5, "options": {}, "schedule_id": schedule_id}
    async with engine.begin() as connection:
        running = {**values, "id": 1, "kind": "recrawl", "state": "running", "max_calls": 40, "reserved": 30}
        ended = {**values, "id": 2, "kind": "recrawl", "state": "finished", "max_calls": 20, "reserved": 12}
        await connection.execute(sa.insert(crawl).values(**running, created_at=after(0)))
        await connection.execute(sa.insert(crawl).values(**ended, created_at=after(0), finished_at=after(DAY)))
        await connection.execute(sa.insert(call), [_call(1, 25, HOUR), _call(1, 3, DAY), _call(2, 12, HOUR)])
        midnight = day_start(after(DAY))
        found = {each.crawl_id: each.calls for each in await charges(connection, schedule_id, midnight)}
        today = {each.crawl_id: each.calls for each in await charges(connection, schedule_id, day_start(after(0)))}
    assert found == {1: 40 - 25, 2: 0}
    assert today == {1: 40, 2: 12}


async def test_a_crawl_that_needs_more_calls_than_expected_gets_them_from_later_ones(engine: AsyncEngine) -> None:
    for day in (2, 1):
        await crawled(engine, "a", at=-day * DAY, changes=20)
    schedule_id = await add(engine, "budgeted", daily_calls=240)
    await step(engine, 6 * HOUR)
    (first,) = await rows(engine, crawl, crawl.c.schedule_id == schedule_id)
    assert first.max_calls == 8
    async with engine.begin() as connection:  # it has grown: nothing is left, and a hundred pages wait for calls
        (mine,) = await connection.execute(sa.select(page).where(_pages(first.id)))
        copies = [{**mine._mapping, "number": number, "state": "held"} for number in range(2, 102)]
        await connection.execute(sa.insert(page), [{k: v for k, v in row.items() if k != "id"} for row in copies])
        await connection.execute(sa.update(page).where(page.c.id == mine.id).values(state="done"))
        await connection.execute(sa.update(crawl).where(crawl.c.id == first.id).values(reserved=8))
        assert await rest_crawls(connection) == [first.id]
    await step(engine, 6 * HOUR + LOOK.total_seconds())
    (row,) = await rows(engine, crawl, crawl.c.id == first.id)
    assert (row.state, row.max_calls) == ("running", 63), "what had accrued after six hours and two looks"
    assert len(await rows(engine, page, page.c.state == "held", _pages(first.id))) == 0


async def test_a_crawl_that_waits_for_a_session_keeps_no_calls_from_others(engine: AsyncEngine) -> None:
    await crawled(engine, "a", "b")
    schedule_id = await add(engine, "budgeted", daily_calls=24)
    await step(engine, 12 * HOUR - 700)
    (first,) = await rows(engine, crawl, crawl.c.schedule_id == schedule_id)
    async with engine.begin() as connection:
        await connection.execute(sa.update(shop_crawl).where(shop_crawl.c.crawl_id == first.id).values(state="held"))
        await connection.execute(sa.update(page).where(_pages(first.id)).values(state="held"))
        waiting = {"state": "waiting", "reserved": 1}
        await connection.execute(sa.update(crawl).where(crawl.c.id == first.id).values(waiting))
    await step(engine, 12 * HOUR - 50)
    async with engine.connect() as connection:
        charged = {each.crawl_id: each.calls for each in await charges(connection, schedule_id, day_start(after(0)))}
    assert charged[first.id] == 1


@pytest.mark.parametrize("kind", ["interval", "cron", "adaptive", "budgeted"])
async def test_a_preview_says_what_would_start_and_changes_nothing(engine: AsyncEngine, kind: str) -> None:
    for day in (40, 33):
        await crawled(engine, "a", "b", at=-day * DAY, changes=20)
    own: dict[str, dict[str, Any]] = {
        "interval": {"every": HOUR},
        "cron": {"cron": "0 3 * * *"},
        "adaptive": {"every": DAY},
    }
    schedule_id = await add(engine, kind, **own.get(kind, {"daily_calls": 10_000}))
    before = await row_of(engine, schedule_id)
    async with engine.connect() as connection:
        found = await preview(connection, schedule_id, after(HOUR))
        assert await preview(connection, schedule_id + 1, after(HOUR)) is None
        await connection.rollback()
    assert found is not None
    assert (found.shops, found.starts, found.examples) == (2, 2, [("tmapi", "a"), ("tmapi", "b")])
    assert (found.calls, round(found.changes or 0) > 10) == ((16, True) if kind == "budgeted" else (None, False))
    assert await row_of(engine, schedule_id) == before
    assert await rows(engine, schedule_shop) == []
    assert await started(engine, schedule_id) == []


async def test_a_shop_is_crawled_again_with_the_options_it_had(engine: AsyncEngine) -> None:
    crawl_id = await submit(engine, "a", sort="sales")
    async with engine.begin() as connection:
        await settle(connection, crawl_id, -DAY)
    await add(engine, "interval", every=HOUR)
    await step(engine, 1)
    row = (await rows(engine, shop_crawl))[-1]
    assert row.options == requests("a", sort="sales")[0].options
