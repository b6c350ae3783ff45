"""What the calls of an estimate will cost and how long they will take, by prices, limits and the newest calls."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from models.billing import FREE, Prices
from models.costs import trimmed
from models.fleet import LimitState
from models.settings import Settings
from models.source import source_named
from models.speed import GOOD, Speed, possible, recent_speed

NOW = timedelta(minutes=1)
"""Calls so young belong to what is in flight now."""


class SourceForecast(msgspec.Struct, frozen=True):
    """The calls of one source, their price if each succeeds at once and at the highest price, and the hours they take.

    `limit` is how many calls may be in flight now, or to begin with if `limit_is_known` is false; `basis` says what the
    speed follows from. None: no price is set, or there are too few recent calls to tell a speed.
    """

    source: str
    calls: int
    cost: Decimal | None
    cost_highest: Decimal | None
    limit: int
    limit_is_known: bool
    pages_per_second: float | None
    hours: float | None
    basis: str


class Forecast(msgspec.Struct, frozen=True):
    """The sums over sources, which are read side by side: `hours` are those of the slowest one; None: not known."""

    currency: str
    cost: Decimal | None
    cost_highest: Decimal | None
    hours: float | None
    sources: list[SourceForecast]


def money(calls: int, prices: Prices) -> tuple[Decimal | None, Decimal | None]:
    """What calls cost if each succeeds at once, and if each costs the most; None without a price."""
    if prices.highest == FREE:
        return None, None
    return trimmed(calls * prices.of(GOOD)), trimmed(calls * prices.highest)


def pace(speed: Speed | None, in_flight: int, limit: int, now: datetime) -> tuple[float | None, str]:
    """Pages per second to expect, and what that follows from."""
    if speed is None:
        return None, "too few recent calls to tell"
    allowed = possible(speed.per_second, in_flight, limit) if now - speed.newest <= NOW else None
    if allowed is not None:
        return allowed, f"{in_flight} calls in flight bring {speed.per_second:.3g} pages/s now, the limit is {limit}"
    return speed.per_second, f"as fast as the last {speed.calls:,} calls, up to {speed.newest:%Y-%m-%d %H:%M} UTC"


def total(sources: Sequence[SourceForecast], currency: str) -> Forecast:
    """The sums over sources."""
    priced = [each for each in sources if each.cost is not None]
    hours = [each.hours for each in sources]
    return Forecast(
        currency,
        sum((each.cost or FREE for each in priced), FREE) if priced else None,
        sum((each.cost_highest or FREE for each in priced), FREE) if priced else None,
        None if None in hours else max((each or 0.0 for each in hours), default=0.0),
        list(sources),
    )


async def forecast(
    connection: AsyncConnection,
    calls: dict[str, int],
    settings: Settings,
    limits: Sequence[LimitState],
    now: datetime,
) -> Forecast:
    """The forecast for so many calls of each source; `limits` are those in force, as far as they are known."""
    found = []
    for source, count in sorted(calls.items()):
        speed = await recent_speed(connection, source=source)
        found.append(
            _of_source(source, count, settings, [each for each in limits if each.source == source], speed, now)
        )
    return total(found, settings.currency)


def _of_source(
    source: str,
    calls: int,
    settings: Settings,
    limits: Sequence[LimitState],
    speed: Speed | None,
    now: datetime,
) -> SourceForecast:
    adapter = source_named(source)
    usable = [each for each in limits if each.parked is None]
    start = int(adapter.limits(settings).start) * len(adapter.credentials(settings))
    limit, in_flight = sum(each.limit for each in usable) or start, sum(each.in_flight for each in usable)
    per_second, basis = pace(speed, in_flight, limit, now)
    hours = round(calls / per_second / 3600, 4) if per_second else (0.0 if not calls else None)
    shown = None if per_second is None else round(per_second, 3)
    known = any(each.limit for each in usable)
    return SourceForecast(source, calls, *money(calls, adapter.prices(settings)), limit, known, shown, hours, basis)
