"""`shopcrawl webhook`: who is told of changes, and how that goes."""

import sys
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from models.database import Clock, reader
from models.durations import parse_moment
from models.errors import UnavailableError, UsageError
from models.feed import check_kinds
from models.settings import Settings, load_settings
from models.subscriptions import (
    SubscriptionLine,
    add_subscription,
    list_subscriptions,
    pause_subscription,
    redeliver,
    remove_subscription,
    resume_subscription,
)
from models.vault import Vault
from producer import run
from producer.console.text import number, plain
from producer.exports.batches import shops_named
from producer.webhooks.deliver import Deliverer
from producer.webhooks.messages import check_secret, check_url, is_success, new_secret, why

DEFAULT_KINDS = ("price", "new", "gone")
STANDARD_INPUT = "-"

app = typer.Typer(no_args_is_help=True, help="Subscribers that changes are sent to.")

T = TypeVar("T")
Webhook = Annotated[int, typer.Argument(metavar="ID", help="A webhook's number, as `shopcrawl webhook list` shows it.")]


@app.command("add")
def add(
    url: Annotated[str, typer.Argument(metavar="URL", help="Where to send them; https, with a trusted certificate.")],
    kind: Annotated[
        list[str] | None, typer.Option(help="Kinds of changes (repeatable, or with commas); default: price,new,gone.")
    ] = None,
    shop: Annotated[str | None, typer.Option(help="Only of this shop.")] = None,
    source: Annotated[str | None, typer.Option(help="The shop's source, if several have such a shop.")] = None,
    secret: Annotated[
        str | None, typer.Option(help="What signs the messages; - reads it from standard input; default: a new one.")
    ] = None,
    allow_http: Annotated[
        bool, typer.Option("--allow-http", help="Permit http:// to a loopback or private address.")
    ] = False,
) -> None:
    """Send changes to a URL from now on; a secret that is made for it is shown this once."""
    kinds = check_kinds(kind or DEFAULT_KINDS)
    check_url(url, allow_http=allow_http)
    text = sys.stdin.readline(1_000) if secret == STANDARD_INPUT else secret
    chosen = new_secret() if text is None else check_secret(text)
    settings = load_settings()
    vault = Vault(settings)

    async def store(engine: AsyncEngine, clock: Clock) -> int:
        shop_id = None if shop is None else await _shop_id(engine, shop, source)
        async with engine.begin() as connection:
            return await add_subscription(
                connection, vault, url=url, secret=chosen, kinds=kinds, shop_id=shop_id, now=clock.now()
            )

    added = _with_database(settings, store)
    sys.stdout.write(f"webhook {added} gets {', '.join(kinds)}: `shopcrawl webhook test {added}` tries it\n")
    if text is None:
        sys.stdout.write(f"its secret, shown nowhere again: {chosen}\n")


@app.command("list")
def show(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON array to standard output.")] = False,
) -> None:
    """Show each webhook: what it gets, what waits, and why the last delivery failed."""

    async def read(engine: AsyncEngine, _clock: Clock) -> list[SubscriptionLine]:
        async with reader(engine).connect() as connection:
            return await list_subscriptions(connection)

    lines = _with_database(load_settings(), read)
    if json:
        sys.stdout.write(msgspec.json.encode(lines).decode() + "\n")
    else:
        _print(lines)


@app.command("remove")
def remove(webhook: Webhook) -> None:
    """Send nothing more to a webhook, and forget what waits for it."""
    _change(lambda connection, _clock: remove_subscription(connection, webhook))
    sys.stdout.write(f"webhook {webhook} removed\n")


@app.command("pause")
def pause(webhook: Webhook) -> None:
    """Send nothing more for now; changes wait until it is resumed."""
    _change(lambda connection, _clock: pause_subscription(connection, webhook))
    sys.stdout.write(f"webhook {webhook} is paused: changes wait\n")


@app.command("resume")
def resume(webhook: Webhook) -> None:
    """Send again, at once what waits; also ends the pause after a failure."""
    _change(lambda connection, clock: resume_subscription(connection, webhook, clock.now()))
    sys.stdout.write(f"webhook {webhook} is active\n")


@app.command("redeliver")
def send_again(
    webhook: Webhook,
    since: Annotated[str, typer.Option(help="Seen so long ago at most, as 24h or 7d, or since a time (UTC).")],
) -> None:
    """Send changes again that a webhook had, or missed before it was added."""
    count = _change(lambda connection, clock: redeliver(connection, webhook, parse_moment(since, clock.now())))
    sys.stdout.write(f"changes that wait again: {count}\n")


@app.command("test")
def test(webhook: Webhook) -> None:
    """Send a signed message without changes now, and say what was answered."""
    settings = load_settings()

    async def ping(engine: AsyncEngine, clock: Clock) -> tuple[bool, str]:
        answer = await Deliverer(settings, engine, clock).ping(webhook)
        return is_success(answer), why(answer)

    taken, words = _with_database(settings, ping)
    if not taken:
        raise UnavailableError(f"webhook {webhook} did not take the message: {words}")
    sys.stdout.write(f"webhook {webhook} took the message: {words}\n")


@app.command("deliver")
def deliver() -> None:
    """Send what waits now, without a producer that runs; what fails is left for the next time."""
    settings = load_settings()

    async def send_all(engine: AsyncEngine, clock: Clock) -> list[SubscriptionLine]:
        deliverer = Deliverer(settings, engine, clock)
        while not await deliverer.step():
            pass
        async with reader(engine).connect() as connection:
            return await list_subscriptions(connection)

    lines = [line for line in _with_database(settings, send_all) if line.state == "active"]
    left = sum(line.waiting for line in lines)
    if left:
        raise UnavailableError(f"{number(left)} changes still wait: `shopcrawl webhook list` says why")
    sys.stdout.write("nothing waits\n")


def _change(action: Callable[[AsyncConnection, Clock], Awaitable[T]]) -> T:
    async def in_transaction(engine: AsyncEngine, clock: Clock) -> T:
        async with engine.begin() as connection:
            return await action(connection, clock)

    return _with_database(load_settings(), in_transaction)


def _with_database(settings: Settings, action: Callable[[AsyncEngine, Clock], Awaitable[T]]) -> T:
    async def act() -> T:
        async with run.database(settings) as (engine, clock):
            return await action(engine, clock)

    return run.run_until_signalled(act())


async def _shop_id(engine: AsyncEngine, key: str, source: str | None) -> int:
    """The one shop that is meant. Raises UsageError."""
    found = [each for each in await shops_named(engine, [key]) if source in {None, each.source}]
    if len(found) != 1:
        sources = ", ".join(each.source for each in found)
        raise UsageError(f"shop {plain(key, 64)} is in {sources or 'another source'}: say which with --source")
    return found[0].id


def _print(lines: list[SubscriptionLine]) -> None:
    console = Console(markup=False, highlight=False)
    if not lines:
        console.print("no webhook: `shopcrawl webhook add URL` adds one")
        return
    table = Table(box=None, header_style="dim", padding=(0, 1, 0, 0))
    right = {"id", "cursor", "delivered", "waiting", "failures"}
    for name in ("id", "address", "kinds", "shop", "state", "cursor", "delivered", "waiting", "failures", "reason"):
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for line in lines:
        figures = (str(line.cursor), number(line.delivered), number(line.waiting), number(line.failures))
        names = (plain(line.url), ", ".join(line.kinds), plain(line.shop or "all", 40), line.state)
        table.add_row(str(line.id), *names, *figures, plain(line.reason or ""))
    console.print(table)
