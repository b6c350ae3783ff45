"""Writes rows as JSON lines, CSV or Parquet to a stream: exact in money, and safe to open in a spreadsheet."""

import csv
import io
import os
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Context, Decimal
from importlib import import_module
from typing import Any, BinaryIO, Protocol

import msgspec
import sqlalchemy as sa
from sqlalchemy.types import TypeEngine

from models.errors import ShopcrawlError, UsageError
from models.tables import Money, UtcDateTime

ROW_GROUP = 10_000
"""Rows of one Parquet row group."""

Fields = Mapping[str, TypeEngine[Any]]
"""What a row consists of, in order: the type says how a value is written."""
Rows = Sequence[Sequence[Any]]
"""Rows of values as the database gives them, in the order of the fields."""


async def write_rows(stream: BinaryIO, format: str, fields: Fields, batches: AsyncIterator[Rows]) -> int:
    """Write all batches to a binary stream that stays open; returns how many rows were written.

    A reader that goes away ends it quietly. Raises UsageError for an unknown format before anything is written,
    ShopcrawlError for a stream that cannot be written.
    """
    if format not in FORMATS:
        raise UsageError(f"unknown format {format[:40]!r}; known formats: {', '.join(FORMATS)}")
    output, rows = _Output(stream), 0
    try:
        writer = FORMATS[format](output, fields)
        async for batch in batches:
            writer.write(batch)
            rows += len(batch)
        writer.close()
        output.flush()
    except _GoneError:
        _silence(stream)
    return rows


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
            raise ShopcrawlError(f"the output cannot be written: {error.strerror or type(error).__name__}") from None


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
    def __init__(self, output: _Output, fields: Fields) -> None: ...

    def write(self, rows: Rows) -> None:
        """Write rows of values as the database gives them."""

    def close(self) -> None:
        """Write what is left."""


class _JsonLines:
    """One JSON object a line: nested JSON stays nested, money and ids are text, times end in Z."""

    def __init__(self, output: _Output, fields: Fields) -> None:
        self._output, self._names = output, tuple(fields)
        self._encoder = msgspec.json.Encoder(enc_hook=str)
        self._money = {place for place, kind in enumerate(fields.values()) if isinstance(kind, Money)}

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

    def __init__(self, output: _Output, fields: Fields) -> None:
        self._output = output
        self._casts = [_csv_cast(kind) for kind in fields.values()]
        self._print([tuple(fields)])

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


def _csv_cast(kind: TypeEngine[Any]) -> Callable[[Any], str]:
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

    def __init__(self, output: _Output, fields: Fields) -> None:
        self._arrow = import_module("pyarrow")  # here, for it is large and only this format needs it
        self._rows = list[Sequence[Any]]()
        self._casts = [_parquet_cast(kind) for kind in fields.values()]
        self._schema = self._arrow.schema([(name, self._type(kind)) for name, kind in fields.items()])
        file = self._arrow.PythonFile(output, mode="w")
        self._file = import_module("pyarrow.parquet").ParquetWriter(file, self._schema, compression="zstd")

    def _type(self, kind: TypeEngine[Any]) -> Any:
        arrow = self._arrow
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
        parts = zip(self._schema.types, self._casts, columns, strict=True)
        arrays = [self._array(kind, cast, column) for kind, cast, column in parts]
        self._file.write_table(self._arrow.Table.from_arrays(arrays, schema=self._schema))
        self._rows = []

    def _array(self, kind: Any, cast: Callable[[Any], Any] | None, column: Sequence[Any]) -> Any:
        values = [None if value is None else cast(value) for value in column] if cast else column
        return self._arrow.array(values, kind)

    def close(self) -> None:
        if self._rows:
            self._write_group()
        self._file.close()


_MICRO = Decimal("0.000001")
_WIDE = Context(prec=40)


def _parquet_cast(kind: TypeEngine[Any]) -> Callable[[Any], Any] | None:
    if isinstance(kind, Money):
        return lambda value: value.quantize(_MICRO, context=_WIDE)
    return _json_text if isinstance(kind, sa.JSON) else None


FORMATS: dict[str, type[_Writer]] = {"jsonl": _JsonLines, "csv": _Csv, "parquet": _Parquet}
