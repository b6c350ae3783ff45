"""Subscriptions to changes: who gets which, what still waits for them, and how the last delivery went."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from models.bulk import query_rows
from models.database import is_postgresql
from models.errors import UsageError
from models.feed import Entry, entries_of, lowest, select_entries
from models.tables import change, outbox, shop, subscription
from models.vault import Vault

LARGEST_DELIVERY = 100
"""Changes in one request."""


class Subscriber(msgspec.Struct, frozen=True):
    """Whom a delivery goes to; `sealed` is the secret that signs it."""

    id: int
    url: str
    sealed: bytes
    failures: int = 0


class Delivery(msgspec.Struct, frozen=True):
    """Changes on their way to a subscriber; nobody else sends them before `lease` ends.

    `ids` names everything that leaves the outbox with it, `entries` what of it still exists, both in the order of ids.
    """

    to: Subscriber
    ids: tuple[int, ...]
    entries: Sequence[Entry]
    lease: datetime


class SubscriptionLine(msgspec.Struct, frozen=True):
    """What may be shown of a subscription: never its secret, nor the query of its address, which may hold one."""

    id: int
    url: str
    kinds: list[str]
    source: str | None
    shop: str | None
    state: str
    cursor: int
    delivered: int
    waiting: int
    failures: int
    next_at: datetime
    reason: str | None


async def add_subscription(
    connection: AsyncConnection,
    vault: Vault,
    *,
    url: str,
    secret: str,
    kinds: Sequence[str],
    shop_id: int | None,
    now: datetime,
) -> int:
    """Store a subscription to what changes from now on; returns its id. Raises UsageError for an unusable key file."""
    values = {"url": url, "sealed": vault.seal([secret])[0].encode(), "kinds": list(kinds), "shop_id": shop_id}
    query = sa.insert(subscription).values(**values, state="active", next_at=now, created_at=now)
    return int((await connection.execute(query.returning(subscription.c.id))).scalar_one())


async def remove_subscription(connection: AsyncConnection, number: int) -> None:
    """Delete a subscription with all that waits for it. Raises UsageError."""
    if is_postgresql(connection):
        # Whoever is storing changes right now may have found it and not yet filled its outbox: he is waited for.
        await connection.execute(sa.text("LOCK TABLE change IN SHARE ROW EXCLUSIVE MODE"))
    await _require(connection, sa.delete(subscription).where(subscription.c.id == number), number)


async def pause_subscription(connection: AsyncConnection, number: int) -> None:
    """Deliver nothing more; what changes meanwhile waits. Raises UsageError."""
    values = {"state": "paused", "reason": "paused by hand"}
    await _require(connection, sa.update(subscription).where(subscription.c.id == number).values(values), number)


async def resume_subscription(connection: AsyncConnection, number: int, now: datetime) -> None:
    """Deliver again, at once what waits. Raises UsageError."""
    values = {"state": "active", "failures": 0, "reason": None, "next_at": now}
    await _require(connection, sa.update(subscription).where(subscription.c.id == number).values(values), number)


async def redeliver(connection: AsyncConnection, number: int, since: datetime) -> int:
    """Let wait again what a subscription wants of the changes seen since then; returns how many. Raises UsageError."""
    row = await _find(connection, number, lock=True)  # two at once would fill in the same changes
    again = sa.select(sa.literal(number), change.c.id).where(change.c.at >= lowest(since))
    again = again.where(change.c.kind.in_(row.kinds))
    if row.shop_id is not None:
        again = again.where(change.c.shop_id == row.shop_id)
    waiting = sa.select(outbox.c.change_id).where(outbox.c.subscription_id == number)
    again = again.where(change.c.id.not_in(waiting))
    filled = sa.insert(outbox).from_select(["subscription_id", "change_id"], again)
    return (await connection.execute(filled)).rowcount


async def subscriber(connection: AsyncConnection, number: int) -> Subscriber:
    """Whom the deliveries of a subscription go to. Raises UsageError."""
    row = await _find(connection, number)
    return Subscriber(row.id, row.url, row.sealed, row.failures)


async def list_subscriptions(connection: AsyncConnection) -> list[SubscriptionLine]:
    """Every subscription, without its secret."""
    waiting = sa.select(sa.func.count()).where(outbox.c.subscription_id == subscription.c.id).scalar_subquery()
    hidden = {"id", "url", "sealed", "shop_id", "created_at"}
    columns = [column for column in subscription.c if column.name not in hidden]
    query = sa.select(
        subscription.c.id,
        subscription.c.url,
        *columns,
        shop.c.source,
        shop.c.key.label("shop"),
        waiting.label("waiting"),
    )
    query = query.outerjoin(shop, shop.c.id == subscription.c.shop_id).order_by(subscription.c.id)
    rows = await connection.execute(query)
    return [SubscriptionLine(**{**row._mapping, "url": shown_url(row.url)}) for row in rows]


def shown_url(url: str) -> str:
    """An address without its query, which may hold a secret."""
    address, question_mark, _query = url.partition("?")
    return f"{address}?…" if question_mark else address


_DUE = (subscription.c.state == "active") & sa.exists().where(outbox.c.subscription_id == subscription.c.id).correlate(
    subscription
)


async def is_due(connection: AsyncConnection, now: datetime) -> bool:
    """Whether anything can be delivered now."""
    return bool(await connection.scalar(sa.select(sa.exists().where(_DUE, subscription.c.next_at <= now))))


async def take_delivery(connection: AsyncConnection, *, now: datetime, lease: datetime) -> Delivery | None:
    """Claim what is due longest, until `lease`; None if nothing is due, or others are claiming it.

    The lock is one that lets changes be stored meanwhile, for these only look whether the subscription exists.
    """
    query = sa.select(subscription).where(_DUE, subscription.c.next_at <= now)
    query = query.order_by(subscription.c.next_at, subscription.c.id).limit(1)
    row = (await connection.execute(query.with_for_update(key_share=True, skip_locked=True))).one_or_none()
    if row is None:
        return None
    await connection.execute(sa.update(subscription).where(subscription.c.id == row.id).values(next_at=lease))
    waiting = sa.select(outbox.c.change_id).where(outbox.c.subscription_id == row.id)
    waiting = waiting.order_by(outbox.c.change_id).limit(LARGEST_DELIVERY)
    ids = tuple((await connection.execute(waiting)).scalars())
    found = select_entries(sa.select(change).where(change.c.id.in_(ids)), "id")
    entries = entries_of(await connection.execute(found))
    return Delivery(Subscriber(row.id, row.url, row.sealed, row.failures), ids, entries, lease)


async def delivered(connection: AsyncConnection, delivery: Delivery, now: datetime) -> None:
    """Forget what has been delivered; what waits behind it is due at once.

    Only these ids: a change with a lower one may have been stored meanwhile.
    """
    mine, row = subscription.c.id == delivery.to.id, subscription.c
    newest = max(delivery.ids, default=0)
    values = {
        "failures": 0,
        "reason": None,
        "delivered": row.delivered + len(delivery.entries),
        "cursor": sa.case((row.cursor < newest, newest), else_=row.cursor),
        "next_at": sa.case((row.next_at == delivery.lease, now), else_=row.next_at),
    }
    # The subscription first, as whoever removes it locks it first too.
    await connection.execute(sa.update(subscription).where(mine).values(values))
    gone = (outbox.c.subscription_id == delivery.to.id) & outbox.c.change_id.in_(delivery.ids)
    await connection.execute(sa.delete(outbox).where(gone))


async def failed(
    connection: AsyncConnection, delivery: Delivery, *, reason: str, next_at: datetime, pause: bool
) -> None:
    """Remember why a delivery was in vain and when it is tried again; a lease that another took over stays his."""
    mine = (subscription.c.id == delivery.to.id) & (subscription.c.next_at == delivery.lease)
    values: dict[str, Any] = {"failures": subscription.c.failures + 1, "reason": reason, "next_at": next_at}
    if pause:
        values["state"] = "paused"
    await connection.execute(sa.update(subscription).where(mine).values(values))


async def reseal_subscriptions(connection: AsyncConnection, vault: Vault) -> tuple[int, int]:
    """Seal every secret anew with the newest key; returns (sealed, those that no key opens)."""
    query = sa.select(subscription.c.id, subscription.c.sealed).order_by(subscription.c.id).with_for_update()
    found = (await connection.execute(query)).all()
    tokens = vault.reseal([row.sealed for row in found])
    rows = [{"id": row.id, "sealed": token} for row, token in zip(found, tokens, strict=True) if token is not None]
    sql = "UPDATE subscription SET sealed = r.sealed FROM {r} WHERE subscription.id = r.id"
    await query_rows(connection, sql, [subscription.c.id, subscription.c.sealed], rows)
    return len(rows), len(found) - len(rows)


async def count_waiting(connection: AsyncConnection) -> int:
    """Changes that wait for any subscriber."""
    return int(await connection.scalar(sa.select(sa.func.count()).select_from(outbox)) or 0)


async def _find(connection: AsyncConnection, number: int, *, lock: bool = False) -> sa.Row[Any]:
    query = sa.select(subscription).where(subscription.c.id == number)
    query = query.with_for_update(key_share=True) if lock else query
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        raise _unknown(number)
    return row


async def _require(connection: AsyncConnection, query: sa.Update | sa.Delete, number: int) -> None:
    if not (await connection.execute(query)).rowcount:
        raise _unknown(number)


def _unknown(number: int) -> UsageError:
    return UsageError(f"there is no webhook {number}: `shopcrawl webhook list` shows all")
