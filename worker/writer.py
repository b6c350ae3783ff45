"""Group commit: pages that finish together are stored in one transaction; a page that cannot be stored fails alone."""

import asyncio
import logging
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy.exc import DBAPIError, InterfaceError, InternalError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine

from models.budget import DailyCaps
from models.database import is_postgresql, unavailable
from models.ledger import NO_CAPS, PageResult, Stored, not_storable, store_results
from models.settings import TRACKED_FIELDS
from worker.intake import Intake

LARGEST_BATCH = 48  # larger ones save little CPU, and take 0.1 MB for each page
# A transaction costs as much CPU as the storing of ten pages: filling it is worth a pause that no page notices.
LINGER = 0.04
LONGEST_PAUSE = 5.0
# asyncpg reports a deadlock or a lost serialisation race as a plain DBAPIError with one of these states: try again.
RETRYABLE_STATES = frozenset({"40001", "40P01", "55P03", "57P01", "57P02", "57P03", "53300", "53100", "53200", "25006"})
LOST_CONNECTION = "08"  # the class of these states

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Waiting:
    """A result on its way into the database, and the future that its page's coroutine awaits."""

    result: PageResult
    stored: asyncio.Future[Stored | None]


class Writer:
    """Collects results and writes them in batches; while a batch is being written the next one gathers."""

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        batch: int = LARGEST_BATCH,
        caps: DailyCaps = NO_CAPS,
        tracked: Collection[str] = TRACKED_FIELDS,
    ) -> None:
        self.engine = engine
        self._caps, self._tracked = caps, tracked
        self._batch = batch
        self._queue: deque[Waiting] = deque()
        self._wake = asyncio.Event()
        self._stopping = False
        self._gathering = asyncio.Lock()  # two lanes would halve each other's batches
        # PostgreSQL commits two batches side by side; SQLite has one writer anyway.
        self._lanes = 2 if is_postgresql(engine) else 1
        self._tasks: list[asyncio.Task[None]] = []
        self.intake = Intake(batch=batch, lanes=self._lanes)
        """Where pages wait before they are called for, so that there is room for their answers here."""

    def start(self) -> None:
        """Start writing on the running loop."""
        self._tasks = [asyncio.create_task(self._run(), name=f"writer-{lane}") for lane in range(self._lanes)]

    async def store(self, result: PageResult) -> Stored | None:
        """Store a result and return once it is committed; None if its fence was outdated.

        A page that the database will not take is stored as dead.
        """
        waiting = Waiting(result, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self.intake.answered()
        self._wake.set()
        return await asyncio.shield(waiting.stored)

    async def stop(self) -> None:
        """Stop once everything handed in is written: the answers are paid for."""
        self._stopping = True
        self._wake.set()
        await asyncio.gather(*self._tasks)

    async def _run(self) -> None:
        while True:
            async with self._gathering:
                batch = await self._gather()
            if not batch:
                return
            await self._write(batch)
            del batch  # its pages are done: not to be kept until the next batch has gathered

    async def _gather(self) -> list[Waiting]:
        """The next batch, given a moment to fill; empty once all is written and the writer stops."""
        while not self._queue:
            if self._stopping:
                return []
            self._wake.clear()
            await self._wake.wait()
        if len(self._queue) < self._batch and not self._stopping:
            await asyncio.sleep(LINGER)
        return [self._queue.popleft() for _ in range(min(len(self._queue), self._batch))]

    async def _write(self, batch: Sequence[Waiting]) -> None:
        """Write a batch, again and again while the database is away; split it when something in it is at fault."""
        pause, results = 0.1, [waiting.result for waiting in batch]
        once_more = False
        while True:
            try:
                async with self.engine.begin() as connection:
                    stored = await store_results(
                        connection, results, caps=self._caps, once_more=once_more, tracked=self._tracked
                    )
                break
            except (SQLAlchemyError, OSError, TimeoutError) as error:
                if not is_outage(error):
                    await self._isolate(batch, error)
                    return
                once_more = True
                logger.warning("the database is away, %d pages wait for it: %s", len(batch), unavailable(error))
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
            except Exception as error:  # a bug in a row's making must fail its page, not stall the worker
                await self._isolate(batch, error)
                return
        for waiting, outcome in zip(batch, stored, strict=True):
            waiting.stored.set_result(outcome)
        self.intake.stored(len(batch))

    async def _isolate(self, batch: Sequence[Waiting], error: BaseException) -> None:
        if len(batch) > 1:
            middle = len(batch) // 2
            await self._write(batch[:middle])
            await self._write(batch[middle:])
            return
        waiting = batch[0]
        if waiting.result.page is None:  # even the bare verdict cannot be stored: the reconciler will send it again
            waiting.stored.set_exception(unavailable(error))
            self.intake.stored(1)
            return
        dead, task = not_storable(waiting.result, str(unavailable(error))), waiting.result.task
        fields = {"crawl": task.crawl_id, "shop": task.shop, "page": task.page, "reason": dead.reason}
        logger.error("page dead", extra=fields)
        await self._write([Waiting(dead, waiting.stored)])


def is_outage(error: BaseException) -> bool:
    """Whether trying again later can help: the database is away, full, locked or lost a race; no row is at fault."""
    if isinstance(error, InterfaceError) and isinstance(getattr(error.orig, "__cause__", None), ValueError):
        return False  # asyncpg's word for a value that is not of its column's type
    if isinstance(error, OperationalError | InterfaceError | PoolTimeoutError | OSError | TimeoutError):
        return True
    if isinstance(error, DBAPIError):
        state = str(getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None))
        may_pass = state in RETRYABLE_STATES or state.startswith(LOST_CONNECTION)
        return may_pass or error.connection_invalidated or isinstance(error, InternalError)
    return False
