"""Settling: a shop whose pages have all ended gets its verdict, and a crawl without open shops comes to its end."""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from models.bulk import query_rows
from models.ledger import unpack_keys
from models.source import source_named
from models.tables import crawl, shop, shop_crawl
from producer import slices
from producer.facts import fact_names, fact_of
from producer.plan import PageFact, Review
from producer.verdict import Verdict, judge
from producer.windows import Slice, judge_windows, newest_end

COLUMNS = ("state", "verdict", "reason", "distinct_items", "settled_at")
COUNTED_AT_ONCE = 20
BUCKETS = 256


async def settle(
    connection: AsyncConnection, reviews: Mapping[int, Review], shops: Mapping[int, sa.Row[Any]], now: datetime
) -> dict[int, dict[str, Any]]:
    """Judge shops whose pages have all ended; returns the columns that make each one settled."""
    ids = [key for key, value in reviews.items() if value.settle]
    distinct = await _distinct_items(connection, ids)
    windows = await slices.load(connection, [key for key in ids if reviews[key].progress.slices])
    lost = await _lost_pages(connection, [key for key in ids if reviews[key].progress.pages_dead])
    verdicts = {}
    for key in ids:
        progress, parts = reviews[key].progress, windows.get(key)
        if shops[key].kind == "plan":
            verdict = Verdict(None, f"counted: {progress.total_first}")
        elif parts:
            verdict = judge_windows(progress, parts, distinct[key])
        else:
            verdict = judge(progress, distinct[key], lost.get(key, []))
        values = ("settled", verdict.verdict, verdict.reason, distinct[key], now)
        verdicts[key] = dict(zip(COLUMNS, values, strict=True))
    whole = [key for key in windows if verdicts[key]["verdict"] == "complete" and not is_filtered(shops[key])]
    await _advance_watermarks(connection, {shops[key].shop_id: windows[key] for key in whole})
    return verdicts


def is_filtered(row: sa.Row[Any]) -> bool:
    """Whether a shop crawl shows only some of what changed in the shop, and so proves nothing about the rest."""
    return any(row.options.get(name) for name in source_named(row.source).filter_names if name != "since")


async def _advance_watermarks(connection: AsyncConnection, windows: Mapping[int, Sequence[Slice]]) -> None:
    """Remember up to when the changes of these shops are known: a crawl that began later left a gap."""
    sql = (
        "UPDATE shop SET watermark = r.watermark FROM {r} WHERE shop.id = r.id"
        " AND (r.created_at IS NULL OR r.created_at <= shop.watermark)"
        " AND (shop.watermark IS NULL OR shop.watermark < r.watermark)"
    )
    rows = [
        {"id": key, "watermark": newest_end(parts), "created_at": parts[0].start_at}
        for key, parts in sorted(windows.items())
    ]
    await query_rows(connection, sql, [shop.c.id, shop.c.watermark, shop.c.created_at], rows)


async def _distinct_items(connection: AsyncConnection, ids: Sequence[int]) -> dict[int, int]:
    """How many different items the pages of each shop crawl showed; a few shops at a time, for many may end at once."""
    distinct: dict[int, int] = {}
    sql = "SELECT p.shop_crawl_id, p.item_keys FROM {r} JOIN page p ON p.shop_crawl_id = r.id WHERE p.state = 'done'"
    for start in range(0, len(ids), COUNTED_AT_ONCE):
        chunk = ids[start : start + COUNTED_AT_ONCE]
        packed: dict[int, list[bytes]] = {key: [] for key in chunk}
        for row in await query_rows(connection, sql, [shop_crawl.c.id], [{"id": key} for key in chunk]):
            packed[row.shop_crawl_id].append(row.item_keys)
        distinct |= {key: count_distinct(pages) for key, pages in packed.items()}
    return distinct


def count_distinct(pages: Sequence[bytes]) -> int:
    """How many different keys these packed lists hold, in little memory: a set of a million takes sixty megabytes."""
    if len(pages) <= BUCKETS:
        return len({key for packed in pages for key in unpack_keys(packed)})
    buckets = [array("Q") for _ in range(BUCKETS)]
    for packed in pages:
        for key in unpack_keys(packed):
            buckets[key % BUCKETS].append(key)
    return sum(len(set(bucket)) for bucket in buckets)


async def _lost_pages(connection: AsyncConnection, ids: Sequence[int]) -> dict[int, list[PageFact]]:
    sql = f"SELECT p.shop_crawl_id, {fact_names('p')} FROM {{r}} JOIN page p ON p.shop_crawl_id = r.id"
    sql += " WHERE p.state IN ('dead', 'refused') ORDER BY p.shop_crawl_id, p.number"
    lost: dict[int, list[PageFact]] = {}
    for row in await query_rows(connection, sql, [shop_crawl.c.id], [{"id": key} for key in ids]):
        lost.setdefault(row.shop_crawl_id, []).append(fact_of(row))
    return lost


async def finish_crawls(connection: AsyncConnection, crawl_ids: Iterable[int], now: datetime) -> list[int]:
    """End the crawls that have no open shop left, or let them wait for held shops' sessions; returns their ids."""
    ids = list(crawl_ids)
    if not ids:
        return []
    # Two producers that settle a crawl's last two shops side by side each see the other's as open: take turns.
    await connection.execute(sa.select(crawl.c.id).where(crawl.c.id.in_(ids)).order_by(crawl.c.id).with_for_update())
    theirs = sa.exists().where(shop_crawl.c.crawl_id == crawl.c.id)
    still_open, held = theirs.where(shop_crawl.c.state == "open"), theirs.where(shop_crawl.c.state == "held")
    running = sa.update(crawl).where(crawl.c.id.in_(ids), ~still_open, crawl.c.state == "running")
    finished = running.where(~held).values(state="finished", finished_at=now).returning(crawl.c.id)
    rows = [*await connection.execute(finished)]
    rows += [*await connection.execute(running.where(held).values(state="waiting").returning(crawl.c.id))]
    return sorted(row.id for row in rows)
