"""Reads archived page bodies back in the order in which they were fetched, each with the page it answers."""

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from models.archive import BODY, WITH_BODY
from models.compression import zstd
from models.database import reader
from models.errors import UsageError
from models.feed import lowest
from models.messages import PageTask
from models.status import latest_crawl_id
from models.tables import crawl, page, page_body, shop, shop_crawl
from producer.dispatch import ShopFacts, Window, page_task, slice_options

BATCH = 64
"""Bodies read at a time: what bounds the memory."""

_AFTER = (page_body.c.fetched_at.type, page_body.c.page_id.type)
_PAGE = ("id", "state", "slice", "number", "page_no", "fence", "priority", "tries", "shop_crawl_id")
_COLUMNS = (
    *(page_body.c.fetched_at, BODY.label("body"), *(page.c[name] for name in _PAGE)),
    *(shop_crawl.c.crawl_id, shop_crawl.c.shop_id, shop_crawl.c.options, shop.c.source, shop.c.key),
)


class Scope(msgspec.Struct, frozen=True):
    """Which bodies: of one crawl, of these shops (ids), fetched since a time and before another; None: any."""

    crawl_id: int | None = None
    shops: tuple[int, ...] | None = None
    since: datetime | None = None
    until: datetime | None = None


class Body(msgspec.Struct, frozen=True):
    """One archived answer, when it was fetched, and the page as its worker was told of it; `state` is the page's."""

    task: PageTask
    state: str
    fetched_at: datetime
    packed: bytes

    @property
    def content(self) -> bytes:
        """The answer as it came. Raises ValueError for one that is damaged."""
        try:
            return zstd.decompress(self.packed)
        except zstd.ZstdError:
            raise ValueError("the archived body is damaged") from None


async def started(engine: AsyncEngine, crawl_id: int) -> datetime:
    """When a crawl was started. Raises UsageError if there is none of that number."""
    async with reader(engine).connect() as connection:
        created_at: datetime | None = await connection.scalar(
            sa.select(crawl.c.created_at).where(crawl.c.id == crawl_id)
        )
    if created_at is None:
        raise UsageError(f"there is no crawl {crawl_id}: `shopcrawl crawls` lists them")
    return created_at


async def latest_crawl(engine: AsyncEngine) -> int:
    """The number of the newest crawl. Raises UsageError if there is none."""
    async with reader(engine).connect() as connection:
        crawl_id = await latest_crawl_id(connection)
    if crawl_id is None:
        raise UsageError("nothing has been crawled yet")
    return crawl_id


async def count_bodies(engine: AsyncEngine, scope: Scope) -> int:
    """How many bodies are in the archive."""
    query = sa.select(sa.func.count()).select_from(_joined()).where(*_wanted(scope))
    async with reader(engine).connect() as connection:
        return int(await connection.scalar(query) or 0)


async def read_bodies(engine: AsyncEngine, scope: Scope) -> AsyncIterator[list[Body]]:
    """The bodies in order of (time fetched, page id), BATCH at a time, each batch in one short transaction."""
    query = sa.select(*_COLUMNS).select_from(_joined()).where(*_wanted(scope))
    query = query.order_by(page_body.c.fetched_at, page_body.c.page_id).limit(BATCH)
    rows: Sequence[sa.Row[Any]] = ()
    while True:
        following = query
        if rows:
            place = sa.tuple_(rows[-1].fetched_at, rows[-1].id, types=_AFTER)
            following = query.where(
                page_body.c.fetched_at >= rows[-1].fetched_at,
                sa.tuple_(page_body.c.fetched_at, page_body.c.page_id) > place,
            )
        async with reader(engine).connect() as connection:
            rows = (await connection.execute(following)).all()
            slices = await slice_options(connection, {(row.shop_crawl_id, row.slice) for row in rows if row.slice})
        if rows:
            yield [_body(row, slices) for row in rows]
        if len(rows) < BATCH:
            return


def _joined() -> sa.FromClause:
    return (
        WITH_BODY.join(page, page.c.id == page_body.c.page_id)
        .join(shop_crawl, shop_crawl.c.id == page.c.shop_crawl_id)
        .join(shop, shop.c.id == shop_crawl.c.shop_id)
    )


def _wanted(scope: Scope) -> list[sa.ColumnElement[bool]]:
    wanted: list[sa.ColumnElement[bool]] = []
    if scope.crawl_id is not None:
        wanted.append(shop_crawl.c.crawl_id == scope.crawl_id)
    if scope.shops is not None:
        wanted.append(shop_crawl.c.shop_id.in_(scope.shops))
    if scope.since is not None:
        wanted.append(page_body.c.fetched_at >= lowest(scope.since))
    if scope.until is not None:
        wanted.append(page_body.c.fetched_at < scope.until)
    return wanted


def _body(row: sa.Row[Any], slices: Mapping[Window, dict[str, Any]]) -> Body:
    facts = ShopFacts(row.crawl_id, row.shop_id, row.source, row.key, row.options)
    return Body(page_task(row, facts, slices), row.state, row.fetched_at, row.body)
