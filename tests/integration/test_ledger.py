"""What the store keeps of a page: exactly its items, once, the newest answer, and every call that was made."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from models.ledger import PageResult, pack_keys, unpack_keys, with_page
from models.messages import PageTask
from models.source import FetchedPage, Item
from models.tables import call, item, item_version, page, page_body
from producer.reconcile import send_again
from tests.ledger import after, dispatch, done, ended, engine_for, items, rows, store, stored, submit

FULL = Item(
    item_id="610947572360",
    title='蓝牙耳机 "5.3" 🎧 — ünïcode\n\\ 100%',
    image="https://cbu01.alicdn.com/a!!b.jpg",
    images=["https://cbu01.alicdn.com/1.jpg", "二.jpg"],
    video_id="77",
    category_id="1046",
    category_path=["7", "1046"],
    category_name="数码",
    price=Decimal("3.90"),
    drop_ship_price=Decimal("0.1"),
    wholesale_price=Decimal("12345678901234.123456"),
    origin_price=Decimal("0"),
    agent_price=Decimal("-0.000001"),
    quantity_begin=2,
    stock=2**63 - 1,
    gmv_30d=Decimal("5.05"),
    gmv_90d=Decimal("6"),
    sold_30d=7,
    sold_90d=8,
    orders_30d=9,
    rank_score=Decimal("0.25"),
    new_product=False,
    type="normal",
    unit="件",
    status="on sale",
    outer_id="O'Neill; DROP TABLE item",
    props=[["颜色", "红"], ["a", "b"]],
    created_time=datetime(2022, 11, 28, 11, 26, 0, 123456, tzinfo=timezone(timedelta(hours=8))),
    extra={"deep": {"列": [1, None, 2.5, True, "😀"]}, "%s": ":rows"},
)


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    async with engine_for(database_url) as engine:
        yield engine


@pytest.fixture
async def task(engine: AsyncEngine) -> PageTask:
    """The first page of the only shop, sent once."""
    await submit(engine, "shop-1")
    (task,) = await dispatch(engine)
    return task


async def next_page(engine: AsyncEngine, task: PageTask) -> PageTask:
    """The page's next sending, after its worker was lost."""
    async with engine.begin() as connection:
        lost = frozenset({(task.page_id, task.fence)})
        assert await send_again(connection, lost, frozenset(), now=after(0), max_crashes=5) == 1
    (again,) = [each for each in await dispatch(engine) if each.page_id == task.page_id]
    return again


async def see(engine: AsyncEngine, shown: list[Item], at: float, key: str = "shop-1") -> sa.Row[Any]:
    """Show items in a new crawl of the shop and return the page's row."""
    await submit(engine, key, seen=at)
    (task,) = await dispatch(engine)
    assert await store(engine, done(task, shown, at=at)) == [True]
    (row,) = await rows(engine, page, page.c.id == task.page_id)
    return row


async def test_every_field_comes_back_as_it_was_given(engine: AsyncEngine, task: PageTask) -> None:
    assert await store(engine, done(task, [FULL])) == [True]
    (row,) = await stored(engine)
    for name in Item.__struct_fields__:
        assert getattr(row, name) == getattr(FULL, name), name
    assert row.created_time.tzinfo is UTC or row.created_time.utcoffset() == timedelta()
    assert row.first_seen == row.last_seen == row.changed_at == after(1)
    assert (row.shop_id, row.shop_crawl_id) == (task.shop_id, task.shop_crawl_id)
    assert type(row.price) is Decimal


async def test_an_item_of_which_only_the_id_is_known_is_stored(engine: AsyncEngine, task: PageTask) -> None:
    await store(engine, done(task, items("1")))
    (row,) = await stored(engine)
    assert {name: getattr(row, name) for name in Item.__struct_fields__ if name != "item_id"} == dict.fromkeys(
        set(Item.__struct_fields__) - {"item_id"}
    )


async def test_a_finished_page_says_what_it_had(engine: AsyncEngine, task: PageTask) -> None:
    await store(engine, done(task, items("1", "2", "1"), total=45))
    (row,) = await rows(engine, page)
    assert (row.state, row.reviewed, row.outcome, row.finished_at) == ("done", False, "200", after(1))
    assert (row.rows, row.total, row.page_size, row.new_items, row.changed_items) == (3, 45, 20, 2, 0)
    assert row.item_keys == pack_keys(["1", "2", "1"])
    assert len(set(unpack_keys(row.item_keys))) == 2


async def test_a_page_put_back_is_due_when_it_says_and_needs_no_review(engine: AsyncEngine, task: PageTask) -> None:
    assert await store(engine, ended(task, "ready", due=30)) == [True]
    (row,) = await rows(engine, page)
    assert (row.state, row.reviewed, row.tries, row.due_at) == ("ready", True, 1, after(30))
    assert row.finished_at is None


async def test_of_a_zombie_nothing_is_stored_but_its_calls_are_counted(engine: AsyncEngine, task: PageTask) -> None:
    again = await next_page(engine, task)
    zombie = done(task, items("zombie"))
    zombie.body = b"zombie"
    assert await store(engine, zombie) == [False]
    assert await rows(engine, item) == []
    assert await rows(engine, page_body) == []
    assert (await rows(engine, page))[0].state == "sent"
    assert await store(engine, done(again, items("real"))) == [True]
    assert await store(engine, zombie) == [False]
    assert [row.item_id for row in await rows(engine, item)] == ["real"]
    assert sum(row.calls for row in await rows(engine, call)) == 3


async def test_a_zombie_beside_the_newest_sending_in_one_batch_is_told_apart(
    engine: AsyncEngine, task: PageTask
) -> None:
    again = await next_page(engine, task)
    zombie, real = done(task, items("zombie", "both")), done(again, items("both"))
    zombie.body = real.body = b"body"
    assert await store(engine, zombie, real) == [False, True]
    assert [row.item_id for row in await rows(engine, item)] == ["both"]
    assert (await rows(engine, page))[0].new_items == 1
    assert len(await rows(engine, page_body)) == 1
    assert sum(row.calls for row in await rows(engine, call)) == 2


async def test_a_result_handed_in_twice_is_stored_once(engine: AsyncEngine, task: PageTask) -> None:
    first, second = done(task, items("1")), done(task, items("2"))
    first.body = second.body = b"body"
    assert await store(engine, first, second) == [True, False]
    assert await store(engine, second) == [False]
    assert [row.item_id for row in await rows(engine, item)] == ["1"]


@pytest.mark.parametrize("state", ["done", "dead", "refused", "cancelled", "ready"])
async def test_only_a_page_that_is_out_takes_a_result(engine: AsyncEngine, task: PageTask, state: str) -> None:
    async with engine.begin() as connection:
        await connection.execute(sa.update(page).values(state=state))
    assert await store(engine, done(task, items("1"))) == [False]
    assert (await rows(engine, page))[0].state == state
    assert await rows(engine, item) == []


async def test_an_item_seen_again_is_one_row_and_tells_whether_it_changed(engine: AsyncEngine) -> None:
    new = await see(engine, items("1", "2", price=Decimal("3.90")), at=1)
    same = await see(engine, items("1", "2", price=Decimal("3.9")), at=2)
    changed = await see(engine, [*items("1", price=Decimal(4)), *items("2", price=Decimal("3.900"))], at=3)
    assert [(row.new_items, row.changed_items) for row in (new, same, changed)] == [(2, 0), (0, 0), (0, 1)]
    one, two = await stored(engine)
    assert (one.price, one.first_seen, one.changed_at, one.last_seen) == (4, after(1), after(3), after(3))
    assert (two.price, two.first_seen, two.changed_at, two.last_seen) == (Decimal("3.9"), after(1), after(1), after(3))
    assert (one.shop_crawl_id, two.shop_crawl_id) == (changed.shop_crawl_id, new.shop_crawl_id)


async def test_the_same_item_id_in_another_shop_is_another_item(engine: AsyncEngine) -> None:
    await see(engine, items("1", title="a"), at=1)
    await see(engine, items("1", title="b"), at=1, key="shop-2")
    assert [row.title for row in await rows(engine, item)] == ["a", "b"]


async def test_moving_figures_are_kept_up_to_date_without_counting_as_a_change(engine: AsyncEngine) -> None:
    await see(engine, items("1", title="t", sold_30d=1, gmv_30d=Decimal(1), extra={"a": 1}), at=1)
    again = await see(engine, items("1", title="t", sold_30d=2, extra={"a": 1, "新": 2}), at=2)
    assert (again.new_items, again.changed_items) == (0, 0)
    (row,) = await stored(engine)
    assert (row.sold_30d, row.gmv_30d, row.extra, row.changed_at) == (2, 1, {"a": 1, "新": 2}, after(1))


async def test_a_field_that_is_not_sent_keeps_its_value_and_is_no_change(engine: AsyncEngine) -> None:
    await see(engine, [FULL], at=1)
    silent = await see(engine, items(FULL.item_id), at=2)
    spoken = await see(engine, [FULL], at=3)
    (row,) = await stored(engine)
    for name in Item.__struct_fields__:
        assert getattr(row, name) == getattr(FULL, name), name
    assert [page_row.changed_items for page_row in (silent, spoken)] == [0, 0]
    assert (row.changed_at, row.last_seen) == (after(1), after(3))


async def test_a_partly_silent_change_is_a_change_once(engine: AsyncEngine) -> None:
    await see(engine, [FULL], at=1)
    changed = await see(engine, items(FULL.item_id, title="new"), at=2)
    again = await see(engine, items(FULL.item_id, title="new", price=Decimal("3.9")), at=3)
    assert [row.changed_items for row in (changed, again)] == [1, 0]
    (row,) = await stored(engine)
    assert (row.title, row.price, row.changed_at) == ("new", FULL.price, after(2))


async def test_an_older_answer_never_overwrites_a_newer_one(engine: AsyncEngine) -> None:
    await see(engine, items("1", title="new", sold_30d=2), at=10)
    late = await see(engine, items("1", title="old", sold_30d=1), at=5)
    same = await see(engine, items("1", title="new", sold_30d=0), at=6)
    (row,) = await stored(engine)
    assert (row.title, row.sold_30d, row.last_seen, row.changed_at) == ("new", 2, after(10), after(6))
    assert row.shop_crawl_id == same.shop_crawl_id
    (past,) = await rows(engine, item_version)
    assert (past.title, past.valid_from, past.valid_to) == ("old", after(5), after(6))
    assert (past.shop_crawl_id, late.changed_items) == (late.shop_crawl_id, 0)


async def test_of_two_pages_in_one_batch_the_later_answer_counts_and_the_item_is_new_once(engine: AsyncEngine) -> None:
    await submit(engine, "shop-1", "shop-2")
    one, two = await dispatch(engine)
    two = PageTask(**{**two.kwargs(), "shop_id": one.shop_id})
    late, early = done(one, items("1", title="late"), at=9), done(two, items("1", title="early"), at=2)
    assert await store(engine, late, early) == [True, True]
    assert (await rows(engine, item))[0].title == "late"
    assert sum(row.new_items for row in await rows(engine, page)) == 1


async def test_bodies_are_kept_with_their_page(engine: AsyncEngine, task: PageTask) -> None:
    result = done(task, items("1"))
    result.body = bytes(range(256))
    await store(engine, result)
    (row,) = await rows(engine, page_body)
    assert (row.page_id, row.body, row.fetched_at) == (task.page_id, bytes(range(256)), after(1))


async def test_a_page_without_a_total_or_items_is_stored(engine: AsyncEngine, task: PageTask) -> None:
    result = PageResult(task=task, state="done", at=after(1), tries=0)
    assert await store(engine, with_page(result, FetchedPage([]))) == [True]
    (row,) = await rows(engine, page)
    assert (row.rows, row.total, unpack_keys(row.item_keys)) == (0, None, [])


async def test_two_hundred_pages_go_into_one_batch(engine: AsyncEngine) -> None:
    await submit(engine, *(f"shop-{number}" for number in range(200)))
    tasks = await dispatch(engine)
    results = [done(task, items(*range(20), title="件"), total=20) for task in tasks]
    assert await store(engine, *results) == [True] * 200
    async with engine.connect() as connection:
        assert await connection.scalar(sa.select(sa.func.count()).select_from(item)) == 4000
        assert await connection.scalar(sa.select(sa.func.sum(call.c.calls))) == 200
    assert {row.new_items for row in await rows(engine, page)} == {20}


async def test_an_empty_batch_is_nothing(engine: AsyncEngine) -> None:
    assert await store(engine) == []
