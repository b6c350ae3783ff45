"""Changes for tests: recorded as the store does it, of shops and items made up here."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from models.changes import Change, record
from models.crawls import ShopRequest, shop_ids
from models.subscriptions import add_subscription
from models.tables import change, item
from models.vault import Vault
from tests.ledger import SOURCE, START, after

SECRET = "cnry-webhook-5f1d0c"


async def make_shops(engine: AsyncEngine, *keys: str, source: str = SOURCE) -> list[int]:
    """New shops; returns their ids in the order of the keys."""
    wanted = [ShopRequest(source, key, {}) for key in keys]
    async with engine.begin() as connection:
        ids = await shop_ids(connection, wanted, START)
    return [ids[source, key] for key in keys]


async def name_item(engine: AsyncEngine, shop_id: int, item_id: str, title: str) -> None:
    """Store an item that has nothing but a title."""
    seen = {"first_seen": START, "changed_at": START, "shop_crawl_id": 1}
    async with engine.begin() as connection:
        await connection.execute(sa.insert(item).values(shop_id=shop_id, item_id=item_id, title=title, **seen))


def moved(shop_id: int, item_id: str, at: float, kind: str = "price", **values: Any) -> Change:
    """A change `at` seconds after START; `values` are (before, after) by field."""
    before, after_ = ({name: pair[side] for name, pair in values.items()} or None for side in (0, 1))
    return Change(shop_id, item_id, kind, after(at), 1, before, after_)


async def keep(engine: AsyncEngine, *changes: Change) -> None:
    """Record changes in one transaction."""
    async with engine.begin() as connection:
        await record(connection, changes)


async def ids(engine: AsyncEngine) -> list[int]:
    """The ids of all changes, in their order."""
    async with engine.connect() as connection:
        return list((await connection.execute(sa.select(change.c.id).order_by(change.c.id))).scalars())


async def subscribe(
    engine: AsyncEngine,
    vault: Vault,
    url: str,
    *,
    kinds: Sequence[str] = ("price", "new", "gone"),
    shop_id: int | None = None,
    at: float = 0,
) -> int:
    """Add a webhook whose secret is SECRET; returns its id."""
    now = START + timedelta(seconds=at)
    async with engine.begin() as connection:
        return await add_subscription(connection, vault, url=url, secret=SECRET, kinds=kinds, shop_id=shop_id, now=now)
