"""Sightings into the store: most only move a slim row; what is new or changed is written in full, with its history."""

from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from datetime import datetime
from operator import attrgetter

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from models import sheets
from models.bulk import change_rows, insert_encoded, query_rows
from models.changes import record
from models.database import is_postgresql
from models.items import FIGURES, VALUES, Diff, Difference, ItemKey, Sighting, changes_of, difference, news_of, waves
from models.past import correct
from models.settings import TRACKED_FIELDS
from models.tables import item, item_sales, item_seen, item_version, shop

_KEY = [item_seen.c.shop_id, item_seen.c.item_id]
_SEEN = [*_KEY, *(item_seen.c[n] for n in ("sheet_id", "last_seen", "shop_crawl_id", "content_hash", *FIGURES))]
_STORED = [item.c.shop_id, item.c.item_id, *(item.c[name] for name in VALUES)]
_VERSION = [column.name for column in item_version.c if column.name in VALUES]
_SALES = [column.name for column in item_sales.c]

_OF = "{0}.shop_id = r.shop_id AND {0}.item_id = r.item_id"
_JOIN = f"{{r}} JOIN item_seen ON {_OF.format('item_seen')}"
_LAST_SEEN = "COALESCE((SELECT sheet.last_seen FROM sheet WHERE sheet.id = item_seen.sheet_id), item_seen.last_seen)"
# A figure that was not sent has not moved.
_MOVED = " OR ".join(f"COALESCE(r.{n} <> item_seen.{n}, item_seen.{n} IS NULL AND r.{n} IS NOT NULL)" for n in FIGURES)
_LOOK = (
    f"SELECT item_seen.shop_id, item_seen.item_id, item_seen.sheet_id, {_LAST_SEEN} >= r.last_seen AS late,"
    " item_seen.content_hash = r.content_hash AS alike, item_seen.gone_at IS NOT NULL AS gone,"
    f" ({_MOVED}) AS moved FROM {_JOIN} ORDER BY item_seen.shop_id, item_seen.item_id"
)
_SOME_FIGURE = " OR ".join(f"r.{name} IS NOT NULL" for name in FIGURES)
_ADD = (
    f"INSERT INTO item_seen ({', '.join(column.name for column in _SEEN)}, figures_at)"
    f" SELECT {', '.join(f'r.{column.name}' for column in _SEEN)}, CASE WHEN {_SOME_FIGURE} THEN r.last_seen END"
    " FROM {r} WHERE true ON CONFLICT DO NOTHING"
)
# A sheet that a transaction has begun is on no row that another one has written.
_ADDED = f"SELECT r.shop_id, r.item_id FROM {_JOIN} WHERE item_seen.sheet_id = r.sheet_id"
_TOUCH = (
    "UPDATE item_seen SET sheet_id = r.sheet_id, last_seen = r.last_seen, shop_crawl_id = r.shop_crawl_id,"
    f" content_hash = r.content_hash, misses = 0, gone_at = NULL,"
    f" figures_at = CASE WHEN {_MOVED} THEN r.last_seen ELSE item_seen.figures_at END, "
    + ", ".join(f"{name} = COALESCE(r.{name}, item_seen.{name})" for name in FIGURES)
    + f" FROM {{r}} WHERE {_OF.format('item_seen')}"
)
_KEEP_FIGURES = (
    f"INSERT INTO item_sales ({', '.join(_SALES)})"
    f" SELECT {', '.join('item_seen.' + ('figures_at' if name == 'at' else name) for name in _SALES)} FROM {_JOIN}"
    " WHERE item_seen.figures_at IS NOT NULL ON CONFLICT DO NOTHING"
)
_COLUMNS = ", ".join(f'item."{column.name}"' for column in _STORED)
_READ = f"SELECT {_COLUMNS} FROM {{r}} JOIN item ON {_OF.format('item')}"
_KEEP_VERSIONS = (
    f"INSERT INTO item_version (shop_id, item_id, valid_from, valid_to, shop_crawl_id, {', '.join(_VERSION)})"
    " SELECT item.shop_id, item.item_id, item.changed_at, r.changed_at, item.shop_crawl_id, "
    + ", ".join(f"item.{name}" for name in _VERSION)
    + f" FROM {{r}} JOIN item ON {_OF.format('item')} WHERE true"
)
_VALUES = ", ".join(f'"{name}" = COALESCE(r."{name}", item."{name}")' for name in VALUES)
_REWRITE = f"UPDATE item SET {_VALUES} FROM {{r}} WHERE {_OF.format('item')}"
_CHANGE = _REWRITE.replace(" FROM", ", changed_at = r.changed_at, shop_crawl_id = r.shop_crawl_id FROM", 1)


class PageSeen(msgspec.Struct, frozen=True):
    """A page on its way into the store: its sightings, and the sheet that says what it showed."""

    sightings: Sequence[Sighting]
    sheet: sheets.Sheet


class _Known(msgspec.Struct):
    """Sightings of items that are known, sorted by what their slim rows say; those are locked."""

    late: list[Sighting]
    alike: list[Sighting]
    """Their values are those of the last sighting."""
    others: list[Sighting]
    gone: set[ItemKey]
    moved: set[ItemKey]
    """Other figures came."""


def first_looks(pages: Iterable[PageSeen]) -> tuple[list[PageSeen], list[PageSeen]]:
    """Pages of which no item is on an earlier one, and the others: what was seen between must not be overtaken."""
    first, others, seen = list[PageSeen](), list[PageSeen](), dict[int, set[str]]()
    for page in sorted(pages, key=lambda page: page.sheet.last_seen):
        items, earlier = {sighting.item_id for sighting in page.sightings}, seen.setdefault(page.sheet.shop_id, set())
        (first if earlier.isdisjoint(items) else others).append(page)
        earlier |= items
    return first, others


async def observe_pages(
    connection: AsyncConnection, pages: Iterable[PageSeen], *, tracked: Collection[str] = TRACKED_FIELDS
) -> tuple[Diff, Mapping[sheets.SheetKey, sheets.Sheet]]:
    """Store whole pages as `observe` does; returns what they meant, and the sheets that pages showed unchanged.

    Of such a page nothing is written but that it was seen.
    """
    first, others = first_looks(page for page in pages if page.sightings)
    same = await sheets.move(connection, [page.sheet for page in first])
    others += [page for page in first if page.sheet.key not in same]
    begun = await sheets.begin(connection, [page.sheet for page in others])
    sheet_ids = {id(sighting): begun[page.sheet.place] for page in others for sighting in page.sightings}
    diff = await observe(
        connection, [s for page in others for s in page.sightings], tracked=tracked, sheet_ids=sheet_ids
    )
    await sheets.loosen(connection, {sheet_ids[id(sighting)] for sighting in diff.late})  # not on their sheets
    return diff, same


async def observe(
    connection: AsyncConnection,
    sightings: Iterable[Sighting],
    *,
    tracked: Collection[str] = TRACKED_FIELDS,
    sheet_ids: Mapping[int, int] | None = None,
) -> Diff:
    """Store sightings inside the caller's transaction; returns what they meant.

    A field that a source did not send keeps what is stored. What is no newer than an item's last sighting corrects its
    history. `sheet_ids`: the sheets of the pages that show the sightings, by the sightings' identity.
    """
    result, all_waves = Diff(), waves(sightings)
    since = await _baselines(connection, all_waves[0]) if all_waves else {}
    for wave in all_waves:
        rows = {sighting.key: _row(sighting, (sheet_ids or {}).get(id(sighting))) for sighting in wave}
        new, known = await _sort_out(connection, wave, rows, since, on_sheets=sheet_ids is not None)
        found = await _compare(connection, known, tracked)
        await _rewrite(connection, found)
        await _touch(connection, known, rows)
        if known.late:
            await correct(connection, known.late, tracked=tracked)
        # Only where all was known before, a first sighting is an event.
        news = [news_of(s) for s in new if s.shop_id in since and s.seen_at > since[s.shop_id]]
        await record(connection, [*news, *(c for each in found for c in changes_of(each))])
        result.new.extend(new)
        result.changed.extend(each.sighting for each in found if each.tracked)
        result.late.extend(known.late)
    return result


def _row(sighting: Sighting, sheet_id: int | None) -> msgspec.Raw:
    """The sighting's row of `item_seen`, on a sheet."""
    return sighting.seen if sheet_id is None else msgspec.Raw(b'{"sheet_id":%d,' % sheet_id + bytes(sighting.seen)[1:])


async def _sort_out(
    connection: AsyncConnection,
    wave: Sequence[Sighting],
    rows: Mapping[ItemKey, msgspec.Raw],
    since: Container[int],
    *,
    on_sheets: bool,
) -> tuple[list[Sighting], _Known]:
    """Sightings of new items, which are stored by now, and of known ones, which are locked."""
    # Of shops that were never read completely most items are new: to look for them first would be in vain.
    unread = [sighting for sighting in wave if sighting.shop_id not in since]
    new, old = await _add(connection, unread, rows, on_sheets=on_sheets)
    looked_for = [*old, *(sighting for sighting in wave if sighting.shop_id in since)]
    known, unknown = await _look(connection, sorted(looked_for, key=attrgetter("key")), rows)
    if unknown:
        added, raced = await _add(connection, unknown, rows, on_sheets=on_sheets)
        new += added
        known = _together(known, (await _look(connection, raced, rows))[0])
    return new, known


async def _look(
    connection: AsyncConnection, sightings: Sequence[Sighting], rows: Mapping[ItemKey, msgspec.Raw]
) -> tuple[_Known, list[Sighting]]:
    """Sightings of known items, whose slim rows are locked from now on and whose sheets loosened, and of others."""
    # Everyone locks in the order of the keys, before anything else about an item: no deadlocks, no stale reads.
    sql = _LOOK + (" FOR UPDATE OF item_seen" if is_postgresql(connection) else "")
    found = await query_rows(connection, sql, _SEEN, [rows[sighting.key] for sighting in sightings])
    await sheets.loosen(connection, {row.sheet_id for row in found if row.sheet_id is not None and not row.late})
    by_key = {(row.shop_id, row.item_id): row for row in found}
    known, unknown = _Known([], [], [], set(), set()), []
    for sighting in sightings:
        row = by_key.get(sighting.key)
        if row is None:
            unknown.append(sighting)
        elif row.late:
            known.late.append(sighting)
        else:
            (known.alike if row.alike and not row.gone else known.others).append(sighting)
    known.gone = {key for key, row in by_key.items() if row.gone}
    known.moved = {key for key, row in by_key.items() if row.moved and not row.late}
    return known, unknown


def _together(one: _Known, other: _Known) -> _Known:
    late, alike, others = one.late + other.late, one.alike + other.alike, one.others + other.others
    return _Known(late, alike, others, one.gone | other.gone, one.moved | other.moved)


async def _add(
    connection: AsyncConnection, sightings: Sequence[Sighting], rows: Mapping[ItemKey, msgspec.Raw], *, on_sheets: bool
) -> tuple[list[Sighting], list[Sighting]]:
    """Store items that are not known yet; returns the sightings of these, and those of the others."""
    ours = [rows[sighting.key] for sighting in sightings]
    if not on_sheets:
        added = await query_rows(connection, f"{_ADD} RETURNING shop_id, item_id", _SEEN, ours)
    elif await change_rows(connection, _ADD, _SEEN, ours) == len(ours):
        added = None  # all of them, as nearly always: to have them named takes half as long as adding them
    else:
        added = await query_rows(connection, _ADDED, _SEEN, ours)
    new, others = list(sightings), list[Sighting]()
    if added is not None:
        keys = {tuple(row) for row in added}
        new = [sighting for sighting in sightings if sighting.key in keys]
        others = [sighting for sighting in sightings if sighting.key not in keys]
    if new:
        await insert_encoded(connection, item, list(item.c), [sighting.row for sighting in new])
    return new, others


async def _compare(connection: AsyncConnection, known: _Known, tracked: Collection[str]) -> list[Difference]:
    """What sightings say otherwise than the store."""
    keys = [dict(zip(("shop_id", "item_id"), sighting.key, strict=True)) for sighting in known.others]
    found = await query_rows(connection, _READ, _KEY, keys, returning=_STORED)
    stored = {(row.shop_id, row.item_id): row._asdict() for row in found}
    return [difference(stored[s.key], s, tracked, back=s.key in known.gone) for s in known.others]


async def _rewrite(connection: AsyncConnection, found: Sequence[Difference]) -> None:
    """Write changed items in full; those that changed in a tracked field leave a version behind."""
    versions = [each.sighting.row for each in found if each.tracked]
    await query_rows(connection, _KEEP_VERSIONS, [*_KEY, item.c.changed_at], versions)
    await query_rows(connection, _CHANGE, list(item.c), versions)
    others = [each.sighting.row for each in found if each.rest and not each.tracked]
    await query_rows(connection, _REWRITE, list(item.c), others)


async def _touch(connection: AsyncConnection, known: _Known, rows: Mapping[ItemKey, msgspec.Raw]) -> None:
    """Move slim rows; figures of which another time came are kept."""
    await query_rows(connection, _KEEP_FIGURES, _KEY, [rows[key] for key in sorted(known.moved)])
    seen = [*known.alike, *known.others]
    await query_rows(connection, _TOUCH, _SEEN, [rows[sighting.key] for sighting in seen])


async def _baselines(connection: AsyncConnection, sightings: Iterable[Sighting]) -> dict[int, datetime]:
    """Since when all items of the shops are known that were read completely before."""
    read = shop.c.id.in_({sighting.shop_id for sighting in sightings}) & shop.c.baseline_at.is_not(None)
    rows = await connection.execute(sa.select(shop.c.id, shop.c.baseline_at).where(read))
    return {row.id: row.baseline_at for row in rows}
