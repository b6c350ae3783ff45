"""`shopcrawl costs`: settled calls and money by day, shop, crawl, credential, outcome or source."""

import csv
import io
import sys
from collections.abc import Callable
from decimal import Decimal
from typing import Annotated, Any, Literal

import msgspec
import typer
from rich.console import Console

from models.costs import KEYS, CostRow, Costs, Scope, costs, snapshot
from models.durations import parse_duration
from models.settings import Settings, load_settings
from models.source import source_named
from producer import run
from producer.console.costs import print_costs

FIGURES = ("calls", "cost", "share", "in_flight", "unknown", "set_aside")

By = Literal["day", "shop", "crawl", "credential", "outcome", "source"]


def show_costs(
    by: Annotated[By, typer.Option(help="What to sum by; days are UTC.")] = "day",
    format: Annotated[Literal["table", "csv", "json"], typer.Option(help="How to print it.")] = "table",
    since: Annotated[str | None, typer.Option(help="Only calls settled so long ago at most, as 24h or 7d.")] = None,
    crawl: Annotated[int | None, typer.Option(help="Only this crawl.")] = None,
    source: Annotated[str | None, typer.Option(help="Only this source.")] = None,
) -> None:
    """Show what calls have cost, which are in flight, and which were never heard of again."""
    settings = load_settings()
    if source is not None:
        source_named(source)
    found = run.run_until_signalled(_read(settings, by, since, crawl, source))
    if format == "table":
        print_costs(Console(), found, settings.currency)
    else:
        sys.stdout.write(PRINTERS[format](found, settings.currency))


async def _read(settings: Settings, by: str, since: str | None, crawl: int | None, source: str | None) -> Costs:
    age = parse_duration(since) if since else None
    async with run.database(settings) as (engine, clock), snapshot(engine) as connection:
        return await costs(connection, by, Scope(None if age is None else clock.now() - age, crawl, source))


def as_json(found: Costs, currency: str) -> str:
    """One object; money and shares are decimal text, null is what the ledger cannot tell."""
    names = KEYS[found.by]
    rows = [dict(zip(names, row.key, strict=True)) | _figures(row) for row in found.rows]
    whole = {"by": found.by, "currency": currency, "rows": rows, "total": _figures(found.total)}
    return msgspec.json.encode(whole).decode() + "\n"


def _figures(row: CostRow) -> dict[str, Any]:
    values = {name: getattr(row, name) for name in FIGURES}
    return {name: format(value, "f") if isinstance(value, Decimal) else value for name, value in values.items()}


def as_csv(found: Costs, currency: str) -> str:
    """RFC 4180 with a header, and the total as the last row; keys that look like a formula are made harmless."""
    from producer.exports.formats import safe_cell  # noqa: PLC0415 (takes a moment to import)

    names, text = KEYS[found.by], io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow([*names, *FIGURES, "currency"])
    for row in (*found.rows, found.total):
        keys = [*map(safe_cell, row.key), *[""] * (len(names) - len(row.key))]
        figures = ["" if value is None else value for value in _figures(row).values()]
        writer.writerow([*keys, *figures, safe_cell(currency)])
    return text.getvalue()


PRINTERS: dict[str, Callable[[Costs, str], str]] = {"json": as_json, "csv": as_csv}
