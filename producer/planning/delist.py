"""Delisting: finds the items that a whole crawl proves absent, counts that, and records those that are gone."""

import asyncio
from array import array
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from models.bulk import query_rows
from models.changes import Change, record
from models.database import is_postgresql
from models.ledger import pack_keys, unpack_keys
from models.modes import shows_all
from models.sheets import LAST_SEEN, SEEN_BY, WITH_SHEET, loosen_unseen
from models.source import source_named
from models.tables import item_seen, page, shop_crawl, slice_
from producer.planning.absence import Gap, Shown, find_absent
from producer.planning.plan import Progress
from producer.planning.second import BAND, SEAM

AT_ONCE = 2_000
# Keys compared for one shop at one time: items whose last crawls would exceed it wait for the next whole crawl.
LARGEST_PROOF = 5_000_000


@dataclass(slots=True)
class Evidence:
    """What a crawl proves about known items that it has not seen: keys that are absent, and where others may be."""

    missing: int = 0
    proved: set[int] = field(default_factory=set)
    gaps: list[Gap] = field(default_factory=list)


NOTHING = Evidence()


@dataclass(frozen=True, slots=True)
class _Prior:
    """An earlier crawl's pages in the order of this one, and those across borders; `calm`: little moved meanwhile."""

    pages: Sequence[Sequence[int]]
    across: Sequence[Sequence[int]]
    calm: bool


@dataclass(frozen=True, slots=True)
class _Page:
    """A page that was had, and its part of the second pass, if it belongs to one."""

    kind: str | None
    number: int
    size: int | None
    total: int | None
    keys: "array[int]"


def is_whole(row: sa.Row[Any]) -> bool:
    """Whether a shop crawl shows all items of its shop, and is no mere count."""
    return row.kind != "plan" and shows_all(row.source, row.options, row.mode)


def direction(source: str, options: Any) -> int:
    """1 or -1 under a sort in which items keep their places, 0 under any other."""
    return source_named(source).steady_sorts.get(str(options.get("sort")), 0)


async def lacking(connection: AsyncConnection, ids: Iterable[int], shops: Mapping[int, sa.Row[Any]]) -> set[int]:
    """Those of these shop crawls that are whole and have not seen every known item of their shops."""
    sql = (
        # A shop's first crawl has seen all that is known: no need to look at each item.
        "SELECT r.id FROM {r} WHERE EXISTS (SELECT 1 FROM shop_crawl o WHERE o.shop_id = r.shop_id AND o.id < r.id)"
        " AND EXISTS (SELECT 1 FROM item_seen i LEFT JOIN sheet s ON s.id = i.sheet_id"
        " WHERE i.shop_id = r.shop_id AND i.gone_at IS NULL AND COALESCE(s.last_seen, i.last_seen) < r.created_at)"
    )
    columns = [shop_crawl.c.id, shop_crawl.c.shop_id, shop_crawl.c.created_at]
    rows = [shops[key] for key in ids if is_whole(shops[key])]
    whole = [{"id": row.id, "shop_id": row.shop_id, "created_at": row.created_at} for row in rows]
    return {row.id for row in await query_rows(connection, sql, columns, whole)}


async def look(connection: AsyncConnection, row: sa.Row[Any], progress: Progress) -> Evidence:
    """Judge a whole crawl of pages by those of the crawls that saw the missing items last."""
    missing = await _missing_by_crawl(connection, row)
    evidence = Evidence(sum(len(keys) for keys in missing.values()))
    way = direction(row.source, row.options)
    if not missing or not way:
        return evidence
    pages = await _pages(connection, row.id)
    shown = _shown([each for each in pages if _is_inside(each, progress.last_page)], progress.page_size)
    work = sum(len(each.keys) for each in shown)
    for crawl_id in sorted(missing, key=lambda key: (-len(missing[key]), -key)):
        if work > LARGEST_PROOF:
            break
        prior = await _prior(connection, crawl_id, row.source, way)
        if prior is None:
            continue
        # Seconds for a million items: the producer's other work goes on meanwhile.
        findings = await asyncio.to_thread(
            find_absent, missing[crawl_id], prior.pages, prior.across, shown, calm=prior.calm
        )
        evidence.proved |= findings.proved
        evidence.gaps += findings.gaps
        work += sum(len(keys) for keys in prior.pages) + sum(len(each.keys) for each in shown)
    return evidence


async def _missing(connection: AsyncConnection, shop_id: int, before: datetime) -> AsyncIterator[Sequence[sa.Row[Any]]]:
    """Known items of a shop that were not seen since then, in order, some at a time."""
    t, after = item_seen.c, ""
    while True:
        query = sa.select(t.item_id, SEEN_BY.label("seen_by")).select_from(WITH_SHEET)
        query = query.where(t.shop_id == shop_id, t.item_id > after, before > LAST_SEEN, t.gone_at.is_(None))
        rows: list[sa.Row[Any]] = list(await connection.execute(query.order_by(t.item_id).limit(AT_ONCE)))
        if rows:
            yield rows
        if len(rows) < AT_ONCE:
            return
        after = rows[-1].item_id


async def _missing_by_crawl(connection: AsyncConnection, row: sa.Row[Any]) -> dict[int, "array[int]"]:
    """Keys of missing items by the shop crawl that saw each last."""
    found: dict[int, array[int]] = {}
    async for rows in _missing(connection, row.shop_id, row.created_at):
        keys = unpack_keys(pack_keys(each.item_id for each in rows))
        for each, key in zip(rows, keys, strict=True):
            found.setdefault(each.seen_by, array("Q")).append(key)
    return found


async def _pages(connection: AsyncConnection, shop_crawl_id: int) -> list[_Page]:
    """The pages of a shop crawl that were had, the first pass first, each part in the order of its pages."""
    number = sa.func.coalesce(page.c.page_no, page.c.number)
    part = (slice_.c.shop_crawl_id == page.c.shop_crawl_id) & (slice_.c.number == page.c.slice)
    query = (
        sa.select(slice_.c.kind, number.label("number"), slice_.c.page_size, page.c.total, page.c.item_keys)
        .join(slice_, part, isouter=True)
        .where(page.c.shop_crawl_id == shop_crawl_id, page.c.state == "done")
        .order_by(page.c.slice, number)
    )
    return [
        _Page(row.kind, row.number, row.page_size, row.total, array("Q", unpack_keys(row.item_keys)))
        for row in await connection.execute(query)
    ]


def _is_inside(each: _Page, last_page: int | None) -> bool:
    """Whether a page is a stretch of the listing: no price band, and not behind the data's end, where pages repeat."""
    return each.kind != BAND and (each.kind is not None or last_page is None or each.number <= max(1, last_page))


def _shown(pages: Sequence[_Page], size: int | None) -> list[Shown]:
    return [_show(each, each.size or size or 0) for each in pages]


def _show(each: _Page, size: int) -> Shown:
    rows = len(each.keys)
    # Only a page that has what was asked for tells by its number where in the listing it lies.
    ends = rows <= (size or rows) and (each.number - 1) * size + rows == each.total
    return Shown(each.keys, 0 if each.kind == SEAM else each.number, each.number == 1, ends)


async def _prior(connection: AsyncConnection, shop_crawl_id: int, source: str, way: int) -> _Prior | None:
    """The pages of an earlier crawl; None if they prove nothing."""
    row = (await connection.execute(sa.select(shop_crawl).where(shop_crawl.c.id == shop_crawl_id))).one_or_none()
    if row is None or row.pages_made or not direction(source, row.options):
        return None
    pages = [each for each in await _pages(connection, shop_crawl_id) if _is_inside(each, row.last_page)]
    calm = _was_calm(row, [each.total for each in pages if each.kind is None and each.total is not None])
    turned = way != direction(source, row.options)
    lists: tuple[list[Sequence[int]], list[Sequence[int]]] = ([], [])
    for each in pages:
        lists[each.kind == SEAM].append(each.keys[::-1] if turned else each.keys)
    return _Prior(lists[0][::-1] if turned else lists[0], lists[1], calm)


def _was_calm(row: sa.Row[Any], totals: Sequence[int]) -> bool:
    """Whether fewer rows than a page has can have left while a crawl went on: then its pages are in order.

    What left was made up for by new items, or shows in the totals. A first crawl cannot tell new ones.
    """
    moved = max(totals, default=0) - min(totals, default=0)
    fresh = row.new_items if row.new_items < row.distinct_items else 0
    return bool(moved + fresh < (row.page_size or 1))


async def delist(
    connection: AsyncConnection, row: sa.Row[Any], proved: "set[int] | None", now: datetime, gone_after: int
) -> int:
    """Count one more crawl without these items (by key; None: all that are missing); returns how many are gone now."""
    gone = 0
    await loosen_unseen(connection, row.shop_id, row.created_at)
    async for rows in _missing(connection, row.shop_id, row.created_at):
        keys = unpack_keys(pack_keys(each.item_id for each in rows))
        absent = [each.item_id for each, key in zip(rows, keys, strict=True) if proved is None or key in proved]
        gone += await _miss(connection, row, absent, now, gone_after)
    return gone


async def _miss(
    connection: AsyncConnection, row: sa.Row[Any], absent: Sequence[str], now: datetime, gone_after: int
) -> int:
    columns = [item_seen.c.shop_id, item_seen.c.item_id, item_seen.c.last_seen]
    rows = [{"shop_id": row.shop_id, "item_id": item_id, "last_seen": row.created_at} for item_id in absent]
    if is_postgresql(connection):  # workers lock in this order too
        sql = "SELECT 1 FROM {r} JOIN item_seen i ON i.shop_id = r.shop_id AND i.item_id = r.item_id"
        await query_rows(connection, f"{sql} ORDER BY i.shop_id, i.item_id FOR UPDATE OF i", columns, rows)
    sql = (
        "UPDATE item_seen SET misses = item_seen.misses + 1, missed_at = r.gone_at,"
        " gone_at = CASE WHEN item_seen.misses + 1 >= :after THEN r.gone_at END FROM {r}"
        " WHERE item_seen.shop_id = r.shop_id AND item_seen.item_id = r.item_id AND item_seen.gone_at IS NULL"
        " AND COALESCE((SELECT s.last_seen FROM sheet s WHERE s.id = item_seen.sheet_id), item_seen.last_seen)"
        " < r.last_seen AND (item_seen.missed_at IS NULL OR item_seen.missed_at < r.gone_at)"
        " RETURNING item_seen.item_id, item_seen.gone_at"
    )
    stamped = [{**each, "gone_at": now} for each in rows]
    returning = [item_seen.c.item_id, item_seen.c.gone_at]
    found = await query_rows(
        connection, sql, [*columns, item_seen.c.gone_at], stamped, returning=returning, after=gone_after
    )
    gone = sorted(each.item_id for each in found if each.gone_at is not None)
    await record(connection, [Change(row.shop_id, item_id, "gone", now, row.id) for item_id in gone])
    return len(gone)
