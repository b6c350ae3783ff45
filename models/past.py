"""Late sightings: what was seen before an item's newest sighting corrects its history, never what it is now."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from itertools import groupby, pairwise
from operator import itemgetter
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from models.bulk import insert_rows, query_rows
from models.changes import Change, record
from models.database import is_postgresql
from models.items import FIGURES, VALUES, ItemKey, Sighting, plain, same
from models.retold import changes_told, rewritten
from models.settings import TRACKED_FIELDS
from models.sheets import detach
from models.tables import UtcDateTime, change, item, item_sales, item_seen, item_version, shop
from models.timeline import Entry, Timeline, completed, corrected

_SEEN_BY = sa.Column("seen_by", item_seen.c.shop_crawl_id.type)
_CURRENT = [
    *(item.c[name] for name in ("shop_id", "item_id", "first_seen", "changed_at", "shop_crawl_id", *VALUES)),
    *(item_seen.c[name] for name in ("content_hash", "figures_at", *FIGURES)),
    *(shop.c.baseline_at, item_seen.c.last_seen, _SEEN_BY),
]
_READ_CURRENT = (
    "SELECT "
    + ", ".join(f'{column.table.name}."{column.name}"' for column in _CURRENT[:-2])
    + ", COALESCE(sheet.last_seen, item_seen.last_seen) AS last_seen,"
    " COALESCE(sheet.shop_crawl_id, item_seen.shop_crawl_id) AS seen_by"
    " FROM {r} JOIN item_seen ON item_seen.shop_id = r.shop_id AND item_seen.item_id = r.item_id"
    " JOIN item ON item.shop_id = r.shop_id AND item.item_id = r.item_id JOIN shop ON shop.id = r.shop_id"
    " LEFT JOIN sheet ON sheet.id = item_seen.sheet_id ORDER BY item.shop_id, item.item_id {lock}"
)
_OF = "t.shop_id = r.shop_id AND t.item_id = r.item_id"
_NEXT = "(SELECT min(n.{0}) FROM {1} n WHERE n.shop_id = r.shop_id AND n.item_id = r.item_id AND n.{0} > r.valid_to)"
_LAST = "(SELECT max(n.{0}) FROM {1} n WHERE n.shop_id = r.shop_id AND n.item_id = r.item_id AND n.{0} < r.valid_from)"
_SPAN = [item_version.c[name] for name in ("shop_id", "item_id", "valid_from", "valid_to")]
# What covers the span of the sightings, and a neighbour on either side.
_READ_VERSIONS = (
    f"SELECT t.* FROM {{r}} JOIN item_version t ON {_OF} AND t.valid_to >= r.valid_from"
    f" AND t.valid_from <= COALESCE({_NEXT.format('valid_from', 'item_version')}, r.valid_to)"
    " ORDER BY t.shop_id, t.item_id, t.valid_from"
)
_READ_SALES = (
    f"SELECT t.* FROM {{r}} JOIN item_sales t ON {_OF}"
    f" AND t.at >= COALESCE({_LAST.format('at', 'item_sales')}, r.valid_from)"
    f" AND t.at <= COALESCE({_NEXT.format('at', 'item_sales')}, r.valid_to) ORDER BY t.shop_id, t.item_id, t.at"
)
_VERSION = [column.name for column in item_version.c if column.name in VALUES]


@dataclass(slots=True)
class _Known:
    """What is stored of one item now, and around the time of its late sightings."""

    row: Mapping[str, Any]
    now: Entry
    versions: list[Entry] = field(default_factory=list)
    sales: list[Entry] = field(default_factory=list)

    @property
    def newest(self) -> tuple[datetime, int]:
        return self.row["last_seen"], self.row["seen_by"]


@dataclass(slots=True)
class _Corrected:
    """The same with its late sightings told."""

    known: _Known
    versions: Timeline
    sales: Timeline
    first_seen: datetime
    content_hash: int
    told: list[Sighting] = field(default_factory=list)
    """Those that made a difference."""

    @property
    def now(self) -> Entry:
        """The item as it is now; a history that ends earlier leaves it as it is."""
        return self.versions[-1] if self.known.versions[-1] is self.known.now else self.known.now


async def correct(
    connection: AsyncConnection, late: Iterable[Sighting], *, tracked: Collection[str] = TRACKED_FIELDS
) -> list[Sighting]:
    """Correct the history by sightings no newer than the stored ones, in the caller's transaction.

    Returns the sightings that made a difference. What an item is now, only its newest sighting can correct, read again
    by another decoder; when it was seen last, its misses, and whether it is gone, nothing here moves. Changes follow
    the versions: they move, are told anew, vanish or are added with them. An item is back from its first sighting on.
    """
    last = {(each.key, each.seen_at): each for each in late}  # of two at one moment the last one given counts
    by_item: dict[ItemKey, list[Sighting]] = defaultdict(list)
    for key, seen_at in sorted(last):
        by_item[key].append(last[key, seen_at])
    known = await _read(connection, by_item)
    found = [_told(known[key], by_item[key], tracked) for key in sorted(known)]
    moved = [each for each in found if each.told or each.content_hash != each.known.row["content_hash"]]
    await _write_items(connection, moved)
    await _write_versions(connection, moved)
    await _write_figures(connection, moved)
    await _write_changes(connection, moved, tracked)
    for _nth, seen in groupby(sorted(_ranked(by_item), reverse=True), key=itemgetter(0)):
        places = [{"shop_id": key[0], "item_id": key[1], "at": at, "shop_crawl_id": by} for _nth, key, at, by in seen]
        await query_rows(connection, _RETURN, _RETURNED, places)
    return [sighting for each in moved for sighting in each.told]


def _ranked(late: Mapping[ItemKey, Sequence[Sighting]]) -> Iterator[tuple[int, ItemKey, datetime, int]]:
    """Each sighting with how many of its item are earlier: the earliest that can is to move a return last."""
    for key, seen in late.items():
        for nth, sighting in enumerate(seen):
            yield nth, key, sighting.seen_at, sighting.shop_crawl_id


async def _read(connection: AsyncConnection, late: Mapping[ItemKey, Sequence[Sighting]]) -> dict[ItemKey, _Known]:
    """What is stored of these items, locked from now on, around the times of their sightings."""
    spans = [
        {"shop_id": key[0], "item_id": key[1], "valid_from": seen[0].seen_at, "valid_to": seen[-1].seen_at}
        for key, seen in late.items()
    ]
    lock = "FOR UPDATE OF item_seen, item" if is_postgresql(connection) else ""
    rows = await query_rows(connection, _READ_CURRENT.replace("{lock}", lock), _SPAN, spans, returning=_CURRENT)
    known = {(row.shop_id, row.item_id): _known(row._asdict()) for row in rows}
    for row in await query_rows(connection, _READ_VERSIONS, _SPAN, spans, returning=list(item_version.c)):
        values = {name: row._mapping[name] for name in _VERSION}
        entries = known[row.shop_id, row.item_id].versions
        # The last one read only marks where the one before it ends, if what follows it was not read.
        entries[-1:] = [Entry(row.valid_from, row.shop_crawl_id, values), Entry(row.valid_to, 0, values)]
    for row in await query_rows(connection, _READ_SALES, _SPAN, spans, returning=list(item_sales.c)):
        figures = {name: row._mapping[name] for name in FIGURES}
        known[row.shop_id, row.item_id].sales.append(Entry(row.at, 0, figures))
    for each in known.values():
        if not each.versions or each.versions[-1].at == each.now.at:
            each.versions[-1:] = [each.now]
        if each.row["figures_at"] is not None:
            each.sales.append(Entry(each.row["figures_at"], 0, {name: each.row[name] for name in FIGURES}))
    return known


def _known(row: Mapping[str, Any]) -> _Known:
    return _Known(row, Entry(row["changed_at"], row["shop_crawl_id"], {name: row[name] for name in VALUES}))


def _told(known: _Known, late: Sequence[Sighting], tracked: Collection[str]) -> _Corrected:
    """Tell late sightings, in order of time, to what is known of their item."""
    row = known.row
    result = _Corrected(known, known.versions, known.sales, row["first_seen"], row["content_hash"])
    for sighting in late:
        seen = sighting.item
        entry = Entry(sighting.seen_at, sighting.shop_crawl_id, {name: getattr(seen, name) for name in VALUES})
        versions = corrected(result.versions, completed(result.versions, entry), known.newest, tracked)
        if versions[-1] != result.versions[-1]:
            result.content_hash = 0  # the next sighting compares the values
        if sighting.seen_at == row["last_seen"]:
            versions = _with_rest(versions, entry, tracked)
            result.content_hash = msgspec.json.decode(sighting.seen, type=_Hash).content_hash
        sales = _with_figures(result.sales, sighting, known)
        first_seen = min(result.first_seen, sighting.seen_at)
        if (versions, sales, first_seen) != (result.versions, result.sales, result.first_seen):
            result.told.append(sighting)
        result.versions, result.sales, result.first_seen = versions, sales, first_seen
    return result


class _Hash(msgspec.Struct):
    content_hash: int


def _with_rest(versions: Timeline, seen: Entry, tracked: Collection[str]) -> Timeline:
    """The newest sighting tells the other fields too; what it does not tell stays."""
    last = versions[-1]
    rest = {
        name: value
        for name, value in seen.values.items()
        if name not in tracked and value is not None and not same(last.values[name], value)
    }
    return [*versions[:-1], Entry(last.at, last.shop_crawl_id, {**last.values, **rest})] if rest else versions


def _with_figures(sales: Timeline, sighting: Sighting, known: _Known) -> Timeline:
    entry = Entry(sighting.seen_at, 0, sighting.figures)
    if all(value is None for value in entry.values.values()):
        return sales
    seen_at, _shop_crawl_id = known.newest
    return corrected(sales, completed(sales, entry), (seen_at, 0), FIGURES)


_ITEM = [*(item.c[name] for name in ("shop_id", "item_id", "first_seen", "changed_at", "shop_crawl_id", *VALUES))]
_SEEN = [item_seen.c[name] for name in ("shop_id", "item_id", "content_hash", "figures_at", *FIGURES)]


def _update(table: sa.Table, columns: Sequence[sa.Column[Any]]) -> str:
    values = ", ".join(f'"{column.name}" = r."{column.name}"' for column in columns[2:])
    return (
        f"UPDATE {table.name} SET {values} FROM {{r}}"
        f" WHERE {table.name}.shop_id = r.shop_id AND {table.name}.item_id = r.item_id"
    )


async def _write_items(connection: AsyncConnection, moved: Sequence[_Corrected]) -> None:
    """Write what is otherwise now; an item whose present is otherwise is no more what its page showed."""
    items, seen = [], []
    for each in moved:
        key = {name: each.known.row[name] for name in ("shop_id", "item_id")}
        now, row = each.now, each.known.row
        is_other = now != each.known.now
        if is_other or each.first_seen != row["first_seen"]:
            since = {"first_seen": each.first_seen, "changed_at": now.at, "shop_crawl_id": now.shop_crawl_id}
            items.append({**key, **since, **now.values})
        if is_other or each.sales[-1:] != each.known.sales[-1:] or each.content_hash != row["content_hash"]:
            figures = each.sales[-1] if each.sales else None
            seen.append({**key, "content_hash": each.content_hash, **_figures(figures)})
    await detach(connection, [(row["shop_id"], row["item_id"]) for row in seen])
    await query_rows(connection, _update(item, _ITEM), _ITEM, items)
    await query_rows(connection, _update(item_seen, _SEEN), _SEEN, seen)


def _figures(entry: Entry | None) -> dict[str, Any]:
    """The columns of figures, decimals as plain text: on SQLite equal numbers must be equal texts."""
    if entry is None:
        return {"figures_at": None, **dict.fromkeys(FIGURES)}
    texts = {name: plain(value) if isinstance(value, Decimal) else value for name, value in entry.values.items()}
    return {"figures_at": entry.at, **texts}


def _past(timeline: Timeline) -> dict[datetime, tuple[datetime, Entry]]:
    """What is over, by its start: its end, and the entry."""
    return {entry.at: (after.at, entry) for entry, after in pairwise(timeline)}


async def _replace(
    connection: AsyncConnection, table: sa.Table, gone: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Delete rows by their keys, and write others in full."""
    names = [column.name for column in table.primary_key]
    keys = ", ".join(f'"{name}"' for name in names)
    mine = ", ".join(f'r."{name}"' for name in names)
    sql = f'DELETE FROM "{table.name}" WHERE ({keys}) IN (SELECT {mine} FROM {{r}})'
    await query_rows(connection, sql, [table.c[name] for name in names], [*gone, *rows])
    await insert_rows(connection, table, rows)


async def _write_versions(connection: AsyncConnection, moved: Sequence[_Corrected]) -> None:
    gone, rows = [], []
    for each in moved:
        key = {name: each.known.row[name] for name in ("shop_id", "item_id")}
        before, after = _past(each.known.versions), _past(each.versions)
        gone += [{**key, "valid_from": at} for at in before.keys() - after.keys()]
        for at, (end, entry) in after.items():
            if before.get(at) != (end, entry):
                values = {name: entry.values[name] for name in _VERSION}
                rows.append({**key, "valid_from": at, "valid_to": end, "shop_crawl_id": entry.shop_crawl_id, **values})
    await _replace(connection, item_version, gone, rows)


async def _write_figures(connection: AsyncConnection, moved: Sequence[_Corrected]) -> None:
    gone, rows = [], []
    for each in moved:
        key = {name: each.known.row[name] for name in ("shop_id", "item_id")}
        before, after = _past(each.known.sales), _past(each.sales)
        gone += [{**key, "at": at} for at in before.keys() - after.keys()]
        for at, (_end, entry) in after.items():
            if at not in before or before[at][1] != entry:
                figures = _figures(entry)
                figures.pop("figures_at")
                rows.append({**key, "at": at, **figures})
    await _replace(connection, item_sales, gone, rows)


_NEW_AT = sa.Column("new_at", UtcDateTime)
_PLACE = [change.c[name] for name in ("shop_id", "item_id", "kind", "at")]
_MOVE = [*_PLACE, _NEW_AT, change.c.shop_crawl_id, change.c.before, change.c.after]
_SAME = "change.shop_id = r.shop_id AND change.item_id = r.item_id AND change.kind = r.kind AND change.at = r.at"
_FOLLOW = (
    'UPDATE change SET at = r.new_at, shop_crawl_id = r.shop_crawl_id, "before" = r."before", "after" = r."after"'
    f" FROM {{r}} WHERE {_SAME}"
)
# An item was back as soon as it was seen again, whichever sighting was stored first.
_RETURN = (
    "UPDATE change SET at = r.at, shop_crawl_id = r.shop_crawl_id FROM {r} WHERE change.id = (SELECT b.id FROM change b"
    " WHERE b.shop_id = r.shop_id AND b.item_id = r.item_id AND b.kind = 'back' AND b.at > r.at AND r.at > ("
    "SELECT max(g.at) FROM change g"
    " WHERE g.shop_id = b.shop_id AND g.item_id = b.item_id AND g.kind = 'gone' AND g.at < b.at)"
    " ORDER BY b.at LIMIT 1)"
)
_RETURNED = [change.c[name] for name in ("shop_id", "item_id", "at", "shop_crawl_id")]
_TAKE_BACK = f"SELECT change.id FROM {{r}} JOIN change ON {_SAME}"


async def _write_changes(connection: AsyncConnection, moved: Sequence[_Corrected], tracked: Collection[str]) -> None:
    """Let the changes follow the versions; one that has not been delivered yet keeps its place in the outbox."""
    follow: list[tuple[Change, Change]] = []
    gone: list[Change] = []
    added: list[Change] = []
    for each in moved:
        row = each.known.row
        before = changes_told(row, each.known.versions, row["first_seen"], tracked)
        after = changes_told(row, each.versions, each.first_seen, tracked)
        pairs, lost, won = rewritten(before, after)
        follow += pairs
        gone += lost
        added += won
    rows = [{**msgspec.structs.asdict(new), "at": old.at, "new_at": new.at} for old, new in follow]
    await query_rows(connection, _FOLLOW, _MOVE, rows)
    taken = await query_rows(connection, _TAKE_BACK, _PLACE, [msgspec.structs.asdict(each) for each in gone])
    ids = [{"id": found.id} for found in taken]
    for sql in ("DELETE FROM outbox WHERE change_id IN", "DELETE FROM change WHERE id IN"):
        await query_rows(connection, f"{sql} (SELECT r.id FROM {{r}})", [change.c.id], ids)
    await record(connection, added)
