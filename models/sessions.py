"""The shops' own sessions: stored sealed, refused one by one, and what waits for a new one goes on when it comes."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from models.bulk import insert_rows, query_rows
from models.database import is_postgresql
from models.errors import UsageError
from models.redact import redact
from models.tables import crawl, page, session, shop, shop_crawl
from models.vault import Vault

LONGEST_SESSION = 4096  # bytes
RESEAL_BATCH = 1_000
_REPLACE = (
    "ON CONFLICT (shop_id) DO UPDATE SET sealed = excluded.sealed, set_at = excluded.set_at,"
    " refused_at = NULL, reason = NULL"
)


class SessionLine(msgspec.Struct, frozen=True):
    """What may be shown of a shop's session: `state` is `valid` or `refused`, `reason` says why it was refused."""

    source: str
    shop: str
    set_at: datetime
    state: str
    reason: str | None


def check_session(text: str) -> str:
    """The session without the white space around it. Raises UsageError, which never shows it."""
    text = text.strip()
    if not text:
        raise UsageError("the session is empty")
    if not text.isprintable() or " " in text:
        raise UsageError("the session has white space or control characters inside")
    if len(text.encode()) > LONGEST_SESSION:
        raise UsageError(f"the session is longer than {LONGEST_SESSION} bytes")
    return text


async def save_sessions(connection: AsyncConnection, vault: Vault, sessions: Mapping[int, str], now: datetime) -> int:
    """Store sessions by shop id, and let go on what these shops are held for; returns how many shop crawls that are.

    Raises UsageError if the vault has no usable key.
    """
    ids = sorted(sessions)  # one order for all: no deadlocks
    sealed = vault.seal([sessions[shop_id] for shop_id in ids])
    rows = [{"shop_id": key, "sealed": token, "set_at": now} for key, token in zip(ids, sealed, strict=True)]
    await insert_rows(connection, session, rows, conflict=_REPLACE)
    return await _reopen(connection, ids, now)


async def _reopen(connection: AsyncConnection, shops: Sequence[int], now: datetime) -> int:
    """Make due what these shops' crawls are held for.

    Their rows are locked first: whoever holds a shop crawl right now is waited for, and then seen. The producer takes
    the locks in the same order.
    """
    places = [{"shop_id": key} for key in shops]
    sql = "SELECT c.id FROM {r} JOIN shop_crawl c ON c.shop_id = r.shop_id WHERE c.state <> 'settled' ORDER BY c.id"
    lock = " FOR UPDATE OF c" if is_postgresql(connection) else ""
    found = [{"id": row.id} for row in await query_rows(connection, sql + lock, [shop_crawl.c.shop_id], places)]
    sql = (
        "UPDATE page SET state = 'ready', reviewed = true, due_at = r.due_at FROM {r}"
        " WHERE page.shop_crawl_id = r.id AND page.state = 'held'"
    )
    await query_rows(connection, sql, [shop_crawl.c.id, page.c.due_at], [row | {"due_at": now} for row in found])
    sql = (
        "UPDATE shop_crawl SET state = 'open', reason = NULL FROM {r}"
        " WHERE shop_crawl.id = r.id AND shop_crawl.state = 'held' RETURNING shop_crawl.crawl_id"
    )
    opened = await query_rows(connection, sql, [shop_crawl.c.id], found)
    await _continue(connection, sorted({row.crawl_id for row in opened}))
    return len(opened)


async def _continue(connection: AsyncConnection, crawls: Sequence[int]) -> None:
    """Crawls that waited for sessions run again. Locked first: one that is about to wait is waited for, and seen."""
    rows = [{"id": key} for key in crawls]
    if is_postgresql(connection):
        sql = "SELECT c.id FROM {r} JOIN crawl c ON c.id = r.id ORDER BY c.id FOR UPDATE OF c"
        await query_rows(connection, sql, [crawl.c.id], rows)
    sql = "UPDATE crawl SET state = 'running' FROM {r} WHERE crawl.id = r.id AND crawl.state = 'waiting'"
    await query_rows(connection, sql, [crawl.c.id], rows)


async def load_sessions(connection: AsyncConnection, vault: Vault, shops: Iterable[int]) -> dict[int, str | None]:
    """The sessions of these shops, by shop id, without refused ones; None stands for one that no key opens."""
    sql = "SELECT s.shop_id, s.sealed FROM {r} JOIN session s ON s.shop_id = r.shop_id WHERE s.refused_at IS NULL"
    columns = [session.c.shop_id, session.c.sealed]
    found = await query_rows(
        connection, sql, [session.c.shop_id], [{"shop_id": key} for key in shops], returning=columns
    )
    return dict(zip((row.shop_id for row in found), vault.open([row.sealed for row in found]), strict=True))


async def mark_refused(
    connection: AsyncConnection, vault: Vault, shop_id: int, text: str, reason: str, now: datetime
) -> bool:
    """Remember that the API refuses this shop's session `text`; False if another one is stored by now, to be tried."""
    query = sa.select(session.c.sealed, session.c.refused_at).where(session.c.shop_id == shop_id)
    row = (await connection.execute(query.with_for_update())).one_or_none()
    if row is None or row.refused_at is not None:
        return True
    if vault.open([row.sealed]) != [text]:
        return False
    refused = sa.update(session).where(session.c.shop_id == shop_id)
    await connection.execute(refused.values(refused_at=now, reason=redact(reason, (text,))))
    return True


async def forget_session(connection: AsyncConnection, source: str, key: str) -> bool:
    """Delete a shop's session; False if it has none."""
    of_shop = sa.select(shop.c.id).where(shop.c.source == source, shop.c.key == key)
    return (await connection.execute(sa.delete(session).where(session.c.shop_id.in_(of_shop)))).rowcount > 0


async def list_sessions(connection: AsyncConnection) -> list[SessionLine]:
    """Every stored session, without the session itself, by source and shop."""
    columns = (shop.c.source, shop.c.key, session.c.set_at, session.c.refused_at, session.c.reason)
    query = sa.select(*columns).join(shop, shop.c.id == session.c.shop_id).order_by(shop.c.source, shop.c.key)
    return [
        SessionLine(row.source, row.key, row.set_at, "refused" if row.refused_at else "valid", row.reason)
        for row in await connection.execute(query)
    ]


async def reseal_all(engine: AsyncEngine, vault: Vault) -> tuple[int, int]:
    """Seal every session anew with the newest key, a batch at a time; returns (sealed, those that no key opens)."""
    resealed = unreadable = last = 0
    query = sa.select(session.c.shop_id, session.c.sealed).order_by(session.c.shop_id).limit(RESEAL_BATCH)
    sql = "UPDATE session SET sealed = r.sealed FROM {r} WHERE session.shop_id = r.shop_id"
    while True:
        async with engine.begin() as connection:  # the rows stay locked: a session set meanwhile is not overwritten
            batch = (await connection.execute(query.where(session.c.shop_id > last).with_for_update())).all()
            if not batch:
                return resealed, unreadable
            tokens = vault.reseal([row.sealed for row in batch])
            pairs = zip(batch, tokens, strict=True)
            rows = [{"shop_id": row.shop_id, "sealed": token} for row, token in pairs if token is not None]
            await query_rows(connection, sql, [session.c.shop_id, session.c.sealed], rows)
        last = batch[-1].shop_id
        resealed += len(rows)
        unreadable += len(batch) - len(rows)
