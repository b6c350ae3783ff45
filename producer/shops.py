"""Reads the shops file: which shops to crawl, from which source, with which options; every complaint names its line."""

import csv
import io
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from models.crawls import ShopRequest
from models.errors import UsageError
from models.sessions import check_session
from models.settings import Settings
from models.source import source_named

_COLUMN = re.compile("[a-z_]{1,20}")
LONGEST_FIELD = 16_384  # characters of one cell; longer ones are a wrong file, not a shop

Row = tuple[int, dict[str, str]]
"""Line number and the cells by column name."""


SessionsOf = dict[tuple[str, str], str]
"""Sessions by source and shop."""


class ShopsFile(msgspec.Struct, frozen=True):
    """What a shops file asks for; the sessions it brings are no options, and its text does not show them."""

    shops: list[ShopRequest]
    sessions: SessionsOf

    def __repr__(self) -> str:
        return f"ShopsFile({len(self.shops)} shops, {len(self.sessions)} sessions)"


def read_shops(path: str, source: str, options: Mapping[str, str], settings: Settings) -> ShopsFile:
    """The shops in a file, or in standard input for `-`, each with its validated options.

    A row's own source and options win over `source` and `options`, which hold for all whose source knows them. Raises
    UsageError, which names the file, the line and what is wrong with it.
    """
    found = ShopsFile([], {})

    def take(cells: dict[str, str]) -> tuple[str, str]:
        session, key, name = cells.pop("session", ""), cells.pop("shop", ""), cells.pop("source", "") or source
        request = shop_request(key, name, {**known_options(options, name), **_given(cells)}, settings)
        if session:
            found.sessions[request.source, request.key] = shop_session(request.source, session)
        found.shops.append(request)
        return request.source, request.key

    _take_rows(path, take)
    require_known(options, {request.source for request in found.shops})
    return found


def known_options(options: Mapping[str, str], source: str) -> dict[str, str]:
    """Those of the options that this source knows."""
    names = source_named(source).option_names
    return {name: value for name, value in options.items() if name in names}


def require_known(options: Mapping[str, str], sources: Collection[str]) -> None:
    """Raise UsageError for an option that none of these sources knows."""
    for name in options:
        if not any(name in source_named(source).option_names for source in sources):
            raise UsageError(f"option {name[:40]!r} means nothing to {' or '.join(sorted(sources))}")


def read_sessions(path: str, source: str) -> SessionsOf:
    """The sessions in a CSV with the columns `shop`, `session` and perhaps `source`, or in standard input for `-`.

    Raises UsageError, which names the file, the line and what is wrong with it, and never shows a session.
    """
    sessions: SessionsOf = {}

    def take(cells: dict[str, str]) -> tuple[str, str]:
        key, name, session = cells.pop("shop", ""), cells.pop("source", "") or source, cells.pop("session", "")
        if cells:
            raise UsageError(f"unknown column {min(cells)[:40]!r}; columns: shop, session, source")
        source_named(name).check_shop(key)
        sessions[name, key] = shop_session(name, session)
        return name, key

    _take_rows(path, take)
    return sessions


def shop_session(source: str, text: str) -> str:
    """The session of a shop of this source, checked. Raises UsageError, which never shows it."""
    if not source_named(source).needs_session:
        raise UsageError(f"source {source} takes no sessions")
    return check_session(text)


def _take_rows(path: str, take: Callable[[dict[str, str]], tuple[str, str]]) -> None:
    """Hand over each row's cells; `take` returns the source and shop that it found in them, each of which comes once.

    Raises UsageError with the file and the line.
    """
    name = "standard input" if path == "-" else path
    lines: dict[tuple[str, str], int] = {}
    for number, cells in _rows(_read(path), name):
        try:
            shop = take(cells)
        except UsageError as error:
            raise UsageError(f"{name}, line {number}: {error}") from None
        first = lines.setdefault(shop, number)
        if first != number:
            raise UsageError(f"{name}, line {number}: shop {shop[1]!r} stands in line {first} already")
    if not lines:
        raise UsageError(f"{name}: no shops in it; write one shop per line, or a CSV with the column `shop`")


def changed_options(requests: Sequence[ShopRequest], given: Mapping[str, str], settings: Settings) -> list[ShopRequest]:
    """The same shops with other values of the options given, where their source knows them. Raises UsageError."""
    if not given:
        return list(requests)
    require_known(given, {request.source for request in requests})
    changed = []
    for request in requests:
        options = {name: str(value) for name, value in request.options.items()} | known_options(given, request.source)
        changed.append(shop_request(request.key, request.source, options, settings))
    return changed


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
        # Without a header this is a row, perhaps with a session: only what looks like a column's name is shown.
        shown = ", ".join(column if _COLUMN.fullmatch(column) else "…" for column in columns)[:100]
        raise UsageError(f"{name}, line {line}: bad header: a CSV needs the column `shop`, found {shown}")
    return ["shop"]


def _by_column(cells: list[str], header: list[str], name: str, line: int) -> dict[str, str]:
    if len(cells) > len(header):
        raise UsageError(f"{name}, line {line}: {len(cells)} cells, but the header has {len(header)} columns")
    return dict(zip(header, cells, strict=False))
