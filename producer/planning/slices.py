"""Windows of time in the ledger: reads what their calls said, has the planner decide, writes slices and next pages."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from models.bulk import insert_rows, query_rows
from models.ledger import TOO_FAR, unpack_keys
from models.settings import Settings
from models.source import WindowRules, source_named
from models.tables import item, learned, page, slice_
from models.windows import ROOT
from producer.planning.facts import progress_of
from producer.planning.parts import numbered, page_of, write
from producer.planning.plan import PageFact, Progress, Review, tally
from producer.planning.windows import (
    CHECK,
    ENDED,
    Answer,
    Reading,
    Slice,
    Step,
    advance,
    categories,
    next_slice,
    verify,
)  # fmt: skip

REACH = "reach"
COLUMNS = tuple(each.name for each in fields(Slice))

Key = tuple[int, int]
"""(shop crawl, number of the slice)"""


@dataclass
class Shop:
    """One shop crawl under review: its progress, the slices at hand, and what is to be written of them."""

    row: sa.Row[Any]
    reading: Reading
    progress: Progress
    slices: dict[int, Slice]
    facts: Sequence[PageFact]
    changed: dict[int, Slice] = field(default_factory=dict)
    pages: list[dict[str, Any]] = field(default_factory=list)

    @property
    def wanted(self) -> int:
        """Pages that the slices at hand still want."""
        return sum(part.remaining for part in self.slices.values())

    def keep(self, part: Slice) -> Slice:
        """Note a slice as it is now; a new one gets its number."""
        self.progress, part = numbered(self.progress, part)
        self.changed[part.number] = self.slices[part.number] = part
        return part


async def review(
    connection: AsyncConnection,
    finished: Mapping[int, Sequence[PageFact]],
    rows: Mapping[int, sa.Row[Any]],
    *,
    now: datetime,
    settings: Settings,
) -> dict[int, Review]:
    """Take in the finished pages of these shop crawls and open what they ask for next."""
    if not finished:
        return {}
    wanted = {(key, fact.slice) for key, facts in finished.items() for fact in facts}
    known = await _slices(connection, wanted)
    shops = {}
    for key, facts in finished.items():
        rules = _rules(rows[key].source, settings)
        size = rows[key].options["page_size"]
        reading = Reading(rules, size, await _reach(connection, rows[key].source, rules.reach))
        shops[key] = Shop(rows[key], reading, progress_of(rows[key]), known[key], facts)
    for shop in shops.values():
        await _take_in(connection, shop, now)
    await _verify(connection, shops)
    reviews = {key: await _conclude(connection, shop, now) for key, shop in shops.items()}
    await write(connection, shops, COLUMNS)
    return reviews


def _rules(source: str, settings: Settings) -> WindowRules:
    rules = source_named(source).windows(settings)
    if rules is None:
        raise RuntimeError(f"{source} has pages in windows, but no rules for them")
    return rules


async def _take_in(connection: AsyncConnection, shop: Shop, now: datetime) -> None:
    """Advance each slice by the answer to its call."""
    before = shop.wanted
    for fact in shop.facts:
        shop.progress = tally(shop.progress, fact)
        part = shop.slices[fact.slice]
        answer = _answer(part, fact)
        if answer.too_far:
            await _learn_reach(connection, shop, answer, now)
        step = advance(part, answer, shop.reading)
        await _apply(connection, shop, step)
        if part.round == 1 and part.kind in {ROOT, CHECK} and fact.state == "done":
            first = shop.progress.total_first
            shop.progress = replace(
                shop.progress, total_first=fact.total if first is None else first, total_last=fact.total
            )
    planned = shop.progress.planned + shop.wanted - before + len(shop.facts)
    shop.progress = replace(shop.progress, planned=planned)


def _answer(part: Slice, fact: PageFact) -> Answer:
    if fact.state == "done":
        return Answer(part.cursor, fact.total or 0)
    too_far = fact.outcome == TOO_FAR and abs(part.cursor) > 1
    return Answer(part.cursor, lost=not too_far, too_far=too_far, reason=fact.reason)


async def _apply(connection: AsyncConnection, shop: Shop, step: Step) -> None:
    shop.keep(step.slice)
    for opened in step.opened:
        shop.keep(opened)
    if step.by_category and not shop.row.options.get("cid"):
        for opened in categories(step.slice, await _categories(connection, shop.row.shop_id)):
            shop.keep(opened)


async def _categories(connection: AsyncConnection, shop_id: int) -> list[str]:
    """The categories that items of this shop are known to have."""
    query = sa.select(item.c.category_id).distinct().where(item.c.shop_id == shop_id, item.c.category_id.is_not(None))
    return sorted(await connection.scalars(query))


async def _verify(connection: AsyncConnection, shops: Mapping[int, Shop]) -> None:
    """Hold what the slices that were read to their first page claim against what they showed."""
    ended = {key: [part for part in shop.changed.values() if part.state == ENDED] for key, shop in shops.items()}
    pages = await _shown(connection, [(key, part.number) for key, parts in ended.items() for part in parts])
    for key, parts in ended.items():
        shop = shops[key]
        before = shop.wanted
        for part in parts:
            forward, backward = _places(pages[key, part.number], shop.reading.size)
            await _apply(connection, shop, verify(part, forward, backward, shop.reading))
        shop.progress = replace(shop.progress, planned=shop.progress.planned + shop.wanted - before)


async def _shown(connection: AsyncConnection, ended: Iterable[Key]) -> dict[Key, list[tuple[int, bytes]]]:
    """The pages of each of these slices: number, negative from the other end, and items."""
    sql = (
        "SELECT p.shop_crawl_id, p.slice, COALESCE(p.page_no, p.number) AS page_no, p.item_keys FROM {r} JOIN page p"
        " ON p.shop_crawl_id = r.shop_crawl_id AND p.slice = r.slice WHERE p.state = 'done'"
    )
    rows = [{"shop_crawl_id": key, "slice": number} for key, number in ended]
    pages: dict[Key, list[tuple[int, bytes]]] = defaultdict(list)
    for row in await query_rows(connection, sql, [page.c.shop_crawl_id, page.c.slice], rows):
        pages[row.shop_crawl_id, row.slice].append((row.page_no, row.item_keys))
    return pages


def _places(pages: Sequence[tuple[int, bytes]], size: int) -> tuple[dict[int, int], dict[int, int]]:
    """Where items showed, counted from this end and from the other."""
    forward: dict[int, int] = {}
    backward: dict[int, int] = {}
    for number, packed in pages:
        places = forward if number > 0 else backward
        places.update((key, place) for place, key in enumerate(unpack_keys(packed), (abs(number) - 1) * size))
    return forward, backward


async def _conclude(connection: AsyncConnection, shop: Shop, now: datetime) -> Review:
    """Make the next pages, open what follows the last slice, or find that there is nothing more to do."""
    if shop.progress.refusal is not None:
        return _stop(shop)
    if shop.row.kind == "plan":
        return _end(shop)
    due = now
    if not any(part.is_open for part in shop.slices.values()):
        everything = {part.number: part for part in (await load(connection, [shop.row.id])).get(shop.row.id, [])}
        everything |= shop.changed
        following = None
        if not any(part.is_open for part in everything.values()):
            following = next_slice(list(everything.values()), now, shop.reading.rules)
        if following is not None:
            shop.keep(following)
            shop.progress = replace(shop.progress, planned=shop.progress.planned + 1)
            if following.kind == ROOT:
                due = max(now, following.end_at + shop.reading.rules.margin)
    _make_pages(shop, due)
    return _end(shop) if _is_over(shop.progress) else Review(shop.progress)


def _end(shop: Shop) -> Review:
    """Nothing is out: what the slices may still want is not planned any more."""
    return Review(replace(shop.progress, planned=shop.progress.pages_made), settle=True)


def _stop(shop: Shop) -> Review:
    """A refused shop: what was made and not sent is cancelled, nothing more is made."""
    progress = replace(shop.progress, planned=shop.progress.pages_made)
    return Review(progress, cancel_after=0, settle=_is_over(progress))


def _is_over(progress: Progress) -> bool:
    """Whether no page is out, though some may be wanted that the shop's limit forbids."""
    return progress.pages_made == progress.pages_done + progress.pages_dead + progress.pages_cancelled


def _make_pages(shop: Shop, due: datetime) -> None:
    """One page for each open slice: the next one is made when this one has ended."""
    for part in list(shop.changed.values()):
        if not part.is_open or shop.progress.pages_made >= shop.progress.max_pages:
            continue
        made = shop.progress.pages_made + 1
        shop.progress = replace(shop.progress, pages_made=made)
        shop.pages.append(page_of(shop.row, part, made, due))


async def _slices(connection: AsyncConnection, wanted: Iterable[Key]) -> dict[int, dict[int, Slice]]:
    names = ", ".join(f's."{name}"' for name in COLUMNS)
    sql = f"SELECT s.shop_crawl_id, {names} FROM {{r}} JOIN slice s"
    sql += " ON s.shop_crawl_id = r.shop_crawl_id AND s.number = r.number"
    rows = [{"shop_crawl_id": key, "number": number} for key, number in sorted(wanted)]
    columns = [slice_.c.shop_crawl_id, *(slice_.c[name] for name in COLUMNS)]
    found: dict[int, dict[int, Slice]] = defaultdict(dict)
    for row in await query_rows(connection, sql, columns[:2], rows, returning=columns):
        found[row.shop_crawl_id][row.number] = _slice(row)
    return found


async def load(connection: AsyncConnection, shop_crawl_ids: Sequence[int]) -> dict[int, list[Slice]]:
    """All slices of these shop crawls, in the order in which they were opened."""
    if not shop_crawl_ids:
        return {}
    query = sa.select(slice_).where(slice_.c.shop_crawl_id.in_(shop_crawl_ids))
    found: dict[int, list[Slice]] = defaultdict(list)
    for row in await connection.execute(query.order_by(slice_.c.shop_crawl_id, slice_.c.number)):
        found[row.shop_crawl_id].append(_slice(row))
    return found


def _slice(row: sa.Row[Any]) -> Slice:
    return Slice(**{name: row._mapping[name] for name in COLUMNS})


async def _reach(connection: AsyncConnection, source: str, configured: int) -> int:
    """Rows that one listing shows, as configured or as the API has taught since."""
    query = sa.select(learned.c.value).where(learned.c.source == source, learned.c.name == REACH)
    return min(configured, await connection.scalar(query) or configured)


async def _learn_reach(connection: AsyncConnection, shop: Shop, answer: Answer, now: datetime) -> None:
    """The API refused a page that lies too far: never ask for one as far again."""
    reach = min(shop.reading.reach, (abs(answer.page) - 1) * shop.reading.size)
    shop.reading = replace(shop.reading, reach=reach)
    row = {"source": shop.row.source, "name": REACH, "value": reach, "at": now}
    conflict = "ON CONFLICT (source, name) DO UPDATE SET value = excluded.value, at = excluded.at"
    await insert_rows(connection, learned, [row], conflict=f"{conflict} WHERE learned.value > excluded.value")
