"""The commands that set, show and drop the shops' own sessions, and those for the key that seals them."""

import getpass
import sys
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from sqlalchemy.ext.asyncio import AsyncConnection

from models.crawls import ShopRequest, shop_ids
from models.database import Clock, reader
from models.errors import UnavailableError, UsageError
from models.sessions import (
    LONGEST_SESSION,
    SessionLine,
    check_session,
    forget_session,
    list_sessions,
    reseal_all,
    save_sessions,
)
from models.settings import Settings, load_settings
from models.source import source_named
from models.subscriptions import reseal_subscriptions
from models.vault import WRONG_KEY, Vault, new_key
from producer import run
from producer.shops import SessionsOf, read_sessions, shop_session

app = typer.Typer(no_args_is_help=True, help="The shops' own sessions, which some sources need; shown nowhere.")

Source = Annotated[str, typer.Option(help="Source of the shop.")]
DEFAULT_SOURCE = "top"


async def keep_sessions(connection: AsyncConnection, vault: Vault, sessions: SessionsOf, clock: Clock) -> int:
    """Store sessions, also of shops never seen before; returns how many held shop crawls go on. Raises UsageError."""
    if not sessions:
        return 0
    requests = [ShopRequest(source, key, {}) for source, key in sessions]
    ids = await shop_ids(connection, requests, clock.now())
    return await save_sessions(connection, vault, {ids[shop]: text for shop, text in sessions.items()}, clock.now())


@app.command("set")
def set_session(shop: str, source: Source = DEFAULT_SOURCE) -> None:
    """Store the session of a shop, read from standard input; what waited for it goes on."""
    settings = load_settings()
    source_named(source).check_shop(shop)
    text = shop_session(source, _read_session(shop))
    _store(settings, {(source, shop): text})


@app.command("import")
def import_sessions(
    file: Annotated[str, typer.Argument(help="CSV with the columns `shop` and `session`; - is standard input.")],
    source: Annotated[str, typer.Option(help="Source of shops that name none.")] = DEFAULT_SOURCE,
) -> None:
    """Store the sessions of many shops; what waited for them goes on."""
    settings = load_settings()
    _store(settings, read_sessions(file, source))


@app.command("list")
def show_sessions(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON array to standard output.")] = False,
) -> None:
    """Show which shops have a session, since when, and whether it was refused."""
    lines = run.run_until_signalled(_list(load_settings()))
    if json:
        sys.stdout.write(msgspec.json.encode(lines).decode() + "\n")
    else:
        _print(lines)


@app.command("forget")
def forget(shop: str, source: Source = DEFAULT_SOURCE) -> None:
    """Delete the session of a shop; workers that have it at hand use it for a minute more."""
    run.run_until_signalled(_forget(load_settings(), source, shop))
    sys.stdout.write(f"session of {shop} forgotten\n")


@app.command("rotate")
def rotate() -> None:
    """Seal every session and webhook's secret anew, with SHOPCRAWL_SECRET_KEY's newest key or a new one in the file."""
    resealed, unreadable = run.run_until_signalled(_rotate(load_settings()))
    sys.stdout.write(f"sealed with the newest key: {resealed}\n")
    if unreadable:
        raise UnavailableError(f"left out: {unreadable}, {WRONG_KEY}: add that key, or set them anew")


@app.command("key")
def key() -> None:
    """Print a new key for SHOPCRAWL_SECRET_KEY."""
    sys.stdout.write(f"{new_key()}\n")


def _read_session(shop: str) -> str:
    """The session from standard input, typed unseen at a terminal. Raises UsageError, which never shows it."""
    if sys.stdin.isatty():
        return check_session(getpass.getpass(f"session of {shop}: "))
    try:
        # A little more than the longest one with its line end: enough to see that it is too long.
        return check_session(sys.stdin.buffer.read(LONGEST_SESSION + 3).decode())
    except UnicodeDecodeError:
        raise UsageError("the session is no UTF-8 text") from None


def _store(settings: Settings, sessions: SessionsOf) -> None:
    count, continued = run.run_until_signalled(_save(settings, sessions))
    hint = ": run `shopcrawl resume`" if continued and settings.redis_url is None else ""
    sys.stdout.write(f"sessions stored: {count}; held shop crawls that go on: {continued}{hint}\n")


async def _save(settings: Settings, sessions: SessionsOf) -> tuple[int, int]:
    vault = Vault(settings)
    async with run.database(settings) as (engine, clock), engine.begin() as connection:
        return len(sessions), await keep_sessions(connection, vault, sessions, clock)


async def _list(settings: Settings) -> list[SessionLine]:
    async with run.database(settings) as (engine, _clock), reader(engine).connect() as connection:
        return await list_sessions(connection)


async def _forget(settings: Settings, source: str, shop: str) -> None:
    async with run.database(settings) as (engine, _clock), engine.begin() as connection:
        if not await forget_session(connection, source, shop):
            raise UsageError(
                f"no session of {shop[:64]!r} ({source[:40]}) is stored: `shopcrawl session list` shows all"
            )


async def _rotate(settings: Settings) -> tuple[int, int]:
    vault = Vault(settings)
    async with run.database(settings) as (engine, _clock):
        with vault.rotation():
            sessions = await reseal_all(engine, vault)
            async with engine.begin() as connection:
                webhooks = await reseal_subscriptions(connection, vault)
    return sessions[0] + webhooks[0], sessions[1] + webhooks[1]


def _print(lines: list[SessionLine]) -> None:
    console = Console(markup=False, highlight=False)
    if not lines:
        console.print("no session is stored: `shopcrawl session set SHOP` stores one")
        return
    table = Table(box=None, header_style="dim", padding=(0, 1, 0, 0))
    for name in ("source", "shop", "set (UTC)", "state", "reason"):
        table.add_column(name, no_wrap=name != "reason")
    for line in lines:
        table.add_row(line.source, line.shop, f"{line.set_at:%Y-%m-%d %H:%M}", line.state, line.reason or "")
    console.print(table)
