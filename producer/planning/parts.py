"""Parts of a shop crawl, windows of time or parts of a second pass: how the ledger numbers and keeps them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Protocol, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from models.bulk import insert_rows
from models.crawls import new_page
from models.tables import page, slice_
from producer.planning.plan import Progress
from producer.planning.second import Part
from producer.planning.windows import Slice

P = TypeVar("P", Slice, Part)


class Kept(Protocol):
    """What a review keeps of one shop crawl: the pages and, by number, the parts that are to be written."""

    @property
    def changed(self) -> Mapping[int, Slice] | Mapping[int, Part]: ...

    @property
    def pages(self) -> Sequence[Mapping[str, Any]]: ...


def numbered(progress: Progress, part: P) -> tuple[Progress, P]:
    """The part with its number: a new one gets the next."""
    if part.number:
        return progress, part
    progress = replace(progress, slices=progress.slices + 1)
    return progress, replace(part, number=progress.slices)


def page_of(row: sa.Row[Any], part: Slice | Part, rank: int, due: datetime) -> dict[str, Any]:
    """The row of the page that a part of this shop crawl wants next."""
    made = new_page(row.id, row.source, rank, row.priority, due, held=row.state == "held")
    return {**made, "slice": part.number, "number": part.calls + 1, "page_no": part.cursor}


async def write(connection: AsyncConnection, shops: Mapping[int, Kept], names: Iterable[str], **always: Any) -> None:
    """Write the parts and pages kept of these shop crawls: the columns `names` of each part, and those of all alike."""
    columns = list(names)
    rows = [
        {"shop_crawl_id": key, **always, **{name: getattr(part, name) for name in columns}}
        for key, kept in shops.items()
        for part in kept.changed.values()
    ]
    updates = ", ".join(f'"{name}" = excluded."{name}"' for name in columns if name != "number")
    conflict = f"ON CONFLICT (shop_crawl_id, number) DO UPDATE SET {updates}"
    await insert_rows(connection, slice_, rows, conflict=conflict)
    await insert_rows(connection, page, [row for kept in shops.values() for row in kept.pages])
