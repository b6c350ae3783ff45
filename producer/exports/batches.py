"""Reads the rows of a data set in order: page after page by their keys, so that memory stays flat."""

from collections.abc import AsyncIterator, Collection, Sequence
from functools import cached_property
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from models.bulk import query_rows
from models.database import reader
from models.errors import UsageError
from models.tables import shop
from producer.exports.datasets import OWNER, Dataset, Part
from producer.exports.formats import Rows
from producer.exports.where import Condition, clause

BATCH = 2_000
"""Rows read at a time: what bounds the memory."""
SHOP_BATCH = 1_000
_SHOP = "_shop_id"


class Shop(msgspec.Struct, frozen=True):
    """A shop as its rows name it."""

    id: int
    source: str
    key: str

    @property
    def columns(self) -> dict[str, str]:
        """What its rows begin with."""
        return {"source": self.source, "shop": self.key}


async def shops_named(engine: AsyncEngine, keys: Collection[str]) -> list[Shop]:
    """The shops with these keys, of all sources, by source and key. Raises UsageError for an unknown key."""
    wanted = sorted(set(keys))
    sql = 'SELECT s.id, s.source, s."key" FROM {r} JOIN shop s ON s."key" = r."key"'
    async with reader(engine).connect() as connection:
        rows = await query_rows(connection, sql, [shop.c.key], [{"key": key} for key in wanted])
    missing = sorted(set(wanted) - {row.key for row in rows})
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UsageError(f"unknown shop: {', '.join(repr(key[:60]) for key in missing[:3])}{more}")
    return sorted((Shop(row.id, row.source, row.key) for row in rows), key=lambda found: (found.source, found.key))


class Batches:
    """Rows by source, shop and the data set's key, in batches of at most BATCH that each take one short transaction.

    Each row has the values of the columns in `names`; `conditions` must all be met.
    """

    def __init__(
        self, engine: AsyncEngine, dataset: Dataset, names: Sequence[str], conditions: Sequence[Condition] = ()
    ) -> None:
        self._engine, self._dataset, self._names = engine, dataset, names
        self._of_shop = [each for each in conditions if each.column in OWNER]
        self._of_rows = [each for each in conditions if each.column not in OWNER]
        columns, dialect = dataset.parts[0].columns, engine.dialect.name
        # What SQL cannot compare is fetched and compared here.
        self._checked = [each for each in self._of_rows if clause(each, columns[each.column], dialect) is None]
        wanted = [*dataset.key, *names, *(each.column for each in self._checked)]
        self._fetched = [name for name in dict.fromkeys(wanted) if name not in OWNER]
        self._place = {name: place for place, name in enumerate([*OWNER, _SHOP, *self._fetched])}
        self._group = 16  # shops read together; follows the size of the shops

    async def read(self, wanted: Sequence[Shop] | None = None) -> AsyncIterator[Rows]:
        """The rows of the wanted shops (None: of all)."""
        async for shops in self._shops(wanted):
            start = 0
            while start < len(shops):
                group = shops[start : start + self._group]
                found = await self._fetch(group)
                if len(found) > BATCH and len(group) > 1:
                    self._group = len(group) // 2
                    continue
                start += len(group)
                if len(found) < BATCH // 3:
                    self._group = min(self._group * 2, SHOP_BATCH)
                yield self._rows(group, found)
                while len(found) > BATCH:
                    found = await self._fetch(group, after=found[-1])
                    yield self._rows(group, found)

    async def _shops(self, wanted: Sequence[Shop] | None) -> AsyncIterator[Sequence[Shop]]:
        if wanted is not None:
            yield self._fitting(wanted)
            return
        place = sa.tuple_(shop.c.source, shop.c.key)
        query = sa.select(shop.c.id, shop.c.source, shop.c.key).order_by(shop.c.source, shop.c.key).limit(SHOP_BATCH)
        shops = await self._read_shops(query)
        while shops:
            yield self._fitting(shops)
            shops = await self._read_shops(query.where(place > sa.tuple_(shops[-1].source, shops[-1].key)))

    async def _read_shops(self, query: sa.Select[Any]) -> list[Shop]:
        async with reader(self._engine).connect() as connection:
            return [Shop(row.id, row.source, row.key) for row in await connection.execute(query)]

    def _fitting(self, shops: Sequence[Shop]) -> list[Shop]:
        return [each for each in shops if all(asked.matches(each.columns[asked.column]) for asked in self._of_shop)]

    async def _fetch(self, group: Sequence[Shop], after: sa.Row[Any] | None = None) -> Sequence[sa.Row[Any]]:
        """Rows of a group, BATCH + 1 of them at most; in order, and from `after` on, if the group is one shop."""
        form = "group" if len(group) > 1 else "first" if after is None else "next"
        values: dict[str, Any] = {_SHOP: [found.id for found in group]}
        if after is not None:
            values |= {f"after_{name}": after._mapping[name] for name in self._dataset.key}
        async with reader(self._engine).connect() as connection:
            return list(await connection.execute(self._queries[form], values))

    @cached_property
    def _queries(self) -> dict[str, sa.Select[Any]]:
        """The statements, made once: for several shops, for one shop's beginning, and for what comes after a row."""
        key = self._dataset.key
        return {
            "group": self._query((), after=False),
            "first": self._query(key, after=False),
            "next": self._query(key, after=True),
        }

    def _query(self, key: Sequence[str], *, after: bool) -> sa.Select[Any]:
        parts = [self._part(part, after=after).order_by(*_keys(part, key)) for part in self._dataset.parts]
        if len(parts) == 1:
            return parts[0]
        # One statement, hence one snapshot: what moves from one part to the other is neither lost nor doubled.
        whole = sa.union_all(*(sa.select(part.subquery()) for part in parts)).subquery()
        return sa.select(whole).order_by(*(whole.c[name] for name in key)).limit(BATCH + 1)

    def _part(self, part: Part, *, after: bool) -> sa.Select[Any]:
        columns = [part.shop_id.label(_SHOP), *(part.columns[name].label(name) for name in self._fetched)]
        asked = (clause(each, part.columns[each.column], self._engine.dialect.name) for each in self._of_rows)
        query = sa.select(*columns).select_from(part.table).limit(BATCH + 1)
        query = query.where(*(each for each in asked if each is not None), *part.only)
        for shop_id in (part.shop_id, *([part.twin.c.shop_id] if part.twin is not None else [])):
            query = query.where(shop_id.in_(sa.bindparam(_SHOP, expanding=True)))
        if not after:
            return query
        key = self._dataset.key
        last = [sa.bindparam(f"after_{name}", type_=part.columns[name].type) for name in key]
        query = query.where(sa.tuple_(*_keys(part, key)) > sa.tuple_(*last))
        return query if part.twin is None else query.where(part.twin.c[key[0]] >= last[0])

    def _rows(self, group: Sequence[Shop], found: Sequence[sa.Row[Any]]) -> Rows:
        owners = {entry.id: (entry.source, entry.key) for entry in group}
        if len(group) > 1:
            order, keys = {entry.id: place for place, entry in enumerate(group)}, slice(1, 1 + len(self._dataset.key))
            found = sorted(found, key=lambda row: (order[row[0]], *row[keys]))
        rows = ((*owners[row[0]], *row) for row in found)
        if self._checked:
            rows = (row for row in rows if all(each.matches(row[self._place[each.column]]) for each in self._checked))
        places = [self._place[name] for name in self._names]
        return [[row[place] for place in places] for row in rows]


def _keys(part: Part, key: Sequence[str]) -> list[sa.ColumnElement[Any]]:
    return [part.columns[name] for name in key]
