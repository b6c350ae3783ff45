"""Group commit: pages that finish together are stored together, and nothing handed in is ever lost."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from prometheus_client import REGISTRY
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from models.database import SQLITE_BUSY_SECONDS
from models.ledger import PageResult, Stored, store_results
from models.messages import PageTask
from models.tables import call, item, page, page_body, shop
from tests.ledger import dispatch, done, ended, engine_for, items, rows, store, submit
from tests.servers import PostgresServer
from worker import metrics
from worker import writer as writing
from worker.writer import Writer, is_outage


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    async with engine_for(database_url) as engine:
        yield engine


@asynccontextmanager
async def running(engine: AsyncEngine) -> AsyncIterator[Writer]:
    writer = Writer(engine)
    writer.start()
    yield writer
    await writer.stop()


async def pages(engine: AsyncEngine, count: int) -> list[PageTask]:
    await submit(engine, *(f"shop-{number:03}" for number in range(count)))
    return await dispatch(engine)


async def store_all(writer: Writer, results: Sequence[PageResult]) -> list[Stored | None]:
    async with asyncio.timeout(60):
        return await asyncio.gather(*(writer.store(result) for result in results))


async def test_pages_that_finish_together_share_their_transactions(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []

    async def counted(connection: AsyncConnection, results: Sequence[PageResult], **rest: Any) -> list[Stored | None]:
        batches.append(len(results))
        return await store_results(connection, results, **rest)

    monkeypatch.setattr(writing, "store_results", counted)
    tasks = await pages(engine, 200)
    async with running(engine) as writer:
        assert await store_all(writer, [done(task, items(1, 2)) for task in tasks]) == [Stored("done", new=2)] * 200
    assert sum(batches) == 200
    assert max(batches) == writing.LARGEST_BATCH
    assert len(batches) <= 200 // writing.LARGEST_BATCH + 1
    assert len(await rows(engine, item)) == 400


async def test_a_store_that_returned_is_committed_and_an_outdated_one_says_so(engine: AsyncEngine) -> None:
    (task,) = await pages(engine, 1)
    async with running(engine) as writer:
        assert await writer.store(done(task, items(1)))
        assert [row.state for row in await rows(engine, page)] == ["done"]
        assert not await writer.store(done(task, items(2)))
    assert [row.item_id for row in await rows(engine, item)] == ["1"]


POISON = {
    "a number too large for its column": {"fields": {"stock": 2**63}},
    "a text that no database takes": {"fields": {"title": "a\0b"}},
    "a field of another type than its column": {"fields": {"quantity_begin": "many"}},
    "a body that is no bytes": {"body": "text"},
}


@pytest.mark.parametrize("poison", POISON.values(), ids=POISON.keys())
async def test_only_the_page_that_cannot_be_stored_is_dead(
    postgres_url: str, poison: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    async with engine_for(postgres_url) as engine:
        tasks = await pages(engine, 40)
        results = [done(task, items(1, 2)) for task in tasks]
        results[17] = done(tasks[17], items(1, 2, **poison.get("fields", {})))
        results[17].body = poison.get("body")
        async with running(engine) as writer:
            stored = await store_all(writer, results)
        assert stored.pop(17) == Stored("dead")
        assert stored == [Stored("done", new=2)] * 39
        found = {row.id: row for row in await rows(engine, page)}
        bad = found.pop(tasks[17].page_id)
        assert (bad.state, bad.reviewed) == ("dead", False)
        assert bad.reason.startswith("cannot be stored: ")
        (line,) = (vars(record) for record in caplog.records)
        assert (line["message"], line["levelname"]) == ("page dead", "ERROR")
        assert (line["shop"], line["page"], line["reason"]) == (tasks[17].shop, 1, bad.reason)
        assert {row.state for row in found.values()} == {"done"}
        assert len(await rows(engine, item)) == 2 * 39
        assert sum(row.calls for row in await rows(engine, call)) == 40


async def test_a_page_that_cannot_even_be_called_dead_fails_alone(engine: AsyncEngine) -> None:
    tasks = await pages(engine, 5)
    results: list[PageResult] = [done(task) for task in tasks]
    results[2] = ended(tasks[2], "dead", reason="\ud83d")
    async with running(engine) as writer, asyncio.timeout(60):
        stored = await asyncio.gather(*map(writer.store, results), return_exceptions=True)
    assert [each == Stored("done") for each in stored] == [True, True, False, True, True]
    assert [row.state for row in await rows(engine, page)] == ["done", "done", "sent", "done", "done"]


async def test_a_page_that_was_cancelled_while_waiting_does_not_take_its_batch_along(engine: AsyncEngine) -> None:
    tasks = await pages(engine, 10)
    async with running(engine) as writer:
        waiting = [asyncio.create_task(writer.store(done(task, items(1)))) for task in tasks]
        await asyncio.sleep(0)
        for number in (0, 5, 9):
            waiting[number].cancel()
        stored = await asyncio.gather(*waiting, return_exceptions=True)
    assert [isinstance(each, asyncio.CancelledError) for each in stored].count(True) == 3
    assert stored.count(Stored("done", new=1)) == 7
    assert {row.state for row in await rows(engine, page)} == {"done"}


async def test_stopping_waits_for_everything_handed_in(engine: AsyncEngine) -> None:
    tasks = await pages(engine, 150)
    writer = Writer(engine)
    writer.start()
    waiting = [asyncio.create_task(writer.store(done(task, items(1)))) for task in tasks]
    await asyncio.sleep(0)
    await writer.stop()
    assert {row.state for row in await rows(engine, page)} == {"done"}
    assert await asyncio.gather(*waiting) == [Stored("done", new=1)] * 150


async def test_while_another_process_locks_sqlite_pages_wait_and_none_is_lost(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert SQLITE_BUSY_SECONDS > 2
    monkeypatch.setattr("models.database.SQLITE_BUSY_SECONDS", 0.1)
    async with engine_for(sqlite_url) as engine:
        tasks = await pages(engine, 30)
        side = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
        side.execute("BEGIN EXCLUSIVE")
        async with running(engine) as writer:
            waiting = asyncio.create_task(store_all(writer, [done(task, items(1)) for task in tasks]))
            async with asyncio.timeout(30):
                while "the database is away" not in caplog.text:  # noqa: ASYNC110 - a log line sets no event
                    await asyncio.sleep(0.02)
            assert not waiting.done()
            side.execute("ROLLBACK")
            side.close()
            assert await waiting == [Stored("done", new=1)] * 30
        assert len(await rows(engine, item)) == 30


async def test_while_postgresql_restarts_pages_wait_and_none_is_lost(
    postgres_url: str, postgres_server: PostgresServer
) -> None:
    async with engine_for(postgres_url) as engine:
        tasks = await pages(engine, 300)
        async with running(engine) as writer:
            stored: list[asyncio.Task[Stored | None]] = []
            restart = None
            for number, task in enumerate(tasks):
                stored.append(asyncio.create_task(writer.store(done(task, items(1)))))
                if number == 100:
                    restart = asyncio.create_task(asyncio.to_thread(postgres_server.restart, immediate=True))
                await asyncio.sleep(0.001)
            assert restart is not None
            await restart
            async with asyncio.timeout(60):
                await asyncio.gather(*stored)
        assert {row.state for row in await rows(engine, page)} == {"done"}
        assert len(await rows(engine, item)) == 300


async def test_writers_with_the_same_items_in_opposite_order_both_get_through(postgres_url: str) -> None:
    async with engine_for(postgres_url, pool_size=8) as engine:
        tasks = await pages(engine, 120)
        shop_id = (await rows(engine, shop))[0].id
        shared = [PageTask(**{**task.kwargs(), "shop_id": shop_id}) for task in tasks]
        results = []
        for number, task in enumerate(shared):
            ids = range(50) if number % 2 else reversed(range(50))
            results.append(done(task, [each for i in ids for each in items(i, title=str((number * i) % 3))]))
        async with running(engine) as one, running(engine) as two:
            halves = await asyncio.gather(store_all(one, results[::2]), store_all(two, results[1::2]))
        assert [stored is not None for half in halves for stored in half] == [True] * 120
        assert len(await rows(engine, item)) == 50
        assert {row.state for row in await rows(engine, page)} == {"done"}


async def test_items_are_counted_by_what_they_were_to_the_store(engine: AsyncEngine) -> None:
    source = engine.dialect.name

    def counted(kind: str) -> float:
        return REGISTRY.get_sample_value("shopcrawl_items_total", {"source": source, "kind": kind}) or 0

    async with running(engine) as writer:
        for shown in (items(1, 2, 3, title="old"), [*items(1, title="old"), *items(2, 4, title="young")]):
            await submit(engine, "shop", seen=shown[-1].title)
            (task,) = await dispatch(engine)
            result = done(task, shown, at=5 if shown[-1].title == "young" else 1)
            metrics.count_page(source, result, await writer.store(result))
            metrics.count_page(source, result, await writer.store(result))
    assert {kind: counted(kind) for kind in ("new", "changed", "unchanged")} == {"new": 4, "changed": 1, "unchanged": 1}
    ends = {"source": source, "state": "outdated"}
    assert REGISTRY.get_sample_value("shopcrawl_pages_total", ends) == 2


async def test_bodies_are_stored_with_their_pages(engine: AsyncEngine) -> None:
    (task,) = await pages(engine, 1)
    result = done(task, items(1))
    result.body = b"\x28\xb5\x2f\xfd\0"
    await store(engine, result)
    assert [row.body for row in await rows(engine, page_body)] == [b"\x28\xb5\x2f\xfd\0"]


class _StateError(Exception):
    def __init__(self, sqlstate: str) -> None:
        super().__init__(sqlstate)
        self.sqlstate = sqlstate


@pytest.mark.parametrize(
    ("error", "outage"),
    [
        (OperationalError("", {}, Exception("database is locked")), True),
        (PoolTimeoutError("QueuePool limit reached"), True),
        (ConnectionRefusedError(), True),
        (TimeoutError(), True),
        (InterfaceError("", {}, Exception("connection is closed")), True),
        (DBAPIError("", {}, _StateError("40P01")), True),
        (DBAPIError("", {}, _StateError("57P03")), True),
        (DBAPIError("", {}, _StateError("08006")), True),
        (DBAPIError("", {}, _StateError("53100")), True),
        (DBAPIError("", {}, _StateError("22003")), False),
        (IntegrityError("", {}, _StateError("23505")), False),
        (sa.exc.StatementError("bad value", "", {}, ValueError()), False),
        (ValueError(), False),
    ],
)
def test_waiting_helps_against_outages_and_never_against_a_bad_row(error: Exception, outage: bool) -> None:
    assert is_outage(error) is outage
