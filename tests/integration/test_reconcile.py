"""What counts as lost: a sending that no queue and no living worker has, seen missing twice."""

import json
from base64 import b64encode
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from models import fleet
from models.messages import QUEUE, URGENT_QUEUE, PageTask
from models.tables import crawl, item, page, shop_crawl
from producer import reconcile
from producer.enqueue import send
from producer.planning.review import review
from producer.reconcile import Sending, alive, delivered, overdue, send_again, sendings
from tests.ledger import SETTINGS, after, dispatch, done, engine_for, items, rows, store, submit


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    async with engine_for(database_url) as engine:
        yield engine


def sending(task: PageTask) -> Sending:
    return (task.page_id, task.fence)


def page_task(page_id: int, fence: int = 1, priority: int = 5) -> PageTask:
    return PageTask("tmapi", "shop", 1, page_id, fence, 1, 1, 1, priority=priority)


def entry(page_id: int, fence: int = 1) -> bytes:
    """A message as kombu keeps it in a queue."""
    return json.dumps({"body": b64encode(b"[]").decode(), "headers": {"id": f"{page_id}-{fence}"}}).encode()


async def again(
    engine: AsyncEngine, *lost: Sending, crashed: bool = False, at: float = 10, max_crashes: int = 5
) -> int:
    async with engine.begin() as connection:
        gone = frozenset(lost)
        return await send_again(
            connection, gone, gone if crashed else frozenset(), now=after(at), max_crashes=max_crashes
        )


async def test_a_sending_is_suspect_only_after_the_grace(engine: AsyncEngine) -> None:
    await submit(engine, "a", "b")
    (early,) = await dispatch(engine, room=1)
    (late,) = await dispatch(engine, now=after(5))
    async with engine.connect() as connection:
        assert await overdue(connection, after(8)) == frozenset()
        assert await overdue(connection, after(9)) == {sending(early)}
        assert await overdue(connection, after(99)) == {sending(early), sending(late)}
    await store(engine, done(early))
    async with engine.connect() as connection:
        assert await overdue(connection, after(99)) == {sending(late)}


async def test_what_waits_in_a_queue_is_not_lost_in_either_queue(redis: Redis, redis_url: str) -> None:
    await send(redis, [page_task(1), page_task(2, fence=3, priority=0)])
    assert await redis.llen(QUEUE) == await redis.llen(URGENT_QUEUE) == 1
    suspects = frozenset({(1, 1), (2, 3), (2, 2), (3, 1)})
    assert await alive(redis, suspects) == {(1, 1), (2, 3)}


async def test_a_queue_of_any_length_is_read_to_its_oldest_end(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconcile, "LISTED_AT_ONCE", 10)
    monkeypatch.setattr(reconcile, "LARGEST_CHECK", 10)
    await redis.lpush(QUEUE, *(entry(number) for number in range(35)))
    suspects = frozenset((number, 1) for number in range(36))
    assert suspects - await alive(redis, suspects) == {(35, 1)}


async def test_what_a_living_worker_holds_is_not_lost(redis: Redis) -> None:
    await fleet.beat(redis, "worker-1", 10, [(1, 1), (2, 2)])
    await fleet.beat(redis, "worker-2", 10, [(3, 1)])
    suspects = frozenset({(1, 1), (2, 1), (3, 1), (4, 1)})
    assert await alive(redis, suspects) == {(1, 1), (3, 1)}
    await redis.delete(fleet.worker_key("worker-2"))
    assert await alive(redis, suspects) == {(1, 1)}


async def test_after_flushall_everything_that_is_out_is_missing(redis: Redis, redis_url: str) -> None:
    await send(redis, [page_task(1)])
    await redis.flushall()
    suspects = frozenset({(1, 1), (2, 1)})
    assert await alive(redis, suspects) == frozenset()
    assert await delivered(redis, suspects) == frozenset()


async def test_only_what_a_worker_had_taken_counts_as_delivered(redis: Redis) -> None:
    await redis.hset("unacked", "tag-1", json.dumps([json.loads(entry(1)), "", QUEUE]))
    await redis.hset("unacked", "tag-2", json.dumps([json.loads(entry(2, fence=1)), "", QUEUE]))
    assert await delivered(redis, frozenset({(1, 1), (2, 2), (3, 1)})) == {(1, 1)}


def test_foreign_and_broken_entries_name_no_sending() -> None:
    strange = [b"", b"null", b"5", b"[]", b"[1]", b"{}", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"headers": null}']
    strange += [b'{"headers": {"id": 5}}', '{"headers": {"id": "²-1"}}'.encode(), b'{"headers": {"id": "a-b"}}']
    assert sendings([*strange, entry(7, 2), b"[" + entry(8) + b', "", "pages"]']) == {(7, 2), (8, 1)}


async def test_a_lost_page_is_due_at_once_and_its_zombie_is_fenced_out(engine: AsyncEngine) -> None:
    await submit(engine, "a")
    (zombie,) = await dispatch(engine)
    assert await again(engine, sending(zombie)) == 1
    (row,) = await rows(engine, page)
    assert (row.state, row.reviewed, row.crashes, row.due_at, row.finished_at) == ("ready", True, 0, after(10), None)
    (newest,) = await dispatch(engine, now=after(10))
    assert newest.fence == 2
    assert await store(engine, done(zombie, items("zombie"))) == [False]
    assert await store(engine, done(newest, items("real"))) == [True]
    assert [row.item_id for row in await rows(engine, item)] == ["real"]


async def test_a_page_that_came_back_meanwhile_is_left_alone(engine: AsyncEngine) -> None:
    await submit(engine, "a", "b")
    finished, resent = await dispatch(engine)
    await store(engine, done(finished))
    await again(engine, sending(resent))
    (newest,) = await dispatch(engine, now=after(10))
    assert await again(engine, sending(finished), sending(resent), (10**9, 1)) == 0
    assert [row.state for row in await rows(engine, page)] == ["done", "sent"]
    assert newest.page_id == resent.page_id


async def test_a_message_lost_on_its_way_is_never_the_pages_fault(engine: AsyncEngine) -> None:
    await submit(engine, "a")
    for round_number in range(1, 8):
        (task,) = await dispatch(engine, now=after(100))
        assert task.fence == round_number
        assert await again(engine, sending(task), max_crashes=2) == 1
    (row,) = await rows(engine, page)
    assert (row.state, row.crashes) == ("ready", 0)


async def test_a_page_that_workers_die_with_again_and_again_is_dead_and_its_shop_is_settled(
    engine: AsyncEngine,
) -> None:
    await submit(engine, "a")
    for _ in range(3):
        (task,) = await dispatch(engine, now=after(100))
        await again(engine, sending(task), crashed=True, max_crashes=3)
    (row,) = await rows(engine, page)
    assert (row.state, row.crashes, row.reviewed, row.finished_at) == ("dead", 3, False, after(10))
    async with engine.begin() as connection:
        assert (await review(connection, now=after(101), settings=SETTINGS)).pages == 1
    (settled,) = await rows(engine, shop_crawl)
    assert (settled.verdict, settled.reason) == ("failed", "no page could be had; page 1: workers died with it")
    assert (await rows(engine, crawl))[0].state == "finished"


async def test_many_pages_are_lost_at_once(engine: AsyncEngine) -> None:
    await submit(engine, *map(str, range(3000)))
    tasks = await dispatch(engine, room=2000) + await dispatch(engine, room=2000)
    assert await again(engine, *map(sending, tasks)) == 3000
    assert {row.state for row in await rows(engine, page)} == {"ready"}
