"""The second pass in the ledger: opens what is worth another call, takes in the answers, and says when to settle."""

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from models.settings import Settings
from models.sheets import LAST_SEEN, WITH_SHEET
from models.source import source_named
from models.tables import crawl, item, item_seen, page, shop_crawl, slice_
from producer.planning.delist import Evidence, look
from producer.planning.facts import progress_of
from producer.planning.parts import numbered, page_of, write
from producer.planning.plan import NEW, PageFact, Progress, Review, in_order, tally
from producer.planning.second import BAND, STEPS, Need, Part, Prices, advance, allowance, open_step
from producer.planning.verdict import is_suspicious

COLUMNS = tuple(each.name for each in fields(Part))
PRICES = {"price_start", "price_end"}
# How long it is remembered that a second pass over a shop gained nothing.
IN_VAIN = timedelta(days=7)


@dataclass
class _Pass:
    """One shop crawl in its second pass: its progress, and the parts and pages that are to be written."""

    row: sa.Row[Any]
    progress: Progress
    changed: dict[int, Part] = field(default_factory=dict)
    pages: list[dict[str, Any]] = field(default_factory=list)

    def keep(self, part: Part, now: datetime) -> None:
        """Note a part as it is now; a new one gets its number, an open one its next page."""
        self.progress, part = numbered(self.progress, part)
        self.changed[part.number] = part
        if part.is_open:
            rank = self.progress.planned + 1
            self.progress = replace(self.progress, planned=rank)
            self.pages.append(page_of(self.row, part, rank, now))


async def review(
    connection: AsyncConnection,
    finished: Mapping[int, Sequence[PageFact]],
    rows: Mapping[int, sa.Row[Any]],
    *,
    now: datetime,
    settings: Settings,
) -> dict[int, Review]:
    """Take in the finished second-pass pages of these shop crawls; a page that was not had only gains nothing."""
    known = await load(connection, list(finished))
    passes = {key: _Pass(rows[key], progress_of(rows[key])) for key in finished}
    for key, facts in finished.items():
        parts = {part.number: part for part in known[key]}
        banded = any(parts[fact.slice].kind == BAND for fact in facts)
        prices = await _prices(connection, rows[key]) if banded else []
        left = await _left(connection, rows[key], passes[key].progress, parts.values(), settings)
        for fact in in_order(facts):
            left -= _take_in(passes[key], parts[fact.slice], fact, prices, left, now)
    await _write(connection, passes, now)
    return {key: Review(each.progress, settle=each.progress.open_pages == 0) for key, each in passes.items()}


def _take_in(second: _Pass, part: Part, fact: PageFact, prices: Prices, left: int, now: datetime) -> int:
    """Advance a part by the answer to its call; returns the calls that follow from it."""
    is_done = fact.state == "done"
    # Whatever the API says against such a page: the shop itself was had.
    second.progress = tally(second.progress, fact if is_done else replace(fact, state="dead"))
    if is_done and part.kind != BAND and fact.total is not None:
        second.progress = replace(second.progress, total_last=fact.total)
    size = part.page_size or second.progress.page_size or second.progress.asked_size
    part = advance(part, fact, size, prices, left)
    second.keep(part, now)
    return int(part.is_open)


async def go_on(
    connection: AsyncConnection,
    reviews: Mapping[int, Review],
    rows: Mapping[int, sa.Row[Any]],
    distinct: Mapping[int, int],
    lacking: Container[int],
    *,
    now: datetime,
    settings: Settings,
) -> tuple[dict[int, Review], dict[int, Evidence]]:
    """Open the next step of the second pass over those shops whose pages have all ended and that need one.

    `lacking` are those that have not seen every known item. Returns their reviews, and what was found about missing
    items of the others that may be settled now.
    """
    passes, evidence = {}, {}
    for key, value in reviews.items():
        progress, row = value.progress, rows[key]
        if not value.settle or not _is_eligible(row, progress, settings):
            continue
        found = await _evidence(connection, row, progress, distinct[key], settings) if key in lacking else Evidence()
        second = await _next_step(connection, row, progress, distinct[key], found, now, settings)
        if second is None:
            evidence[key] = found
        else:
            passes[key] = second
    await _write(connection, passes, now)
    return {key: Review(each.progress) for key, each in passes.items()}, evidence


def _is_eligible(row: sa.Row[Any], progress: Progress, settings: Settings) -> bool:
    if row.kind == "plan" or progress.is_windowed or progress.mode == NEW or not settings.second_pass_share:
        return False
    had_all = progress.pages_dead == 0 or progress.second_pass > 0
    return had_all and progress.refusal is None and progress.last_page is not None


async def _evidence(
    connection: AsyncConnection, row: sa.Row[Any], progress: Progress, distinct: int, settings: Settings
) -> Evidence:
    """What is known of missing items; nothing of a shop so small that it is to be crawled again anyway."""
    guard = (row.known_items, row.suspect_items, settings.shrink_guard)
    if is_suspicious(distinct, *guard):
        return Evidence()
    return await look(connection, row, progress)


async def _next_step(
    connection: AsyncConnection,
    row: sa.Row[Any],
    progress: Progress,
    distinct: int,
    found: Evidence,
    now: datetime,
    settings: Settings,
) -> _Pass | None:
    unseen = max(0, (progress.total_last or 0) - distinct)
    if unseen and not progress.second_pass and unseen <= await _unseen_in_vain(connection, row.shop_id, now):
        unseen = 0
    if progress.second_pass == len(STEPS) or not (unseen or found.gaps):
        return None
    left = await _left(connection, row, progress, (await load(connection, [row.id]))[row.id], settings)
    totals, shown = await _said(connection, row.id) if unseen else ({}, {})
    size = progress.page_size or progress.asked_size
    need = Need(max(1, progress.last_page or 0), size, unseen, found.gaps, totals, shown)
    prices = await _prices(connection, row) if unseen and _has_bands(row) else []
    step, parts = open_step(progress.second_pass, need, left, prices)
    if not parts:
        return None
    first = distinct if progress.first_distinct is None else progress.first_distinct
    second = _Pass(row, replace(progress, second_pass=step, first_distinct=first))
    for part in parts:
        second.keep(part, now)
    return second


async def _unseen_in_vain(connection: AsyncConnection, shop_id: int, now: datetime) -> int:
    """Items that were counted and could not be found when the newest second pass over a shop gained nothing.

    Some APIs count what they never show: whoever looks for it again pays for nothing.
    """
    t = shop_crawl.c
    query = sa.select(t.total_last, t.distinct_items, t.first_distinct).where(
        t.shop_id == shop_id, t.settled_at > now - IN_VAIN, t.first_distinct.is_not(None)
    )
    last = (await connection.execute(query.order_by(t.settled_at.desc()).limit(1))).one_or_none()
    if last is None or last.distinct_items > last.first_distinct:
        return 0
    return max(0, int(last.total_last or 0) - int(last.distinct_items))


def _has_bands(row: sa.Row[Any]) -> bool:
    names = set(source_named(row.source).filter_names)
    return names >= PRICES and not any(row.options.get(name) for name in names)


async def _left(
    connection: AsyncConnection, row: sa.Row[Any], progress: Progress, parts: Iterable[Part], settings: Settings
) -> int:
    """Calls that the second pass may still make; a budget that is nearly used up is left to first passes."""
    made = sum(part.calls + part.is_open for part in parts)
    left = allowance(progress.last_page or 0, settings.second_pass_share, settings.second_pass_calls) - made
    account = (
        await connection.execute(sa.select(crawl.c.max_calls, crawl.c.reserved).where(crawl.c.id == row.crawl_id))
    ).one()
    if account.max_calls is not None:
        left = min(left, account.max_calls - account.reserved)
    if row.options.get("max_calls"):
        left = min(left, row.options["max_calls"] - row.reserved)
    return left


async def _said(connection: AsyncConnection, shop_crawl_id: int) -> tuple[dict[int, int | None], dict[int, int]]:
    """How many items there are by each page of the first pass, and how many it showed."""
    query = sa.select(page.c.number, page.c.total, page.c.rows)
    query = query.where(page.c.shop_crawl_id == shop_crawl_id, page.c.slice == 0, page.c.state == "done")
    rows = list(await connection.execute(query))
    return {row.number: row.total for row in rows}, {row.number: row.rows or 0 for row in rows}


async def _prices(connection: AsyncConnection, row: sa.Row[Any]) -> Prices:
    """The prices of the items that were seen since this crawl began."""
    same = (item.c.shop_id == item_seen.c.shop_id) & (item.c.item_id == item_seen.c.item_id)
    query = sa.select(item.c.price, sa.func.count().label("items")).select_from(WITH_SHEET.join(item, same))
    query = query.where(item.c.shop_id == row.shop_id, item.c.price.is_not(None), row.created_at <= LAST_SEEN)
    found = await connection.execute(query.group_by(item.c.price))
    return sorted((each.price, each.items) for each in found)


async def load(connection: AsyncConnection, shop_crawl_ids: Sequence[int]) -> dict[int, list[Part]]:
    """The parts of these shop crawls' second passes, in the order in which they were opened."""
    parts: dict[int, list[Part]] = defaultdict(list)
    names = [slice_.c[name] for name in COLUMNS]
    query = sa.select(slice_.c.shop_crawl_id, *names)
    query = query.where(slice_.c.shop_crawl_id.in_(shop_crawl_ids), slice_.c.kind.in_(STEPS))
    for row in await connection.execute(query.order_by(slice_.c.shop_crawl_id, slice_.c.number)):
        parts[row.shop_crawl_id].append(Part(**{name: row._mapping[name] for name in COLUMNS}))
    return parts


async def _write(connection: AsyncConnection, passes: Mapping[int, _Pass], now: datetime) -> None:
    """What a window of time has besides, means nothing here."""
    await write(connection, passes, COLUMNS, round=1, end_at=now, behind=0, turn=1, missing=0)
