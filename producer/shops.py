"""Reads the shops file: which shops to crawl, from which source, with which options; every complaint names its line."""

import csv
import io
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from models.crawls import ShopRequest
from models.errors import UsageError
from models.settings import Settings
from models.source import source_named

LONGEST_FIELD = 16_384  # characters of one cell; longer ones are a wrong file, not a shop

Row = tuple[int, dict[str, str]]
"""Line number and the cells by column name."""


def read_shops(path: str, source: str, options: Mapping[str, str], settings: Settings) -> list[ShopRequest]:
    """The shops in a file, or in standard input for `-`, each with its validated options.

    A row's own source and options win over `source` and `options`, which hold for all. Raises UsageError, which names
    the file, the line and what is wrong with it.
    """
    name = "standard input" if path == "-" else path
    shops: list[ShopRequest] = []
    lines: dict[tuple[str, str], int] = {}
    for number, cells in _rows(_read(path), name):
        try:
            request = shop_request(
                cells.pop("shop", ""), cells.pop("source", "") or source, {**options, **_given(cells)}, settings
            )
        except UsageError as error:
            raise UsageError(f"{name}, line {number}: {error}") from None
        first = lines.setdefault((request.source, request.key), number)
        if first != number:
            raise UsageError(f"{name}, line {number}: shop {request.key!r} stands in line {first} already")
        shops.append(request)
    if not shops:
        raise UsageError(f"{name}: no shops in it; write one shop per line, or a CSV with the column `shop`")
    return shops


def shop_request(shop: str, source: str, options: Mapping[str, str], settings: Settings) -> ShopRequest:
    """One validated shop. Raises UsageError."""
    adapter = source_named(source)
    adapter.check_shop(shop)
    return ShopRequest(source, shop, adapter.options(_given(options), settings))


def _given(cells: Mapping[str, str]) -> dict[str, str]:
    """An empty cell leaves an option to what holds for all."""
    return {name: value for name, value in cells.items() if value}


def _read(path: str) -> str:
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UsageError(f"{path}, line {line}: not UTF-8 text") from None


def _rows(text: str, name: str) -> Iterator[Row]:
    """The rows that are not blank, by column; without a header each line is one shop."""
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    try:
        for cells in reader:
            stripped = [cell.strip() for cell in cells]
            if not any(stripped):
                continue
            if header is None:
                header = _header(stripped, name, reader.line_num)
                if header != ["shop"] or stripped == ["shop"]:
                    continue
            yield reader.line_num, _by_column(stripped, header, name, reader.line_num)
    except csv.Error as error:
        raise UsageError(f"{name}, line {reader.line_num}: {error}") from None


def _header(cells: list[str], name: str, line: int) -> list[str]:
    """The columns: as the first row names them, or just `shop` if that row is a shop itself."""
    columns = [cell.lower() for cell in cells]
    if "shop" in columns:
        repeated = sorted({column for column in columns if columns.count(column) > 1})
        if repeated or "" in columns:
            raise UsageError(
                f"{name}, line {line}: bad header: column {(repeated or [''])[0]!r} is named twice or empty"
            )
        return columns
    if len(cells) > 1:
        raise UsageError(
            f"{name}, line {line}: bad header: a CSV needs the column `shop`, found {', '.join(columns)[:100]}"
        )
    return ["shop"]


def _by_column(cells: list[str], header: list[str], name: str, line: int) -> dict[str, str]:
    if len(cells) > len(header):
        raise UsageError(f"{name}, line {line}: {len(cells)} cells, but the header has {len(header)} columns")
    return dict(zip(header, cells, strict=False))
