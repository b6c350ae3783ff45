"""The command that shows which shops and sources rest, and the one that ends their rests."""

import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

import msgspec
import sqlalchemy as sa
import typer
from rich.console import Console
from rich.table import Table
from sqlalchemy.ext.asyncio import AsyncConnection

from models.circuits import OpenCircuit, open_circuits, reset_circuits
from models.errors import UsageError
from models.settings import Settings, load_settings
from models.source import source_named, source_names
from models.tables import page
from producer import run
from producer.console.progress import rest_words
from producer.console.text import plain
from producer.dispatch import READY
from producer.services import fleets_redis

SHOPS_AT_ONCE = 1_000

app = typer.Typer(help="Shops and sources that rest because nearly every call for them fails alike, as with 417.")

Source = Annotated[str | None, typer.Option(help="Only this source.")]


@app.callback(invoke_without_command=True)
def circuits(
    context: typer.Context,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON array to standard output.")] = False,
) -> None:
    """Show which shops and sources rest, until when, and why."""
    if context.invoked_subcommand is not None:
        return
    found = run.run_until_signalled(_list(load_settings()))
    if json:
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    else:
        _print(found)


@app.command("reset")
def reset(
    shop: Annotated[str | None, typer.Argument(help="Shop key.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every shop, and the sources themselves.")] = False,
    source: Source = None,
) -> None:
    """Call a shop again at once, or all that rest; pages that are dead stay so until a re-crawl."""
    if (shop is None) != all_:
        raise UsageError("say which: a shop key, or --all")
    count = len(run.run_until_signalled(_reset(load_settings(), [source] if source else source_names(), shop)))
    if shop is not None and not count:
        raise UsageError(f"shop {plain(shop, 64)} does not rest: `shopcrawl circuits` shows what does")
    sys.stdout.write(f"circuits reset: {count}\n")


async def _list(settings: Settings) -> list[OpenCircuit]:
    async with run.database(settings), fleets_redis(settings) as redis:
        return [circuit for source in source_names() for circuit in await open_circuits(redis, source)]


async def _reset(settings: Settings, sources: Sequence[str], shop: str | None) -> list[OpenCircuit]:
    """Close circuits, then make the pages due that were put back for them."""
    for source in sources:
        source_named(source)
    async with run.database(settings) as (engine, clock), fleets_redis(settings) as redis:
        found = [circuit for source in sources for circuit in await reset_circuits(redis, source, shop)]
        async with engine.begin() as connection:
            await _make_due(connection, found, clock.now())
    return found


async def _make_due(connection: AsyncConnection, circuits: Sequence[OpenCircuit], now: datetime) -> None:
    waiting = sa.update(page).where(page.c.state == READY, page.c.due_at > now).values(due_at=now)
    sources = [circuit.source for circuit in circuits if circuit.shop_crawl is None]
    await connection.execute(waiting.where(page.c.source.in_(sources)))
    shops = [circuit.shop_crawl for circuit in circuits if circuit.shop_crawl is not None]
    for start in range(0, len(shops), SHOPS_AT_ONCE):
        await connection.execute(waiting.where(page.c.shop_crawl_id.in_(shops[start : start + SHOPS_AT_ONCE])))


def _print(found: Sequence[OpenCircuit]) -> None:
    console = Console(markup=False, highlight=False)
    if not found:
        console.print("nothing rests")
        return
    table = Table(box=None, header_style="dim", padding=(0, 1, 0, 0))
    for name in ("source", "shop", "failed", "rests", "state", "reason"):
        table.add_column(name, no_wrap=name != "reason", justify="right" if name in {"failed", "rests"} else "left")
    for circuit in found:
        shop = plain(circuit.shop or "(all)", 40)
        figures = (f"{circuit.share:.0%}", str(circuit.level), rest_words(circuit))
        table.add_row(circuit.source, shop, *figures, plain(circuit.reason, 120))
    console.print(table)
