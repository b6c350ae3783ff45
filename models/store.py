"""Sightings into the store: most only move a slim row; what is new or changed is written in full, with its history."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from models.bulk import insert_encoded, query_rows
from models.changes import Change, record
from models.database import is_postgresql
from models.items import (
    FIGURES,
    VALUES,
    Diff,
    Difference,
    Sighting,
    changes_of,
    difference,
    news_of,
    waves,
)
from models.settings import TRACKED_FIELDS
from models.tables import item, item_seen, item_version, shop

_KEY = ("shop_id", "item_id")
_SEEN = [item_seen.c[name] for name in (*_KEY, "last_seen", "shop_crawl_id", "tracked_hash", "rest_hash", *FIGURES)]
_STORED = [item.c.shop_id, item.c.item_id, item_seen.c.last_seen, item_seen.c.gone_at, *(item.c[n] for n in VALUES)]
_ITEM = list(item.c)
_VERSION = [name for name in item_version.c.keys() if name in VALUES]  # noqa: SIM118 (columns, not names)

_OF = "{0}.shop_id = r.shop_id AND {0}.item_id = r.item_id"
_LATER = f"{_OF.format('item_seen')} AND item_seen.last_seen < r.last_seen"
_SAME = (
    f"{_LATER} AND item_seen.tracked_hash = r.tracked_hash AND item_seen.rest_hash = r.rest_hash"
    " AND item_seen.gone_at IS NULL"
)
# A figure that was not sent has not moved.
_MOVED = " OR ".join(f"COALESCE(r.{n} <> item_seen.{n}, item_seen.{n} IS NULL AND r.{n} IS NOT NULL)" for n in FIGURES)
_FIGURES = ", ".join(FIGURES)


def _past_figures(where: str) -> str:
    seen = ", ".join(f"item_seen.{name}" for name in ("shop_id", "item_id", "figures_at", *FIGURES))
    return (
        f"INSERT INTO item_sales (shop_id, item_id, at, {_FIGURES}) SELECT {seen} FROM {{r}} JOIN item_seen ON {where}"
        f" WHERE item_seen.figures_at IS NOT NULL AND ({_MOVED}) {{lock}} ON CONFLICT DO NOTHING"
    )


def _touch(where: str) -> str:
    figures = ", ".join(f"{name} = COALESCE(r.{name}, item_seen.{name})" for name in FIGURES)
    return (
        "UPDATE item_seen SET last_seen = r.last_seen, shop_crawl_id = r.shop_crawl_id, tracked_hash = r.tracked_hash,"
        f" rest_hash = r.rest_hash, misses = 0, gone_at = NULL, {figures},"
        f" figures_at = CASE WHEN {_MOVED} THEN r.last_seen ELSE item_seen.figures_at END"
        f" FROM {{r}} WHERE {where} RETURNING item_seen.shop_id, item_seen.item_id"
    )


_ANY_FIGURE = " OR ".join(f"r.{name} IS NOT NULL" for name in FIGURES)
_INSERT_SEEN = (
    f"INSERT INTO item_seen ({', '.join(column.name for column in _SEEN)}, figures_at)"
    f" SELECT {', '.join(f'r.{column.name}' for column in _SEEN)}, CASE WHEN {_ANY_FIGURE} THEN r.last_seen END"
    " FROM {r} WHERE true ON CONFLICT DO NOTHING RETURNING shop_id, item_id"
)
# Both rows are locked: of one that is only joined PostgreSQL would show the state before another writer's commit.
_READ = (
    "SELECT item.shop_id, item.item_id, item_seen.last_seen, item_seen.gone_at, "
    + ", ".join(f'item."{name}"' for name in VALUES)
    + f" FROM {{r}} JOIN item_seen ON {_OF.format('item_seen')} JOIN item ON {_OF.format('item')}"
    " ORDER BY item.shop_id, item.item_id {lock}"
)
_INSERT_VERSIONS = (
    f"INSERT INTO item_version (shop_id, item_id, valid_from, valid_to, shop_crawl_id, {', '.join(_VERSION)})"
    f" SELECT item.shop_id, item.item_id, item.changed_at, r.changed_at, item.shop_crawl_id, "
    + ", ".join(f"item.{name}" for name in _VERSION)
    + f" FROM {{r}} JOIN item ON {_OF.format('item')} WHERE true"
)
_REWRITE = (
    "UPDATE item SET "
    + ", ".join(f'"{name}" = COALESCE(r."{name}", item."{name}")' for name in VALUES)
    + "{since} FROM {r} WHERE "
    + _OF.format("item")
)
_SINCE = ", changed_at = r.changed_at, shop_crawl_id = r.shop_crawl_id"


async def observe(
    connection: AsyncConnection, sightings: Iterable[Sighting], *, tracked: Collection[str] = TRACKED_FIELDS
) -> Diff:
    """Store sightings inside the caller's transaction; returns those that were new or changed a tracked field.

    A field that a source did not send keeps what is stored. What is older than the item's last sighting is not news.
    """
    result = Diff()
    for wave in waves(sightings):
        rest = await _move(connection, wave, _SAME)
        new = await _add(connection, rest)
        known = [sighting for sighting in rest if sighting.key not in {each.key for each in new}]
        found = await _compare(connection, known, tracked)
        await _rewrite(connection, found)
        await _move(connection, [each.sighting for each in found], _LATER)
        await record(connection, [*await _news(connection, new), *(c for each in found for c in changes_of(each))])
        result.new.extend(new)
        result.changed.extend(each.sighting for each in found if each.tracked)
    return result


async def _move(connection: AsyncConnection, sightings: Sequence[Sighting], where: str) -> list[Sighting]:
    """Move the slim rows that fit, keep figures of which another time came; returns the sightings that did not fit."""
    if not sightings:
        return []
    rows = [sighting.seen for sighting in sightings]
    lock = "FOR UPDATE OF item_seen" if is_postgresql(connection) else ""
    await query_rows(connection, _past_figures(where).replace("{lock}", lock), _SEEN, rows)
    moved = {tuple(row) for row in await query_rows(connection, _touch(where), _SEEN, rows)}
    return [sighting for sighting in sightings if sighting.key not in moved]


async def _add(connection: AsyncConnection, sightings: Sequence[Sighting]) -> list[Sighting]:
    """Store the items that are not known yet, and return them."""
    rows = await query_rows(connection, _INSERT_SEEN, _SEEN, [sighting.seen for sighting in sightings])
    added = {tuple(row) for row in rows}
    new = [sighting for sighting in sightings if sighting.key in added]
    if new:
        await insert_encoded(connection, item, _ITEM, [sighting.row for sighting in new])
    return new


async def _compare(
    connection: AsyncConnection, sightings: Sequence[Sighting], tracked: Collection[str]
) -> list[Difference]:
    """What sightings of known items, locked from now on, say otherwise than the store; late ones say nothing."""
    lock = "FOR UPDATE OF item_seen, item" if is_postgresql(connection) else ""
    rows = [sighting.seen for sighting in sightings]
    found = await query_rows(connection, _READ.replace("{lock}", lock), _SEEN[:2], rows, returning=_STORED)
    stored = {(row.shop_id, row.item_id): row._asdict() for row in found}
    return [
        difference(before, sighting, tracked)
        for sighting in sightings
        if (before := stored.get(sighting.key)) and before["last_seen"] < sighting.seen_at
    ]


async def _rewrite(connection: AsyncConnection, found: Sequence[Difference]) -> None:
    """Write changed rows in full; those that changed in a tracked field leave a version behind."""
    versions = [each.sighting.row for each in found if each.tracked]
    await query_rows(connection, _INSERT_VERSIONS, [item.c[name] for name in (*_KEY, "changed_at")], versions)
    await query_rows(connection, _REWRITE.replace("{since}", _SINCE), _ITEM, versions)
    others = [each.sighting.row for each in found if each.rest and not each.tracked]
    await query_rows(connection, _REWRITE.replace("{since}", ""), _ITEM, others)


async def _news(connection: AsyncConnection, new: Sequence[Sighting]) -> list[Change]:
    """The new items of shops that had been read completely before: only there is a first sighting an event."""
    query = sa.select(shop.c.id, shop.c.baseline_at).where(
        shop.c.id.in_({sighting.shop_id for sighting in new}), shop.c.baseline_at.is_not(None)
    )
    since: dict[int, Any] = dict(map(tuple, await connection.execute(query))) if new else {}
    return [news_of(s) for s in new if s.shop_id in since and s.seen_at > since[s.shop_id]]
