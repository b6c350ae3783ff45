"""Exports from both databases, read back by independent readers."""

import csv
import io
import json
import os
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from models.database import create_engine
from models.errors import ShopcrawlError, UnavailableError, UsageError
from models.settings import async_url
from models.source import Item
from producer.exports import batches, formats
from producer.exports.datasets import ITEMS, Dataset
from producer.exports.export import Export, Selection
from tests import store
from tests.servers import free_port
from tests.store import SEEN

LATER = SEEN + timedelta(days=1)
NOW = SEEN + timedelta(days=2)
RICH = Item(
    item_id="900719925474099301",
    title='=HYPERLINK("http://evil")',
    image="https://img.example/1.jpg",
    images=["a,b", '"quoted"\nand broken'],
    category_path=["服装", "女装"],
    price=Decimal("3.90"),
    origin_price=Decimal("12345678901234.123456"),
    agent_price=Decimal("-0.5"),
    quantity_begin=2,
    rank_score=Decimal(1000),
    new_product=True,
    type="-5",
    unit="件",
    status="line one\r\nline two",
    props=[["颜色", "红"]],
    created_time=datetime(2025, 12, 31, 16, tzinfo=UTC),
    extra={"nested": {"deep": [1, None, "x"]}},
)
BARE = Item(item_id="1")


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """An engine on an empty database."""
    engine = create_engine(async_url(database_url))
    yield engine
    await engine.dispose()


async def stock(
    engine: AsyncEngine, shops: dict[str, Sequence[Item]], *, source: str = "tmapi", at: datetime = SEEN
) -> None:
    for key, items in shops.items():
        await store.stock(engine, key, items, source=source, at=at)


async def write(
    engine: AsyncEngine, stream: Any, *, format: str = "jsonl", dataset: Dataset = ITEMS, **selection: Any
) -> int:
    return await (await Export.prepare(engine, dataset, Selection(**selection), now=NOW)).write(stream, format)


async def exported(engine: AsyncEngine, format: str = "jsonl", **options: Any) -> bytes:
    stream = io.BytesIO()
    rows = await write(engine, stream, format=format, **options)
    if format == "jsonl":
        assert rows == stream.getvalue().count(b"\n")
    return stream.getvalue()


async def keys(engine: AsyncEngine, **options: Any) -> list[tuple[str, str, str]]:
    lines = (await exported(engine, format="jsonl", **options)).splitlines()
    return [(row["source"], row["shop"], row["item_id"]) for row in map(json.loads, lines)]


async def test_json_lines_keep_money_exact_ids_as_text_and_json_nested(engine: AsyncEngine) -> None:
    await stock(engine, {"b2b-1": [RICH]})
    row = json.loads(await exported(engine, format="jsonl"))
    assert tuple(row) == tuple(ITEMS.fields)
    expected = {
        "source": "tmapi",
        "shop": "b2b-1",
        "item_id": "900719925474099301",
        "title": '=HYPERLINK("http://evil")',
        "price": "3.9",
        "origin_price": "12345678901234.123456",
        "agent_price": "-0.5",
        "rank_score": "1000",
        "wholesale_price": None,
        "quantity_begin": 2,
        "new_product": True,
        "images": ["a,b", '"quoted"\nand broken'],
        "extra": {"nested": {"deep": [1, None, "x"]}},
        "created_time": "2025-12-31T16:00:00Z",
        "first_seen": "2026-05-01T12:00:00.250000Z",
        "last_seen": "2026-05-01T12:00:00.250000Z",
    }
    assert {name: row[name] for name in expected} == expected


async def test_csv_reads_back_the_same_and_runs_nothing(engine: AsyncEngine) -> None:
    await stock(engine, {"b2b-1": [BARE, RICH]})
    data = await exported(engine, format="csv")
    assert data.startswith(b"source,shop,item_id,title,price,")
    bare, rich = csv.DictReader(io.StringIO(data.decode(), newline=""))
    assert (bare["item_id"], bare["title"], bare["price"], bare["new_product"]) == ("1", "", "", "")
    expected = {
        "title": "'" + '=HYPERLINK("http://evil")',
        "type": "-5",
        "agent_price": "-0.5",
        "price": "3.9",
        "new_product": "true",
        "unit": "件",
        "status": "line one\r\nline two",
        "created_time": "2025-12-31T16:00:00Z",
        "category_path": '["服装","女装"]',
    }
    assert {name: rich[name] for name in expected} == expected
    assert json.loads(rich["images"]) == ["a,b", '"quoted"\nand broken']


async def test_parquet_has_decimals_times_and_text_ids(engine: AsyncEngine) -> None:
    await stock(engine, {"b2b-1": [BARE, RICH]})
    table = pq.read_table(pa.BufferReader(await exported(engine, format="parquet")))
    types = {name: table.schema.field(name).type for name in ("item_id", "price", "last_seen", "stock", "new_product")}
    assert types == {
        "item_id": pa.string(),
        "price": pa.decimal128(20, 6),
        "last_seen": pa.timestamp("us", tz="UTC"),
        "stock": pa.int64(),
        "new_product": pa.bool_(),
    }
    bare, rich = table.to_pylist()
    assert (bare["item_id"], bare["price"], bare["images"]) == ("1", None, None)
    assert (rich["price"], rich["origin_price"]) == (Decimal("3.9"), Decimal("12345678901234.123456"))
    assert (rich["last_seen"], rich["title"]) == (SEEN, RICH.title)
    assert json.loads(rich["extra"]) == RICH.extra


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 100])
async def test_rows_come_once_and_sorted_whatever_the_batch(
    engine: AsyncEngine, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "BATCH", batch)
    monkeypatch.setattr(batches, "SHOP_BATCH", 3)
    sizes = {"b": 1, "a": 9, "é": 3, "Z": 0, "c": 7, "d": 2, "B": 5}
    numbers = ["10", "9", "x", "é", "z", "Ä", "1", "2", "3"]
    await stock(engine, {key: [Item(item_id=name) for name in numbers[:size]] for key, size in sizes.items()})
    await stock(engine, {"a": [Item(item_id="5")]}, source="top")
    expected = [("tmapi", key, name) for key, size in sizes.items() for name in numbers[:size]]
    assert await keys(engine) == [*sorted(expected), ("top", "a", "5")]


async def test_filters_choose_shops_times_and_columns(engine: AsyncEngine) -> None:
    await stock(engine, {"old": [Item(item_id="1")], "new": [Item(item_id="1")]})
    await stock(engine, {"new": [Item(item_id="2")]}, at=LATER)
    assert await keys(engine, shops=["new", "old", "new"]) == [
        ("tmapi", "new", "1"),
        ("tmapi", "new", "2"),
        ("tmapi", "old", "1"),
    ]
    assert await keys(engine, shops=["old"]) == [("tmapi", "old", "1")]
    assert await keys(engine, since=LATER.isoformat()) == [("tmapi", "new", "2")]
    assert await keys(engine, since=LATER.isoformat(), shops=["old"]) == []
    assert len(await keys(engine, since="2026-05-01T12:00:00Z")) == 3
    assert len(await keys(engine, since="2026-05-01 12:00:01")) == 1
    assert await keys(engine, since="1d") == [("tmapi", "new", "2")]
    data = await exported(engine, format="csv", columns=["item_id", "shop", "item_id"], shops=["old"])
    assert data == b"item_id,shop\r\n1,old\r\n"


@pytest.mark.parametrize("format", ["jsonl", "csv", "parquet"])
async def test_an_empty_store_gives_a_valid_empty_export(engine: AsyncEngine, format: str) -> None:
    data = await exported(engine, format=format)
    if format == "parquet":
        table = pq.read_table(pa.BufferReader(data))
        assert (table.num_rows, table.column_names) == (0, list(ITEMS.fields))
    else:
        assert data.decode() == ("" if format == "jsonl" else ",".join(ITEMS.fields) + "\r\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "xlsx"}, "unknown format 'xlsx'"),
        ({"format": "csv", "columns": ["price", "content_hash"]}, "unknown column 'content_hash'"),
        ({"format": "csv", "columns": []}, "no column chosen"),
        ({"format": "csv", "shops": ["typo"]}, "unknown shop: 'typo'"),
        ({"since": "yesterday"}, "'yesterday' is no time"),
        ({"where": ["content_hash=1"]}, "unknown column 'content_hash' in a condition; columns: source, shop, item_id"),
        ({"where": ["price is cheap"]}, "condition 'price is cheap': write it as COLUMN OPERATOR VALUE"),
    ],
)
async def test_wrong_usage_is_told_before_a_byte_is_written(
    engine: AsyncEngine, options: dict[str, Any], message: str
) -> None:
    stream = io.BytesIO()
    with pytest.raises(UsageError, match=message):
        await write(engine, stream, **options)
    assert stream.getvalue() == b""


@pytest.mark.parametrize("format", ["jsonl", "csv", "parquet"])
async def test_a_reader_that_goes_away_ends_the_export_quietly(engine: AsyncEngine, format: str) -> None:
    await stock(engine, {"b2b-1": [RICH, BARE]})
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as stream:
        assert await write(engine, stream, format=format) in {0, 2}


@pytest.mark.parametrize("format", ["jsonl", "csv", "parquet"])
async def test_a_full_disk_is_told_in_one_line(engine: AsyncEngine, format: str) -> None:
    await stock(engine, {"b2b-1": [RICH, BARE]})
    with (
        Path("/dev/full").open("wb", buffering=0) as stream,  # noqa: ASYNC230 - it never blocks
        pytest.raises(ShopcrawlError, match="cannot be written: No space"),
    ):
        await write(engine, stream, format=format)


async def test_a_database_that_is_away_is_told_without_its_password() -> None:
    engine = create_engine(async_url(f"postgresql://someone:canary@127.0.0.1:{free_port()}/none"))
    with pytest.raises(UnavailableError) as caught:
        await write(engine, io.BytesIO(), shops=["b2b-1"])
    await engine.dispose()
    assert "canary" not in str(caught.value)


async def test_large_parquet_exports_are_written_in_row_groups(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "BATCH", 4)
    monkeypatch.setattr(formats, "ROW_GROUP", 10)
    await stock(engine, {"b2b-1": [Item(item_id=f"{number:03}", price=Decimal(number)) for number in range(25)]})
    file = pq.ParquetFile(pa.BufferReader(await exported(engine, format="parquet")))
    assert file.metadata.num_row_groups == 3
    assert [int(row["price"]) for row in file.read().to_pylist()] == list(range(25))
