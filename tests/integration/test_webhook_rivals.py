"""Webhooks among others: processes that end midway, rivals, writers at the same time, and slow receivers."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import timedelta
from inspect import isawaitable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from models.background import background
from models.changes import record
from models.database import Clock
from models.settings import Settings, load_settings
from models.subscriptions import (
    delivered,
    remove_subscription,
    take_delivery,
)
from models.tables import change, outbox, page, subscription
from models.vault import Vault
from producer.loop import Producer
from producer.webhooks import deliver
from producer.webhooks.deliver import LEASE_MARGIN, Deliverer
from tests.changes import ids, keep, make_shops, moved, subscribe
from tests.ledger import START, after, engine_for, rows, submit
from tests.receiver import Message, receiving
from tests.webhooks import KEY, Watch, deliverer, engine, make_changes, row_of, run_until_idle, settings, waiting, watch

__all__ = ["deliverer", "engine", "settings", "watch"]


@pytest.mark.parametrize("step", ["before", "inside"])
async def test_a_delivery_cancelled_between_answer_and_commit_comes_again(
    engine: AsyncEngine,
    settings: Settings,
    watch: Watch,
    deliverer: Deliverer,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    reached = asyncio.Event()

    async def hang(*arguments: Any) -> None:
        if step == "inside":
            await delivered(*arguments)
        reached.set()
        await asyncio.Event().wait()

    with receiving() as receiver:
        await subscribe(engine, Vault(settings), receiver.url)
        made = await make_changes(engine, 30)
        with monkeypatch.context() as patched:
            patched.setattr(deliver, "delivered", hang)
            task = asyncio.create_task(deliverer.step())
            await asyncio.wait_for(reached.wait(), 30)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        assert receiver.ids == made == await waiting(engine)
        assert await deliverer.step() > 0, "the lease still runs"
        watch.at += timedelta(seconds=settings.webhook_timeout + LEASE_MARGIN + 1)
        await run_until_idle(deliverer)
    first, second = receiver.messages
    assert first.digest == second.digest
    assert first.headers["x-shopcrawl-delivery"] == second.headers["x-shopcrawl-delivery"]
    assert await waiting(engine) == []
    assert (await row_of(engine)).delivered == 30


async def test_several_producers_deliver_a_subscription_one_at_a_time(
    database_url: str, engine: AsyncEngine, settings: Settings, watch: Watch
) -> None:
    with receiving() as receiver:
        for _ in range(2):
            await subscribe(engine, Vault(settings), receiver.url)
        made = await make_changes(engine, 450)
        async with engine_for(database_url) as other:
            lanes = [Deliverer(settings, each, watch) for each in (engine, other, engine, other)]
            while await waiting(engine, 1) or await waiting(engine, 2):
                await asyncio.gather(*(lane.step() for lane in lanes))
    assert receiver.most_at_once == 1
    for number in (1, 2):
        taken = [message for message in receiver.taken if message.content["subscription"] == number]
        assert [each for message in taken for each in message.ids] == made


async def test_a_slow_receiver_whose_lease_ran_out_hears_it_again_and_the_late_answer_harms_nothing(
    engine: AsyncEngine, settings: Settings, watch: Watch
) -> None:
    arrived, go = threading.Event(), threading.Event()

    def answer(message: Message, number: int) -> int:
        if number == 0:
            arrived.set()
            go.wait(30)
        return 200 if number else 500

    with receiving(answer) as receiver:
        await subscribe(engine, Vault(settings), receiver.url)
        made = await make_changes(engine, 5)
        slow = asyncio.create_task(Deliverer(settings, engine, watch).step())
        await asyncio.to_thread(arrived.wait, 30)
        watch.at += timedelta(hours=1)
        await run_until_idle(Deliverer(settings, engine, watch))
        go.set()
        await slow
    assert receiver.ids == made
    row = await row_of(engine)
    assert (row.failures, row.reason, row.delivered) == (0, None, 5)


WORK = {"tmapi_tokens": "token", "in_flight": 5}


async def test_a_producer_delivers_beside_its_work_and_a_silent_receiver_holds_up_no_other(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    go = threading.Event()

    def answer(message: Message, number: int) -> int:
        return 200 if go.wait(60) else 500

    settings = load_settings(data_dir=tmp_path, secret_key=KEY, redis_url=redis_url, webhook_timeout=60, **WORK)
    async with engine_for(database_url) as engine:
        with receiving(answer) as silent, receiving() as prompt:
            vault, clock = Vault(settings), Clock()
            await subscribe(engine, vault, silent.url)
            await subscribe(engine, vault, prompt.url)
            made = await make_changes(engine, 250)
            async with background(Producer(settings, engine, clock).run()):
                await until(lambda: prompt.ids == made and len(silent.messages) == 1)
                await submit(engine, "shop")
                await until(lambda: rows(engine, page, page.c.state == "sent"))
                assert silent.ids == []
                go.set()
                await until(lambda: silent.ids == made)
        assert await waiting(engine, 2) == []


async def until(condition: Callable[[], object]) -> None:
    """Poll until a condition, or what it awaits, is true."""
    async with asyncio.timeout(60):
        while True:
            found = condition()
            if await found if isawaitable(found) else found:
                return
            await asyncio.sleep(0.02)


# What only several writers at a time can do: on PostgreSQL.


@pytest.fixture
async def postgres(postgres_url: str) -> AsyncIterator[AsyncEngine]:
    async with engine_for(postgres_url) as engine:
        yield engine


async def test_a_change_stored_during_a_delivery_with_a_lower_id_is_not_forgotten(
    postgres: AsyncEngine, settings: Settings, watch: Watch
) -> None:
    arrived, go = threading.Event(), threading.Event()

    def answer(message: Message, number: int) -> int:
        arrived.set()
        return 200 if go.wait(30) else 500

    deliverer = Deliverer(settings, postgres, watch)
    with receiving(answer) as receiver:
        [shop_id] = await make_shops(postgres, "jane")
        await subscribe(postgres, Vault(settings), receiver.url)
        async with postgres.begin() as late:
            await record(late, [moved(shop_id, "late", 1.5)])
            await keep(postgres, moved(shop_id, "prompt", 2.5))
            step = asyncio.create_task(deliverer.step())
            await asyncio.to_thread(arrived.wait, 30)
        go.set()
        await step
        await run_until_idle(deliverer)
    late_id, prompt = await ids(postgres)
    assert receiver.ids == [prompt, late_id] and await waiting(postgres) == []
    assert (await row_of(postgres)).cursor == prompt


async def test_storing_and_claiming_do_not_wait_for_each_other(
    postgres: AsyncEngine, settings: Settings, watch: Watch
) -> None:
    [shop_id] = await make_shops(postgres, "jane")
    await subscribe(postgres, Vault(settings), "https://example.com")
    await keep(postgres, moved(shop_id, "a", 1.5))
    async with postgres.begin() as storing:
        await record(storing, [moved(shop_id, "b", 2.5)])
        async with postgres.begin() as claiming:
            found = await take_delivery(claiming, now=watch.now(), lease=after(9000))
            assert found is not None and len(found.ids) == 1
            async with postgres.begin() as another:
                await another.execute(sa.text("SET LOCAL lock_timeout = '5s'"))
                await record(another, [moved(shop_id, "c", 3.5)])
                assert await take_delivery(another, now=watch.now(), lease=after(9000)) is None
    assert len(await waiting(postgres)) == 3


async def test_removing_one_waits_for_whoever_is_filling_its_outbox(postgres: AsyncEngine, settings: Settings) -> None:
    """Else the changes' foreign key would fail, and with it the storing of pages that were paid for."""
    [shop_id] = await make_shops(postgres, "jane")
    await subscribe(postgres, Vault(settings), "https://example.com")

    async def remove() -> None:
        async with postgres.begin() as connection:
            await remove_subscription(connection, 1)

    waits = sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    async with postgres.begin() as storing:
        row = {"shop_id": shop_id, "item_id": "a", "kind": "price", "at": START, "shop_crawl_id": 1}
        made = await storing.scalar(sa.insert(change).values(row).returning(change.c.id))
        assert await storing.scalar(sa.select(subscription.c.id)) == 1
        removing = asyncio.create_task(remove())
        async with asyncio.timeout(30), postgres.connect() as looking:
            while not removing.done() and not await looking.scalar(waits):
                await looking.rollback()
        await storing.execute(sa.insert(outbox).values(subscription_id=1, change_id=made))
    await removing
    assert await rows(postgres, subscription) == [] and await rows(postgres, outbox) == []
