"""`shopcrawl changes`: what changed in the shops, on the terminal or as a file."""

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Literal

import sqlalchemy as sa
import typer
from rich.console import Console
from sqlalchemy.ext.asyncio import AsyncEngine

from models.durations import parse_moment
from models.errors import UsageError
from models.feed import Entry, Wanted, check_kinds, count_changes, read_changes
from models.settings import Settings, load_settings
from models.tables import Document, Key, UtcDateTime
from producer import run
from producer.console.changes import MOST_COUNTED, print_changes
from producer.exports.batches import shops_named
from producer.exports.formats import Fields, Rows, write_rows

SHOWN = 50
MOST_SHOPS = 100
DEFAULT_SINCE = "24h"
FIELDS: Fields = {
    "id": sa.BigInteger(),
    "at": UtcDateTime(),
    **dict.fromkeys(("source", "shop", "item_id", "kind"), Key),
    "title": sa.Text(),
    **dict.fromkeys(("before", "after"), Document),
}


def changes(
    since: Annotated[
        str, typer.Option(help="Seen so long ago at most, as 24h or 7d, or since a time (UTC).")
    ] = DEFAULT_SINCE,
    shop: Annotated[list[str] | None, typer.Option(help="Only of this shop (repeatable).")] = None,
    kind: Annotated[
        list[str] | None, typer.Option(help="Only price, new, gone, back, title, stock … (repeatable, or with commas).")
    ] = None,
    format: Annotated[Literal["table", "jsonl", "csv", "parquet"], typer.Option(help="How to show them.")] = "table",
    limit: Annotated[
        int | None, typer.Option(min=1, help=f"Only so many, the newest; a table has {SHOWN} by default.")
    ] = None,
    output: Annotated[str, typer.Option("--output", "-o", help="File; - is standard output.")] = "-",
) -> None:
    """Show what changed, the newest last: prices, titles, stock and so on, and items that are new, gone or back."""
    if format == "table" and output != "-":
        raise UsageError("a table is for the terminal: choose --format jsonl, csv or parquet for a file")
    kinds = check_kinds(kind or ())
    count = run.run_until_signalled(_changes(load_settings(), since, shop, kinds, format, limit, output))
    if not count:
        of = f" of kind {' or '.join(kinds)}" if kinds else ""
        sys.stderr.write(f"no change{of} since {since}\n")
    elif output != "-":
        sys.stderr.write(f"{count} changes written to {output}\n")


async def _changes(
    settings: Settings,
    since: str,
    shops: Sequence[str] | None,
    kinds: tuple[str, ...],
    format: str,
    limit: int | None,
    output: str,
) -> int:
    async with run.database(settings) as (engine, clock):
        wanted = Wanted(parse_moment(since, clock.now()), await _shop_ids(engine, shops), kinds)
        if format == "table":
            return await _show(engine, wanted, limit or SHOWN)
        rows = _rows(read_changes(engine, wanted, newest=limit))
        if output == "-":
            return await write_rows(sys.stdout.buffer, format, FIELDS, rows)
        try:
            stream = await asyncio.to_thread(open, output, "wb")
        except OSError as error:
            raise UsageError(f"{output}: {error.strerror}") from None
        with stream:
            return await write_rows(stream, format, FIELDS, rows)


async def _shop_ids(engine: AsyncEngine, keys: Sequence[str] | None) -> tuple[int, ...]:
    if keys is None:
        return ()
    if len(keys) > MOST_SHOPS:
        raise UsageError(f"more than {MOST_SHOPS} shops: leave them out to see the changes of all")
    return tuple(found.id for found in await shops_named(engine, keys))


async def _show(engine: AsyncEngine, wanted: Wanted, limit: int) -> int:
    entries = [entry async for batch in read_changes(engine, wanted, newest=limit) for entry in batch]
    if entries:
        count = await count_changes(engine, wanted, limit + MOST_COUNTED)
        print_changes(Console(), entries, count - len(entries))
    return len(entries)


async def _rows(batches: AsyncIterator[list[Entry]]) -> AsyncIterator[Rows]:
    async for batch in batches:
        yield [[getattr(entry, name) for name in FIELDS] for entry in batch]
