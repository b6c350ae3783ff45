"""What is cleared up: sales figures older than their retention, and sheets that no item needs; nothing else."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from models.database import Clock
from models.settings import Settings
from models.tables import item_sales, item_seen, sheet
from producer.housekeeping import BATCH, BUSY_PAUSE, IDLE_PAUSE, Housekeeping, drop_sales
from tests.ledger import after, dispatch, done, engine_for, items, rows, store, stored, submit

LONG_AGO = datetime.now(UTC) - timedelta(days=500)


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    async with engine_for(database_url) as engine:
        yield engine


def keeping(engine: AsyncEngine, days: float) -> Housekeeping:
    return Housekeeping(Settings(_env_file=None, sales_retention=days), engine, Clock())  # type: ignore[call-arg]


async def sell(engine: AsyncEngine, *at: datetime) -> None:
    """Figures of an item of one shop, first seen at these times."""
    await submit(engine, "shop-1")
    (task,) = await dispatch(engine)
    await store(engine, done(task, items("1")))
    async with engine.begin() as connection:
        past = [{"shop_id": task.shop_id, "item_id": "1", "at": each, "sold_30d": 1} for each in at]
        await connection.execute(sa.insert(item_sales), past)


async def test_figures_older_than_their_retention_go_in_batches(engine: AsyncEngine) -> None:
    young = datetime.now(UTC) - timedelta(days=399)
    await sell(engine, *(LONG_AGO + timedelta(seconds=number) for number in range(BATCH + 1)), young)
    keep = keeping(engine, 400)
    assert await keep.step() == BUSY_PAUSE
    assert len(await rows(engine, item_sales)) == 2
    assert await keep.step() == IDLE_PAUSE
    assert [row.at for row in await rows(engine, item_sales)] == [young]


async def test_a_batch_is_never_larger_than_asked_for(engine: AsyncEngine) -> None:
    await sell(engine, *(LONG_AGO + timedelta(seconds=number) for number in range(5)))
    async with engine.begin() as connection:
        counts = [await drop_sales(connection, datetime.now(UTC), batch=2) for _ in range(4)]
    assert counts == [2, 2, 1, 0]


async def test_without_a_retention_all_figures_stay(engine: AsyncEngine) -> None:
    await sell(engine, LONG_AGO)
    assert await keeping(engine, 0).step() == IDLE_PAUSE
    assert len(await rows(engine, item_sales)) == 1


async def test_a_sheet_goes_once_no_item_was_seen_last_on_it(engine: AsyncEngine) -> None:
    for at, shown in ((1, ("1", "2")), (2, ("1", "3")), (3, ("2", "3"))):
        await submit(engine, "shop-1", seen=at)
        (task,) = await dispatch(engine)
        await store(engine, done(task, items(*shown), at=at))
    before = [(row.item_id, row.last_seen) for row in await stored(engine)]
    keep = keeping(engine, 400)
    assert [await keep.step(), await keep.step()] == [BUSY_PAUSE, IDLE_PAUSE]
    assert [(row.last_seen, row.digest is None) for row in await rows(engine, sheet)] == [
        (after(2), True),  # item 1 is still on it
        (after(3), False),
    ]
    assert [(row.item_id, row.last_seen) for row in await stored(engine)] == before
    assert [at for _item_id, at in before] == [after(2), after(3), after(3)]
    assert None not in {row.sheet_id for row in await rows(engine, item_seen)}
