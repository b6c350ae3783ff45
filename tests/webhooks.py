"""What tests of webhooks start with: a deliverer, a clock of its own, changes to send, and what became of them."""

from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from models.database import Clock
from models.settings import Settings, load_settings
from models.tables import outbox, subscription
from models.vault import new_key
from producer.webhooks.deliver import Deliverer
from tests.changes import ids, keep, make_shops, moved
from tests.ledger import after, engine_for, rows

KEY = new_key()


class Watch(Clock):
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        super().__init__()
        self.at = after(1000.5)

    def now(self) -> datetime:
        return self.at


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    async with engine_for(database_url) as engine:
        yield engine


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(data_dir=tmp_path, secret_key=KEY, webhook_timeout=5)


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def deliverer(settings: Settings, engine: AsyncEngine, watch: Watch) -> Deliverer:
    return Deliverer(settings, engine, watch)


async def make_changes(engine: AsyncEngine, count: int, key: str = "jane") -> list[int]:
    """Price changes of a new shop, recorded a few at a time; returns their ids."""
    [shop_id] = await make_shops(engine, key)
    before = set(await ids(engine))
    made = [moved(shop_id, f"i{n}", 1.5 + n, price=("2", str(n))) for n in range(count)]
    for start in range(0, count, 60):
        await keep(engine, *made[start : start + 60])
    return [each for each in await ids(engine) if each not in before]


async def run_until_idle(deliverer: Deliverer) -> None:
    while not await deliverer.step():
        pass


async def row_of(engine: AsyncEngine, number: int = 1) -> sa.Row[Any]:
    [row] = await rows(engine, subscription, subscription.c.id == number)
    return row


async def waiting(engine: AsyncEngine, number: int = 1) -> list[int]:
    return [row.change_id for row in await rows(engine, outbox, outbox.c.subscription_id == number)]
