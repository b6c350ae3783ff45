"""The shops' sessions at hand in this process: kept for a minute, and many that are missing are read in one query."""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from models.background import stop_tasks
from models.database import Clock, reader, unavailable
from models.errors import ShopcrawlError, ShopUnauthorisedError, UsageError
from models.sessions import load_sessions, mark_refused
from models.vault import WRONG_KEY, Vault
from worker.writer import is_outage

KEPT = 50_000  # sessions
KEPT_SECONDS = 60.0
LINGER = 0.005  # pages of many shops start together: their sessions are read together
LONGEST_PAUSE = 5.0

T = TypeVar("T")
Found = str | ShopcrawlError

logger = logging.getLogger(__name__)


class Sessions:
    """Finds the session of a shop, and tells the fleet of one that was refused."""

    def __init__(self, engine: AsyncEngine, vault: Vault, clock: Clock) -> None:
        self._engine, self._vault, self._clock = engine, vault, clock
        self._kept: OrderedDict[int, tuple[float, str]] = OrderedDict()
        self._wanted: dict[int, asyncio.Future[Found]] = {}
        self._reading: asyncio.Task[None] | None = None

    async def get(self, shop_id: int) -> str:
        """The shop's session. While the database is away, it waits.

        Raises ShopUnauthorisedError if it has none that is not refused, UsageError if no key at hand opens it or the
        key file cannot be used.
        """
        kept_at, text = self._kept.get(shop_id, (-KEPT_SECONDS, None))
        if text is not None and time.monotonic() < kept_at + KEPT_SECONDS:
            self._kept.move_to_end(shop_id)
            return text
        found = await asyncio.shield(self._want(shop_id))
        if isinstance(found, ShopcrawlError):
            raise found.with_traceback(None)  # several pages may wait for one shop's session
        return found

    async def refuse(self, shop_id: int, text: str, reason: str) -> bool:
        """The API refuses this session; False if the shop has got another one meanwhile, which `get` then returns."""
        self._kept.pop(shop_id, None)

        async def mark() -> bool:
            async with self._engine.begin() as connection:
                return await mark_refused(connection, self._vault, shop_id, text, reason, self._clock.now())

        return await _through_outages(mark)

    async def stop(self) -> None:
        """Stop reading; nobody waits any more."""
        if self._reading is not None:
            await stop_tasks([self._reading])

    def _want(self, shop_id: int) -> asyncio.Future[Found]:
        if shop_id not in self._wanted:
            self._wanted[shop_id] = asyncio.get_running_loop().create_future()
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read_wanted(), name="sessions")
        return self._wanted[shop_id]

    async def _read_wanted(self) -> None:
        while self._wanted:
            await asyncio.sleep(LINGER)
            wanted, self._wanted = self._wanted, {}
            found = await self._read(sorted(wanted))
            for shop_id, future in wanted.items():
                future.set_result(found[shop_id])

    async def _read(self, shops: Sequence[int]) -> dict[int, Found]:
        async def load() -> dict[int, str | None]:
            async with reader(self._engine).connect() as connection:
                return await load_sessions(connection, self._vault, shops)

        try:
            loaded = await _through_outages(load)
        except Exception as error:  # those who wait must hear of it
            told = error if isinstance(error, ShopcrawlError) else unavailable(error)
            return dict.fromkeys(shops, told)
        for shop_id, text in loaded.items():
            if text is not None:
                self._keep(shop_id, text)
        return {shop_id: _found(loaded, shop_id) for shop_id in shops}

    def _keep(self, shop_id: int, text: str) -> None:
        self._kept[shop_id] = (time.monotonic(), text)
        self._kept.move_to_end(shop_id)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)


def _found(loaded: Mapping[int, str | None], shop_id: int) -> Found:
    if shop_id not in loaded:
        return ShopUnauthorisedError("no-session", "no session")
    return loaded[shop_id] or UsageError(f"the shop's session is {WRONG_KEY}")


async def _through_outages(action: Callable[[], Awaitable[T]]) -> T:
    """Do it, again and again while the database is away."""
    pause = 0.1
    while True:
        try:
            return await action()
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            if not is_outage(error):
                raise
            logger.warning("the database is away, sessions wait for it: %s", unavailable(error))
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)
