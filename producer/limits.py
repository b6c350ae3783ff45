"""The commands that show and set the limits in force."""

import sys
from collections.abc import Sequence
from typing import Annotated

import msgspec
import typer
from redis.asyncio import Redis
from rich.console import Console
from rich.table import Table
from sqlalchemy.ext.asyncio import AsyncEngine

from models import fleet, limits
from models.database import Clock, reader
from models.errors import UsageError
from models.fleet import WHOLE_SOURCE, LimitState
from models.settings import Settings, load_settings
from models.source import Limits, source_named, source_names
from producer import run
from producer.console.text import number, plain
from producer.services import fleets_redis

DAY_SECONDS = 86_400

app = typer.Typer(help="The limits that the whole fleet obeys.")


class LimitLine(msgspec.Struct, frozen=True):
    """One credential's limit, in calls in flight: now, its bounds, and the highest known to be good (0: none yet).

    `rate` in calls per second and `per_day` in calls, 0 for none; `order` is what an operator has set.
    """

    source: str
    credential: str
    limit: int
    floor: float
    ceiling: float
    fixed: bool
    best: int
    in_flight: int
    waiting: int
    rate: float
    per_day: int
    used_today: int
    processes: int
    parked: str | None
    banned: str | None
    banned_seconds: float
    order: dict[str, float]


@app.callback(invoke_without_command=True)
def show(
    context: typer.Context,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON array to standard output.")] = False,
) -> None:
    """Show each credential's limit, its bounds, who uses it, and what keeps it from being used."""
    if context.invoked_subcommand is not None:
        return
    lines = run.run_until_signalled(_list(load_settings()))
    if json:
        sys.stdout.write(msgspec.json.encode(lines).decode() + "\n")
    else:
        _print(lines)


@app.command("set")
def set_limits(
    source: Annotated[str, typer.Argument(help="Source.")],
    credential: Annotated[
        str | None, typer.Option(help="Only this credential, as `shopcrawl limits` names it.")
    ] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Always so many calls in flight.")] = None,
    rate: Annotated[float | None, typer.Option(min=0, help="Calls per second; 0: any number.")] = None,
    floor: Annotated[int | None, typer.Option(min=1, help="Fewest calls in flight.")] = None,
    ceiling: Annotated[int | None, typer.Option(min=1, help="Most calls in flight.")] = None,
    auto: Annotated[
        bool, typer.Option("--auto", help="Forget what was set: settings and adaption count again.")
    ] = False,
) -> None:
    """Set limits for the whole fleet, at once and until they are set otherwise."""
    settings = load_settings()
    source_named(source)
    given = {"concurrency": concurrency, "rate": rate, "floor": floor, "ceiling": ceiling}
    wanted = {name: float(value) for name, value in given.items() if value is not None}
    if bool(wanted) == auto:
        raise UsageError("say what to set: --concurrency, --rate, --floor or --ceiling; or --auto alone")
    if concurrency is not None and not wanted.keys().isdisjoint({"floor", "ceiling"}):
        raise UsageError("--concurrency leaves nothing between --floor and --ceiling: give one or the others")
    order = run.run_until_signalled(_set(settings, source, credential, wanted))
    words = " ".join(f"{name}={value:g}" for name, value in sorted(order.items())) or "auto"
    sys.stdout.write(f"{source} {credential or '(all credentials)'}: {words}\n")


def merged(known: dict[str, float], wanted: dict[str, float]) -> dict[str, float]:
    """An earlier order with what is wanted now; nothing wanted: no order. Raises UsageError."""
    if not wanted:
        return {}
    replaced = {"floor", "ceiling"} if "concurrency" in wanted else set()
    if not wanted.keys().isdisjoint({"floor", "ceiling"}):
        replaced = {"concurrency"}
    order = {name: value for name, value in known.items() if name not in replaced} | wanted
    if order.get("floor", 0) > order.get("ceiling", float("inf")):
        raise UsageError(f"the floor {order['floor']:g} is above the ceiling {order['ceiling']:g}")
    return order


async def _set(settings: Settings, source: str, credential: str | None, wanted: dict[str, float]) -> dict[str, float]:
    scope = credential or WHOLE_SOURCE
    async with run.database(settings) as (engine, clock), fleets_redis(settings) as redis:
        known = {line.credential for line in await _lines(engine, redis, settings, clock) if line.source == source}
        if credential is not None and credential not in known:
            names = ", ".join(sorted(known)) or "none is configured here or was used"
            raise UsageError(f"unknown credential {plain(credential, 40)!r} of {source}; known: {names}")
        async with engine.begin() as connection:
            order = merged((await limits.orders(connection, source)).get(scope, {}), wanted)
            await limits.set_order(connection, source, scope, order, clock.now())
        await fleet.set_order(redis, source, scope, order)
    return order


async def _list(settings: Settings) -> list[LimitLine]:
    async with run.database(settings) as (engine, clock), fleets_redis(settings) as redis:
        return await _lines(engine, redis, settings, clock)


async def _lines(engine: AsyncEngine, redis: Redis, settings: Settings, clock: Clock) -> list[LimitLine]:
    lines = []
    for source in source_names():
        adapter = source_named(source)
        async with reader(engine).connect() as connection:
            orders = await limits.orders(connection, source)
            memory = await limits.remembered(connection, source)
        memory |= await fleet.learnt(redis, source)
        states = {state.credential: state for state in await fleet.limit_states(redis, source)}
        for name in sorted({*states, *(credential.name for credential in adapter.credentials(settings))}):
            bounds = limits.obeying(adapter.limits(settings), orders, name)
            learnt = memory.get(name, fleet.Learnt())
            today = int((clock.now().timestamp() + bounds.day_shift) // DAY_SECONDS)
            used = learnt.used if learnt.day == today else 0
            order = {**orders.get(WHOLE_SOURCE, {}), **orders.get(name, {})}
            lines.append(_line(source, name, bounds, states.get(name), learnt, used, order))
    return lines


def _line(
    source: str,
    name: str,
    bounds: Limits,
    state: LimitState | None,
    learnt: fleet.Learnt,
    used: int,
    order: dict[str, float],
) -> LimitLine:
    state = state or LimitState(source, name, 0, 0, 0, 0, 0, None)
    expected = max(bounds.floor, min(bounds.ceiling, learnt.limit or bounds.start))
    return LimitLine(
        source=source,
        credential=name,
        limit=state.limit if state.processes else int(expected),
        floor=bounds.floor,
        ceiling=bounds.ceiling,
        fixed=bounds.floor >= bounds.ceiling,
        best=learnt.knee,
        in_flight=state.in_flight,
        waiting=state.waiting,
        rate=bounds.rate,
        per_day=bounds.per_day,
        used_today=used,
        processes=state.processes,
        parked=state.parked,
        banned=state.ban.reason if state.ban else None,
        banned_seconds=state.ban.seconds if state.ban else 0,
        order=order,
    )


def _print(lines: Sequence[LimitLine]) -> None:
    table = Table(box=None, header_style="dim", padding=(0, 1, 0, 0))
    for name in (
        "source",
        "credential",
        "limit",
        "bounds",
        "best",
        "in flight",
        "waiting",
        "rate",
        "today",
        "processes",
    ):
        table.add_column(name, no_wrap=True, justify="left" if name in {"source", "credential"} else "right")
    for line in lines:
        bounds = "fixed" if line.fixed else f"{line.floor:g}-{line.ceiling:g}"
        today = f"{number(line.used_today)} of {number(line.per_day)}" if line.per_day else "-"
        figures = (number(line.limit), bounds, number(line.best) if line.best else "-", number(line.in_flight))
        rate = f"{line.rate:g}/s" if line.rate else "-"
        more = (number(line.waiting), rate, today, number(line.processes))
        table.add_row(line.source, plain(line.credential, 20), *figures, *more)
    console = Console(markup=False, highlight=False)
    if table.row_count:
        console.print(table)
        for line in lines:
            if state := _state(line):
                console.print(f"{line.source} {plain(line.credential, 20)}: {plain(state, 200)}")
    else:
        console.print("no credential is configured here or was used")


def _state(line: LimitLine) -> str:
    if line.parked is not None:
        return f"parked: {line.parked}"
    if line.banned is not None:
        return f"banned for {line.banned_seconds:.0f} s: {line.banned}"
    return (
        " ".join(["set by hand:", *(f"{name}={value:g}" for name, value in line.order.items())]) if line.order else ""
    )
