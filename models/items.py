"""Items in the store: what changed is decided purely, then written in bulk."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from hashlib import blake2b
from operator import attrgetter
from typing import Any

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from models.bulk import insert_encoded, query_rows
from models.source import Item
from models.tables import item as item_table

# Sales and GMV figures move every day by themselves: a change of them alone is not a change of the item.
UNTRACKED = frozenset({"gmv_30d", "gmv_90d", "sold_30d", "sold_90d", "orders_30d", "rank_score", "extra"})
FIELDS = tuple(field for field in Item.__struct_fields__ if field != "item_id")
TRACKED = tuple(field for field in FIELDS if field not in UNTRACKED)
_DECIMALS = ("price", "drop_ship_price", "wholesale_price", "origin_price", "agent_price")
_tracked_decimals = attrgetter(*_DECIMALS)
_tracked_values = attrgetter(*(field for field in TRACKED if field not in {*_DECIMALS, "created_time"}))
_tracked = attrgetter(*TRACKED)

ItemKey = tuple[int, str]


class Sighting(msgspec.Struct, frozen=True, gc=False):
    """One item seen on one page of one shop crawl at one time; its row is kept as JSON, as it goes to the database.

    `silent` says that some tracked field was not sent.
    """

    shop_id: int
    shop_crawl_id: int
    seen_at: datetime
    item_id: str
    content_hash: int
    silent: bool
    row: msgspec.Raw

    @property
    def key(self) -> ItemKey:
        return (self.shop_id, self.item_id)

    @property
    def item(self) -> Item:
        """The item, read back from its row."""
        return msgspec.json.decode(self.row, type=Item)


@dataclass(frozen=True, slots=True)
class Diff:
    """What a batch of sightings means against what is stored: rows to write in full, and rows only seen again."""

    new: list[Sighting]
    changed: list[Sighting]
    unchanged: list[Sighting]


def content_hash(item: Item) -> int:
    """A signed 64-bit digest of the tracked fields; equal numbers ("3.9", "3.90") and moments count as equal."""
    values = [*_tracked_values(item), *(_plain_decimal(value) for value in _tracked_decimals(item))]
    values.append(item.created_time and item.created_time.astimezone(UTC))
    return int.from_bytes(blake2b(msgspec.json.encode(values), digest_size=8).digest(), "big", signed=True)


@lru_cache(maxsize=4096)  # an item repeats its price four times, and its neighbours cost the same
def _plain_decimal(value: Decimal | None) -> str | None:
    return None if value is None else format(value.normalize(), "f")


def diff(stored: Mapping[ItemKey, int], sightings: Iterable[Sighting]) -> Diff:
    """Sort sightings by what the stored content hashes say; of one item seen twice the later sighting counts."""
    latest: dict[ItemKey, Sighting] = {}
    for sighting in sightings:
        known = latest.get(sighting.key)
        if known is None or sighting.seen_at >= known.seen_at:
            latest[sighting.key] = sighting
    result = Diff([], [], [])
    for key in sorted(latest):  # one order for all writers: no deadlocks
        before = stored.get(key)
        if before is None:
            result.new.append(latest[key])
        elif before != latest[key].content_hash:
            result.changed.append(latest[key])
        else:
            result.unchanged.append(latest[key])
    return result


async def changes(connection: AsyncConnection, sightings: Sequence[Sighting]) -> Diff:
    """What sightings mean against the store; a field that the source did not send counts as it is stored."""
    stored = await stored_hashes(connection, {sighting.key for sighting in sightings})
    found = diff(stored, sightings)
    silent = [sighting for sighting in found.changed if sighting.silent]
    if not silent:
        return found
    known = await _stored_values(connection, [sighting.key for sighting in silent])
    completed = [_completed(s, known.get(s.key, {})) if s.silent else s for s in found.changed]
    return diff(stored, [*found.new, *completed, *found.unchanged])


def _completed(sighting: Sighting, stored: Mapping[str, Any]) -> Sighting:
    item = sighting.item
    absent = {name: value for name, value in stored.items() if getattr(item, name) is None}
    whole = msgspec.structs.replace(item, **absent)
    return sighting_of(whole, shop_id=sighting.shop_id, shop_crawl_id=sighting.shop_crawl_id, seen_at=sighting.seen_at)


async def _stored_values(connection: AsyncConnection, keys: Iterable[ItemKey]) -> dict[ItemKey, dict[str, Any]]:
    """The tracked fields of stored items."""
    t = item_table.c
    columns = [t.shop_id, t.item_id, *(t[name] for name in TRACKED)]
    names = ", ".join(f'i."{column.name}"' for column in columns)
    sql = f"SELECT {names} FROM {{r}} JOIN item i ON i.shop_id = r.shop_id AND i.item_id = r.item_id"
    rows = [{"shop_id": shop_id, "item_id": item_id} for shop_id, item_id in keys]
    found = await query_rows(connection, sql, columns[:2], rows, returning=columns)
    return {(row.shop_id, row.item_id): {name: row._mapping[name] for name in TRACKED} for row in found}


async def stored_hashes(connection: AsyncConnection, keys: Iterable[ItemKey]) -> dict[ItemKey, int]:
    """The content hashes of the items that are stored already."""
    t = item_table.c
    rows = [{"shop_id": shop_id, "item_id": item_id} for shop_id, item_id in keys]
    sql = "SELECT i.shop_id, i.item_id, i.content_hash FROM {r} JOIN item i"
    sql += " ON i.shop_id = r.shop_id AND i.item_id = r.item_id"
    found = await query_rows(connection, sql, [t.shop_id, t.item_id], rows)
    return {(row.shop_id, row.item_id): row.content_hash for row in found}


def _upsert_clause() -> str:
    # A field the source did not send (NULL here) keeps what is stored; an older answer never overwrites a newer one.
    updates = [f'"{name}" = COALESCE(excluded."{name}", item."{name}")' for name in FIELDS]
    updates += [f"{name} = excluded.{name}" for name in ("content_hash", "last_seen", "shop_crawl_id")]
    changed = "CASE WHEN item.content_hash = excluded.content_hash THEN item.changed_at ELSE excluded.changed_at END"
    updates.append(f"changed_at = {changed}")
    return (
        f"ON CONFLICT (shop_id, item_id) DO UPDATE SET {', '.join(updates)} WHERE item.last_seen <= excluded.last_seen"
    )


UPSERT = _upsert_clause()
MOVING = tuple(field for field in FIELDS if field in UNTRACKED)
TOUCHED = (*MOVING, "last_seen", "shop_crawl_id")
TOUCH = (
    "UPDATE item SET "
    + ", ".join(f'"{name}" = COALESCE(r."{name}", item."{name}")' for name in TOUCHED)
    + " FROM {r} WHERE item.shop_id = r.shop_id AND item.item_id = r.item_id AND item.last_seen <= r.last_seen"
)


async def write(connection: AsyncConnection, change: Diff) -> None:
    """Write a diff: new and changed items in full, unchanged ones only with their untracked fields and last_seen."""
    full = sorted([*change.new, *change.changed], key=lambda sighting: sighting.key)
    if full:
        await insert_encoded(connection, item_table, list(item_table.c), [s.row for s in full], conflict=UPSERT)
    columns = [item_table.c[name] for name in ("shop_id", "item_id", *TOUCHED)]
    await query_rows(connection, TOUCH, columns, [sighting.row for sighting in change.unchanged])


def sighting_of(item: Item, *, shop_id: int, shop_crawl_id: int, seen_at: datetime) -> Sighting:
    """The sighting of an item; raises TypeError, ValueError or RecursionError for a value that JSON cannot hold."""
    digest = content_hash(item)
    ours = {
        "shop_id": shop_id,
        "shop_crawl_id": shop_crawl_id,
        "content_hash": digest,
        **dict.fromkeys(("first_seen", "last_seen", "changed_at"), seen_at),
    }
    # The item's own fields follow ours, encoded without a detour over a dict.
    row = msgspec.Raw(msgspec.json.encode(ours)[:-1] + b"," + msgspec.json.encode(item)[1:])
    return Sighting(shop_id, shop_crawl_id, seen_at, item.item_id, digest, None in _tracked(item), row)
