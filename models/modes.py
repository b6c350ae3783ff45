"""Modes of a crawl: all of its shops, only what is new in them, or only those whose data has grown old."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from models.bulk import query_rows
from models.settings import Settings
from models.source import source_named
from models.tables import shop, shop_crawl

FULL = "full"
NEW = "new"
REFRESH = "refresh"
EVER = timedelta(days=36_500)
HAPPY = ("complete", "drifted")
"""Verdicts of crawls that showed what there was."""


class Mode(msgspec.Struct, frozen=True):
    """What a crawl reads: `full`, `new`, or `refresh`: all of those shops whose data is older than `older_than`."""

    name: str = FULL
    older_than: timedelta = timedelta(0)

    def mark(self, kind: str) -> str:
        """The kind of a crawl for its fingerprint: the same shops in another mode are another request."""
        if self.name == REFRESH:
            return f"{kind} refresh {self.older_than.total_seconds():.0f}"
        return kind if self.name == FULL else f"{kind} {self.name}"


WHOLE = Mode()


class Wanted(msgspec.Struct, frozen=True):
    """A shop that a crawl was asked for; `watermark` is the shop's."""

    source: str
    options: dict[str, Any]
    watermark: datetime | None


class Reading(msgspec.Struct, frozen=True):
    """How a shop is read: the columns of its shop crawl."""

    options: dict[str, Any]
    mode: str = FULL


async def readings(
    connection: AsyncConnection, shops: Mapping[int, Wanted], mode: Mode, *, now: datetime, settings: Settings
) -> dict[int, Reading]:
    """How each of these shops (by id) is read in this mode; one that is missing needs no crawl now.

    `new` needs to know what is old: shops whose newest crawl is not settled `complete` or `drifted`, or left out other
    parts of the shop, are read in full.
    """
    if mode.name == REFRESH:
        fresh = await _fresh(connection, shops, now - min(mode.older_than, EVER))
        return {key: Reading(wanted.options) for key, wanted in shops.items() if key not in fresh}
    newest = await _newest(connection, shops) if mode.name == NEW else {}
    return {key: _reading(wanted, newest.get(key), settings) for key, wanted in shops.items()}


def _reading(wanted: Wanted, newest: sa.Row[Any] | None, settings: Settings) -> Reading:
    if (
        newest is None
        or newest.verdict not in HAPPY
        or left_out(wanted.source, newest.options) != left_out(wanted.source, wanted.options)
    ):
        return Reading(wanted.options)
    source = source_named(wanted.source)
    options = source.newest(wanted.options)
    if options is None or (wanted.watermark is None and source.windows(settings) is not None):
        return Reading(wanted.options)
    return Reading(options, NEW)


def left_out(source: str, options: Mapping[str, Any]) -> list[Any]:
    """The filters by which a crawl leaves out a part of the shop, in a form to be compared."""
    adapter = source_named(source)
    whole = adapter.whole(options)
    return [whole.get(name) for name in adapter.filter_names]


def is_whole(source: str, options: Mapping[str, Any], mode: str) -> bool:
    """Whether a crawl shows all that its filters let through, and not only what has changed."""
    given = {name: value for name, value in options.items() if value is not None}
    return mode == FULL and source_named(source).whole(given) == given


def shows_all(source: str, options: Mapping[str, Any], mode: str) -> bool:
    """Whether a crawl shows all items of its shop, so that it may prove something about those it misses."""
    return is_whole(source, options, mode) and not any(left_out(source, options))


async def _newest(connection: AsyncConnection, shops: Mapping[int, Wanted]) -> dict[int, sa.Row[Any]]:
    """The newest crawl of each of these shops that has one; a verdict only if it is settled."""
    sql = (
        "SELECT c.shop_id, c.verdict, c.options FROM {r} JOIN shop_crawl c ON c.id ="
        " (SELECT max(n.id) FROM shop_crawl n WHERE n.shop_id = r.id AND n.kind <> 'plan')"
    )
    columns = [shop_crawl.c.shop_id, shop_crawl.c.verdict, shop_crawl.c.options]
    found = await query_rows(connection, sql, [shop.c.id], [{"id": key} for key in shops], returning=columns)
    return {row.shop_id: row for row in found}


async def _fresh(connection: AsyncConnection, shops: Mapping[int, Wanted], since: datetime) -> set[int]:
    """Those of the shops that a whole crawl like the one wanted has shown since then."""
    sql = (
        "SELECT c.shop_id, c.mode, c.options FROM {r} JOIN shop_crawl c ON c.shop_id = r.id"
        " AND c.settled_at >= r.created_at WHERE c.verdict IN ('complete', 'drifted') AND c.kind <> 'plan'"
    )
    columns = [shop_crawl.c.shop_id, shop_crawl.c.mode, shop_crawl.c.options]
    rows = [{"id": key, "created_at": since} for key in shops]
    found = await query_rows(connection, sql, [shop.c.id, shop.c.created_at], rows, returning=columns)
    return {
        row.shop_id
        for row in found
        if is_whole(shops[row.shop_id].source, row.options, row.mode)
        and left_out(shops[row.shop_id].source, row.options)
        == left_out(shops[row.shop_id].source, shops[row.shop_id].options)
    }
