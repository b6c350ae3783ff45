"""The hands of a worker without queue and store: a process that calls the API as fast as the limiter lets it.

Standard input brings one line, an `Orders` as JSON. When its pages are done, or at SIGTERM, it writes a line: a `Done`.
"""

import asyncio
import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

import msgspec
from redis.asyncio import Redis

from models.broker import redis_url
from models.errors import CredentialParkedError, FetchError, ThrottledError
from models.messages import NORMAL_PRIORITY, PageTask
from models.settings import Settings, load_settings
from models.source import Credential, source_named
from worker.client import Client
from worker.limiter import AllParked, Limiter
from worker.loop import new_event_loop
from worker.retry import WaitHere, decide

SOURCE = "tmapi"
PARKED_PAUSE = 0.2


class Orders(msgspec.Struct):
    """What a caller is to do: `at_once` pages wanted at the same time, `pages` in all (0: without end)."""

    name: str
    shops: list[str]
    at_once: int
    pages: int = 0
    priority: int = NORMAL_PRIORITY
    limited: bool = True
    page_size: int = 2


class Done(msgspec.Struct):
    """What a caller has done; `round_trips` are its calls to Redis."""

    pages: int
    round_trips: int
    seconds: float


@dataclass
class Caller:
    """The limiter and the HTTP client of this process, and what it has done so far."""

    settings: Settings
    orders: Orders
    limiter: Limiter
    client: Client
    done: int = 0
    started: float = field(default_factory=time.perf_counter)

    async def run(self) -> None:
        """Fetch every page."""
        pages = self._pages()
        async with asyncio.TaskGroup() as group:
            for _ in range(self.orders.at_once):
                group.create_task(self._work(pages))

    def _pages(self) -> Iterator[PageTask]:
        orders, first = self.orders, random.getrandbits(40)
        options = source_named(SOURCE).options({"page_size": str(orders.page_size)}, self.settings)
        number = 0
        while not orders.pages or number < orders.pages:
            shop = orders.shops[number % len(orders.shops)]
            page = 1 + number // len(orders.shops) % 50
            yield PageTask(SOURCE, shop, page, first + number, 1, 1, 1, 1, orders.priority, options=options)
            number += 1

    async def _work(self, pages: Iterator[PageTask]) -> None:
        for task in pages:
            await self._fetch(task)
            self.done += 1

    async def _fetch(self, task: PageTask) -> None:
        claim: tuple[int, int] | None = (task.page_id, task.fence)
        throttles = 0
        while True:
            try:
                await (self._call(task, claim) if self.orders.limited else self._exchange(task, self._credentials[0]))
                break
            except AllParked:
                await asyncio.sleep(PARKED_PAUSE)
                continue
            except ThrottledError as error:
                throttles += 1
                step = decide(error, tries=0, throttles=throttles, settings=self.settings, random=random.random())
                await asyncio.sleep(step.delay if isinstance(step, WaitHere) else self.settings.retry_base)
            except FetchError:
                await asyncio.sleep(0.05)
            claim = None
        if self.orders.limited:
            self.limiter.finished(task.page_id)

    @property
    def _credentials(self) -> tuple[Credential, ...]:
        return source_named(SOURCE).credentials(self.settings)

    async def _call(self, task: PageTask, claim: tuple[int, int] | None) -> None:
        limits = source_named(SOURCE).limits(self.settings)
        permit = await self.limiter.acquire(SOURCE, self._credentials, limits, priority=task.priority, claim=claim)
        ok = throttled = False
        try:
            await self._exchange(task, permit.credential)
            ok = True
        except ThrottledError:
            throttled = True
            raise
        except CredentialParkedError as error:
            await self.limiter.park(SOURCE, permit.credential.name, str(error))
            raise
        finally:
            permit.release(ok=ok, throttled=throttled)

    async def _exchange(self, task: PageTask, credential: Credential) -> None:
        source, now = source_named(SOURCE), datetime.now(UTC)
        response = await self.client.fetch(source.request(task, credential, self.settings, now, None))
        source.decode(response, task, now)


async def main() -> None:
    """Do what the orders say and tell what was done."""
    settings = load_settings()
    orders = msgspec.json.decode(sys.stdin.readline(), type=Orders)
    async with Redis.from_url(redis_url(settings)) as redis, Client(settings) as client:
        limiter = Limiter(redis, process=orders.name)
        await limiter.start()
        caller = Caller(settings, orders, limiter, client)
        job = asyncio.create_task(caller.run())
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, job.cancel)
        with suppress(asyncio.CancelledError):
            await job
        done = Done(caller.done, limiter.calls, time.perf_counter() - caller.started)
        await limiter.stop()
    sys.stdout.write(msgspec.json.encode(done).decode() + "\n")


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main())
