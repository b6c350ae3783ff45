"""Watches a crawl: reads its figures again and again and shows them as the terminal allows."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Protocol, Self

from redis.asyncio import Redis
from redis.exceptions import RedisError
from rich.console import Console
from rich.live import Live
from rich.padding import Padding
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from models import fleet
from models.circuits import open_circuits
from models.database import Clock, reader, unavailable
from models.source import source_names
from models.status import CrawlStatus, crawl_status, waiting
from producer.console.progress import Fleet, Pace, View, block, line, warnings
from producer.outlook import permits

POLL = 0.7
LARGEST_LOAD = 0.1
"""Share of the time that reading may take: a ledger that is slow to read is read less often."""
LINE_EVERY = 10.0
FLEET_TIMEOUT = 2.0
SMOOTHING = 0.1
"""Weight of one reading of the permits in use."""


class Display(Protocol):
    """Shows view after view."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, view: View) -> None:
        """Show the newest view."""


class Silent:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, view: View) -> None:
        """Show nothing."""


class Block:
    """Keeps one block at the bottom of a terminal; it goes when the watch ends, for the summary tells it all."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, view: View) -> None:
        """Replace the block."""
        self._live.update(Padding(block(view, self._console.width - 2), (1, 1, 0, 1)), refresh=True)


@dataclass
class Lines(Silent):
    """One line every LINE_EVERY seconds, and at once whenever something starts or stops waiting."""

    console: Console
    clock: Callable[[], float] = time.monotonic
    _due: float = 0.0
    _warned: list[str] = field(default_factory=list)

    def show(self, view: View) -> None:
        """Print what is due."""
        warned = [warning.plain for warning in warnings(view)]
        for text in warned:
            if text not in self._warned:
                self._print(text)
        self._warned = warned
        if self.clock() >= self._due or view.status.is_over:
            self._due = self.clock() + LINE_EVERY
            self._print(line(view))

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def display_for(console: Console, *, quiet: bool) -> Display:
    """Nothing if `quiet`, a live block on a terminal, else lines."""
    if quiet:
        return Silent()
    return Block(console) if console.is_terminal and not console.is_dumb_terminal else Lines(console)


async def watch(
    engine: AsyncEngine,
    redis: Redis | None,
    crawl_id: int,
    clock: Clock,
    console: Console,
    *,
    until_finished: bool = True,
    quiet: bool = False,
    currency: str = "",
) -> CrawlStatus:
    """Show a crawl until it is over (or, without `until_finished`, until cancelled); returns its last figures.

    An outage of the database or Redis is shown and waited out, except that the first reading must succeed.
    Raises UsageError if there is no such crawl, UnavailableError if the database cannot be used at the start.
    """
    reader = _Reader(engine, redis, crawl_id, clock, currency)
    try:
        view = await reader.read()
    except (SQLAlchemyError, OSError) as error:
        raise unavailable(error) from None
    pause = POLL
    with display_for(console, quiet=quiet) as display:
        while True:
            display.show(view)
            if until_finished and view.status.is_over:
                return view.status
            await asyncio.sleep(pause)
            started = time.monotonic()
            view = await reader.read_patiently(view)
            pause = max(POLL, (time.monotonic() - started) / LARGEST_LOAD)


class _Reader:
    """Reads what a view shows."""

    def __init__(
        self, engine: AsyncEngine, redis: Redis | None, crawl_id: int, clock: Clock, currency: str = ""
    ) -> None:
        self._engine, self._redis, self._crawl_id, self._clock = engine, redis, crawl_id, clock
        self._pace, self._permits, self._currency = Pace(), (0.0, 0.0), currency

    async def read(self) -> View:
        """A new view. Raises SQLAlchemyError or OSError when the database is away."""
        async with reader(self._engine).connect() as connection:
            status = await crawl_status(connection, self._crawl_id, now=self._clock.now())
            parked = await waiting(connection, self._crawl_id)
        self._pace = self._pace.step(status.pages.finished, time.monotonic())
        view = View(status, self._pace, waiting=tuple(parked), currency=self._currency)
        if self._redis is None:
            return view
        try:
            found = await asyncio.wait_for(_fleet(self._redis), FLEET_TIMEOUT)
            self._permits = smoothed(self._permits, permits(found.limits))
            return replace(view, fleet=found, permits=self._permits)
        except (RedisError, OSError, TimeoutError):
            return replace(view, trouble="Redis does not answer")

    async def read_patiently(self, last: View) -> View:
        """A new view, or the last one with the news that the database is away."""
        try:
            return await self.read()
        except (SQLAlchemyError, OSError):
            return replace(last, trouble="the database does not answer")


def smoothed(before: tuple[float, float], now: tuple[int, int]) -> tuple[float, float]:
    """Calls in flight and allowed over the last readings: what is in flight at one moment swings widely."""
    if before == (0.0, 0.0):
        return (float(now[0]), float(now[1]))
    in_flight, limit = (old + SMOOTHING * (new - old) for old, new in zip(before, now, strict=True))
    return in_flight, limit


async def _fleet(redis: Redis) -> Fleet:
    workers = await fleet.live_workers(redis)
    limits = [limit for source in source_names() for limit in await fleet.limit_states(redis, source)]
    circuits = [circuit for source in source_names() for circuit in await open_circuits(redis, source)]
    return Fleet(len(workers), tuple(limits), tuple(circuits))
