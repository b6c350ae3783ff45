"""Parked credentials: SQL remembers them over any loss of Redis, and says when each is to be tried again."""

from collections.abc import Iterable
from datetime import datetime, timedelta

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from models.bulk import insert_rows
from models.tables import credential

LONGEST_PROBE_WAIT = 3600.0


class Parked(msgspec.Struct, frozen=True):
    """A credential that nothing is sent with, why, and when one page is tried with it."""

    source: str
    name: str
    reason: str
    parked_at: datetime
    probe_at: datetime
    probe_wait: float


async def park(connection: AsyncConnection, source: str, name: str, reason: str, *, now: datetime, wait: float) -> None:
    """Remember that a credential is parked; one that is parked already keeps its date and its probe rhythm."""
    row = {
        "source": source,
        "name": name,
        "reason": reason,
        "parked_at": now,
        "probe_at": now + timedelta(seconds=wait),
        "probe_wait": wait,
    }
    await insert_rows(
        connection, credential, [row], conflict="ON CONFLICT (source, name) DO UPDATE SET reason = excluded.reason"
    )


async def unpark(connection: AsyncConnection, source: str | None = None, names: Iterable[str] | None = None) -> int:
    """Forget parks of one source or all, of these credentials or all; returns how many there were."""
    query = sa.delete(credential)
    if source is not None:
        query = query.where(credential.c.source == source)
    if names is not None:
        query = query.where(credential.c.name.in_(list(names)))
    return (await connection.execute(query)).rowcount


async def probe_now(connection: AsyncConnection, source: str, name: str, *, now: datetime, wait: float) -> None:
    """Have one page tried with a parked credential at once; should that fail, the next one follows after `wait`."""
    mine = (credential.c.source == source) & (credential.c.name == name)
    values = {"probe_at": now, "probe_wait": wait / 2}  # taking a probe doubles it
    await connection.execute(sa.update(credential).where(mine).values(values))


async def parked(connection: AsyncConnection) -> list[Parked]:
    """All parked credentials."""
    rows = await connection.execute(sa.select(credential).order_by(credential.c.source, credential.c.name))
    return [Parked(**row._mapping) for row in rows]


async def take_probe(connection: AsyncConnection, probe: Parked, *, now: datetime) -> bool:
    """Claim a due probe for this producer and put the next one off to twice the wait; False if another took it."""
    wait = min(probe.probe_wait * 2, LONGEST_PROBE_WAIT)
    mine = (
        (credential.c.source == probe.source)
        & (credential.c.name == probe.name)
        & (credential.c.probe_at == probe.probe_at)
    )
    values = {"probe_at": now + timedelta(seconds=wait), "probe_wait": wait}
    return (await connection.execute(sa.update(credential).where(mine).values(values))).rowcount == 1
