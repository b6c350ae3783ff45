"""Exports of versions, sales and verdicts from both databases, and the memory they take."""

import csv
import io
import json
import tracemalloc
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from models.source import Item
from models.tables import crawl, item_sales, item_version, shop_crawl
from producer.exports import batches, formats
from producer.exports.datasets import ITEMS, SALES, VERDICTS, VERSIONS, Dataset
from producer.exports.export import Export, Selection
from tests.ledger import engine_for
from tests.store import SEEN, add_rows, shop_id_of, stock

NOW = SEEN + timedelta(days=30)


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """An engine on an empty database."""
    async with engine_for(database_url) as engine:
        yield engine


def day(number: int) -> datetime:
    return SEEN + timedelta(days=number)


def text(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


async def exported(engine: AsyncEngine, dataset: Dataset, format: str = "jsonl", **selection: Any) -> bytes:
    stream = io.BytesIO()
    await (await Export.prepare(engine, dataset, Selection(**selection), now=NOW)).write(stream, format)
    return stream.getvalue()


async def lines(engine: AsyncEngine, dataset: Dataset, **selection: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (await exported(engine, dataset, **selection)).splitlines()]


async def add_crawls(engine: AsyncEngine, shop_id: int, *crawls: dict[str, Any]) -> list[int]:
    """Settle shop crawls of a shop, one day after the other; returns the ids of their crawls."""
    ids = []
    async with engine.begin() as connection:
        for number, values in enumerate(crawls):
            common = {"kind": "crawl", "state": "finished", "fingerprint": "f", "priority": 5, "options": {}}
            made = sa.insert(crawl).values(**common, created_at=day(number)).returning(crawl.c.id)
            ids.append(int(await connection.scalar(made) or 0))
            own = {"crawl_id": ids[-1], "shop_id": shop_id, "kind": "crawl", "state": "settled", "priority": 5}
            own |= {"options": {}, "planned": 2, "created_at": day(number), "settled_at": day(number)}
            await connection.execute(sa.insert(shop_crawl).values(**(own | values)))
    return ids


def version(shop_id: int, item_id: str, start: int, end: int, **fields: Any) -> dict[str, Any]:
    times = {"valid_from": day(start), "valid_to": day(end), "shop_crawl_id": 1}
    return {"shop_id": shop_id, "item_id": item_id, **times, **fields}


async def test_versions_are_the_past_ones_and_the_current_one_without_an_end(engine: AsyncEngine) -> None:
    shop_id = await stock(engine, "b2b-1", [Item(item_id="1", title="new", price=Decimal("3.5"))], at=day(5))
    await stock(engine, "b2b-1", [Item(item_id="2", title="only")], at=day(1))
    [crawl_id] = await add_crawls(engine, shop_id, {"verdict": "complete"})
    past = [
        version(shop_id, "1", 0, 2, title="old", price=Decimal(2)),
        version(shop_id, "1", 2, 5, title="=mid", price=3),
    ]
    await add_rows(engine, item_version, past)
    found = await lines(engine, VERSIONS)
    assert [(row["item_id"], row["title"], row["price"], row["valid_from"], row["valid_to"]) for row in found] == [
        ("1", "old", "2", text(day(0)), text(day(2))),
        ("1", "=mid", "3", text(day(2)), text(day(5))),
        ("1", "new", "3.5", text(day(5)), None),
        ("2", "only", None, text(day(1)), None),
    ]
    assert {(row["source"], row["shop"], row["crawl"]) for row in found} == {("tmapi", "b2b-1", crawl_id)}
    assert [row["title"] for row in await lines(engine, VERSIONS, where=["valid_to is empty"])] == ["new", "only"]
    assert [row["title"] for row in await lines(engine, VERSIONS, since=text(day(2)))] == ["=mid", "new"]
    data = await exported(engine, VERSIONS, "csv", columns=["title", "valid_to"])
    assert list(csv.reader(io.StringIO(data.decode(), newline="")))[2] == ["'=mid", text(day(5))]


@pytest.mark.parametrize("batch", [1, 2, 5, 100])
async def test_versions_and_sales_come_once_and_in_order_whatever_the_batch(
    engine: AsyncEngine, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "BATCH", batch)
    expected = []
    for key, count in (("a", 3), ("b", 1), ("c", 4)):
        items = [Item(item_id=str(number), sold_30d=9) for number in range(count)]
        shop_id = await stock(engine, key, items, at=day(9))
        numbers = [(each.item_id, number) for each in items for number in range(int(each.item_id) * 2)]
        await add_rows(engine, item_version, [version(shop_id, name, at, at + 1) for name, at in numbers])
        figures = [{"shop_id": shop_id, "item_id": name, "at": day(at), "sold_30d": at} for name, at in numbers]
        await add_rows(engine, item_sales, figures)
        expected += [
            (key, name, text(day(at))) for name, at in sorted([*numbers, *((each.item_id, 9) for each in items)])
        ]
    for dataset, at in ((VERSIONS, "valid_from"), (SALES, "at")):
        assert [(row["shop"], row["item_id"], row[at]) for row in await lines(engine, dataset)] == expected


async def test_sales_end_with_the_current_figures_if_there_are_any(engine: AsyncEngine) -> None:
    items = [Item(item_id="1", sold_30d=7, gmv_30d=Decimal("70.50"))]
    shop_id = await stock(engine, "b2b-1", items, at=day(3))
    await stock(engine, "b2b-1", [Item(item_id="2")], seen={"figures_at": None})
    past = {"shop_id": shop_id, "item_id": "1", "at": day(0), "sold_30d": 5, "gmv_30d": Decimal(40)}
    await add_rows(engine, item_sales, [past])
    table = pq.read_table(pa.BufferReader(await exported(engine, SALES, "parquet")))
    assert table.schema.field("at").type == pa.timestamp("us", tz="UTC")
    assert table.schema.field("gmv_30d").type == pa.decimal128(20, 6)
    found = [(row["item_id"], row["at"], row["sold_30d"], row["gmv_30d"]) for row in table.to_pylist()]
    assert found == [("1", day(0), 5, Decimal(40)), ("1", day(3), 7, Decimal("70.5"))]
    assert [row["sold_30d"] for row in await lines(engine, SALES, where=["gmv_30d > 40"])] == [7]


async def test_verdicts_are_of_crawls_that_have_ended_with_their_counts(engine: AsyncEngine) -> None:
    shop_id = await shop_id_of(engine, "b2b-1")
    counts = {"total_first": 90, "total_last": 92, "pages_done": 5, "pages_dead": 1, "rows": 95, "distinct_items": 90}
    counts |= {"first_distinct": 88, "new_items": 3, "changed_items": 2, "gone_items": 1, "reserved": 8}
    ids = await add_crawls(
        engine,
        shop_id,
        {"verdict": "partial", "reason": "page 3 given up: 417", **counts, "spend": Decimal("0.80")},
        {"verdict": "complete", "mode": "new"},
        {"state": "open", "settled_at": None},
        {"kind": "plan"},
    )
    first, second = await lines(engine, VERDICTS)
    assert first == {
        "source": "tmapi",
        "shop": "b2b-1",
        "crawl": ids[0],
        "kind": "crawl",
        "mode": "full",
        "verdict": "partial",
        "reason": "page 3 given up: 417",
        "total_first": 90,
        "total_last": 92,
        "pages_done": 5,
        "pages_dead": 1,
        "rows": 95,
        "distinct": 90,
        "duplicates": 5,
        "first_distinct": 88,
        "gains": 2,
        "new": 3,
        "changed": 2,
        "gone": 1,
        "calls": 8,
        "spend": "0.8",
        "started_at": text(day(0)),
        "settled_at": text(day(0)),
    }
    assert (second["crawl"], second["mode"], second["gains"], second["duplicates"]) == (ids[1], "new", None, 0)
    assert [row["crawl"] for row in await lines(engine, VERDICTS, where=["duplicates>0", "spend=0.8"])] == ids[:1]
    assert [row["crawl"] for row in await lines(engine, VERDICTS, since=text(day(1)))] == ids[1:2]


async def test_items_tell_since_when_they_are_gone(engine: AsyncEngine) -> None:
    await stock(engine, "b2b-1", [Item(item_id="1")], seen={"gone_at": day(2)})
    await stock(engine, "b2b-1", [Item(item_id="2")])
    assert [(row["item_id"], row["gone_at"]) for row in await lines(engine, ITEMS)] == [
        ("1", text(day(2))),
        ("2", None),
    ]
    assert [row["item_id"] for row in await lines(engine, ITEMS, where=["gone_at is not empty"])] == ["1"]


class _Nowhere(io.RawIOBase):
    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return len(data)


async def _peak(engine: AsyncEngine, dataset: Dataset, format: str, shop: str) -> int:
    """Bytes that an export takes at most."""
    export = await Export.prepare(engine, dataset, Selection(shops=[shop]), now=NOW)
    tracemalloc.start()
    try:
        await export.write(_Nowhere(), format)  # type: ignore[arg-type]
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
async def test_ten_times_the_rows_take_no_more_memory(
    engine: AsyncEngine, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "BATCH", 100)
    monkeypatch.setattr(formats, "ROW_GROUP", 200)
    for key, count in (("small", 400), ("large", 4000)):
        items = [Item(item_id=f"{number:06}", title=f"{number} " * 40) for number in range(count)]
        shop_id = await stock(engine, key, items, at=day(9))
        await add_rows(engine, item_version, [version(shop_id, each.item_id, 1, 9, title=each.title) for each in items])
    await _peak(engine, VERSIONS, format, "small")  # what is loaded or cached once does not count
    small = await _peak(engine, VERSIONS, format, "small")
    assert await _peak(engine, VERSIONS, format, "large") < 1.3 * small
