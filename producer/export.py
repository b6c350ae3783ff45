"""Exports items as JSON lines, CSV or Parquet: streamed, sorted, exact in money, and safe to open in a spreadsheet."""

import csv
import io
import itertools
import os
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal
from importlib import import_module
from typing import Any, BinaryIO, Protocol

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from models.bulk import query_rows
from models.database import reader, unavailable
from models.errors import ShopcrawlError, UsageError
from models.tables import Money, UtcDateTime, item, shop

BATCH = 2_000
"""Items read at a time: what bounds the memory."""
SHOP_BATCH = 1_000
ROW_GROUP = 10_000
"""Rows of one Parquet row group."""

_INTERNAL = {"shop_id", "content_hash", "shop_crawl_id"}
_FIRST = ("item_id", "title", "price")
_LAST = ("first_seen", "last_seen", "changed_at")
_MIDDLE = tuple(column.name for column in item.c if column.name not in {*_INTERNAL, *_FIRST, *_LAST})
EXPORTED: dict[str, sa.Column[Any]] = {
    "source": shop.c.source,
    "shop": shop.c.key,
    **{name: item.c[name] for name in (*_FIRST, *_MIDDLE, *_LAST)},
}
"""Every column that can be exported, by name and in order."""

Rows = Sequence[Sequence[Any]]


async def export_items(
    engine: AsyncEngine,
    stream: BinaryIO,
    *,
    format: str,
    shops: Sequence[str] | None = None,
    since: datetime | None = None,
    columns: Sequence[str] | None = None,
) -> int:
    """Write items to a binary stream, sorted by source, shop and item id; returns how many were written.

    `shops`: only these shop keys; `since`: only items last seen at or after this time; `columns`: only these, in this
    order. Memory stays flat, and no transaction is open while the stream's reader is slow. A reader that goes away
    ends the export quietly. Raises UsageError for an unknown format, column or shop, UnavailableError for a database
    that cannot be used, ShopcrawlError for a stream that cannot be written.
    """
    names = _chosen(columns)
    if format not in FORMATS:
        raise UsageError(f"unknown format {format[:40]!r}; known formats: {', '.join(FORMATS)}")
    output, rows = _Output(stream), 0
    try:
        # The shops are looked up first: a mistyped one leaves no half-written output.
        wanted = None if shops is None else await _shops_named(engine, shops)
        writer = FORMATS[format](output, names)
        async for batch in _Reader(engine, names, since).batches(wanted):
            writer.write(batch)
            rows += len(batch)
        writer.close()
        output.flush()
    except _GoneError:
        _silence(stream)
    except (SQLAlchemyError, OSError) as error:
        raise unavailable(error) from None
    return rows


def _chosen(columns: Sequence[str] | None) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(EXPORTED if columns is None else columns))
    unknown = [name for name in names if name not in EXPORTED]
    if unknown or not names:
        wrong = f"unknown column {unknown[0][:40]!r}" if unknown else "no column chosen"
        raise UsageError(f"{wrong}; columns: {', '.join(EXPORTED)}")
    return names


class _Shop(msgspec.Struct, frozen=True):
    id: int
    source: str
    key: str


async def _shops_named(engine: AsyncEngine, keys: Sequence[str]) -> list[_Shop]:
    """The shops with these keys, of all sources, in the export's order. Raises UsageError for an unknown key."""
    wanted = sorted(set(keys))
    sql = 'SELECT s.id, s.source, s."key" FROM {r} JOIN shop s ON s."key" = r."key"'
    async with reader(engine).connect() as connection:
        rows = await query_rows(connection, sql, [shop.c.key], [{"key": key} for key in wanted])
    missing = sorted(set(wanted) - {row.key for row in rows})
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UsageError(f"unknown shop: {', '.join(repr(key[:60]) for key in missing[:3])}{more}")
    return sorted((_Shop(row.id, row.source, row.key) for row in rows), key=lambda found: (found.source, found.key))


class _Reader:
    """Reads items in the export's order, in batches of at most BATCH that each take one short transaction."""

    def __init__(self, engine: AsyncEngine, names: Sequence[str], since: datetime | None) -> None:
        self._engine, self._names = engine, names
        # SQLite compares times as text, where a whole second, being shorter, comes after its own fractions.
        self._since = since - timedelta(microseconds=1) if since and not since.microsecond else since
        self._columns = [item.c.shop_id, item.c.item_id, *(EXPORTED[n] for n in names if EXPORTED[n].table is item)]
        self._group = 16  # shops read together; follows the size of the shops

    async def batches(self, wanted: Sequence[_Shop] | None) -> AsyncIterator[Rows]:
        """The rows of the wanted shops (None: of all), each with the values of the chosen columns."""
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
                    found = await self._fetch(group, after=found[-1].item_id)
                    yield self._rows(group, found)

    async def _shops(self, wanted: Sequence[_Shop] | None) -> AsyncIterator[Sequence[_Shop]]:
        if wanted is not None:
            yield wanted
            return
        place = sa.tuple_(shop.c.source, shop.c.key)
        query = sa.select(shop.c.id, shop.c.source, shop.c.key).order_by(shop.c.source, shop.c.key).limit(SHOP_BATCH)
        shops = await self._read_shops(query)
        while shops:
            yield shops
            shops = await self._read_shops(query.where(place > sa.tuple_(shops[-1].source, shops[-1].key)))

    async def _read_shops(self, query: sa.Select[Any]) -> list[_Shop]:
        async with reader(self._engine).connect() as connection:
            return [_Shop(row.id, row.source, row.key) for row in await connection.execute(query)]

    async def _fetch(self, group: Sequence[_Shop], after: str | None = None) -> Sequence[sa.Row[Any]]:
        """Items of a group, BATCH + 1 of them at most; in order, and from `after` on, if the group is one shop."""
        query = sa.select(*self._columns).where(item.c.shop_id.in_([found.id for found in group])).limit(BATCH + 1)
        if self._since is not None:
            query = query.where(item.c.last_seen >= self._since)
        if len(group) == 1:
            query = query.order_by(item.c.item_id)
        if after is not None:
            query = query.where(item.c.item_id > after)
        async with reader(self._engine).connect() as connection:
            return (await connection.execute(query)).all()

    def _rows(self, group: Sequence[_Shop], found: Sequence[sa.Row[Any]]) -> Rows:
        places = {entry.id: place for place, entry in enumerate(group)}
        ordered = sorted(found, key=lambda row: (places[row.shop_id], row.item_id))
        return [self._row(group[places[row.shop_id]], row) for row in ordered]

    def _row(self, owner: _Shop, row: sa.Row[Any]) -> list[Any]:
        values = itertools.islice(row, 2, None)
        own = {"source": owner.source, "shop": owner.key}
        return [own[name] if name in own else next(values) for name in self._names]


class _GoneError(Exception):
    """Whoever read the stream has closed it."""


class _Output:
    """A stream that counts its bytes (a pipe cannot tell its position) and says why it cannot be written."""

    closed = False

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._written, self._gone = stream, 0, False

    def write(self, data: Any) -> int:
        """Write all of `data`. Raises _GoneError once, and swallows what a library still writes after it."""
        if not self._gone:
            self._guarded(lambda: self._write_all(memoryview(data)))
        self._written += len(data)
        return len(data)

    def _write_all(self, view: memoryview) -> None:
        while view:  # an unbuffered stream may take a part only
            view = view[self._stream.write(view) :]

    def flush(self) -> None:
        """Flush the stream. Raises as `write` does."""
        if not self._gone:
            self._guarded(self._stream.flush)

    def tell(self) -> int:
        """Bytes written."""
        return self._written

    def close(self) -> None:
        """Leave the stream open: it is the caller's."""

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            action()
        except BrokenPipeError:
            self._gone = True
            raise _GoneError from None
        except OSError as error:
            self._gone = True
            raise ShopcrawlError(f"the export cannot be written: {error.strerror or type(error).__name__}") from None


def _silence(stream: BinaryIO) -> None:
    """Let what the stream still buffers go nowhere, so that its flush at the program's end does not complain."""
    with suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def decimal_text(value: Decimal) -> str:
    """An exact decimal without exponent or idle zeros: 3.9, not 3.900000."""
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _time_text(value: datetime) -> str:
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _json_text(value: Any) -> str:
    return msgspec.json.encode(value).decode()


# What a spreadsheet takes for a formula, full-width signs included, behind whatever it skips before it.
_FORMULA = re.compile(r"[\s\x00-\x20\u00ad\u200b-\u200f\u2060\ufeff]*[=+\-@＝＋－＠]|[\t\r\n]")
_NEGATIVE = re.compile(r"-\d+(\.\d+)?")


def safe_cell(text: str) -> str:
    """Text that no spreadsheet runs: one that looks like a formula gets a leading apostrophe.

    A plain negative number stays as it is; columns of numbers never come here.
    """
    return f"'{text}" if _FORMULA.match(text) and not _NEGATIVE.fullmatch(text) else text


class _Writer(Protocol):
    def __init__(self, output: _Output, names: Sequence[str]) -> None: ...

    def write(self, rows: Rows) -> None:
        """Write rows of values as the database gives them."""

    def close(self) -> None:
        """Write what is left."""


class _JsonLines:
    """One JSON object a line: nested JSON stays nested, money and ids are text, times end in Z."""

    def __init__(self, output: _Output, names: Sequence[str]) -> None:
        self._output, self._names = output, names
        self._encoder = msgspec.json.Encoder(enc_hook=str)
        self._money = {place for place, name in enumerate(names) if isinstance(EXPORTED[name].type, Money)}

    def write(self, rows: Rows) -> None:
        lines = [self._encoder.encode(dict(zip(self._names, self._values(row), strict=True))) for row in rows]
        self._output.write(b"".join(line + b"\n" for line in lines))

    def _values(self, row: Sequence[Any]) -> list[Any]:
        money = self._money
        return [
            decimal_text(value) if place in money and value is not None else value for place, value in enumerate(row)
        ]

    def close(self) -> None:
        pass


class _Csv:
    """RFC 4180 with a header, UTF-8; absent values are empty cells, JSON is JSON text, formulas are defused."""

    def __init__(self, output: _Output, names: Sequence[str]) -> None:
        self._output = output
        self._casts = [_csv_cast(EXPORTED[name]) for name in names]
        self._print([names])

    def write(self, rows: Rows) -> None:
        cells = zip(*rows, strict=True) if rows else ()
        columns = [
            ["" if value is None else cast(value) for value in column]
            for cast, column in zip(self._casts, cells, strict=False)
        ]
        self._print(zip(*columns, strict=True))

    def _print(self, rows: Any) -> None:
        text = io.StringIO(newline="")
        csv.writer(text).writerows(rows)
        self._output.write(text.getvalue().encode())

    def close(self) -> None:
        pass


def _csv_cast(column: sa.Column[Any]) -> Callable[[Any], str]:
    kind = column.type
    if isinstance(kind, Money):
        return decimal_text
    if isinstance(kind, UtcDateTime):
        return _time_text
    if isinstance(kind, sa.JSON):
        return lambda value: safe_cell(_json_text(value))
    if isinstance(kind, sa.Boolean):
        return lambda value: "true" if value else "false"
    return str if isinstance(kind, sa.Integer) else safe_cell


class _Parquet:
    """Typed columns: decimal128(20, 6) for money, UTC timestamps in microseconds, JSON as JSON text."""

    def __init__(self, output: _Output, names: Sequence[str]) -> None:
        self._arrow = import_module("pyarrow")  # here, for it is large and only this format needs it
        self._names, self._rows = names, list[Sequence[Any]]()
        self._schema = self._arrow.schema([(name, self._type(EXPORTED[name])) for name in names])
        file = self._arrow.PythonFile(output, mode="w")
        self._file = import_module("pyarrow.parquet").ParquetWriter(file, self._schema, compression="zstd")

    def _type(self, column: sa.Column[Any]) -> Any:
        kind, arrow = column.type, self._arrow
        if isinstance(kind, Money):
            return arrow.decimal128(20, 6)
        if isinstance(kind, UtcDateTime):
            return arrow.timestamp("us", tz="UTC")
        if isinstance(kind, sa.Boolean):
            return arrow.bool_()
        return arrow.int64() if isinstance(kind, sa.Integer) else arrow.string()

    def write(self, rows: Rows) -> None:
        self._rows.extend(rows)
        if len(self._rows) >= ROW_GROUP:
            self._write_group()

    def _write_group(self) -> None:
        columns = zip(*self._rows, strict=True)
        arrays = [self._array(name, column) for name, column in zip(self._names, columns, strict=True)]
        self._file.write_table(self._arrow.Table.from_arrays(arrays, schema=self._schema))
        self._rows = []

    def _array(self, name: str, column: Sequence[Any]) -> Any:
        cast = _parquet_cast(EXPORTED[name])
        values = [None if value is None else cast(value) for value in column] if cast else column
        return self._arrow.array(values, self._schema.field(name).type)

    def close(self) -> None:
        if self._rows:
            self._write_group()
        self._file.close()


_MICRO = Decimal("0.000001")
_WIDE = Context(prec=40)


def _parquet_cast(column: sa.Column[Any]) -> Callable[[Any], Any] | None:
    if isinstance(column.type, Money):
        return lambda value: value.quantize(_MICRO, context=_WIDE)
    return _json_text if isinstance(column.type, sa.JSON) else None


FORMATS: dict[str, type[_Writer]] = {"jsonl": _JsonLines, "csv": _Csv, "parquet": _Parquet}
