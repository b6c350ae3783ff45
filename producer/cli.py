"""The command line: every command reads the settings, calls one function, and turns its result into an exit code."""

import sys
import traceback
from collections.abc import Mapping, Sequence
from datetime import timedelta
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, NoReturn

import msgspec
import typer
from rich.console import Console
from sqlalchemy.ext.asyncio import AsyncConnection

from models.addresses import warn_if_plain_http
from models.crawls import Budget, ShopRequest, Submission, known_shops, submit_crawl, submit_plan, submit_recrawl
from models.database import Clock
from models.durations import parse_duration
from models.errors import ShopcrawlError, UsageError
from models.logs import configure_logging
from models.messages import NORMAL_PRIORITY
from models.modes import REFRESH
from models.redact import redact
from models.settings import Settings, load_settings
from models.source import source_named
from models.status import VERDICTS, CrawlStatus, exit_code
from models.vault import Vault
from producer import changes, circuits, commands, limits, run, sessions
from producer.archive.commands import replay
from producer.archive.drift import drift
from producer.console.estimate import print_estimate
from producer.costs import show_costs
from producer.exports import export
from producer.modes import ModeName, chosen_mode, whole
from producer.schedules import commands as schedule_cli
from producer.shops import changed_options, read_shops, shop_request
from producer.show import show
from producer.webhooks import commands as subscriptions

INTERRUPTED = 130
DEFAULT_SOURCE = "tmapi"

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
app.add_typer(commands.database, name="db")
app.add_typer(commands.archive, name="archive")
app.add_typer(export.app, name="export")
app.add_typer(sessions.app, name="session")
app.add_typer(circuits.app, name="circuits")
app.add_typer(limits.app, name="limits")
app.add_typer(schedule_cli.app, name="schedule")
app.add_typer(subscriptions.app, name="webhook")
app.command("changes")(changes.changes)
app.command("costs")(show_costs)
app.command("show")(show)
app.command("replay")(replay)
app.command("drift")(drift)
app.command("doctor")(commands.doctor)
app.command("flower")(commands.flower)
app.command("demo")(commands.demo)
app.command("worker", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(commands.worker)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress display.")]
Follow = Annotated[bool, typer.Option("--follow/--no-follow", help="Stay until the crawl ends.")]
Workers = Annotated[int | None, typer.Option(min=1, max=64, help="Worker processes in embedded mode.")]
Since = Annotated[str | None, typer.Option(help="Only what changed since: last, 24h, or a time in GMT+8 (top).")]
Options = Annotated[list[str] | None, typer.Option(help="NAME=VALUE, any option of a source (repeatable).")]
MaxCalls = Annotated[int | None, typer.Option(min=0, help="Calls of this crawl that are never exceeded.")]
MaxSpend = Annotated[str | None, typer.Option(help="Money that this crawl never costs more than.")]
Concurrency = Annotated[int | None, typer.Option(min=1, help="Pages in flight per worker process.")]


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Crawl thousands of shops into a database and lose nothing."""


@app.command()
def crawl(
    shops: Annotated[
        str, typer.Argument(help="CSV with the column `shop`, or one shop per line; - is standard input.")
    ],
    source: Annotated[str, typer.Option(help="Source of shops that name none.")] = DEFAULT_SOURCE,
    sort: Annotated[str | None, typer.Option(help="Order of the listing; time_up appends new items.")] = None,
    page_size: Annotated[int | None, typer.Option(help="Items per page.")] = None,
    max_pages: Annotated[int | None, typer.Option(help="Pages per shop that are never exceeded.")] = None,
    shop_cat_id: Annotated[str | None, typer.Option(help="Only this category of the shop.")] = None,
    price_start: Annotated[str | None, typer.Option(help="Lowest price.")] = None,
    price_end: Annotated[str | None, typer.Option(help="Highest price.")] = None,
    since: Since = None,
    mode: ModeName = None,
    older_than: Annotated[str | None, typer.Option(help="Age for --mode refresh, as 90m, 24h or 7d.")] = None,
    q: Annotated[str | None, typer.Option("--q", help="Only items with this in their title (top).")] = None,
    cid: Annotated[str | None, typer.Option(help="Only items of this category (top).")] = None,
    order_by: Annotated[str | None, typer.Option(help="Order of the listing, as modified:asc (top).")] = None,
    fields: Annotated[str | None, typer.Option(help="Fields to ask for, comma-separated (top).")] = None,
    option: Options = None,
    max_calls: MaxCalls = None,
    max_spend: MaxSpend = None,
    shop_max_calls: Annotated[int | None, typer.Option(min=1, help="Calls per shop that are never exceeded.")] = None,
    priority: Annotated[int, typer.Option(min=0, max=9, help="0 goes first.")] = NORMAL_PRIORITY,
    follow: Follow = True,
    json: Json = False,
    quiet: Quiet = False,
    workers: Workers = None,
    concurrency: Concurrency = None,
) -> None:
    """Crawl every shop in a file; the same command continues a crawl that was interrupted."""
    settings = _settings(workers=workers, concurrency=concurrency)
    given = {"sort": sort, "page_size": page_size, "max_pages": max_pages, "shop_cat_id": shop_cat_id}
    given |= {"price_start": price_start, "price_end": price_end, "since": since, "q": q, "cid": cid}
    given |= {"order_by": order_by, "fields": fields, "max_calls": shop_max_calls, **_pairs(option)}
    budget, wanted = Budget(max_calls, _money("--max-spend", max_spend)), chosen_mode(mode, older_than, since)
    file, vault = read_shops(shops, source, _texts(given), settings), Vault(settings)
    requests = whole(file.shops) if mode else file.shops
    _require_access(settings, {request.source for request in file.shops})

    async def submit(connection: AsyncConnection, clock: Clock) -> Submission:
        submission = await submit_crawl(
            connection, requests, now=clock.now(), settings=settings, priority=priority, budget=budget, mode=wanted
        )
        await sessions.keep_sessions(connection, vault, file.sessions, clock)
        return submission

    _crawl(settings, submit, follow=follow, json=json, quiet=quiet)


@app.command()
def recrawl(
    shops: Annotated[list[str] | None, typer.Argument(help="Shop keys.")] = None,
    all_shops: Annotated[bool, typer.Option("--all", help="Every shop ever crawled.")] = False,
    failed: Annotated[bool, typer.Option("--failed", help="Shops whose last verdict is failed.")] = False,
    verdict: Annotated[list[str] | None, typer.Option(help="Shops with this last verdict (repeatable).")] = None,
    older_than: Annotated[str | None, typer.Option(help="Shops last crawled longer ago, as 90m, 24h or 7d.")] = None,
    source: Annotated[str | None, typer.Option(help="Only this source; default: any, and tmapi for new shops.")] = None,
    since: Since = None,
    mode: ModeName = None,
    option: Options = None,
    max_calls: MaxCalls = None,
    max_spend: MaxSpend = None,
    follow: Follow = True,
    json: Json = False,
    quiet: Quiet = False,
    workers: Workers = None,
    concurrency: Concurrency = None,
) -> None:
    """Crawl shops again, ahead of all other work; asking twice while one is pending does not double it."""
    settings = _settings(workers=workers, concurrency=concurrency)
    verdicts = [*(verdict or []), *(["failed"] if failed else [])]
    unknown = set(verdicts) - set(VERDICTS)
    if unknown:
        raise UsageError(f"unknown verdict {min(unknown)!r}; verdicts: {', '.join(VERDICTS)}")
    if not (shops or all_shops or verdicts or older_than):
        raise UsageError("say which shops: keys, --all, --failed, --verdict or --older-than")
    wanted = chosen_mode(mode, older_than if mode == REFRESH else None, since)
    age = parse_duration(older_than) if older_than and mode != REFRESH else None
    chosen = [shop_request(key, source or DEFAULT_SOURCE, {}, settings) for key in dict.fromkeys(shops or [])]
    given, budget = _texts({"since": since, **_pairs(option)}), Budget(max_calls, _money("--max-spend", max_spend))
    _require_access(settings, {source or DEFAULT_SOURCE})

    async def submit(connection: AsyncConnection, clock: Clock) -> Submission:
        requests = await _select(connection, clock, source, chosen, verdicts or None, age)
        requests = changed_options(whole(requests) if mode else requests, given, settings)
        return await submit_recrawl(
            connection, requests, now=clock.now(), settings=settings, budget=budget, mode=wanted
        )

    _crawl(settings, submit, follow=follow, json=json, quiet=quiet)


async def _select(
    connection: AsyncConnection,
    clock: Clock,
    source: str | None,
    chosen: Sequence[ShopRequest],
    verdicts: Sequence[str] | None,
    age: timedelta | None,
) -> list[ShopRequest]:
    """Known shops that fit the filters, with their latest options; a shop named but never crawled is taken as new."""
    keys = [request.key for request in chosen] or None
    known = await known_shops(connection, now=clock.now(), source=source, keys=keys, verdicts=verdicts, older_than=age)
    if verdicts is None and age is None:
        seen = {(request.source, request.key) for request in known}
        known += [request for request in chosen if (request.source, request.key) not in seen]
    if not known:
        raise UsageError("no shop fits: `shopcrawl status` shows what has been crawled")
    return known


@app.command()
def plan(
    shops: Annotated[
        str, typer.Argument(help="CSV with the column `shop`, or one shop per line; - is standard input.")
    ],
    source: Annotated[str, typer.Option(help="Source of shops that name none.")] = DEFAULT_SOURCE,
    offline: Annotated[bool, typer.Option("--offline", help="From the last crawls, without a call.")] = False,
    since: Since = None,
    option: Options = None,
    json: Json = False,
    quiet: Quiet = False,
    workers: Workers = None,
    concurrency: Concurrency = None,
) -> None:
    """Show the calls that a crawl would need, with one call for each shop, or none with --offline."""
    settings = _settings(workers=workers, concurrency=concurrency)
    given = _texts({"since": since, **_pairs(option)})
    file, vault = read_shops(shops, source, given, settings), Vault(settings)
    if not offline:
        _require_access(settings, {request.source for request in file.shops})

    async def submit(connection: AsyncConnection, clock: Clock) -> Submission:
        submission = await submit_plan(connection, file.shops, now=clock.now(), settings=settings)
        await sessions.keep_sessions(connection, vault, file.sessions, clock)
        return submission

    asked = file.shops if offline else submit
    estimate = run.run_until_signalled(run.estimate(settings, asked, _progress(quiet), quiet=quiet))
    if json:
        sys.stdout.write(msgspec.json.encode(estimate).decode() + "\n")
    else:
        print_estimate(Console(), estimate)


@app.command()
def resume(
    credential: Annotated[
        str | None, typer.Option(help="Try only this parked one, with one page at once; a source's name: its only one.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    workers: Workers = None,
    concurrency: Concurrency = None,
) -> None:
    """Use parked credentials again and continue every crawl that has not ended."""
    settings, console = _settings(workers=workers, concurrency=concurrency), _progress(quiet)
    if credential is None:
        statuses = run.run_until_signalled(run.resume(settings, console, quiet=quiet))
    else:
        statuses = run.run_until_signalled(run.resume_with(settings, console, credential, quiet=quiet))
    for status in statuses:
        _show(status, settings, json=json)
    raise typer.Exit(max((exit_code(status) for status in statuses), default=0))


@app.command()
def budget(
    crawl_id: Annotated[int, typer.Argument(metavar="CRAWL", help="A crawl's number.")],
    max_calls: MaxCalls = None,
    max_spend: MaxSpend = None,
) -> None:
    """Give a crawl another budget; what waited for it goes on."""
    settings = load_settings()
    caps = Budget(max_calls, _money("--max-spend", max_spend))
    if caps == Budget():
        raise UsageError("say which budget: --max-calls or --max-spend")
    run.run_until_signalled(run.set_budget(settings, crawl_id, caps))
    hint = ": `shopcrawl resume` goes on with it" if settings.redis_url is None else ""
    sys.stdout.write(f"crawl {crawl_id} has a new budget{hint}\n")


@app.command()
def status(
    crawl_id: Annotated[
        int | None, typer.Argument(metavar="[CRAWL]", help="A crawl's number; default: the newest.")
    ] = None,
    json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", help="Keep showing it until it ends.")] = False,
) -> None:
    """Show how a crawl stands."""
    settings = _settings()
    found = run.run_until_signalled(run.show_status(settings, Console(), crawl_id, watch_it=watch, quiet=json))
    if json:
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")


@app.command()
def crawls() -> None:
    """List the newest crawls."""
    run.run_until_signalled(run.list_crawls(_settings(), Console()))


@app.command()
def producer() -> None:
    """Run the producer: plans, dispatches and settles; several may run on one PostgreSQL."""
    settings = load_settings()
    commands.refuse_root(settings)
    configure_logging(settings)
    run.run_until_signalled(run.produce(settings))


@app.command()
def up(workers: Workers = None, concurrency: Concurrency = None) -> None:
    """Run everything on this machine until stopped: Redis unless one is configured, workers and the producer."""
    settings = load_settings(workers=workers, concurrency=concurrency)
    configure_logging(settings)
    run.run_until_signalled(run.serve(settings, Console(stderr=True)))


def _crawl(settings: Settings, submit: run.Submit, *, follow: bool, json: bool, quiet: bool) -> None:
    console = _progress(quiet)
    result = run.run_until_signalled(run.crawl(settings, submit, console, follow=follow, quiet=quiet))
    if isinstance(result, CrawlStatus):
        _show(result, settings, json=json)
        raise typer.Exit(exit_code(result))
    if json:
        sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
    elif not quiet and settings.redis_url is None and result.shops:
        console.print("nothing works on it yet: `shopcrawl up` or `shopcrawl resume` does")


def _show(status: CrawlStatus, settings: Settings, *, json: bool) -> None:
    if json:
        sys.stdout.write(msgspec.json.encode(status).decode() + "\n")
    else:
        run.run_until_signalled(run.show_summary(settings, Console(), status))


def _progress(quiet: bool) -> Console:
    return Console(stderr=True, quiet=quiet)


def _settings(**overrides: Any) -> Settings:
    """The settings of a command that shows something: its log goes to a file, and only warnings to the terminal."""
    settings = load_settings(**overrides)
    configure_logging(settings, log_file=settings.log_file)
    return settings


def _pairs(options: Sequence[str] | None) -> dict[str, str]:
    """Options given as NAME=VALUE. Raises UsageError."""
    pairs = [option.partition("=") for option in options or ()]
    wrong = next((name for name, equals, value in pairs if not (name and equals and value)), None)
    if wrong is not None:
        raise UsageError(f"--option {wrong[:40]!r}: write it as NAME=VALUE")
    return {name.strip(): value for name, _, value in pairs}


def _money(name: str, text: str | None) -> Decimal | None:
    """An amount of money. Raises UsageError."""
    try:
        amount = None if text is None else Decimal(text)
    except InvalidOperation:
        amount = Decimal(-1)
    if amount is not None and not (amount.is_finite() and 0 <= amount < 10**12):
        raise UsageError(f"{name} must be an amount such as 12.50, not {str(text)[:20]!r}")
    return amount


def _texts(values: Mapping[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items() if value is not None}


def _require_access(settings: Settings, sources: set[str]) -> None:
    """Raise UsageError unless each source has an address and, where this process calls it, a credential."""
    for adapter in map(source_named, sorted(sources)):
        if settings.redis_url is None and not adapter.credentials(settings):
            raise UsageError(adapter.credential_help())
        warn_if_plain_http(adapter.base_url(settings))


def main() -> None:
    """The console script: one clear line for every error, a traceback only with --debug."""
    debug = "--debug" in sys.argv
    try:
        code = app([word for word in sys.argv[1:] if word != "--debug"], standalone_mode=False)
    except ShopcrawlError as error:
        _complain(str(error), error.exit_code, debug)
    except Exception as error:
        _complain_of(error, debug)
    if code == INTERRUPTED:
        _complain("interrupted; nothing is lost: the same command or `shopcrawl resume` continues", INTERRUPTED, debug)
    raise SystemExit(code if isinstance(code, int) else 0)


def _complain_of(error: Exception, debug: bool) -> NoReturn:
    """Complain of bad usage that the parser found, or of an error that nobody expected."""
    usage = getattr(error, "format_message", None)
    if usage is None:
        _complain(f"unexpected {type(error).__name__}: {error}; --debug shows where", 1, debug)
    message = usage()
    if message.startswith("Usage: "):  # the whole help, for whoever names no command
        sys.stderr.write(f"{message}\n")
        raise SystemExit(2)
    _complain(message, 2, debug)


def _complain(message: str, code: int, debug: bool) -> NoReturn:
    secrets = _secrets()
    if debug:
        sys.stderr.write(redact(traceback.format_exc(), secrets))
    line = " ".join(redact(message, secrets).split())
    sys.stderr.write(f"shopcrawl: {line}\n")
    raise SystemExit(code)


def _secrets() -> tuple[str, ...]:
    try:
        return load_settings().secrets
    except ShopcrawlError:
        return ()
