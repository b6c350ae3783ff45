"""Which pages leave the ledger, in what order, and never one of them twice."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncEngine

from models.crawls import ShopRequest, new_page, submit_crawl, submit_recrawl
from models.messages import PageTask
from models.tables import crawl, page, shop_crawl
from producer import dispatch as dispatching
from producer.dispatch import Dispatcher, fair_shares, oldest_due, window
from producer.planning.review import review
from producer.reconcile import overdue
from tests.ledger import (
    OPTIONS,
    SETTINGS,
    SOURCE,
    START,
    after,
    dispatch,
    done,
    ended,
    engine_for,
    requests,
    rows,
    store,
    submit,
)


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    async with engine_for(database_url) as engine:
        yield engine


async def plan(engine: AsyncEngine, pages: int) -> None:
    """Give each shop crawl pages 2 to `pages`, one shop after the other."""
    crawls = await rows(engine, shop_crawl)
    planned = [
        new_page(row.id, SOURCE, number, row.priority, START) for row in crawls for number in range(2, pages + 1)
    ]
    async with engine.begin() as connection:
        await connection.execute(sa.insert(page), planned)


async def test_a_message_says_all_that_a_worker_needs(engine: AsyncEngine) -> None:
    crawl_id = await submit(engine, "店 'a'", sort="sale", priority=3)
    (row,) = await rows(engine, shop_crawl)
    (page_row,) = await rows(engine, page)
    assert await dispatch(engine, now=after(7)) == [
        PageTask(
            source=SOURCE,
            shop="店 'a'",
            page=1,
            page_id=page_row.id,
            fence=1,
            shop_id=row.shop_id,
            shop_crawl_id=row.id,
            crawl_id=crawl_id,
            priority=3,
            tries=0,
            options=OPTIONS | {"sort": "sale"},
        )
    ]
    (page_row,) = await rows(engine, page)
    assert (page_row.state, page_row.fence, page_row.sent_at) == ("sent", 1, after(7))


async def test_all_shops_advance_together(engine: AsyncEngine) -> None:
    await submit(engine, "a", "b", "c")
    await plan(engine, 3)
    taken = [(task.page, task.shop) for task in await dispatch(engine)]
    assert taken == [(number, shop) for number in (1, 2, 3) for shop in ("a", "b", "c")]


async def test_urgent_pages_overtake_all_others(engine: AsyncEngine) -> None:
    await submit(engine, "a", "b")
    await plan(engine, 4)
    async with engine.begin() as connection:
        await submit_recrawl(connection, requests("late"), now=START, settings=SETTINGS)
    await submit(engine, "lazy", priority=9)
    assert [task.shop for task in await dispatch(engine, room=1)] == ["late"]
    assert [task.shop for task in await dispatch(engine)] == ["a", "b"] * 4 + ["lazy"]


async def test_no_more_leave_than_there_is_room_for(engine: AsyncEngine) -> None:
    await submit(engine, *map(str, range(30)))
    assert len(await dispatch(engine, room=7)) == 7
    assert await dispatch(engine, room=0) == []
    assert await dispatch(engine, room=-5) == []
    async with engine.connect() as connection:
        assert await Dispatcher(SETTINGS).sent(connection) == 7


async def test_a_page_waits_until_it_is_due_and_returns_with_a_higher_fence(engine: AsyncEngine) -> None:
    await submit(engine, "a")
    (task,) = await dispatch(engine)
    await store(engine, ended(task, "ready", due=60))
    assert await dispatch(engine, now=after(59)) == []
    (again,) = await dispatch(engine, now=after(60))
    assert (again.page_id, again.fence, again.tries) == (task.page_id, 2, 1)


async def test_only_ready_pages_of_the_sources_asked_for_leave(engine: AsyncEngine) -> None:
    await submit(engine, "a", "b", "c")
    (task,) = await dispatch(engine, room=1)
    await store(engine, done(task))
    async with engine.begin() as connection:
        dispatcher = Dispatcher(SETTINGS)
        assert await dispatcher.take_due(connection, sources=[], room=9, now=START) == []
        assert await dispatcher.take_due(connection, sources=["other"], room=9, now=START) == []
        probes = await dispatcher.take_due(connection, sources=[SOURCE], room=1, now=START, credential="key-2")
        assert [(probe.shop, probe.credential) for probe in probes] == [("b", "key-2")]
    assert [each.shop for each in await dispatch(engine)] == ["c"]


@pytest.mark.parametrize(("first", "second", "taken"), [(9, 9, (4, 4)), (9, 1, (7, 1)), (1, 9, (1, 7)), (2, 3, (2, 3))])
async def test_sources_share_the_room_and_none_of_it_is_wasted(
    engine: AsyncEngine, first: int, second: int, taken: tuple[int, int]
) -> None:
    wanted = [ShopRequest(SOURCE, str(number), OPTIONS) for number in range(first)]
    wanted += [ShopRequest("top", str(number), OPTIONS) for number in range(second)]
    async with engine.begin() as connection:
        await submit_crawl(connection, wanted, now=START, settings=SETTINGS)
        tasks = await Dispatcher(SETTINGS).take_due(connection, sources=[SOURCE, "top", "idle"], room=8, now=START)
    counted = Counter(task.source for task in tasks)
    assert (counted[SOURCE], counted["top"]) == taken


async def test_sources_take_turns_when_there_is_room_for_one_page(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        wanted = [ShopRequest(source, str(number), OPTIONS) for source in (SOURCE, "top") for number in range(4)]
        await submit_crawl(connection, wanted, now=START, settings=SETTINGS)
        dispatcher = Dispatcher(SETTINGS)
        taken = [await dispatcher.take_due(connection, sources=[SOURCE, "top"], room=1, now=START) for _ in range(4)]
    assert Counter(task.source for tasks in taken for task in tasks) == {SOURCE: 2, "top": 2}


@given(room=st.integers(0, 5_000), count=st.integers(1, 9), turn=st.integers(0, 99))
def test_shares_add_up_and_differ_by_one_at_most(room: int, count: int, turn: int) -> None:
    names = [str(number) for number in range(count)]
    shares = fair_shares(room, names, turn)
    assert sorted(shares) == names and sum(shares.values()) == room
    assert max(shares.values()) - min(shares.values()) <= 1


async def test_a_dispatcher_that_forgets_shops_learns_them_again(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatching, "REMEMBERED_SHOPS", 2)
    await submit(engine, *"abcdef")
    await plan(engine, 3)
    dispatcher = Dispatcher(SETTINGS)
    taken = []
    for room in (1, 4, 6, 3, 9):
        async with engine.begin() as connection:
            taken += await dispatcher.take_due(connection, sources=[SOURCE], room=room, now=START)
    assert [task.shop for task in taken] == list("abcdef" * 3)


async def test_parallel_dispatchers_never_take_one_page_twice(postgres_url: str) -> None:
    async with engine_for(postgres_url, pool_size=8) as engine:
        await submit(engine, *map(str, range(60)))
        await plan(engine, 5)
        taken: Counter[int] = Counter()

        async def producer() -> None:
            idle = 0
            while idle < 3:
                tasks = await dispatch(engine, room=7)
                assert len(tasks) <= 7
                taken.update(task.page_id for task in tasks)
                idle = 0 if tasks else idle + 1

        await asyncio.gather(*(producer() for _ in range(6)))
        assert len(taken) == 300
        assert set(taken.values()) == {1}
        assert {row.fence for row in await rows(engine, page)} == {1}


async def test_a_page_that_another_producer_is_taking_is_passed_over(postgres_url: str) -> None:
    """Producers of one crawl take turns at its account; whoever comes second takes other pages."""
    async with engine_for(postgres_url) as engine:
        await submit(engine, "a", "b", "c")
        async with engine.begin() as other:
            first = await Dispatcher(SETTINGS).take_due(other, sources=[SOURCE], room=1, now=START)
            dispatching = asyncio.create_task(dispatch(engine))
            waiting = sa.text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
            async with engine.connect() as watcher, asyncio.timeout(30):
                while not await watcher.scalar(waiting):
                    await watcher.rollback()
                    await asyncio.sleep(0.01)
        second = await asyncio.wait_for(dispatching, 30)
        assert [task.shop for task in first + second] == ["a", "b", "c"]
        assert (await rows(engine, crawl))[0].reserved == 3


async def test_the_hot_queries_use_the_indexes_made_for_them(sqlite_url: str) -> None:
    async with engine_for(sqlite_url) as engine:
        statements: list[tuple[str, Any]] = []

        def note(_c: object, _u: object, text: str, parameters: Any, *_: object) -> None:
            statements.append((text, parameters))

        sa.event.listen(engine.sync_engine, "before_cursor_execute", note)
        async with engine.begin() as connection:
            await Dispatcher(SETTINGS).take_due(connection, sources=[SOURCE], room=9, now=START)
            await Dispatcher(SETTINGS).sent(connection)
            await oldest_due(connection, [SOURCE], START)
            await review(connection, now=START, settings=SETTINGS)
            await overdue(connection, START)
            sa.event.remove(engine.sync_engine, "before_cursor_execute", note)
            for text, parameters in statements[1:]:
                result = await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", parameters)
                plan = [row.detail for row in result]
                assert not any(step == "SCAN page" for step in plan), (text, plan)
                assert any("USING" in step and "INDEX ix_page" in step for step in plan), (text, plan)
        assert len(statements) == 6


async def test_the_oldest_due_page_tells_how_far_dispatch_is_behind(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        assert await oldest_due(connection, [SOURCE], after(50)) == 0
    await submit(engine, "a")
    async with engine.connect() as connection:
        assert await oldest_due(connection, [SOURCE], after(50)) == 50


@pytest.mark.parametrize(
    ("setting", "capacities", "out"), [(0, [], 100), (0, [10], 100), (0, [200, 300], 1000), (7, [500], 7)]
)
def test_the_window_is_as_set_or_twice_what_the_workers_hold(setting: int, capacities: list[int], out: int) -> None:
    assert window(setting, capacities) == out


async def test_many_urgent_pages_do_not_starve_the_others(engine: AsyncEngine) -> None:
    await submit(engine, *(f"urgent{number}" for number in range(30)), priority=0)
    await submit(engine, *(f"normal{number}" for number in range(30)))
    dispatcher, sent = Dispatcher(SETTINGS), Counter[int]()
    async with engine.begin() as connection:
        for _ in range(20):
            (task,) = await dispatcher.take_due(connection, sources=[SOURCE], room=1, now=START)
            sent[task.priority] += 1
        assert sent == {0: 18, 5: 2}
        rest = await dispatcher.take_due(connection, sources=[SOURCE], room=100, now=START)
    assert len(rest) == 40
