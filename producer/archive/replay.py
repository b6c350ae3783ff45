"""Replay: the archive is read again by today's decoders, and the store becomes what they would have made of it."""

from collections import deque
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from models.bulk import query_rows
from models.changes import restating
from models.database import reader
from models.errors import FetchError, UsageError
from models.items import Sighting, sightings_of
from models.past import correct
from models.settings import Settings
from models.sheets import LAST_SEEN, WITH_SHEET
from models.source import HttpResponse, source_named
from models.store import observe
from models.tables import change, item, item_sales, item_seen, item_version, outbox, shop, shop_crawl
from producer.archive.bodies import Body, Scope, read_bodies
from producer.planning.delist import delist, is_whole, look
from producer.planning.facts import progress_of

FAILURES_NAMED = 1_000
SETTLED_AT_ONCE = 1_000
TRIES = 5
LOST_RACE = {"40001", "40P01"}
"""PostgreSQL's states for a transaction that lost against another writer and may be tried again."""


class Failure(msgspec.Struct, frozen=True):
    """An archived answer that was good once and does not decode today."""

    source: str
    shop: str
    crawl: int
    page: int
    page_id: int
    reason: str


class Replayed(msgspec.Struct, kw_only=True):
    """What a replay read and did.

    `pages` were read, with `sightings` of items on them. `new` items and `changed` ones came after what was stored,
    `corrected` sightings changed what was stored of their time or before, `gone` items were missed by settled crawls.
    `recovered` pages had been given up and are readable today, `unreadable` ones still are not. `failed` pages had been
    stored and do not decode today; `failures` names the first of them.
    """

    pages: int = 0
    sightings: int = 0
    new: int = 0
    changed: int = 0
    corrected: int = 0
    gone: int = 0
    recovered: int = 0
    unreadable: int = 0
    failed: int = 0
    failures: list[Failure] = msgspec.field(default_factory=list)

    @property
    def differences(self) -> int:
        """How much the store was changed: 0 when it agrees with the archive."""
        return self.new + self.changed + self.corrected + self.gone


class Read(msgspec.Struct, frozen=True):
    """The sightings of one archived page."""

    shop_id: int
    fetched_at: datetime
    sightings: list[Sighting]


Step = tuple[list[Read], list[sa.Row[Any]]]
"""Pages to be told, and then shop crawls that settled behind them."""


def steps(pages: Sequence[Read], settled: Sequence[sa.Row[Any]]) -> list[Step]:
    """Pages and settled shop crawls, each in order of time, in as few steps as keep the order within every shop."""
    found: list[Step] = [([], [])]
    left, judged = deque(settled), set[int]()
    for page in pages:
        while left and left[0].settled_at < page.fetched_at:
            judged.add(left[0].shop_id)
            found[-1][1].append(left.popleft())
        if page.shop_id in judged:
            found.append(([], []))
            judged.clear()
        found[-1][0].append(page)
    found[-1][1].extend(left)
    return found


class Replay:
    """One replay of a scope of the archive into the store; `result` grows while it runs."""

    def __init__(self, engine: AsyncEngine, scope: Scope, settings: Settings, *, dry_run: bool = False) -> None:
        self.result = Replayed()
        self._engine, self._scope, self._settings, self._dry_run = engine, scope, settings, dry_run

    async def run(self, advance: Callable[[int], None] = lambda _number: None) -> Replayed:
        """Replay everything; `advance` is told the number of pages after each batch. Nothing is called, and no page,
        verdict or count in the ledger changes. What was replayed before changes nothing.
        """
        settled: _Settled | None = None
        async for bodies in read_bodies(self._engine, self._scope):
            settled = settled or _Settled(self._engine, self._scope, bodies[0].fetched_at)
            pages = [page for body in bodies if (page := self._read(body)) is not None]
            await self._tell(steps(pages, await settled.take(bodies[-1].fetched_at)))
            advance(len(bodies))
        while settled is not None and (rest := await settled.take(None)):
            await self._tell([([], rest)])
        return self.result

    def _read(self, body: Body) -> Read | None:
        """Decode one page as its worker would today; None if that cannot be done."""
        self.result.pages += 1
        try:
            sightings = decoded(body)
        except (FetchError, UsageError, ValueError, TypeError, RecursionError) as error:
            self._count_failure(body, error)
            return None
        self.result.recovered += body.state != "done"
        self.result.sightings += len(sightings)
        return Read(body.task.shop_id, body.fetched_at, sightings)

    def _count_failure(self, body: Body, error: Exception) -> None:
        if body.state != "done":
            self.result.unreadable += 1
            return
        self.result.failed += 1
        if len(self.result.failures) < FAILURES_NAMED:
            task = body.task
            reason = str(error) or type(error).__name__
            self.result.failures.append(Failure(task.source, task.shop, task.crawl_id, task.page, task.page_id, reason))

    async def _tell(self, steps: Sequence[Step]) -> None:
        """Tell the store in one transaction; it is tried again if another writer won."""
        for tries_left in reversed(range(TRIES)):
            try:
                async with restating(self._engine).connect() as connection, connection.begin() as transaction:
                    counts = [await self._take(connection, *step) for step in steps]
                    if self._dry_run:
                        await transaction.rollback()
                break
            except DBAPIError as error:
                if tries_left == 0 or getattr(error.orig, "sqlstate", None) not in LOST_RACE:
                    raise
        for new, changed, corrected, gone in counts:
            self.result.new += new
            self.result.changed += changed
            self.result.corrected += corrected
            self.result.gone += gone

    async def _take(
        self, connection: AsyncConnection, pages: Sequence[Read], settled: Sequence[sa.Row[Any]]
    ) -> tuple[int, int, int, int]:
        sightings = [sighting for page in pages for sighting in page.sightings]
        await _forget_halves(connection, {sighting.key for sighting in sightings})
        tracked = self._settings.tracked_fields
        late, fresh = await _sorted(connection, sightings)
        corrected = await correct(connection, late, tracked=tracked)
        diff = await observe(connection, fresh, tracked=tracked)
        gone = 0
        for row in settled:
            gone += await self._miss(connection, row)
        return len(diff.new), len(diff.changed), len(corrected), gone

    async def _miss(self, connection: AsyncConnection, row: sa.Row[Any]) -> int:
        """Count what a complete crawl missed, as when it settled; what was counted then is not counted again."""
        if not is_whole(row) or not await _is_uncounted(connection, row):
            return 0
        proved = None if row.pages_made else (await look(connection, row, progress_of(row))).proved
        return await delist(connection, row, proved, row.settled_at, self._settings.gone_after)


def decoded(body: Body) -> list[Sighting]:
    """The sightings of an archived page by today's decoder, at the time when it was fetched. Raises as decoders do."""
    task = body.task
    fetched = source_named(task.source).decode(HttpResponse(200, {}, body.content), task, body.fetched_at)
    sightings, _digest = sightings_of(
        fetched.items, shop_id=task.shop_id, shop_crawl_id=task.shop_crawl_id, seen_at=body.fetched_at
    )
    return sightings


async def _sorted(connection: AsyncConnection, sightings: Sequence[Sighting]) -> tuple[list[Sighting], list[Sighting]]:
    """Sightings no newer than what is stored of their items, and the others.

    `observe` tells them apart too, but one wave after the other, and does not say which of them corrected anything.
    """
    t = item_seen.c
    keys = [{"shop_id": shop_id, "item_id": item_id} for shop_id, item_id in sorted({s.key for s in sightings})]
    sql = (
        "SELECT i.shop_id, i.item_id, COALESCE(sheet.last_seen, i.last_seen) AS last_seen FROM {r} JOIN item_seen i"
        " ON i.shop_id = r.shop_id AND i.item_id = r.item_id LEFT JOIN sheet ON sheet.id = i.sheet_id"
    )
    columns = [t.shop_id, t.item_id, t.last_seen]
    found = await query_rows(connection, sql, columns[:2], keys, returning=columns)
    last_seen = {(row.shop_id, row.item_id): row.last_seen for row in found}
    late = [s for s in sightings if s.key in last_seen and s.seen_at <= last_seen[s.key]]
    told = set(map(id, late))
    return late, [s for s in sightings if id(s) not in told]


async def _is_uncounted(connection: AsyncConnection, row: sa.Row[Any]) -> bool:
    """Whether some item that a shop crawl has not seen has not been counted as missed by it, or a later one."""
    t = item_seen.c
    missing = (t.shop_id == row.shop_id) & (row.created_at > LAST_SEEN) & t.gone_at.is_(None)
    uncounted = missing & (t.missed_at.is_(None) | (t.missed_at < row.settled_at))
    query = sa.select(t.item_id).select_from(WITH_SHEET).where(uncounted).limit(1)
    return await connection.scalar(query) is not None


async def _forget_halves(connection: AsyncConnection, keys: Collection[tuple[int, str]]) -> None:
    """Delete what is left of items without one of their two rows: they are told from the beginning."""
    columns = [item.c.shop_id, item.c.item_id]
    rows = [{"shop_id": shop_id, "item_id": item_id} for shop_id, item_id in sorted(keys)]
    sql = (
        "SELECT r.shop_id, r.item_id FROM {r} LEFT JOIN item i ON i.shop_id = r.shop_id AND i.item_id = r.item_id"
        " LEFT JOIN item_seen s ON s.shop_id = r.shop_id AND s.item_id = r.item_id"
        " WHERE i.item_id IS NULL OR s.item_id IS NULL"
    )
    halves = [row._asdict() for row in await query_rows(connection, sql, columns, rows)]
    theirs = "SELECT c.id FROM {r} JOIN change c ON c.shop_id = r.shop_id AND c.item_id = r.item_id"
    await query_rows(connection, f"DELETE FROM {outbox.name} WHERE change_id IN ({theirs})", columns, halves)
    for table in (item, item_seen, item_version, item_sales, change):
        of = "SELECT r.shop_id, r.item_id FROM {r}"
        await query_rows(connection, f"DELETE FROM {table.name} WHERE (shop_id, item_id) IN ({of})", columns, halves)


class _Settled:
    """The complete shop crawls of a scope in the order in which they settled, from a time on."""

    def __init__(self, engine: AsyncEngine, scope: Scope, since: datetime) -> None:
        self._engine, self._scope, self._since = engine, scope, since
        self._waiting: deque[sa.Row[Any]] = deque()
        self._place: tuple[datetime, int] | None = None
        self._more = True

    async def take(self, until: datetime | None) -> list[sa.Row[Any]]:
        """Those that settled before a time, SETTLED_AT_ONCE of them if no time is given; none twice."""
        taken: list[sa.Row[Any]] = []
        while await self._filled() and (until is None or self._waiting[0].settled_at < until):
            taken.append(self._waiting.popleft())
            if until is None and len(taken) == SETTLED_AT_ONCE:
                break
        return taken

    async def _filled(self) -> bool:
        if not self._waiting and self._more:
            async with reader(self._engine).connect() as connection:
                rows = (await connection.execute(self._query())).all()
            self._waiting.extend(rows)
            self._more = len(rows) == SETTLED_AT_ONCE
            if rows:
                self._place = (rows[-1].settled_at, rows[-1].id)
        return bool(self._waiting)

    def _query(self) -> sa.Select[Any]:
        t, scope = shop_crawl.c, self._scope
        query = sa.select(shop_crawl, shop.c.source).join(shop, shop.c.id == t.shop_id)
        query = query.where(t.verdict == "complete", t.settled_at >= self._since)
        if scope.crawl_id is not None:
            query = query.where(t.crawl_id == scope.crawl_id)
        if scope.shops is not None:
            query = query.where(t.shop_id.in_(scope.shops))
        if self._place is not None:
            place = sa.tuple_(*self._place, types=(t.settled_at.type, t.id.type))
            query = query.where(sa.tuple_(t.settled_at, t.id) > place)
        return query.order_by(t.settled_at, t.id).limit(SETTLED_AT_ONCE)
