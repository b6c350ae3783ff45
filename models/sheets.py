"""Sheets: what one page showed. While it shows exactly the same again, one row moves for all of its items."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from models.bulk import insert_rows, query_rows
from models.items import ItemKey
from models.tables import item_seen, sheet

LAST_SEEN: sa.ColumnElement[datetime] = sa.func.coalesce(sheet.c.last_seen, item_seen.c.last_seen)
"""When an item was seen last, in a query of `item_seen` that is joined with `sheet` by `WITH_SHEET`."""
SEEN_BY: sa.ColumnElement[int] = sa.func.coalesce(sheet.c.shop_crawl_id, item_seen.c.shop_crawl_id)
"""The shop crawl that saw it then."""
WITH_SHEET = item_seen.outerjoin(sheet, sheet.c.id == item_seen.c.sheet_id)

SheetKey = tuple[int, int]
"""(shop, digest)"""
SheetPlace = tuple[int, int, datetime]
"""(shop, digest, time)"""
_ROW = [sheet.c[name] for name in ("shop_id", "digest", "last_seen", "shop_crawl_id")]
_MOVE = (
    "UPDATE sheet SET last_seen = r.last_seen, shop_crawl_id = r.shop_crawl_id FROM {r}"
    " WHERE sheet.shop_id = r.shop_id AND sheet.digest = r.digest AND sheet.last_seen < r.last_seen"
    " RETURNING sheet.shop_id, sheet.digest, sheet.body_digest, sheet.body_page_id"
)
_LOOSEN = "UPDATE sheet SET digest = NULL FROM {r} WHERE sheet.id = r.id AND sheet.digest IS NOT NULL"
_LOOSEN_OF = (
    "UPDATE sheet SET digest = NULL FROM {r} JOIN item_seen"
    " ON item_seen.shop_id = r.shop_id AND item_seen.item_id = r.item_id"
    " WHERE sheet.id = item_seen.sheet_id AND sheet.digest IS NOT NULL"
)
_DETACH = (
    "UPDATE item_seen SET last_seen = sheet.last_seen, shop_crawl_id = sheet.shop_crawl_id, sheet_id = NULL"
    " FROM {r} JOIN sheet ON true WHERE item_seen.shop_id = r.shop_id AND item_seen.item_id = r.item_id"
    " AND sheet.id = item_seen.sheet_id"
)


class Sheet(msgspec.Struct, frozen=True):
    """One page as it was seen: what it showed as a digest, when, by which shop crawl, and its archived answer."""

    shop_id: int
    digest: int
    last_seen: datetime
    shop_crawl_id: int
    body_digest: int | None = None
    body_page_id: int | None = None

    @property
    def key(self) -> SheetKey:
        return (self.shop_id, self.digest)

    @property
    def place(self) -> SheetPlace:
        return (self.shop_id, self.digest, self.last_seen)


async def move(connection: AsyncConnection, pages: Sequence[Sheet]) -> dict[SheetKey, Sheet]:
    """Move the sheets of pages that show the same as when they were seen last; returns these, with their archive.

    Every item on such a page has in the store exactly what the page shows, and was last seen on it.
    """
    moved = {page.key: page for page in pages}
    rows = [msgspec.structs.asdict(moved[key]) for key in sorted(moved)]  # one order for all writers
    found = await query_rows(connection, _MOVE, _ROW, rows)
    return {
        (row.shop_id, row.digest): msgspec.structs.replace(
            moved[row.shop_id, row.digest], body_digest=row.body_digest, body_page_id=row.body_page_id
        )
        for row in found
    }


async def begin(connection: AsyncConnection, pages: Sequence[Sheet]) -> dict[SheetPlace, int]:
    """Make sheets for pages that show something else; the ids are to be given to all items on them."""
    rows = [msgspec.structs.asdict(page) for page in {page.place: page for page in pages}.values()]
    made = await insert_rows(connection, sheet, rows, returning="id, shop_id, digest, last_seen")
    return {(row.shop_id, row.digest, _time(row.last_seen)): row.id for row in made}


def _time(value: datetime | str) -> datetime:
    return value if isinstance(value, datetime) else datetime.fromisoformat(value)


async def loosen(connection: AsyncConnection, sheet_ids: set[int]) -> None:
    """Let sheets move no more: some item on them is seen otherwise, or no longer. They keep when they were seen."""
    await query_rows(connection, _LOOSEN, [sheet.c.id], [{"id": number} for number in sorted(sheet_ids)])


async def loosen_unseen(connection: AsyncConnection, shop_id: int, before: datetime) -> None:
    """Loosen a shop's sheets that were not seen since: to be called before its missing items are counted as such."""
    unseen = (sheet.c.shop_id == shop_id) & sheet.c.digest.is_not(None) & (sheet.c.last_seen < before)
    await connection.execute(sa.update(sheet).where(unseen).values(digest=None))


async def detach(connection: AsyncConnection, keys: Sequence[ItemKey]) -> None:
    """Take items off their sheets: what is stored of them is going to differ from what these show."""
    rows: list[dict[str, Any]] = [{"shop_id": shop_id, "item_id": item_id} for shop_id, item_id in sorted(keys)]
    for sql in (_LOOSEN_OF, _DETACH):
        await query_rows(connection, sql, [item_seen.c.shop_id, item_seen.c.item_id], rows)
