"""Changes of items: one row for each event, and its way into the outbox of everyone who subscribed to it."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from models.bulk import insert_rows
from models.tables import change, outbox, subscription

SUBSCRIBED = ("active", "paused")
KINDS = {
    **dict.fromkeys(("price", "drop_ship_price", "wholesale_price", "origin_price", "agent_price"), "price"),
    **dict.fromkeys(("category_id", "category_path", "category_name"), "category"),
    **dict.fromkeys(("image", "images"), "image"),
}
"""The kind of change that several fields share; every other field's name is its kind."""


class Change(msgspec.Struct, frozen=True):
    """One event in an item's life; `before` and `after` are its values by field, numbers that must stay exact as text.

    `kind` is `new`, `gone`, `back`, or what changed: one of `KINDS`' values or another field's name.
    """

    shop_id: int
    item_id: str
    kind: str
    at: datetime
    shop_crawl_id: int
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None


def restating(engine: AsyncEngine) -> AsyncEngine:
    """The same engine for telling the past anew: no subscriber is told of the changes recorded through it."""
    return engine.execution_options(restating=True)


def _is_restating(connection: AsyncConnection) -> bool:
    options: Mapping[str, Any] = connection.sync_connection.get_execution_options()  # type: ignore[union-attr]
    return bool(options.get("restating"))


async def record(connection: AsyncConnection, changes: Sequence[Change]) -> None:
    """Keep changes, and put each into the outbox of the subscriptions that it fits, in the caller's transaction.

    Through an engine that is `restating` they are only kept.
    """
    rows = [msgspec.structs.asdict(each) for each in changes]
    made = await insert_rows(connection, change, rows, returning="id, shop_id, kind")
    if not made or _is_restating(connection):
        return
    wanted = sa.select(subscription.c.id, subscription.c.shop_id, subscription.c.kinds)
    subscriptions = (await connection.execute(wanted.where(subscription.c.state.in_(SUBSCRIBED)))).all()
    due = [
        {"subscription_id": each.id, "change_id": row.id}
        for each in subscriptions
        for row in made
        if row.kind in each.kinds and each.shop_id in {None, row.shop_id}
    ]
    await insert_rows(connection, outbox, due)
