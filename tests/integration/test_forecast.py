"""What a crawl will cost and how long it will take, from prices, limits and the ledger, and nothing that is guessed."""

import io
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from decimal import Decimal

import msgspec
import pytest
import sqlalchemy as sa
from pydantic import SecretStr
from rich.console import Console
from sqlalchemy.ext.asyncio import AsyncEngine

from models.billing import Prices
from models.fleet import LimitState
from models.speed import LOOKED_AT, NEWEST_CALLS, Speed, recent_speed
from models.tables import call
from producer.console.estimate import print_estimate
from producer.estimate import Estimate, ShopEstimate
from producer.forecast import Forecast, SourceForecast, forecast, money, pace, total
from tests.ledger import SETTINGS, START, after, engine_for, requests, submit

PRICED = SETTINGS.model_copy(
    update={"tmapi_prices": "0.01,417=0.5", "tmapi_tokens": (SecretStr("t1"), SecretStr("t2"))}
)


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """An engine on an empty database."""
    async with engine_for(database_url) as engine:
        yield engine


async def made(engine: AsyncEngine, count: int, per_second: float, *, crawl: int = 1, start: float = 0.0001) -> None:
    """So many good calls of the first shop, one after the other."""
    common = {"crawl_id": crawl, "shop_crawl_id": 1, "page_id": 1, "credential": "k", "outcome": "200", "calls": 1}
    rows = [{**common, "cost": Decimal(0), "at": after(start + number / per_second)} for number in range(count)]
    async with engine.begin() as connection:
        await connection.execute(sa.insert(call), rows)


@pytest.mark.parametrize(
    ("prices", "expected"),
    [
        (Prices(), (None, None)),
        (Prices(Decimal("0.01")), (Decimal(10), Decimal(10))),
        (Prices(Decimal("0.0125"), {"417": Decimal(0)}), (Decimal("12.5"), Decimal("12.5"))),
        (Prices(Decimal("0.01"), {"503": Decimal("0.02")}), (Decimal(10), Decimal(20))),
        (Prices(Decimal(0), {"417": Decimal(1)}), (Decimal(0), Decimal(1000))),
    ],
)
def test_money_at_the_price_of_success_and_at_the_highest(
    prices: Prices, expected: tuple[Decimal | None, Decimal | None]
) -> None:
    assert money(1000, prices) == expected


FRESH = Speed(100, 500, after(0))


@pytest.mark.parametrize(
    ("speed", "in_flight", "now", "per_second", "basis"),
    [
        (None, 20, 0, None, "too few recent calls"),
        (FRESH, 20, 30, 200, "20 calls in flight bring 100 pages/s now, the limit is 40"),
        (FRESH, 0, 30, 100, "the last 500 calls, up to 2026-03-01 12:00 UTC"),
        (FRESH, 20, 61, 100, "the last 500 calls"),  # what is in flight now is other work
    ],
)
def test_the_speed_says_what_it_follows_from(
    speed: Speed | None, in_flight: int, now: float, per_second: float | None, basis: str
) -> None:
    found = pace(speed, in_flight, 40, after(now))
    assert found[0] == per_second
    assert basis in found[1]


def of(source: str, cost: str | None, hours: float | None) -> SourceForecast:
    amount = None if cost is None else Decimal(cost)
    return SourceForecast(source, 10, amount, amount, 4, False, None, hours, "")


@pytest.mark.parametrize(
    ("sources", "cost", "hours"),
    [
        ([], None, 0.0),
        ([of("tmapi", "1.5", 2)], "1.5", 2),
        ([of("tmapi", "1.5", 2), of("top", None, 3)], "1.5", 3),  # side by side: the slowest counts
        ([of("tmapi", "1.5", 2), of("top", "0.25", None)], "1.75", None),
        ([of("tmapi", None, 2)], None, 2),
    ],
)
def test_sources_are_read_side_by_side(sources: list[SourceForecast], cost: str | None, hours: float | None) -> None:
    found = total(sources, "CNY")
    assert (found.cost, found.hours) == (None if cost is None else Decimal(cost), hours)


async def test_hours_follow_from_the_newest_calls_of_the_source(engine: AsyncEngine) -> None:
    await submit(engine, "a")
    await made(engine, 300, 50)
    async with engine.connect() as connection:
        found = await forecast(connection, {"tmapi": 36_000, "top": 10}, PRICED, [], after(3600))
    tmapi, top = found.sources
    assert (tmapi.pages_per_second, tmapi.hours) == (50, 0.2)
    assert (tmapi.cost, tmapi.cost_highest) == (Decimal(360), Decimal(18_000))
    assert (tmapi.limit, tmapi.limit_is_known) == (8, False)  # two tokens, each starts with 4
    assert (top.pages_per_second, top.hours, top.cost) == (None, None, None)
    assert (found.cost, found.hours, found.currency) == (Decimal(360), None, "CNY")


async def test_a_limit_that_is_not_used_up_shortens_it(engine: AsyncEngine) -> None:
    await submit(engine, "a")
    await made(engine, 300, 50)
    limits = [
        LimitState("tmapi", "t1", 30, 0, 10, 0, 1, None),
        LimitState("tmapi", "t2", 10, 0, 10, 0, 1, None),
        LimitState("tmapi", "t3", 99, 0, 0, 0, 1, "439: empty"),
        LimitState("top", "app", 99, 0, 50, 0, 1, None),
    ]
    async with engine.connect() as connection:
        (found,) = (await forecast(connection, {"tmapi": 36_000}, PRICED, limits, after(7))).sources
    assert (found.limit, found.limit_is_known, found.pages_per_second, found.hours) == (40, True, 100, 0.1)


async def test_only_the_newest_calls_of_the_crawl_or_source_tell_the_speed(engine: AsyncEngine) -> None:
    await submit(engine, "a")
    await made(engine, LOOKED_AT, 1)
    await made(engine, NEWEST_CALLS, 100, crawl=2, start=10**6)
    async with engine.connect() as connection:
        assert await recent_speed(connection, source="top") is None
        newest = await recent_speed(connection, source="tmapi")
        first = await recent_speed(connection, crawl=1)
        assert await recent_speed(connection, crawl=1, since=after(10**5)) is None
    assert newest is not None and first is not None
    assert (round(newest.per_second, 3), newest.calls) == (100, NEWEST_CALLS)
    assert (round(first.per_second, 3), first.newest > START + timedelta(hours=5)) == (1, True)


async def test_plan_prints_stable_keys_and_money_as_text(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        ahead = await forecast(connection, {"tmapi": 3}, PRICED, [], START)
    shops = [ShopEstimate("tmapi", request.key, 50, 3, "crawl 1") for request in requests("a")]
    told = json.loads(msgspec.json.encode(Estimate(shops, 50, 3, 0, 0, ahead)))
    assert told == {
        "shops": [{"source": "tmapi", "shop": "a", "items": 50, "calls": 3, "basis": "crawl 1"}],
        "items": 50,
        "calls": 3,
        "unknown": 0,
        "spent": 0,
        "forecast": {
            "currency": "CNY",
            "cost": "0.03",
            "cost_highest": "1.5",
            "hours": None,
            "sources": [
                {
                    "source": "tmapi",
                    "calls": 3,
                    "cost": "0.03",
                    "cost_highest": "1.5",
                    "limit": 8,
                    "limit_is_known": False,
                    "pages_per_second": None,
                    "hours": None,
                    "basis": "too few recent calls to tell",
                }
            ],
        },
    }


def test_plan_shows_money_and_time_for_each_source() -> None:
    text = io.StringIO()
    sources = [
        SourceForecast("tmapi", 36_000, Decimal("360.5"), Decimal(720), 40, True, 100, 0.1, "as fast as lately"),
        SourceForecast("top", 7, None, None, 4, False, None, None, "too few recent calls to tell"),
    ]
    ahead = Forecast("CNY", Decimal("360.5"), Decimal(720), None, sources)
    print_estimate(Console(file=text, width=110), Estimate([], 0, 36_007, 0, 0, ahead))
    first, second = text.getvalue().rstrip().splitlines()[-2:]
    assert first.split() == ["tmapi", "36,000", "360.5", "720", "40", "6:00", "as", "fast", "as", "lately"]
    assert second.split()[:7] == ["top", "7", "–", "–", "from", "4", "–"]


def test_the_speed_is_for_pages_of_every_shop_of_a_source() -> None:
    shops = [
        ShopEstimate("tmapi", "a", 1, 2, ""),
        ShopEstimate("top", "b", None, None, ""),
        ShopEstimate("tmapi", "c", 1, 3, ""),
    ]
    assert Estimate(shops, 2, 5, 1, 0).calls_by_source == {"tmapi": 5, "top": 0}
