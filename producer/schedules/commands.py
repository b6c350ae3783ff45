"""`shopcrawl schedule`: re-crawls that start by themselves, as long as a producer runs."""

import sys
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

import msgspec
import sqlalchemy as sa
import typer
from rich.console import Console
from rich.table import Table

from models import schedules
from models.crawls import ShopRequest, shop_ids
from models.database import reader
from models.durations import parse_duration
from models.errors import UsageError
from models.schedules import ADAPTIVE, BUDGETED, CRON, INTERVAL
from models.settings import Settings, load_settings
from models.source import source_named
from producer import run
from producer.console.text import number, plain
from producer.schedules.starts import DEFAULT_EVERY, Preview, next_time
from producer.schedules.starts import preview as preview_of
from producer.schedules.times import next_cron

DEFAULT_SOURCE = "tmapi"
DEFAULT_SHORTEST = timedelta(hours=1)
DEFAULT_LONGEST = {ADAPTIVE: timedelta(days=7), BUDGETED: timedelta(days=30)}
SMALLEST = timedelta(minutes=1)

app = typer.Typer(no_args_is_help=True, help="Re-crawls that start by themselves, as long as a producer runs.")

Id = Annotated[int, typer.Argument(metavar="ID", help="A schedule's number.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to standard output.")]


class ScheduleLine(msgspec.Struct, frozen=True):
    """One schedule; intervals in seconds, `shop` and `source` null for all."""

    id: int
    kind: str
    source: str | None
    shop: str | None
    mode: str
    every: float | None
    cron: str | None
    timezone: str
    shortest: float | None
    longest: float | None
    daily_calls: int | None
    enabled: bool
    next_at: datetime
    last_crawl: int | None


@app.command("add")
def add(
    all_shops: Annotated[bool, typer.Option("--all", help="Every shop ever crawled.")] = False,
    shop: Annotated[list[str] | None, typer.Option(help="This shop, with a schedule of its own (repeatable).")] = None,
    source: Annotated[str | None, typer.Option(help="Every shop of this source; with --shop: that shop's.")] = None,
    every: Annotated[str | None, typer.Option(help="Interval, as 6h; with --adaptive the first one.")] = None,
    cron: Annotated[str | None, typer.Option(help='Cron expression, as "0 3 * * *".')] = None,
    timezone: Annotated[str | None, typer.Option(help="Time zone of --cron, as Asia/Shanghai; default: UTC.")] = None,
    adaptive: Annotated[bool, typer.Option("--adaptive", help="Sooner for shops in which much changes.")] = False,
    budget: Annotated[int | None, typer.Option(min=1, help="Calls a day (UTC), spent where most changes.")] = None,
    shortest: Annotated[str | None, typer.Option(help="Shortest time between crawls of a shop (default: 1h).")] = None,
    longest: Annotated[
        str | None, typer.Option(help="Longest time (default: 7d; with --budget 30d, as far as it suffices).")
    ] = None,
    mode: Annotated[Literal["full", "new"], typer.Option(help="new: only what was added or changed.")] = "full",
) -> None:
    """Start re-crawls by interval, by cron, as shops change (--adaptive), or by worth for a budget of calls."""
    settings = load_settings()
    if all_shops + bool(shop) + bool(source and not shop) != 1:
        raise UsageError("say which shops: --all, --shop or --source")
    kind = _kind(every, cron, adaptive, budget)
    _refuse_misfits(kind, bool(shop), timezone, shortest, longest, mode)
    if source is not None:
        source_named(source)
    values: dict[str, Any] = {
        "kind": kind,
        "mode": mode,
        "cron": cron,
        "timezone": timezone or "UTC",
        "daily_calls": budget,
    }
    values |= _intervals(kind, every, shortest, longest)
    ids = run.run_until_signalled(_add(settings, values, source, list(dict.fromkeys(shop or []))))
    for schedule_id, next_at in ids:
        sys.stdout.write(f"schedule {schedule_id} added; first look at {next_at:%Y-%m-%d %H:%M} UTC\n")


def _kind(every: str | None, cron: str | None, adaptive: bool, budget: int | None) -> str:
    """Which kind of schedule these options mean. Raises UsageError."""
    chosen = [
        kind
        for kind, given in (
            (INTERVAL, every is not None and not adaptive),
            (CRON, cron is not None),
            (ADAPTIVE, adaptive),
            (BUDGETED, budget is not None),
        )
        if given
    ]
    if len(chosen) != 1:
        raise UsageError("say when, in one way: --every, --cron, --adaptive or --budget")
    return chosen[0]


def _refuse_misfits(
    kind: str, one_shop: bool, timezone: str | None, shortest: str | None, longest: str | None, mode: str
) -> None:
    """Raise UsageError for options that mean nothing together."""
    if timezone is not None and kind != CRON:
        raise UsageError("--timezone goes with --cron")
    learns = kind in {ADAPTIVE, BUDGETED}
    if (shortest or longest) and not learns:
        raise UsageError("--shortest and --longest go with --adaptive or --budget")
    if learns and mode != "full":
        raise UsageError("--adaptive and --budget learn from full crawls: leave out --mode")
    if kind == BUDGETED and one_shop:
        raise UsageError("--budget chooses among many shops: --all or --source")


def _intervals(kind: str, every: str | None, shortest: str | None, longest: str | None) -> dict[str, float | None]:
    """The columns `every`, `shortest` and `longest`, in seconds. Raises UsageError."""
    first = parse_duration(every) if every else DEFAULT_EVERY
    if first < SMALLEST:
        raise UsageError("--every must be 1m or more")
    if kind not in {ADAPTIVE, BUDGETED}:
        return {"every": first.total_seconds() if kind == INTERVAL else None, "shortest": None, "longest": None}
    low = parse_duration(shortest) if shortest else DEFAULT_SHORTEST
    high = parse_duration(longest) if longest else max(DEFAULT_LONGEST[kind], low)
    if not SMALLEST <= low <= high:
        raise UsageError("--shortest must be 1m or more, and --longest no shorter than that")
    first = min(high, max(low, first))
    return {"every": first.total_seconds(), "shortest": low.total_seconds(), "longest": high.total_seconds()}


async def _add(
    settings: Settings, values: dict[str, Any], source: str | None, shops: Sequence[str]
) -> list[tuple[int, datetime]]:
    requests = [ShopRequest(source or DEFAULT_SOURCE, key, {}) for key in shops]
    for request in requests:
        source_named(request.source).check_shop(request.key)
    async with run.database(settings) as (engine, clock):
        now = clock.now()
        values |= {"enabled": True, "next_at": _first_time(values, now), "created_at": now}
        async with engine.begin() as connection:
            ids = await shop_ids(connection, requests, now)
            scopes: list[dict[str, Any]] = [{"source": None, "shop_id": shop_id} for shop_id in ids.values()]
            added = [
                await schedules.add_schedule(connection, values | scope)
                for scope in scopes or [{"source": source, "shop_id": None}]
            ]
    return [(schedule_id, values["next_at"]) for schedule_id in added]


def _first_time(values: dict[str, Any], now: datetime) -> datetime:
    """When a schedule is looked at first: what learns begins at once, the others at their next time."""
    if values["kind"] == CRON:
        return next_cron(values["cron"], values["timezone"], now)
    return now + timedelta(seconds=values["every"]) if values["kind"] == INTERVAL else now


@app.command("list")
def show(json: Json = False) -> None:
    """Show every schedule, when it is looked at next, and the crawl it started last."""
    lines = run.run_until_signalled(_list(load_settings()))
    if json:
        sys.stdout.write(msgspec.json.encode(lines).decode() + "\n")
    else:
        _print(lines)


async def _list(settings: Settings) -> list[ScheduleLine]:
    async with run.database(settings) as (engine, _clock), reader(engine).connect() as connection:
        return [_line(row) for row in await schedules.schedules(connection)]


def _line(row: sa.Row[Any]) -> ScheduleLine:
    return ScheduleLine(
        id=row.id,
        kind=row.kind,
        source=row.shop_source or row.source,
        shop=row.shop,
        mode=row.mode,
        every=row.every if row.kind in {INTERVAL, ADAPTIVE} else None,
        cron=row.cron,
        timezone=row.timezone,
        shortest=row.shortest,
        longest=row.longest,
        daily_calls=row.daily_calls,
        enabled=row.enabled,
        next_at=row.next_at,
        last_crawl=row.last_crawl_id,
    )


def _print(lines: Sequence[ScheduleLine]) -> None:
    console = Console(markup=False, highlight=False)
    if not lines:
        console.print('no schedule yet: add one with `shopcrawl schedule add --all --cron "0 3 * * *"`')
        return
    table = Table(box=None, header_style="dim", padding=(0, 1, 0, 0))
    for name in ("id", "shops", "when", "mode", "next look (UTC)", "last crawl"):
        table.add_column(name, no_wrap=name not in {"shops", "when"})
    for line in lines:
        shops = (
            f"{line.source} {plain(line.shop, 40)}" if line.shop else f"all of {line.source}" if line.source else "all"
        )
        next_at = f"{line.next_at:%Y-%m-%d %H:%M}" if line.enabled else "disabled"
        table.add_row(str(line.id), shops, _when(line), line.mode, next_at, str(line.last_crawl or "–"))
    console.print(table)


def _when(line: ScheduleLine) -> str:
    """The times of a schedule in words."""
    bounds = f"{_span(line.shortest or 0)} to {_span(line.longest or 0)}"
    match line.kind:
        case "interval":
            return f"every {_span(line.every or 0)}"
        case "cron":
            return f"{plain(line.cron or '', 60)} ({line.timezone})"
        case "adaptive":
            return f"adaptive, {bounds}"
    return f"{number(line.daily_calls or 0)} calls a day, {bounds}"


def _span(seconds: float) -> str:
    """An interval as `parse_duration` reads it."""
    unit, letter = next(
        (size, name) for size, name in ((86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")) if seconds % size == 0
    )
    return f"{seconds / unit:.0f}{letter}"


@app.command("remove")
def remove(schedule_id: Id) -> None:
    """Remove a schedule; what it has started stays."""
    run.run_until_signalled(_remove(load_settings(), schedule_id))
    sys.stdout.write(f"schedule {schedule_id} removed\n")


async def _remove(settings: Settings, schedule_id: int) -> None:
    async with run.database(settings) as (engine, _clock), engine.begin() as connection:
        if not await schedules.remove_schedule(connection, schedule_id):
            raise _unknown(schedule_id)


@app.command("enable")
def enable(schedule_id: Id) -> None:
    """Let a schedule start re-crawls again, from its next time on."""
    run.run_until_signalled(_enable(load_settings(), schedule_id, enabled=True))
    sys.stdout.write(f"schedule {schedule_id} enabled\n")


@app.command("disable")
def disable(schedule_id: Id) -> None:
    """Keep a schedule from starting re-crawls; what it has started goes on."""
    run.run_until_signalled(_enable(load_settings(), schedule_id, enabled=False))
    sys.stdout.write(f"schedule {schedule_id} disabled\n")


async def _enable(settings: Settings, schedule_id: int, *, enabled: bool) -> None:
    """Times that passed while it was disabled are not made up."""
    async with run.database(settings) as (engine, clock), engine.begin() as connection:
        found = await schedules.schedules(connection, schedule_id)
        if not found:
            raise _unknown(schedule_id)
        values: dict[str, Any] = {"enabled": enabled}
        if enabled and found[0].next_at <= clock.now():
            values["next_at"] = next_time(found[0], clock.now())
        await schedules.update_schedule(connection, schedule_id, **values)


@app.command("preview")
def preview(schedule_id: Id, json: Json = False) -> None:
    """Show when a schedule is due and what it would start, without a call."""
    found = run.run_until_signalled(_preview(load_settings(), schedule_id))
    if json:
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    else:
        _print_preview(found)


async def _preview(settings: Settings, schedule_id: int) -> Preview:
    async with run.database(settings) as (engine, clock), engine.connect() as connection:
        found = await preview_of(connection, schedule_id, clock.now())
        await connection.rollback()
    if found is None:
        raise _unknown(schedule_id)
    return found


def _print_preview(found: Preview) -> None:
    console = Console(markup=False, highlight=False)
    console.print(f"schedule {found.schedule} is about {number(found.shops)} shops")
    times = ", ".join(f"{moment:%Y-%m-%d %H:%M}" for moment in found.times) or "none yet"
    console.print(f"next times (UTC): {times}")
    calls = f", at most {number(found.calls)} calls" if found.calls is not None else ""
    changes = f", about {number(found.changes)} changes to find" if found.changes is not None else ""
    console.print(f"would start: {number(found.starts)} shops{calls}{changes}")
    for source, shop in found.examples:
        console.print(f"  {source} {plain(shop, 60)}")
    if found.starts > len(found.examples):
        console.print(f"  and {number(found.starts - len(found.examples))} more")


def _unknown(schedule_id: int) -> UsageError:
    return UsageError(f"there is no schedule {schedule_id}: `shopcrawl schedule list` shows them")
