"""Review: draws conclusions from finished pages, plans and cancels others, and settles finished shops."""

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from models.bulk import insert_rows, query_rows
from models.crawls import new_page
from models.database import is_postgresql
from models.ledger import unpack_keys
from models.tables import crawl, page, shop_crawl
from producer.plan import PageFact, Progress, Review, absorb, conclude, judge

LARGEST_REVIEW = 1_000
COUNTED_AT_ONCE = 20
UNREVIEWED = sa.text("NOT page.reviewed")  # in the index's own words: SQLite finds it by no others
FACT_COLUMNS = (
    page.c.number, page.c.state, page.c.rows, page.c.total, page.c.page_size,
    page.c.item_keys, page.c.reason, page.c.new_items, page.c.changed_items,
)  # fmt: skip
PROGRESS = (
    "planned", "page_size", "total_first", "total_last", "last_page", "end_reason", "extensions", "last_dead",
    "last_done", "pages_done", "pages_dead", "pages_cancelled", "rows", "new_items", "changed_items", "refusal",
)  # fmt: skip

Facts = dict[int, dict[int, PageFact]]


@dataclass(frozen=True, slots=True)
class Reviewed:
    """What one review did: pages reviewed, ids of shop crawls that settled other than complete, crawls finished."""

    pages: int = 0
    unhappy: Sequence[int] = ()
    finished: Sequence[int] = ()


async def review(connection: AsyncConnection, *, now: datetime) -> Reviewed:
    """Review finished pages of shops that no other producer is reviewing."""
    waiting = await _oldest_unreviewed(connection)
    shops = await _lock_shops(connection, waiting.values())
    finished = await _finished_pages(connection, waiting, shops)
    if not finished:
        return Reviewed()
    known = await _neighbours(connection, finished)
    reviews = {}
    for shop_crawl_id, facts in finished.items():
        progress = absorb(_progress(shops[shop_crawl_id]), list(facts.values()), known[shop_crawl_id] | facts)
        reviews[shop_crawl_id] = conclude(progress)
    await _mark_reviewed(connection, finished)
    reviews |= await _cancel_pages(connection, reviews)
    await _add_pages(connection, reviews, shops, now)
    verdicts = await _settle(connection, [key for key, value in reviews.items() if value.settle], reviews, now)
    await _save(connection, reviews, verdicts)
    ended = await _finish_crawls(connection, {shops[key].crawl_id for key in verdicts}, now)
    unhappy = [key for key, columns in verdicts.items() if columns["verdict"] != "complete"]
    return Reviewed(sum(len(facts) for facts in finished.values()), unhappy, ended)


async def _oldest_unreviewed(connection: AsyncConnection) -> dict[int, int]:
    """Shop crawl by page id of the pages that have waited longest for a review; a bounded number, however many wait."""
    oldest = sa.select(page.c.id, page.c.shop_crawl_id).where(UNREVIEWED).order_by(page.c.id).limit(LARGEST_REVIEW)
    return {row.id: row.shop_crawl_id for row in await connection.execute(oldest)}


async def _lock_shops(connection: AsyncConnection, ids: Iterable[int]) -> dict[int, sa.Row[Any]]:
    """These shop crawls, locked; those another producer holds are left to it."""
    names = ", ".join(f'c."{column.name}"' for column in shop_crawl.c)
    lock = " FOR UPDATE OF c SKIP LOCKED" if is_postgresql(connection) else ""
    sql = f"SELECT {names} FROM {{r}} JOIN shop_crawl c ON c.id = r.id ORDER BY c.id{lock}"
    rows = [{"id": key} for key in sorted(set(ids))]
    found = await query_rows(connection, sql, [shop_crawl.c.id], rows, returning=list(shop_crawl.c))
    return {row.id: row for row in found}


async def _finished_pages(connection: AsyncConnection, pages: Mapping[int, int], shops: Container[int]) -> Facts:
    """Those of the pages whose shops are locked; read after the lock, so that none is counted twice."""
    rows = await query_rows(
        connection,
        f"SELECT p.shop_crawl_id, {_names('p')} FROM {{r}} JOIN page p ON p.id = r.id WHERE NOT p.reviewed",
        [page.c.id],
        [{"id": page_id} for page_id, shop_crawl_id in pages.items() if shop_crawl_id in shops],
    )
    return _facts(rows)


async def _neighbours(connection: AsyncConnection, finished: Facts) -> Facts:
    """Finished pages 1, n-1 and n+1 for each finished page n: a server that repeats itself shows by them."""
    wanted = {
        (shop_crawl_id, other)
        for shop_crawl_id, facts in finished.items()
        for number in facts
        for other in (1, number - 1, number + 1)
        if other > 0 and other not in facts
    }
    rows = await query_rows(
        connection,
        f"SELECT p.shop_crawl_id, {_names('p')} FROM {{r}} JOIN page p ON p.shop_crawl_id = r.shop_crawl_id"
        " AND p.slice = 0 AND p.number = r.number WHERE p.state = 'done'",
        [page.c.shop_crawl_id, page.c.number],
        [{"shop_crawl_id": key, "number": number} for key, number in sorted(wanted)],
    )
    return _facts(rows)


def _names(alias: str) -> str:
    return ", ".join(f'{alias}."{column.name}"' for column in FACT_COLUMNS)


def _facts(rows: Iterable[sa.Row[Any]]) -> Facts:
    facts: Facts = defaultdict(dict)
    for row in rows:
        facts[row.shop_crawl_id][row.number] = PageFact(
            number=row.number,
            state=row.state,
            rows=row.rows or 0,
            total=row.total,
            page_size=row.page_size,
            keys=row.item_keys,
            reason=row.reason,
            new_items=row.new_items or 0,
            changed_items=row.changed_items or 0,
        )
    return facts


def _progress(row: sa.Row[Any]) -> Progress:
    kept = {name: row._mapping[name] for name in PROGRESS}
    return Progress(max_pages=row.options["max_pages"], asked_size=row.options["page_size"], **kept)


async def _mark_reviewed(connection: AsyncConnection, finished: Facts) -> None:
    rows = [{"shop_crawl_id": key, "number": number} for key, facts in finished.items() for number in facts]
    sql = "UPDATE page SET reviewed = true FROM {r} WHERE page.shop_crawl_id = r.shop_crawl_id AND page.slice = 0"
    await query_rows(connection, sql + " AND page.number = r.number", [page.c.shop_crawl_id, page.c.number], rows)


async def _cancel_pages(connection: AsyncConnection, reviews: Mapping[int, Review]) -> dict[int, Review]:
    """Cancel the unsent pages behind a proved end, each a call saved; returns the conclusions that follow."""
    ends = [{"id": key, "last_page": r.cancel_after} for key, r in reviews.items() if r.cancel_after is not None]
    sql = (
        "UPDATE page SET state = 'cancelled' FROM {r} WHERE page.shop_crawl_id = r.id AND page.number > r.last_page"
        " AND page.state = 'ready' RETURNING page.shop_crawl_id"
    )
    cancelled: dict[int, int] = defaultdict(int)
    for row in await query_rows(connection, sql, [shop_crawl.c.id, shop_crawl.c.last_page], ends):
        cancelled[row.shop_crawl_id] += 1
    return {
        key: conclude(replace(reviews[key].progress, pages_cancelled=reviews[key].progress.pages_cancelled + count))
        for key, count in cancelled.items()
    }


async def _add_pages(
    connection: AsyncConnection, reviews: Mapping[int, Review], shops: Mapping[int, sa.Row[Any]], now: datetime
) -> None:
    sources = await _sources(connection, [key for key, value in reviews.items() if value.add])
    rows = [
        new_page(key, sources[key], number, shops[key].priority, now)
        for key, value in reviews.items()
        for number in value.add
    ]
    await insert_rows(connection, page, rows, conflict="ON CONFLICT DO NOTHING")


async def _sources(connection: AsyncConnection, shop_crawl_ids: Sequence[int]) -> dict[int, str]:
    sql = "SELECT c.id, s.source FROM {r} JOIN shop_crawl c ON c.id = r.id JOIN shop s ON s.id = c.shop_id"
    rows = await query_rows(connection, sql, [shop_crawl.c.id], [{"id": key} for key in shop_crawl_ids])
    return {row.id: row.source for row in rows}


async def _settle(
    connection: AsyncConnection, ids: Sequence[int], reviews: Mapping[int, Review], now: datetime
) -> dict[int, dict[str, Any]]:
    """Judge shops whose pages have all ended; returns the columns that make each one settled."""
    distinct = await _distinct_items(connection, ids)
    lost = await _lost_pages(connection, [key for key in ids if reviews[key].progress.pages_dead])
    verdicts = {}
    for key in ids:
        verdict = judge(reviews[key].progress, distinct[key], list(lost.get(key, {}).values()))
        verdicts[key] = {
            "state": "settled",
            "verdict": verdict.verdict,
            "reason": verdict.reason,
            "distinct_items": distinct[key],
            "settled_at": now,
        }
    return verdicts


async def _distinct_items(connection: AsyncConnection, ids: Sequence[int]) -> dict[int, int]:
    """How many different items the pages of each shop crawl showed; a few shops at a time, for many may end at once."""
    distinct: dict[int, int] = {}
    sql = "SELECT p.shop_crawl_id, p.item_keys FROM {r} JOIN page p ON p.shop_crawl_id = r.id WHERE p.state = 'done'"
    for start in range(0, len(ids), COUNTED_AT_ONCE):
        chunk = ids[start : start + COUNTED_AT_ONCE]
        seen: dict[int, set[int]] = {key: set() for key in chunk}
        for row in await query_rows(connection, sql, [shop_crawl.c.id], [{"id": key} for key in chunk]):
            seen[row.shop_crawl_id].update(unpack_keys(row.item_keys))
        distinct |= {key: len(keys) for key, keys in seen.items()}
    return distinct


async def _lost_pages(connection: AsyncConnection, ids: Sequence[int]) -> Facts:
    sql = f"SELECT p.shop_crawl_id, {_names('p')} FROM {{r}} JOIN page p ON p.shop_crawl_id = r.id"
    sql += " WHERE p.state IN ('dead', 'refused') ORDER BY p.shop_crawl_id, p.number"
    return _facts(await query_rows(connection, sql, [shop_crawl.c.id], [{"id": key} for key in ids]))


async def _save(
    connection: AsyncConnection, reviews: Mapping[int, Review], verdicts: Mapping[int, Mapping[str, Any]]
) -> None:
    unsettled = {"state": "open", "verdict": None, "reason": None, "distinct_items": 0, "settled_at": None}
    names = (*PROGRESS, *unsettled)
    rows = [
        {"id": key, **{name: getattr(value.progress, name) for name in PROGRESS}, **verdicts.get(key, unsettled)}
        for key, value in sorted(reviews.items())
    ]
    sql = "UPDATE shop_crawl SET " + ", ".join(f'"{name}" = r."{name}"' for name in names)
    columns = [shop_crawl.c.id, *(shop_crawl.c[name] for name in names)]
    await query_rows(connection, sql + " FROM {r} WHERE shop_crawl.id = r.id", columns, rows)


async def _finish_crawls(connection: AsyncConnection, crawl_ids: Iterable[int], now: datetime) -> list[int]:
    """Finish the crawls that have no open shop left; returns their ids."""
    ids = list(crawl_ids)
    if not ids:
        return []
    # Two producers that settle a crawl's last two shops side by side each see the other's as open: take turns.
    await connection.execute(sa.select(crawl.c.id).where(crawl.c.id.in_(ids)).order_by(crawl.c.id).with_for_update())
    still_open = sa.exists().where(shop_crawl.c.crawl_id == crawl.c.id, shop_crawl.c.state == "open")
    finished = sa.update(crawl).where(crawl.c.id.in_(ids), ~still_open, crawl.c.state != "finished")
    rows = await connection.execute(finished.values(state="finished", finished_at=now).returning(crawl.c.id))
    return sorted(row.id for row in rows)
