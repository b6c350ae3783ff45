"""The figures of a crawl against a full count of its ledger, on both databases."""

import asyncio
import io
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from redis.asyncio import Redis
from rich.console import Console
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from models import credentials, fleet
from models.crawls import Budget, ShopRequest, submit_crawl
from models.database import Clock, create_engine
from models.errors import UnavailableError, UsageError
from models.ledger import Calls, PageResult, store_results, with_page
from models.messages import PageTask
from models.settings import async_url
from models.source import FetchedPage, Item
from models.status import (
    BudgetLeft,
    CrawlStatus,
    crawl_status,
    exit_code,
    latest_crawl_id,
    recent_crawls,
    unhappy_shops,
    waiting,
)
from models.tables import page, shop_crawl
from producer.console import watch
from producer.dispatch import Dispatcher
from producer.planning.review import review
from tests.ledger import SETTINGS
from tests.servers import free_port

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
OPTIONS = {"max_pages": 100, "page_size": 2}
SIZES = {"small": 1, "large": 7, "gone": 3, "dying": 5}
"""Items of each shop; two fit on a page."""


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """An engine on an empty database."""
    engine = create_engine(async_url(database_url))
    yield engine
    await engine.dispose()


async def start(engine: AsyncEngine, keys: Sequence[str] = tuple(SIZES), *, now: datetime = NOW) -> int:
    async with engine.begin() as connection:
        return (
            await submit_crawl(
                connection, [ShopRequest("tmapi", key, OPTIONS) for key in keys], now=now, settings=SETTINGS
            )
        ).crawl_id


def answer(task: PageTask) -> PageResult:
    """What the API says: `gone` is refused, page 2 of `dying` dies, other pages hold their items."""
    common: dict[str, Any] = {"task": task, "at": NOW, "tries": 0}
    if task.shop == "gone":
        return PageResult(**common, state="refused", outcome="422", reason="no shop", calls=[Calls("a", "422", 1)])
    if task.shop == "dying" and task.page == 2:
        return PageResult(**common, state="dead", outcome="500", reason="500: broken", calls=[Calls("a", "500", 5)])
    size = SIZES[task.shop]
    numbers = range(2 * task.page - 2, min(size, 2 * task.page))
    items = [Item(item_id=str(number), title=f"item {number}") for number in numbers]
    calls = [Calls("a", "503", 2), Calls("a", "200", 1)]
    done = PageResult(**common, state="done", outcome="200", calls=calls)
    return with_page(done, FetchedPage(items, total=size, page_size=2))


async def send(engine: AsyncEngine, room: int = 100) -> list[PageTask]:
    async with engine.begin() as connection:
        due = NOW + timedelta(minutes=1)
        return await Dispatcher(SETTINGS).take_due(connection, sources=["tmapi"], room=room, now=due)


async def store(engine: AsyncEngine, tasks: Sequence[PageTask]) -> None:
    async with engine.begin() as connection:
        await store_results(connection, [answer(task) for task in tasks])


async def review_all(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await review(connection, now=NOW + timedelta(seconds=30), settings=SETTINGS)


async def finish(engine: AsyncEngine) -> None:
    while tasks := await send(engine):
        await store(engine, tasks)
        await review_all(engine)


async def read(engine: AsyncEngine, crawl_id: int, seconds: float = 10) -> CrawlStatus:
    async with engine.connect() as connection:
        return await crawl_status(connection, crawl_id, now=NOW + timedelta(seconds=seconds))


async def counted(engine: AsyncEngine, crawl_id: int) -> dict[str, int]:
    """Pages by state as a full count has it."""
    query = sa.select(page.c.state, sa.func.count().label("pages")).join(
        shop_crawl, shop_crawl.c.id == page.c.shop_crawl_id
    )
    async with engine.connect() as connection:
        rows = await connection.execute(query.where(shop_crawl.c.crawl_id == crawl_id).group_by(page.c.state))
        states = Counter({row.state: row.pages for row in rows})
    states["dead"] += states.pop("refused", 0)
    states.pop("cancelled", None)
    return {name: states[name] for name in ("ready", "sent", "done", "dead")}


async def test_page_figures_equal_a_full_count_at_every_moment(engine: AsyncEngine) -> None:
    crawl_id, other = await start(engine), await start(engine, ["small"])
    moments = 0
    while tasks := await send(engine, room=3):
        for half in (tasks[:1], tasks[1:]):
            await store(engine, half)
            for crawl in (crawl_id, other):
                assert msgspec.to_builtins((await read(engine, crawl)).pages) == await counted(engine, crawl)
                moments += 1
        await review_all(engine)
        for crawl in (crawl_id, other):
            assert msgspec.to_builtins((await read(engine, crawl)).pages) == await counted(engine, crawl)
    assert moments > 10
    assert (await read(engine, crawl_id)).is_finished


async def test_a_finished_crawl_serialises_to_the_promised_object(engine: AsyncEngine) -> None:
    crawl_id = await start(engine)
    await finish(engine)
    status = await read(engine, crawl_id, seconds=500)
    assert msgspec.json.decode(msgspec.json.encode(status)) == {
        "crawl": crawl_id,
        "state": "finished",
        "shops": 4,
        "verdicts": {"complete": 2, "drifted": 0, "partial": 1, "failed": 1, "suspect": 0},
        "pages": {"ready": 0, "sent": 0, "done": 7, "dead": 2},
        "items": {"seen": 11, "unique": 11, "new": 11, "changed": 0},
        "calls": {"503": 14, "200": 7, "500": 5, "422": 1},
        "elapsed_s": 30.0,
    }
    assert exit_code(status) == 3


PRICED = SETTINGS.model_copy(update={"tmapi_prices": "0.25,500=1.125"})


async def test_money_budget_and_calls_never_heard_of_are_told_where_there_are_any(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        wanted = [ShopRequest("tmapi", key, OPTIONS) for key in ("small", "large", "dying")]
        caps = Budget(max_calls=10, max_spend=Decimal("20.50"))
        await submit_crawl(connection, wanted, now=NOW, settings=PRICED, budget=caps)
        tasks = await Dispatcher(PRICED).take_due(connection, sources=["tmapi"], room=9, now=NOW)
    told = msgspec.json.decode(msgspec.json.encode(await read(engine, 1)))
    assert (told["spent"], told["calls"], "unknown_calls" in told) == ("3.375", {}, False)
    assert told["budget"] == {"max_calls": 10, "calls_left": 7, "max_spend": "20.5", "spend_left": "17.125"}
    # One worker dies with its page; another one's two calls are settled at their own prices.
    price = Decimal("1.125")
    calls = [Calls("a", "503", 1, Decimal("0.25")), Calls("a", "200", 1, Decimal("0.25"))]
    async with engine.begin() as connection:
        one = PageResult(task=tasks[0], state="ready", at=NOW, tries=0, due_at=NOW, calls=calls, price=price)
        await store_results(connection, [one])
        await connection.execute(sa.update(page).where(page.c.id == tasks[1].page_id).values(state="ready"))
    status = await read(engine, 1)
    assert (status.spent, status.unknown_calls, status.pages.sent) == (Decimal("2.75"), 1, 1)
    assert status.budget == BudgetLeft(10, 6, Decimal("20.5"), Decimal("17.75"))


@pytest.mark.parametrize(("caps", "left"), [(Budget(max_calls=0), {"max_calls": 0, "calls_left": 0}), (Budget(), None)])
async def test_only_the_caps_that_are_set_are_told(
    engine: AsyncEngine, caps: Budget, left: dict[str, int] | None
) -> None:
    async with engine.begin() as connection:
        shops = [ShopRequest("tmapi", "small", OPTIONS)]
        await submit_crawl(connection, shops, now=NOW, settings=SETTINGS, budget=caps)
    assert msgspec.to_builtins(await read(engine, 1)).get("budget") == left


async def test_unreviewed_pages_are_in_the_figures_already(engine: AsyncEngine) -> None:
    crawl_id = await start(engine)
    await store(engine, await send(engine))
    status = await read(engine, crawl_id)
    assert (status.pages.done, status.pages.dead, status.items.seen, status.items.new) == (3, 1, 5, 5)
    assert (status.items.unique, status.verdicts.settled, status.open_shops) == (0, 0, 4)


async def test_a_crawl_of_complete_shops_ends_with_code_0(engine: AsyncEngine) -> None:
    crawl_id = await start(engine, ["small", "large"])
    assert exit_code(await read(engine, crawl_id)) == 0
    await finish(engine)
    status = await read(engine, crawl_id)
    assert (exit_code(status), status.verdicts.complete) == (0, 2)


async def test_an_unknown_crawl_is_a_usage_error(engine: AsyncEngine) -> None:
    with pytest.raises(UsageError, match="no crawl 99"):
        await read(engine, 99)


async def test_unhappy_shops_come_failed_first_with_their_reasons(engine: AsyncEngine) -> None:
    crawl_id = await start(engine)
    await finish(engine)
    async with engine.connect() as connection:
        found = await unhappy_shops(connection, crawl_id, 10)
        first = await unhappy_shops(connection, crawl_id, 1)
    assert [(entry.source, entry.shop, entry.verdict) for entry in found] == [
        ("tmapi", "gone", "failed"),
        ("tmapi", "dying", "partial"),
    ]
    assert found[0].reason == "no shop"
    assert "page 2: 500: broken" in found[1].reason
    assert first == found[:1]


async def test_crawls_are_listed_newest_first(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        assert await latest_crawl_id(connection) is None
        assert await recent_crawls(connection, 5) == []
    first = await start(engine)
    await finish(engine)
    second = await start(engine, ["small", "large"])
    async with engine.connect() as connection:
        assert await latest_crawl_id(connection) == second
        newest, oldest = await recent_crawls(connection, 5)
        assert await recent_crawls(connection, 1) == [newest]
    assert (newest.crawl, newest.state, newest.shops, newest.verdicts.settled) == (second, "running", 2, 0)
    assert (oldest.crawl, oldest.state, oldest.shops) == (first, "finished", 4)
    assert (oldest.verdicts.complete, oldest.verdicts.partial, oldest.verdicts.failed) == (2, 1, 1)
    assert (oldest.created_at, oldest.finished_at) == (NOW, NOW + timedelta(seconds=30))


async def park(connection: AsyncConnection, source: str) -> None:
    await credentials.park(connection, source, "1a2b", "439: no money", now=NOW, wait=60)


async def test_only_a_crawl_with_open_shops_of_the_source_waits_for_its_credential(engine: AsyncEngine) -> None:
    crawl_id = await start(engine, ["small"])
    async with engine.begin() as connection:
        await park(connection, "tmapi")
        await park(connection, "elsewhere")
        assert [entry.source for entry in await waiting(connection, crawl_id)] == ["tmapi"]
    await finish(engine)
    async with engine.connect() as connection:
        assert await waiting(connection, crawl_id) == []


def recorder() -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, width=80, force_terminal=False), text


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what a console prints sets no event
            await asyncio.sleep(0.02)


async def test_watching_ends_with_the_crawl_and_says_why_it_waited(engine: AsyncEngine, redis: Redis) -> None:
    crawl_id = await start(engine)
    console, text = recorder()
    await fleet.beat(redis, "w1", 10, [])
    async with engine.begin() as connection:
        await park(connection, "tmapi")
    watcher = asyncio.create_task(watch(engine, redis, crawl_id, Clock(), console))
    await until(lambda: "tmapi waits" in text.getvalue())
    await finish(engine)
    status = await asyncio.wait_for(watcher, 20)
    assert status == await read(engine, crawl_id)
    lines = text.getvalue().splitlines()
    assert "0/4 shops" in lines[1]
    assert "1 workers" in lines[1]
    assert "4/4 shops" in lines[-1]
    assert sum("tmapi waits: token 1a2b parked: 439: no money" in line for line in lines) == 1


async def test_watching_goes_on_without_redis_and_says_so(engine: AsyncEngine) -> None:
    crawl_id = await start(engine, ["small"])
    await finish(engine)
    redis = Redis.from_url(f"redis://127.0.0.1:{free_port()}")
    console, text = recorder()
    status = await watch(engine, redis, crawl_id, Clock(), console)
    await redis.aclose()
    assert status.is_finished
    assert "Redis does not answer" in text.getvalue()


async def test_a_quiet_watch_prints_nothing(engine: AsyncEngine) -> None:
    crawl_id = await start(engine, ["small"])
    await finish(engine)
    console, text = recorder()
    assert (await watch(engine, None, crawl_id, Clock(), console, quiet=True)).is_finished
    assert text.getvalue() == ""


async def test_a_watch_that_is_not_to_end_goes_on_after_the_crawl(engine: AsyncEngine) -> None:
    crawl_id = await start(engine, ["small"])
    await finish(engine)
    console, text = recorder()
    watcher = asyncio.create_task(watch(engine, None, crawl_id, Clock(), console, until_finished=False))
    await until(lambda: text.getvalue().count("1/1 shops") > 1)
    assert not watcher.done()
    watcher.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watcher


async def test_watching_a_database_that_is_away_fails_in_one_line() -> None:
    engine = create_engine(async_url(f"postgresql://someone:canary@127.0.0.1:{free_port()}/none"))
    console, _ = recorder()
    with pytest.raises(UnavailableError) as caught:
        await watch(engine, None, 1, Clock(), console)
    await engine.dispose()
    assert "canary" not in str(caught.value)
