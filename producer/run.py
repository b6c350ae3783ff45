"""What the commands do: submit, host the servers of an embedded crawl, follow until the end."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import timedelta
from typing import TypeVar

import msgspec
import sqlalchemy as sa
from pydantic import SecretStr
from redis.asyncio import Redis
from redis.exceptions import RedisError
from rich.console import Console
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from models import credentials, fleet, metrics
from models.background import background, stop_tasks
from models.broker import redis_url
from models.budget import raise_caps
from models.circuits import OpenCircuit, open_circuits
from models.crawls import Budget, ShopRequest, Submission, unfinished_crawls
from models.database import Clock, is_postgresql, reader, require_schema
from models.errors import UsageError
from models.settings import Settings
from models.source import source_names
from models.speed import recent_speed
from models.status import CrawlStatus, crawl_status, latest_crawl_id, recent_crawls, unhappy_shops, waiting
from models.tables import page
from producer.console import print_crawls, print_status, print_summary, shown_location, watch
from producer.estimate import Estimate, counted, remembered
from producer.forecast import forecast
from producer.hosting.local import EmbeddedRedis, WorkerProcesses
from producer.hosting.processes import FolderBusyError
from producer.loop import Producer
from producer.outlook import outlook, permits
from producer.services import bring_up_to_date, explained, fleets_redis, make_folder, open_engine, require_redis

EMBEDDED_LOCK = 7468
TAKE_OVER_SECONDS = 2.0
UNHAPPY_SHOWN = 10
RECENT = timedelta(minutes=2)
"""Calls so young tell how fast a crawl is now."""
CRAWLS_LISTED = 20

T = TypeVar("T")

Submit = Callable[[AsyncConnection, Clock], Awaitable[Submission]]


@contextlib.asynccontextmanager
async def database(settings: Settings, *, migrate: bool | None = None) -> AsyncIterator[tuple[AsyncEngine, Clock]]:
    """The database, ready for use, and its clock. An embedded database is upgraded; a shared one must be up to date.

    Raises UnavailableError with the cure.
    """
    make_folder(settings.data_dir)
    engine = open_engine(settings)
    try:
        if settings.redis_url is None if migrate is None else migrate:
            await bring_up_to_date(engine)
        else:
            await require_schema(engine)
        clock = Clock()
        await clock.synchronise(engine)
        yield engine, clock
    finally:
        await engine.dispose()


@contextlib.asynccontextmanager
async def hosted(settings: Settings, engine: AsyncEngine, clock: Clock) -> AsyncIterator[Settings]:
    """Run a private Redis, workers and the producer around the body; yields the settings that point to that Redis.

    Raises FolderBusyError if another process hosts this data folder.
    """
    with EmbeddedRedis(settings.data_dir) as redis, metrics.serving(settings):
        inner = settings.model_copy(update={"redis_url": SecretStr(redis.redis_url)})
        async with _alone(engine):
            await _take_back(engine, inner)
            jobs = (redis.watch(), Producer(inner, engine, clock).run())
            async with WorkerProcesses(inner) as workers, background(*jobs, workers.watch()):
                yield inner


@contextlib.asynccontextmanager
async def _alone(engine: AsyncEngine) -> AsyncIterator[None]:
    """Keep other machines from hosting their own Redis on the same PostgreSQL: they would send the same pages."""
    if not is_postgresql(engine):
        yield
        return
    async with engine.connect() as connection:
        if not await connection.scalar(sa.select(sa.func.pg_try_advisory_lock(EMBEDDED_LOCK))):
            raise UsageError(
                "another machine hosts a crawl on this database: set SHOPCRAWL_REDIS_URL so that both share one"
            )
        await connection.commit()
        yield


async def _take_back(engine: AsyncEngine, settings: Settings) -> None:
    """Nothing of an earlier host lives any more: what it had sent is due again at once."""
    async with Redis.from_url(redis_url(settings)) as redis:
        await fleet.forget_work(redis)
    async with engine.begin() as connection:
        await connection.execute(sa.update(page).where(page.c.state == "sent").values(state="ready"))


async def crawl(
    settings: Settings, submit: Submit, console: Console, *, follow: bool, quiet: bool
) -> CrawlStatus | Submission:
    """Submit a crawl and, unless told otherwise, see it through to its end."""
    async with database(settings) as (engine, clock):
        if follow and settings.redis_url is not None:
            await require_redis(settings)  # before anything is written: whoever asks again shall not find it begun
        async with engine.begin() as connection:
            submission = await submit(connection, clock)
        if not quiet:
            console.print(describe(submission))
        if not follow or submission.crawl_id == 0:
            return submission
        return await see_through(settings, engine, clock, console, submission.crawl_id, quiet=quiet)


async def estimate(
    settings: Settings, asked: Submit | Sequence[ShopRequest], console: Console, *, quiet: bool
) -> Estimate:
    """What a crawl would cost: by counting each shop with one call, or for given requests from their last crawls."""
    if not callable(asked):
        async with database(settings) as (engine, clock), reader(engine).connect() as connection:
            return await _forecast(connection, clock, settings, await remembered(connection, asked, settings))
    status = await crawl(settings, asked, console, follow=True, quiet=quiet)
    assert isinstance(status, CrawlStatus)  # noqa: S101 (we follow it)
    async with database(settings) as (engine, clock), reader(engine).connect() as connection:
        found = await counted(connection, status.crawl, settings, sum(status.calls.values()))
        return await _forecast(connection, clock, settings, found)


async def _forecast(connection: AsyncConnection, clock: Clock, settings: Settings, found: Estimate) -> Estimate:
    """The estimate with its money and hours."""
    limits, _circuits = await _limits(settings)
    ahead = await forecast(connection, found.calls_by_source, settings, limits, clock.now())
    return msgspec.structs.replace(found, forecast=ahead)


def describe(submission: Submission) -> str:
    """One line on what became of a request."""
    if submission.shops == 0 and not submission.pending:
        return f"nothing to do: none of the {submission.fresh} shops is due for a refresh"
    if submission.shops == 0:
        return f"all {submission.pending} shops are waiting for a re-crawl already (crawl {submission.crawl_id})"
    verb = "continues" if submission.resumed else "started"
    pending = f"; {submission.pending} more wait for a re-crawl already" if submission.pending else ""
    fresh = f"; {submission.fresh} more are not due for a refresh" if submission.fresh else ""
    return f"crawl {submission.crawl_id} {verb}: {submission.shops} shops{pending}{fresh}"


async def see_through(
    settings: Settings, engine: AsyncEngine, clock: Clock, console: Console, crawl_id: int, *, quiet: bool
) -> CrawlStatus:
    """Follow a crawl to its end; in embedded mode host its servers, or wait for whoever hosts them now to let go."""
    if settings.redis_url is not None:
        return await _follow(settings, engine, clock, console, crawl_id, quiet=quiet)
    while True:
        try:
            async with hosted(settings, engine, clock) as inner:
                return await _follow(inner, engine, clock, console, crawl_id, quiet=quiet)
        except FolderBusyError as busy:
            if not quiet:
                console.print(f"{busy}; it does this work too")
        done = await _follow_other_host(settings, engine, clock, console, crawl_id, quiet=quiet)
        if done is not None:
            return done


async def _follow(
    settings: Settings, engine: AsyncEngine, clock: Clock, console: Console, crawl_id: int, *, quiet: bool
) -> CrawlStatus:
    async with Redis.from_url(redis_url(settings), socket_timeout=10) as redis:
        return await watch(engine, redis, crawl_id, clock, console, quiet=quiet, currency=settings.currency)


async def _follow_other_host(
    settings: Settings, engine: AsyncEngine, clock: Clock, console: Console, crawl_id: int, *, quiet: bool
) -> CrawlStatus | None:
    """Follow while another process hosts the servers; None once it has gone."""
    following = asyncio.create_task(
        watch(engine, None, crawl_id, clock, console, quiet=quiet, currency=settings.currency)
    )
    lock = EmbeddedRedis(settings.data_dir).lock
    try:
        while not following.done():
            await asyncio.wait([following], timeout=TAKE_OVER_SECONDS)
            if not following.done() and lock.is_free():
                return None
        return following.result()
    finally:
        await stop_tasks([following])


async def resume(settings: Settings, console: Console, *, quiet: bool) -> list[CrawlStatus]:
    """Use parked and banned credentials again and see every unfinished crawl through."""
    async with database(settings) as (engine, clock):
        if settings.redis_url is not None:
            await require_redis(settings)
        async with engine.begin() as connection:
            lifted = await credentials.unpark(connection)
            unfinished = await unfinished_crawls(connection)
        sources = await _lift_bans(settings) if unfinished else []
        async with engine.begin() as connection:
            now = clock.now()
            waits = (page.c.state == "ready") & page.c.source.in_(sources) & (page.c.due_at > now)
            await connection.execute(sa.update(page).where(waits).values(due_at=now))
        if not quiet:
            bans = f"; bans of {', '.join(sources)} are lifted" if sources else ""
            console.print(f"{lifted} credentials are used again, {len(unfinished)} crawls go on{bans}")
        return [await see_through(settings, engine, clock, console, crawl_id, quiet=quiet) for crawl_id in unfinished]


async def resume_with(settings: Settings, console: Console, name: str, *, quiet: bool) -> list[CrawlStatus]:
    """Try one parked credential at once and see every unfinished crawl through; the other parked ones stay so.

    `name` is the credential's, or its source's if only one of it is parked. Raises UsageError if none fits.
    """
    async with database(settings) as (engine, clock):
        if settings.redis_url is not None:
            await require_redis(settings)
        async with engine.begin() as connection:
            chosen = chosen_credential(await credentials.parked(connection), name)
            wait = settings.probe_interval
            await credentials.probe_now(connection, chosen.source, chosen.name, now=clock.now(), wait=wait)
            unfinished = await unfinished_crawls(connection)
        if not quiet:
            tried = f"credential {chosen.name} of {chosen.source} is tried at once"
            console.print(f"{tried}, {len(unfinished)} crawls go on")
        return [await see_through(settings, engine, clock, console, crawl_id, quiet=quiet) for crawl_id in unfinished]


def chosen_credential(parked: Sequence[credentials.Parked], name: str) -> credentials.Parked:
    """The parked credential of that name, or the only one of the source of that name. Raises UsageError."""
    found = [entry for entry in parked if entry.name == name] or [entry for entry in parked if entry.source == name]
    if len(found) != 1:
        names = ", ".join(f"{entry.name} ({entry.source})" for entry in parked) or "none"
        raise UsageError(f"no one parked credential is meant by {name[:40]!r}; parked: {names}")
    return found[0]


async def set_budget(settings: Settings, crawl_id: int, caps: Budget) -> None:
    """Give a crawl another budget. Raises UsageError if there is no such crawl."""
    async with database(settings) as (engine, clock), engine.begin() as connection:
        if not await raise_caps(
            connection, crawl_id, max_calls=caps.max_calls, max_spend=caps.max_spend, now=clock.now()
        ):
            raise UsageError(f"there is no crawl {crawl_id}: `shopcrawl crawls` lists them")


async def _lift_bans(settings: Settings) -> list[str]:
    """Lift every ban; returns the sources that had one."""
    with contextlib.suppress(RedisError):  # an embedded one that is just going away
        async with fleets_redis(settings) as redis:
            return [source for source in source_names() if await fleet.lift_bans(redis, source)]
    return []


async def _limits(settings: Settings) -> tuple[list[fleet.LimitState], list[OpenCircuit]]:
    """The limits in force and what rests, where the fleet's Redis is known and answers."""
    if settings.redis_url is None:
        return [], []
    with contextlib.suppress(RedisError, OSError):
        async with Redis.from_url(redis_url(settings), socket_timeout=2, socket_connect_timeout=2) as redis:
            limits = [state for source in source_names() for state in await fleet.limit_states(redis, source)]
            return limits, [each for source in source_names() for each in await open_circuits(redis, source)]
    return [], []


async def serve(settings: Settings, console: Console) -> None:
    """Host Redis, workers and the producer (those that the settings do not place elsewhere) until stopped."""
    async with database(settings) as (engine, clock):
        if settings.redis_url is None:
            async with hosted(settings, engine, clock):
                console.print(f"up: {settings.workers} workers, data in {settings.data_dir}; stop with Ctrl-C")
                await asyncio.Event().wait()
        await require_redis(settings)
        with metrics.serving(settings):  # before the workers, which take the ports after ours
            async with WorkerProcesses(settings) as workers, background(workers.watch()):
                await Producer(settings, engine, clock).run()


async def produce(settings: Settings) -> None:
    """Run the producer alone until stopped."""
    async with database(settings, migrate=False) as (engine, clock):
        with metrics.serving(settings):
            await Producer(settings, engine, clock).run()


def run_until_signalled(main: Awaitable[T]) -> T:
    """Run a coroutine; SIGTERM ends it as orderly as Ctrl-C does. Raises KeyboardInterrupt when interrupted."""

    async def guarded() -> T:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 (we are inside it)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        try:
            return await main
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None

    try:
        return asyncio.run(guarded())
    except (BaseExceptionGroup, sa.exc.SQLAlchemyError, RedisError, OSError) as error:
        told = explained(error)
        if told is error:
            raise
        raise told from error


async def show_summary(
    settings: Settings, console: Console, status: CrawlStatus, *, setup: str = "", command: str = "shopcrawl"
) -> None:
    """Print how a crawl ended."""
    async with database(settings) as (engine, _clock), reader(engine).connect() as connection:
        unhappy = await unhappy_shops(connection, status.crawl, UNHAPPY_SHOWN)
    location = shown_location(settings.database)
    money = settings.currency
    print_summary(console, status, unhappy, database=location, currency=money, setup=setup, command=command)


async def show_status(
    settings: Settings, console: Console, crawl_id: int | None, *, watch_it: bool, quiet: bool
) -> CrawlStatus:
    """Read a crawl's status, follow it if asked to, and print it unless `quiet`."""
    async with database(settings) as (engine, clock):
        async with reader(engine).connect() as connection:
            chosen = crawl_id if crawl_id is not None else await latest_crawl_id(connection)
            if chosen is None:
                raise UsageError("nothing has been crawled yet: `shopcrawl crawl shops.csv` starts")
        if watch_it:
            await _watch_anywhere(settings, engine, clock, chosen)
        async with reader(engine).connect() as connection:
            status = await crawl_status(connection, chosen, now=clock.now())
            unhappy = await unhappy_shops(connection, chosen, UNHAPPY_SHOWN)
            parked = await waiting(connection, chosen)
            recent = await recent_speed(connection, crawl=chosen, since=clock.now() - RECENT)
    if not quiet:
        location, money = shown_location(settings.database), settings.currency
        limits, circuits = await _limits(settings)
        ahead = outlook(status, recent.per_second, *permits(limits)) if recent and not status.is_over else None
        print_status(
            *(console, status, unhappy, parked, limits, circuits), database=location, currency=money, ahead=ahead
        )
    return status


async def _watch_anywhere(settings: Settings, engine: AsyncEngine, clock: Clock, crawl_id: int) -> None:
    """Watch a crawl; the fleet's limits are shown where its Redis is known."""
    errors = Console(stderr=True)
    if settings.redis_url is None:
        await watch(engine, None, crawl_id, clock, errors, currency=settings.currency)
        return
    async with Redis.from_url(redis_url(settings), socket_timeout=10) as redis:
        await watch(engine, redis, crawl_id, clock, errors, currency=settings.currency)


async def list_crawls(settings: Settings, console: Console) -> None:
    """Print the newest crawls, a line each."""
    async with database(settings) as (engine, clock), reader(engine).connect() as connection:
        print_crawls(console, await recent_crawls(connection, CRAWLS_LISTED), now=clock.now())
