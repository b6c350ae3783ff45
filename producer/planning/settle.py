"""Settling: a shop whose pages have all ended gets its verdict, and a crawl without open shops comes to its end."""

from array import array
from collections.abc import Container, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from models.bulk import query_rows
from models.database import is_postgresql
from models.ledger import unpack_keys
from models.modes import left_out
from models.settings import Settings
from models.tables import crawl, shop, shop_crawl
from producer.planning import reread, slices
from producer.planning.delist import Evidence, delist, is_whole, look
from producer.planning.facts import FACT_OF_SHOP, fact_names, fact_of
from producer.planning.plan import PageFact, Progress, Review
from producer.planning.verdict import Verdict, guarded, judge
from producer.planning.windows import Slice, judge_windows, newest_end

COLUMNS = ("state", "verdict", "reason", "distinct_items", "gone_items", "settled_at")
COUNTED_AT_ONCE = 20
BUCKETS = 256


async def settle(
    connection: AsyncConnection,
    reviews: Mapping[int, Review],
    shops: Mapping[int, sa.Row[Any]],
    distinct: Mapping[int, int],
    lacking: Container[int],
    evidence: Mapping[int, Evidence],
    *,
    now: datetime,
    settings: Settings,
) -> dict[int, dict[str, Any]]:
    """Judge shops whose pages have all ended; returns the columns that make each one settled.

    Their `distinct` items are counted; `lacking` are those that have not seen every known item, and `evidence` is what
    is known already of what some of these miss.
    """
    ended = {key: value.progress for key, value in reviews.items() if value.settle}
    windows = await slices.load(connection, [key for key, progress in ended.items() if progress.is_windowed])
    verdicts = await _judge(connection, ended, shops, windows, distinct, settings)
    gone = dict.fromkeys(ended, 0)
    for key in sorted(ended, key=lambda key: shops[key].shop_id):  # one order for all: no deadlocks
        if verdicts[key].verdict == "complete" and key in lacking:
            proved = (
                None if key in windows else (evidence.get(key) or await look(connection, shops[key], ended[key])).proved
            )
            gone[key] = await delist(connection, shops[key], proved, now, settings.gone_after)
    seen = {key: (verdicts[key], distinct[key]) for key in sorted(ended) if is_whole(shops[key])}
    await _remember(connection, seen, shops, now)
    # A crawl of some of the changes proves nothing about the others.
    unfiltered = {key for key in windows if not any(left_out(shops[key].source, shops[key].options))}
    whole = [key for key in windows if verdicts[key].verdict == "complete" and key in unfiltered]
    await _advance_watermarks(connection, {shops[key].shop_id: windows[key] for key in whole})
    return {
        key: dict(zip(COLUMNS, ("settled", v.verdict, v.reason, distinct[key], gone[key], now), strict=True))
        for key, v in verdicts.items()
    }


async def _judge(
    connection: AsyncConnection,
    ended: Mapping[int, Progress],
    shops: Mapping[int, sa.Row[Any]],
    windows: Mapping[int, Sequence[Slice]],
    distinct: Mapping[int, int],
    settings: Settings,
) -> dict[int, Verdict]:
    lost = await _lost_pages(connection, [key for key, progress in ended.items() if progress.pages_dead])
    second = await reread.load(connection, [key for key, progress in ended.items() if progress.second_pass])
    verdicts = {}
    for key, progress in ended.items():
        if shops[key].kind == "plan":
            verdicts[key] = Verdict(None, f"counted: {progress.total_first}")
        elif key in windows:
            verdicts[key] = judge_windows(progress, windows[key], distinct[key])
        else:
            calls = sum(part.calls for part in second.get(key, []))
            verdicts[key] = judge(progress, distinct[key], lost.get(key, []), calls)
        if is_whole(shops[key]):
            known, suspect = shops[key].known_items, shops[key].suspect_items
            verdicts[key] = guarded(verdicts[key], distinct[key], known, suspect, settings.shrink_guard)
    return verdicts


async def _remember(
    connection: AsyncConnection,
    seen: Mapping[int, tuple[Verdict, int]],
    shops: Mapping[int, sa.Row[Any]],
    now: datetime,
) -> None:
    """Note how many items whole crawls showed, for those that follow to be measured by; suspicious ones apart."""
    newest = {
        shops[key].shop_id: {
            "id": shops[key].shop_id,
            "known_items": distinct if verdict.is_happy else shops[key].known_items,
            "suspect_items": None if verdict.is_happy else distinct,
            "baseline_at": now if verdict.verdict == "complete" else None,
        }
        for key, (verdict, distinct) in seen.items()
        if verdict.is_happy or verdict.verdict == "suspect"
    }
    rows = [newest[key] for key in sorted(newest)]
    if is_postgresql(connection):
        sql = "SELECT 1 FROM {r} JOIN shop s ON s.id = r.id ORDER BY s.id FOR NO KEY UPDATE OF s"
        await query_rows(connection, sql, [shop.c.id], rows)
    sql = (
        "UPDATE shop SET known_items = r.known_items, suspect_items = r.suspect_items,"
        " baseline_at = COALESCE(shop.baseline_at, r.baseline_at) FROM {r} WHERE shop.id = r.id"
    )
    columns = [shop.c.id, shop.c.known_items, shop.c.suspect_items, shop.c.baseline_at]
    await query_rows(connection, sql, columns, rows)


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


async def distinct_items(connection: AsyncConnection, ids: Sequence[int]) -> dict[int, int]:
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
    sql += " WHERE p.slice = 0 AND p.state IN ('dead', 'refused') ORDER BY p.shop_crawl_id, p.number"
    lost: dict[int, list[PageFact]] = {}
    rows = [{"id": key} for key in ids]
    for row in await query_rows(connection, sql, [shop_crawl.c.id], rows, returning=FACT_OF_SHOP):
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
