"""Whatever happens in whatever order, every page ends, every shop is settled, and every call is counted."""

import asyncio
import shutil
from collections.abc import Callable, Coroutine
from datetime import datetime
from math import ceil
from pathlib import Path
from typing import Any, TypeVar

import pytest
import sqlalchemy as sa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from models.crawls import submit_crawl, submit_recrawl
from models.database import create_engine
from models.ledger import PageResult, store_results
from models.messages import PageTask
from models.settings import async_url
from models.tables import call, crawl, item, page, shop, shop_crawl
from producer.dispatch import Dispatcher
from producer.planning.review import review
from producer.reconcile import overdue, send_again
from tests.ledger import (
    SETTINGS,
    SOURCE,
    after,
    dispatch,
    done,
    ended,
    engine_for,
    items,
    requests,
    rows,
    store,
    submit,
)

ROWS = {"empty": 0, "small": 7, "full": 40, "large": 95}
CLAIMED = ROWS | {"full": 100}  # three pages too many: they are planned, and cancelled or called in vain
SHOPS = st.sets(st.sampled_from(sorted(ROWS)), min_size=1)
PAGE_SIZE = 20
MAX_CRASHES = 2
_T = TypeVar("_T")
COUNTERS = {"pages_done": {"done"}, "pages_dead": {"dead", "refused"}, "pages_cancelled": {"cancelled"}}


class Fleet(RuleBasedStateMachine):
    """A producer, workers and an operator who share one ledger, with everything between them unreliable."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.engine: AsyncEngine = create_engine(async_url(url))
        self.dispatcher = Dispatcher(SETTINGS)
        self.seconds = 0
        self.calls = 0
        self.queue: list[PageTask] = []
        self.held: list[PageTask] = []
        self.gone: list[PageTask] = []
        """Sendings whose message or worker was lost; a worker thought dead may still come back with one."""
        self.crashed: set[tuple[int, int]] = set()
        self.accepted: set[tuple[int, int]] = set()
        self.finished: list[PageResult] = []

    @property
    def now(self) -> datetime:
        return after(self.seconds)

    def transaction(self, work: Callable[[AsyncConnection], Coroutine[Any, Any, _T]]) -> _T:
        async def run() -> _T:
            async with self.engine.begin() as connection:
                return await work(connection)

        return self.runner.run(run())

    def rows(self, table: sa.Table) -> list[sa.Row[Any]]:
        async def read(connection: AsyncConnection) -> list[sa.Row[Any]]:
            return list(await connection.execute(sa.select(table)))

        return self.transaction(read)

    @initialize()
    def begin(self) -> None:
        self.submit(set(ROWS))
        self.dispatch(10)
        self.take(10)

    @rule(keys=SHOPS)
    def submit(self, keys: set[str]) -> None:
        self.transaction(lambda c: submit_crawl(c, requests(*sorted(keys)), now=self.now, settings=SETTINGS))

    @rule(keys=SHOPS)
    def recrawl(self, keys: set[str]) -> None:
        self.transaction(lambda c: submit_recrawl(c, requests(*sorted(keys)), now=self.now, settings=SETTINGS))

    @rule(room=st.integers(1, 20))
    def dispatch(self, room: int) -> None:
        self.seconds += 1
        self.queue += self.transaction(lambda c: self.dispatcher.take_due(c, sources=[SOURCE], room=room, now=self.now))

    @precondition(lambda self: self.queue)
    @rule(count=st.integers(1, 10))
    def take(self, count: int) -> None:
        self.held += self.queue[:count]
        del self.queue[:count]

    @precondition(lambda self: self.queue)
    @rule(number=st.integers(0, 99))
    def lose_message(self, number: int) -> None:
        self.gone.append(self.queue.pop(number % len(self.queue)))

    @precondition(lambda self: self.held)
    @rule(number=st.integers(0, 99))
    def worker_dies(self, number: int) -> None:
        task = self.held.pop(number % len(self.held))
        self.crashed.add((task.page_id, task.fence))
        self.gone.append(task)

    @precondition(lambda self: self.held)
    @rule(number=st.integers(0, 99))
    def worker_dies_and_its_page_is_sent_again(self, number: int) -> None:
        self.worker_dies(number)
        self.reconcile()
        self.dispatch(20)

    @precondition(lambda self: self.held)
    @rule(number=st.integers(0, 99), state=st.sampled_from(["done", "done", "done", "dead", "refused", "ready"]))
    def finish(self, number: int, state: str) -> None:
        task = self.held.pop(number % len(self.held))
        assert self.store(self.result(task, state)) == [True]

    @precondition(lambda self: len(self.held) > 1)
    @rule()
    def finish_together(self) -> None:
        results = [self.result(task, "done") for task in self.held]
        self.held = []
        assert self.store(*results, *self.finished[-2:])[: len(results)] == [True] * len(results)

    @precondition(lambda self: self.gone)
    @rule(number=st.integers(0, 99))
    def zombie_finishes(self, number: int) -> None:
        task = self.gone.pop(number % len(self.gone))
        current = {row.id: (row.fence, row.state) for row in self.rows(page)}[task.page_id]
        assert self.store(self.result(task, "done")) == [current == (task.fence, "sent")]

    @precondition(lambda self: self.finished)
    @rule(number=st.integers(0, 99))
    def finish_again(self, number: int) -> None:
        assert self.store(self.finished[number % len(self.finished)]) == [False]

    @rule()
    def reconcile(self) -> None:
        self.seconds += 10
        suspects = self.transaction(lambda c: overdue(c, self.now))
        lost = suspects - {(task.page_id, task.fence) for task in self.queue + self.held}
        crashed = frozenset(lost & self.crashed)
        assert self.transaction(lambda c: send_again(c, lost, crashed, now=self.now, max_crashes=MAX_CRASHES)) == len(
            lost
        )

    @rule()
    def review(self) -> None:
        self.transaction(lambda c: review(c, now=self.now, settings=SETTINGS))

    @rule(room=st.integers(1, 20))
    def producer_takes_a_turn(self, room: int) -> None:
        self.review()
        self.dispatch(room)
        self.take(room)

    def result(self, task: PageTask, state: str) -> PageResult:
        self.seconds += 1
        if state != "done":
            return ended(task, state, at=self.seconds, due=self.seconds + 5 if state == "ready" else None)
        size = task.options["page_size"]
        shown = range((task.page - 1) * size, min(task.page * size, ROWS[task.shop]))
        return done(
            task, items(*(f"{task.shop}-{number}" for number in shown)), at=self.seconds, total=CLAIMED[task.shop]
        )

    def store(self, *results: PageResult) -> list[bool]:
        self.calls += len(results)
        self.finished += results
        accepted = [stored is not None for stored in self.transaction(lambda c: store_results(c, results))]
        for result, was_accepted in zip(results, accepted, strict=True):
            sending = (result.task.page_id, result.task.fence)
            assert not (was_accepted and sending in self.accepted), "one sending was stored twice"
            if was_accepted:
                self.accepted.add(sending)
        return accepted

    @invariant()
    def every_call_is_counted_and_what_is_out_is_known_to_the_ledger(self) -> None:
        async def read(connection: AsyncConnection) -> tuple[int, set[tuple[int, int]]]:
            calls = await connection.scalar(sa.select(sa.func.sum(call.c.calls)))
            sent = await connection.execute(sa.select(page.c.id, page.c.fence).where(page.c.state == "sent"))
            return calls or 0, {(row.id, row.fence) for row in sent}

        calls, sent = self.transaction(read)
        out = {(task.page_id, task.fence) for task in self.queue + self.held}
        assert calls == self.calls
        assert out <= sent
        assert sent - out <= {(task.page_id, task.fence) for task in self.gone}

    def teardown(self) -> None:
        try:
            self.work_to_the_end()
            self.check_the_end()
        finally:
            self.runner.run(self.engine.dispose())
            self.runner.close()

    def work_to_the_end(self) -> None:
        for _ in range(100):
            self.seconds += 10
            self.reconcile()
            self.dispatch(1000)
            self.held += self.queue
            self.queue = []
            if self.held:
                self.store(*(self.result(task, "done") for task in self.held))
                self.held = []
            reviewed = self.transaction(lambda c: review(c, now=self.now, settings=SETTINGS))
            if not reviewed.pages and not any(row.state in {"ready", "sent"} for row in self.rows(page)):
                return
        raise AssertionError("the work does not end")

    def check_the_end(self) -> None:
        self.every_call_is_counted_and_what_is_out_is_known_to_the_ledger()
        assert all(row.state == "finished" for row in self.rows(crawl))
        pages, keys = self.rows(page), {row.id: row.key for row in self.rows(shop)}
        stored = {row.item_id for row in self.rows(item)}
        for row in self.rows(shop_crawl):
            mine = [each for each in pages if each.shop_crawl_id == row.id]
            assert row.state == "settled"
            assert row.planned == len(mine) == row.pages_done + row.pages_dead + row.pages_cancelled
            for counter, states in COUNTERS.items():
                assert row._mapping[counter] == sum(each.state in states for each in mine)
            key = keys[row.shop_id]
            truth = {f"{key}-{number}" for number in range(ROWS[key])}
            if row.verdict == "complete":
                assert truth <= stored
                assert row.distinct_items == len(truth)
            assert row.verdict == "complete" or row.pages_dead or CLAIMED[key] > ROWS[key]
            if not any(each.state in {"dead", "refused"} for each in mine if not each.slice):
                assert row.verdict == ("complete" if CLAIMED[key] == ROWS[key] else "partial")
            second = [each for each in mine if each.slice]
            assert len(mine) - len(second) <= ceil(CLAIMED[key] / PAGE_SIZE) + 1
            assert len(second) <= SETTINGS.second_pass_calls
            assert not second or not any(each.state in {"dead", "refused"} for each in mine if not each.slice)
        assert stored <= {f"{key}-{number}" for key, total in ROWS.items() for number in range(total)}


def explore(fresh: Callable[[], Fleet], *, examples: int, steps: int) -> None:
    bounds = settings(max_examples=examples, stateful_step_count=steps, deadline=None)
    run_state_machine_as_test(fresh, settings=bounds)  # type: ignore[arg-type]  # any factory will do


def test_no_order_of_events_on_sqlite_loses_or_doubles_a_page(tmp_path: Path, sqlite_template: Path) -> None:
    path = tmp_path / "model.db"

    def fresh() -> Fleet:
        for left_over in tmp_path.glob("model.db*"):
            left_over.unlink()
        shutil.copyfile(sqlite_template, path)
        return Fleet(f"sqlite:///{path}")

    explore(fresh, examples=20, steps=30)


def test_no_order_of_events_on_postgresql_loses_or_doubles_a_page(postgres_url: str) -> None:
    def fresh() -> Fleet:
        fleet = Fleet(postgres_url)
        tables = ", ".join(table.name for table in (crawl, shop, shop_crawl, page, call, item))
        fleet.transaction(lambda c: c.execute(sa.text(f"TRUNCATE {tables} CASCADE")))
        return fleet

    explore(fresh, examples=3, steps=30)


async def test_two_producers_that_settle_the_last_two_shops_at_once_finish_the_crawl(postgres_url: str) -> None:
    engine = create_engine(async_url(postgres_url))
    try:
        async with engine.begin() as connection:
            await submit_crawl(connection, requests("empty", "small"), now=after(0), settings=SETTINGS)
            tasks = await Dispatcher(SETTINGS).take_due(connection, sources=[SOURCE], room=9, now=after(0))
        async with engine.connect() as one, engine.connect() as other:
            for connection, task in ((one, tasks[0]), (other, tasks[1])):
                async with engine.begin() as worker:
                    await store_results(worker, [done(task, total=0)])
                if connection is one:
                    assert (await review(one, now=after(5), settings=SETTINGS)).pages == 1
            second = asyncio.create_task(review(other, now=after(5), settings=SETTINGS))
            await _until_blocked(engine)
            await one.commit()
            assert (await asyncio.wait_for(second, 30)).pages == 1
            await other.commit()
            assert await one.scalar(sa.select(crawl.c.state)) == "finished"
    finally:
        await engine.dispose()


async def _until_blocked(engine: AsyncEngine) -> None:
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    async with asyncio.timeout(30), engine.connect() as connection:
        while not await connection.scalar(sa.text(waiting)):
            await connection.rollback()  # statistics are a snapshot of their transaction
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("producers", [4])
async def test_producers_side_by_side_review_each_page_once(postgres_url: str, producers: int) -> None:
    engine = create_engine(async_url(postgres_url), pool_size=producers)
    try:
        async with engine.begin() as connection:
            keys = [f"shop-{number}" for number in range(60)]
            await submit_crawl(connection, requests(*keys), now=after(0), settings=SETTINGS)
            tasks = await Dispatcher(SETTINGS).take_due(connection, sources=[SOURCE], room=99, now=after(0))
            await store_results(connection, [done(task, items(task.shop), total=1) for task in tasks])

        async def producer() -> int:
            async with engine.begin() as connection:
                return (await review(connection, now=after(5), settings=SETTINGS)).pages

        assert sum(await asyncio.gather(*(producer() for _ in range(producers)))) == 60
        async with engine.connect() as connection:
            settled = list(await connection.execute(sa.select(shop_crawl)))
            assert await connection.scalar(sa.select(crawl.c.state)) == "finished"
        assert {(row.state, row.verdict, row.pages_done, row.distinct_items) for row in settled} == {
            ("settled", "complete", 1, 1)
        }
    finally:
        await engine.dispose()


async def test_behind_the_end_only_pages_that_were_not_sent_are_cancelled(sqlite_url: str) -> None:
    async with engine_for(sqlite_url) as engine:
        await submit(engine, "shop")
        await store(engine, done((await dispatch(engine))[0], items(*range(20)), total=120))
        async with engine.begin() as connection:
            assert (await review(connection, now=after(2), settings=SETTINGS)).pages == 1
        second, third, fourth = await dispatch(engine, room=3, now=after(3))
        await store(engine, done(third, total=120))
        async with engine.begin() as connection:
            assert (await review(connection, now=after(4), settings=SETTINGS)).pages == 1
        assert [row.state for row in await rows(engine, page)] == ["done", "sent", "done", "sent", *["cancelled"] * 2]
        assert await store(engine, done(fourth, total=120), done(second, items(20), total=120)) == [True, True]
        async with engine.begin() as connection:
            one_pass = SETTINGS.model_copy(update={"second_pass_share": 0})
            assert (await review(connection, now=after(5), settings=one_pass)).pages == 2
        (settled,) = await rows(engine, shop_crawl)
        assert (settled.verdict, settled.last_page, settled.distinct_items) == ("partial", 2, 21)
        assert (settled.pages_done, settled.pages_cancelled, settled.planned) == (4, 2, 6)
