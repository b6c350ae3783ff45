"""Ledgers for tests: crawls of invented shops on a real database, and the results of pages that no one fetched."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from models.crawls import ShopRequest, submit_crawl
from models.database import create_engine
from models.ledger import Calls, PageResult, store_results, with_page
from models.messages import PageTask
from models.settings import Settings, async_url
from models.sheets import LAST_SEEN, WITH_SHEET
from models.source import FetchedPage, Item
from models.tables import item, item_seen
from producer.dispatch import Dispatcher

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
OPTIONS: dict[str, Any] = {"page_size": 20, "max_pages": 100}
SOURCE = "tmapi"
SETTINGS = Settings(_env_file=None)  # type: ignore[call-arg]


@asynccontextmanager
async def engine_for(url: str, pool_size: int = 5) -> AsyncIterator[AsyncEngine]:
    """An engine for the URL of a database fixture, closed at the end."""
    engine = create_engine(async_url(url), pool_size=pool_size)
    try:
        yield engine
    finally:
        await engine.dispose()


def after(seconds: float) -> datetime:
    """The time so many seconds after START."""
    return START + timedelta(seconds=seconds)


def requests(*keys: str, **options: Any) -> list[ShopRequest]:
    """Requests for these shops."""
    return [ShopRequest(SOURCE, key, OPTIONS | options) for key in keys]


async def submit(engine: AsyncEngine, *keys: str, priority: int = 5, **options: Any) -> int:
    """Start a crawl of these shops; returns its id."""
    async with engine.begin() as connection:
        return (
            await submit_crawl(connection, requests(*keys, **options), now=START, priority=priority, settings=SETTINGS)
        ).crawl_id


async def dispatch(engine: AsyncEngine, room: int = 1000, now: datetime = START) -> list[PageTask]:
    """Take due pages as a producer does."""
    async with engine.begin() as connection:
        return await Dispatcher(SETTINGS).take_due(connection, sources=[SOURCE], room=room, now=now)


async def store(engine: AsyncEngine, *results: PageResult) -> list[bool]:
    """Store results in one transaction; returns for each whether it was accepted."""
    async with engine.begin() as connection:
        return [stored is not None for stored in await store_results(connection, results)]


def done(task: PageTask, items: Sequence[Item] = (), *, at: float = 1, total: int | None = None) -> PageResult:
    """A page that was had, `at` seconds after START, with one call."""
    fetched = FetchedPage(list(items), total=total, page_size=20)
    calls = [Calls("key-1", "200", 1)]
    result = PageResult(task=task, state="done", at=after(at), tries=task.tries, outcome="200", calls=calls)
    return with_page(result, fetched)


def ended(
    task: PageTask, state: str, *, at: float = 1, due: float | None = None, reason: str = "417: no"
) -> PageResult:
    """A page that was not had, with one call: `dead`, `refused`, or `ready` again `due` seconds after START."""
    due_at = None if due is None else after(due)
    return PageResult(
        task=task,
        state=state,
        at=after(at),
        tries=task.tries + 1,
        outcome="417",
        reason=reason,
        due_at=due_at,
        calls=[Calls("key-1", "417", 1)],
    )


def items(*ids: object, **fields: Any) -> list[Item]:
    """Items with these ids and fields."""
    return [Item(item_id=str(item_id), **fields) for item_id in ids]


async def rows(engine: AsyncEngine, table: sa.Table, *where: sa.ColumnElement[bool]) -> list[sa.Row[Any]]:
    """The rows of a table that fit, in the order of its primary key."""
    async with engine.connect() as connection:
        return list(await connection.execute(sa.select(table).where(*where).order_by(*table.primary_key)))


async def stored(engine: AsyncEngine) -> list[sa.Row[Any]]:
    """Every item with what its last sighting moved: all columns of `item`, and those that only `item_seen` has."""
    both = (item.c.shop_id == item_seen.c.shop_id) & (item.c.item_id == item_seen.c.item_id)
    more = [column for column in item_seen.c if column.name not in {*item.c.keys(), "last_seen"}]
    query = sa.select(item, *more, LAST_SEEN.label("last_seen")).select_from(WITH_SHEET.join(item, both))
    query = query.order_by(*item.primary_key)
    async with engine.connect() as connection:
        return list(await connection.execute(query))


async def scalar(connection: AsyncConnection, sql: str) -> Any:
    """The first value of what a statement returns."""
    return await connection.scalar(sa.text(sql))
