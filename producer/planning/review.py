"""Review: draws conclusions from finished pages, plans and cancels others, and has finished shops settled."""

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
from models.settings import Settings
from models.tables import page, shop, shop_crawl
from producer.planning import delist, hold, reread, settle, slices
from producer.planning.facts import FACT_OF_SHOP, PROGRESS, fact_names, fact_of, progress_of
from producer.planning.plan import PageFact, Progress, Review, absorb, conclude

LARGEST_REVIEW = 1_000
UNREVIEWED = sa.text("NOT page.reviewed")  # in the index's own words: SQLite finds it by no others

Facts = dict[int, list[PageFact]]
"""Finished pages by shop crawl."""


@dataclass(frozen=True, slots=True)
class Reviewed:
    """What one review did: pages reviewed, ids of shop crawls that settled other than complete, crawls finished."""

    pages: int = 0
    unhappy: Sequence[int] = ()
    finished: Sequence[int] = ()


async def review(connection: AsyncConnection, *, now: datetime, settings: Settings) -> Reviewed:
    """Review finished pages of shops that no other producer is reviewing."""
    waiting = await _oldest_unreviewed(connection)
    shops = await _lock_shops(connection, waiting.values())
    found = await _finished_pages(connection, waiting, shops)
    if not found:
        return Reviewed()
    finished = {key: [fact for fact in facts if fact.state != "held"] for key, facts in found.items()}
    await _mark_reviewed(connection, found)
    listed, windowed, again = _sorted(finished, shops)
    reviews = await _review_lists(connection, listed, shops)
    reviews |= await slices.review(connection, windowed, shops, now=now, settings=settings)
    reviews |= await reread.review(connection, again, shops, now=now, settings=settings)
    reviews |= await _cancel_pages(connection, reviews)
    await _add_pages(connection, reviews, shops, now)
    had = [key for key, value in reviews.items() if value.settle]
    distinct, lacking = await settle.distinct_items(connection, had), await delist.lacking(connection, had, shops)
    going_on, evidence = await reread.go_on(connection, reviews, shops, distinct, lacking, now=now, settings=settings)
    reviews |= going_on
    verdicts = await settle.settle(connection, reviews, shops, distinct, lacking, evidence, now=now, settings=settings)
    await _save(connection, reviews, verdicts)
    held = {key: fact.reason or "" for key, facts in found.items() for fact in facts if fact.state == "held"}
    await hold.hold(connection, {key: reason for key, reason in held.items() if key not in verdicts}, now)
    ended = await settle.finish_crawls(connection, {shops[key].crawl_id for key in [*verdicts, *held]}, now)
    unhappy = [key for key, columns in verdicts.items() if columns["verdict"] not in {"complete", None}]
    return Reviewed(sum(len(facts) for facts in found.values()), unhappy, ended)


def _sorted(finished: Facts, shops: Mapping[int, sa.Row[Any]]) -> tuple[Facts, Facts, Facts]:
    """Pages of lists, of windows of time, and of lists' second passes."""
    listed: Facts = defaultdict(list)
    windowed: Facts = defaultdict(list)
    again: Facts = defaultdict(list)
    for key, facts in finished.items():
        for fact in facts:
            parts = windowed if shops[key].pages_made else again
            (parts if fact.slice else listed)[key].append(fact)
    return listed, windowed, again


async def _oldest_unreviewed(connection: AsyncConnection) -> dict[int, int]:
    """Shop crawl by page id of the pages that have waited longest for a review; a bounded number, however many wait."""
    oldest = sa.select(page.c.id, page.c.shop_crawl_id).where(UNREVIEWED).order_by(page.c.id).limit(LARGEST_REVIEW)
    return {row.id: row.shop_crawl_id for row in await connection.execute(oldest)}


async def _lock_shops(connection: AsyncConnection, ids: Iterable[int]) -> dict[int, sa.Row[Any]]:
    """These shop crawls with their sources, locked; those another producer holds are left to it."""
    names = ", ".join([*(f'c."{column.name}"' for column in shop_crawl.c), "s.source, s.known_items, s.suspect_items"])
    lock = " FOR UPDATE OF c SKIP LOCKED" if is_postgresql(connection) else ""
    sql = f"SELECT {names} FROM {{r}} JOIN shop_crawl c ON c.id = r.id JOIN shop s ON s.id = c.shop_id"
    rows = [{"id": key} for key in sorted(set(ids))]
    columns = [*shop_crawl.c, shop.c.source, shop.c.known_items, shop.c.suspect_items]
    found = await query_rows(connection, f"{sql} ORDER BY c.id{lock}", [shop_crawl.c.id], rows, returning=columns)
    return {row.id: row for row in found}


async def _finished_pages(connection: AsyncConnection, pages: Mapping[int, int], shops: Container[int]) -> Facts:
    """Those of the pages whose shops are locked; read after the lock, so that none is counted twice."""
    rows = await query_rows(
        connection,
        f"SELECT p.shop_crawl_id, {fact_names('p')} FROM {{r}} JOIN page p ON p.id = r.id WHERE NOT p.reviewed",
        [page.c.id],
        [{"id": page_id} for page_id, shop_crawl_id in pages.items() if shop_crawl_id in shops],
        returning=FACT_OF_SHOP,
    )
    facts: Facts = defaultdict(list)
    for row in rows:
        facts[row.shop_crawl_id].append(fact_of(row))
    return facts


async def _mark_reviewed(connection: AsyncConnection, found: Facts) -> None:
    rows = [{"id": fact.page_id} for facts in found.values() for fact in facts]
    sql = "UPDATE page SET reviewed = true FROM {r} WHERE page.id = r.id"
    await query_rows(connection, sql, [page.c.id], rows)


async def _review_lists(
    connection: AsyncConnection, finished: Facts, shops: Mapping[int, sa.Row[Any]]
) -> dict[int, Review]:
    """Conclusions on shops whose pages are read one after the other to the end."""
    known = await _neighbours(connection, finished)
    reviews = {}
    for key, facts in finished.items():
        progress = absorb(progress_of(shops[key]), facts, known[key] | {fact.number: fact for fact in facts})
        counted = shops[key].kind == "plan" and progress.open_pages == 0
        reviews[key] = Review(progress, settle=True) if counted else conclude(progress)
    return reviews


async def _neighbours(connection: AsyncConnection, finished: Facts) -> dict[int, dict[int, PageFact]]:
    """Finished pages 1, n-1 and n+1 for each finished page n: a server that repeats itself shows by them."""
    wanted = {
        (key, other)
        for key, facts in finished.items()
        for fact in facts
        for other in (1, fact.number - 1, fact.number + 1)
        if other > 0
    }
    rows = await query_rows(
        connection,
        # By the whole unique key, and by nothing else: without statistics, which a young ledger lacks, PostgreSQL would
        # take "slice = 0" or "state = 'done'" for rare and compare every page with every row.
        f"SELECT p.shop_crawl_id, {fact_names('p')} FROM {{r}} JOIN page p ON p.shop_crawl_id = r.shop_crawl_id"
        " AND p.slice = r.slice AND p.number = r.number",
        [page.c.shop_crawl_id, page.c.slice, page.c.number],
        [{"shop_crawl_id": key, "slice": 0, "number": number} for key, number in sorted(wanted)],
    )
    known: dict[int, dict[int, PageFact]] = defaultdict(dict)
    for row in rows:
        if row.state == "done":
            known[row.shop_crawl_id][row.number] = fact_of(row)
    return known


async def _cancel_pages(connection: AsyncConnection, reviews: Mapping[int, Review]) -> dict[int, Review]:
    """Cancel the unsent pages behind a proved end, each a call saved; returns the conclusions that follow."""
    ends = [{"id": key, "last_page": r.cancel_after} for key, r in reviews.items() if r.cancel_after is not None]
    sql = (
        "UPDATE page SET state = 'cancelled' FROM {r} WHERE page.shop_crawl_id = r.id AND page.number > r.last_page"
        " AND page.state IN ('ready', 'held') RETURNING page.shop_crawl_id"
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
    rows = [
        new_page(key, shops[key].source, number, shops[key].priority, now, held=shops[key].state == "held")
        for key, value in reviews.items()
        for number in value.add
    ]
    await insert_rows(connection, page, rows, conflict="ON CONFLICT DO NOTHING")


async def _save(
    connection: AsyncConnection, reviews: Mapping[int, Review], verdicts: Mapping[int, Mapping[str, Any]]
) -> None:
    """Write the progress of shops that go on, and of settled ones their verdict too."""
    for keys, names in ((reviews.keys() - verdicts.keys(), PROGRESS), (verdicts.keys(), (*PROGRESS, *settle.COLUMNS))):
        rows = [_columns(key, reviews[key].progress) | dict(verdicts.get(key, {})) for key in sorted(keys)]
        sql = "UPDATE shop_crawl SET " + ", ".join(f'"{name}" = r."{name}"' for name in names)
        columns = [shop_crawl.c.id, *(shop_crawl.c[name] for name in names)]
        await query_rows(connection, sql + " FROM {r} WHERE shop_crawl.id = r.id", columns, rows)


def _columns(key: int, progress: Progress) -> dict[str, Any]:
    return {"id": key, **{name: getattr(progress, name) for name in PROGRESS}}
