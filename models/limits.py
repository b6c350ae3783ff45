"""What SQL remembers of limits over any loss of Redis: what was learnt, and what an operator has set."""

from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from models.bulk import insert_rows
from models.fleet import WHOLE_SOURCE, Learnt
from models.source import Limits
from models.tables import learned

ORDER_NAMES = ("concurrency", "rate", "floor", "ceiling")
_LEARNT, _ORDER = "limiter", "set"
_SCALE = 1000  # the table holds whole numbers, rates need fractions

Orders = dict[str, dict[str, float]]
"""What an operator has set, by scope: a credential's name or WHOLE_SOURCE."""


async def remembered(connection: AsyncConnection, source: str) -> dict[str, Learnt]:
    """What was learnt about each credential of a source."""
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for name, value in await _read(connection, source, _LEARNT):
        field, _, credential = name.partition(":")
        found[credential][field] = value
    return {credential: msgspec.convert(fields, Learnt) for credential, fields in found.items()}


async def remember(connection: AsyncConnection, source: str, credential: str, learnt: Learnt, now: datetime) -> None:
    """Keep what was learnt about a credential."""
    values = {f"{_LEARNT}:{field}:{credential}": value for field, value in msgspec.to_builtins(learnt).items()}
    await _write(connection, source, values, now)


async def orders(connection: AsyncConnection, source: str) -> Orders:
    """What an operator has set for a source."""
    found: Orders = defaultdict(dict)
    for name, value in await _read(connection, source, _ORDER):
        what, _, scope = name.partition(":")
        found[scope][what] = value / _SCALE
    return dict(found)


async def set_order(
    connection: AsyncConnection, source: str, scope: str, order: Mapping[str, float], now: datetime
) -> None:
    """Remember an order in place of any earlier one of its scope; an empty one is forgotten."""
    names = [f"{_ORDER}:{what}:{scope}" for what in ORDER_NAMES]
    await connection.execute(sa.delete(learned).where(learned.c.source == source, learned.c.name.in_(names)))
    values = {f"{_ORDER}:{what}:{scope}": round(value * _SCALE) for what, value in order.items()}
    await _write(connection, source, values, now)


def obeying(limits: Limits, orders: Orders, credential: str) -> Limits:
    """The bounds of a credential once orders are obeyed, as the limiter itself does."""
    order = {**orders.get(WHOLE_SOURCE, {}), **orders.get(credential, {})}
    ceiling = order.get("concurrency", order.get("ceiling", limits.ceiling))
    floor = min(ceiling, order.get("concurrency", order.get("floor", limits.floor)))
    return msgspec.structs.replace(limits, rate=order.get("rate", limits.rate), floor=floor, ceiling=ceiling)


async def _read(connection: AsyncConnection, source: str, kind: str) -> list[tuple[str, int]]:
    """Names without their kind, and values."""
    query = sa.select(learned.c.name, learned.c.value).where(learned.c.source == source)
    rows = await connection.execute(query.where(learned.c.name.startswith(f"{kind}:", autoescape=True)))
    return [(row.name.removeprefix(f"{kind}:"), row.value) for row in rows]


async def _write(connection: AsyncConnection, source: str, values: Mapping[str, int], now: datetime) -> None:
    rows = [{"source": source, "name": name, "value": value, "at": now} for name, value in sorted(values.items())]
    conflict = "ON CONFLICT (source, name) DO UPDATE SET value = excluded.value, at = excluded.at"
    await insert_rows(connection, learned, rows, conflict=conflict)
