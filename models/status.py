"""Where a crawl stands, in exact figures that stay cheap to read however many pages the ledger holds."""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from models.costs import trimmed
from models.credentials import Parked
from models.credentials import parked as all_parked
from models.errors import UsageError
from models.tables import Money, crawl, shop, shop_crawl

UNHAPPY = ("failed", "partial", "suspect")
HELD = "needs authorisation"


class Verdicts(msgspec.Struct, frozen=True):
    """Settled shops by verdict."""

    complete: int = 0
    drifted: int = 0
    partial: int = 0
    failed: int = 0
    suspect: int = 0

    @property
    def settled(self) -> int:
        """Shops that have a verdict."""
        return self.complete + self.drifted + self.unhappy

    @property
    def unhappy(self) -> int:
        """Shops that may not have shown all they have."""
        return self.partial + self.failed + self.suspect


VERDICTS = Verdicts.__struct_fields__
"""Every verdict there is."""


class Pages(msgspec.Struct, frozen=True):
    """Wanted pages by state; refused pages count as dead, cancelled ones are not wanted and count nowhere."""

    ready: int = 0
    sent: int = 0
    done: int = 0
    dead: int = 0

    @property
    def finished(self) -> int:
        """Pages that have come to an end."""
        return self.done + self.dead

    @property
    def known(self) -> int:
        """Pages wanted as far as is known by now."""
        return self.ready + self.sent + self.done + self.dead


class Items(msgspec.Struct, frozen=True):
    """Items: rows `seen`, `unique` items of the settled shops, items `new` to the store, and `changed` ones."""

    seen: int = 0
    unique: int = 0
    new: int = 0
    changed: int = 0


class BudgetLeft(msgspec.Struct, frozen=True, omit_defaults=True):
    """The caps of a crawl and what is left of each; None: no such cap."""

    max_calls: int | None = None
    calls_left: int | None = None
    max_spend: Decimal | None = None
    spend_left: Decimal | None = None


class CrawlStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """A crawl's figures, exactly the object that `--json` prints; `calls` by outcome code, most frequent first.

    `needs_authorisation` counts shops that are held until they have a new session; `spent` is the money that its budget
    counts, calls in flight and unknown ones at the highest price; `unknown_calls` were reserved and never heard of
    again; `waits_for` is the budget that is used up. These and `budget` are printed if there is anything to say.
    """

    crawl: int
    state: str
    shops: int
    verdicts: Verdicts
    pages: Pages
    items: Items
    calls: dict[str, int]
    elapsed_s: float
    needs_authorisation: int = 0
    spent: Decimal | None = None
    unknown_calls: int = 0
    budget: BudgetLeft | None = None
    waits_for: str | None = None

    @property
    def open_shops(self) -> int:
        """Shops without a verdict that can go on."""
        return self.shops - self.verdicts.settled - self.needs_authorisation

    @property
    def is_finished(self) -> bool:
        """Whether every shop is settled and the crawl is closed."""
        return self.state == "finished"

    @property
    def is_over(self) -> bool:
        """Whether nothing more happens by itself: it is finished, or all that is left needs new sessions."""
        return self.state != "running"


class UnhappyShop(msgspec.Struct, frozen=True):
    """A shop that ended suspect, partial or failed, or that needs authorisation, and why."""

    source: str
    shop: str
    verdict: str
    reason: str


class CrawlLine(msgspec.Struct, frozen=True):
    """One crawl in a list of crawls; `finished_at` is None while it runs."""

    crawl: int
    kind: str
    state: str
    created_at: datetime
    finished_at: datetime | None
    shops: int
    verdicts: Verdicts


# Counters hold what the producer has reviewed; the rest is found by partial indexes that only hold pages in motion.
# One statement, hence one snapshot: a page reviewed meanwhile is counted once.
_FACTS = sa.text(
    """
    WITH shops AS (
        SELECT count(*) AS shops,
            count(CASE WHEN verdict = 'complete' THEN 1 END) AS complete,
            count(CASE WHEN verdict = 'drifted' THEN 1 END) AS drifted,
            count(CASE WHEN verdict = 'partial' THEN 1 END) AS partial,
            count(CASE WHEN verdict = 'failed' THEN 1 END) AS failed,
            count(CASE WHEN verdict = 'suspect' THEN 1 END) AS suspect,
            count(CASE WHEN state = 'held' THEN 1 END) AS held,
            sum(planned) AS planned, sum(pages_done) AS done, sum(pages_dead) AS dead,
            sum(pages_cancelled) AS cancelled, sum("rows") AS seen, sum(distinct_items) AS distinct_items,
            sum(new_items) AS new_items, sum(changed_items) AS changed_items
        FROM shop_crawl WHERE crawl_id = :crawl
    ), moving AS (
        SELECT count(*) AS sent FROM page p JOIN shop_crawl s ON s.id = p.shop_crawl_id
        WHERE p.state = 'sent' AND s.crawl_id = :crawl
    ), fresh AS (
        SELECT count(CASE WHEN p.state = 'done' THEN 1 END) AS fresh_done,
            count(CASE WHEN p.state IN ('dead', 'refused') THEN 1 END) AS fresh_dead,
            sum(p."rows") AS fresh_seen, sum(p.new_items) AS fresh_new, sum(p.changed_items) AS fresh_changed
        FROM page p JOIN shop_crawl s ON s.id = p.shop_crawl_id
        WHERE NOT p.reviewed AND s.crawl_id = :crawl
    )
    SELECT crawl.state, crawl.created_at, crawl.finished_at, crawl.reason, shops.*, moving.*, fresh.*
    FROM crawl, shops, moving, fresh WHERE crawl.id = :crawl
    """
).columns(state=sa.Text, created_at=crawl.c.created_at.type, finished_at=crawl.c.finished_at.type)


# One statement again: what is reserved, settled and out adds up only at one moment.
_CALLS = sa.text(
    """
    SELECT crawl.reserved, crawl.spend, crawl.max_calls, crawl.max_spend, made.outcome, made.calls, (
        SELECT count(*) FROM page p JOIN shop_crawl s ON s.id = p.shop_crawl_id
        WHERE p.state = 'sent' AND s.crawl_id = :crawl
    ) AS out
    FROM crawl LEFT JOIN (
        SELECT outcome, sum(calls) AS calls FROM call WHERE crawl_id = :crawl GROUP BY outcome
    ) made ON true
    WHERE crawl.id = :crawl ORDER BY made.calls DESC, made.outcome
    """
).columns(spend=Money, max_spend=Money)


async def crawl_status(connection: AsyncConnection, crawl_id: int, *, now: datetime) -> CrawlStatus:
    """The figures of a crawl at `now`. Raises UsageError if there is no such crawl."""
    row = (await connection.execute(_FACTS, {"crawl": crawl_id})).one_or_none()
    if row is None:
        raise UsageError(f"there is no crawl {crawl_id}: `shopcrawl crawls` lists them")
    account, *_ = made = (await connection.execute(_CALLS, {"crawl": crawl_id})).all()
    calls = {each.outcome: int(each.calls) for each in made if each.outcome is not None}
    return CrawlStatus(
        crawl=crawl_id,
        state=row.state,
        shops=row.shops,
        verdicts=Verdicts(**{name: row._mapping[name] for name in VERDICTS}),
        pages=_pages(row),
        items=Items(
            seen=_sum(row.seen, row.fresh_seen),
            unique=_sum(row.distinct_items),
            new=_sum(row.new_items, row.fresh_new),
            changed=_sum(row.changed_items, row.fresh_changed),
        ),
        calls=calls,
        elapsed_s=round(max(0.0, ((row.finished_at or now) - row.created_at).total_seconds()), 3),
        needs_authorisation=row.held,
        waits_for=row.reason if row.state == "waiting" else None,
        spent=trimmed(account.spend) if account.spend else None,
        unknown_calls=max(0, account.reserved - sum(calls.values()) - account.out),
        budget=_budget(account),
    )


def _budget(account: sa.Row[Any]) -> BudgetLeft | None:
    calls, money = account.max_calls, account.max_spend
    if calls is None and money is None:
        return None
    return BudgetLeft(
        max_calls=calls,
        calls_left=None if calls is None else max(0, calls - account.reserved),
        max_spend=None if money is None else trimmed(money),
        spend_left=None if money is None else trimmed(max(Decimal(0), money - account.spend)),
    )


def _pages(row: sa.Row[Any]) -> Pages:
    """Every planned page is reviewed, fresh, sent, cancelled or else ready: nobody needs to count the ready ones."""
    done, dead = _sum(row.done, row.fresh_done), _sum(row.dead, row.fresh_dead)
    ready = _sum(row.planned) - done - dead - _sum(row.cancelled) - row.sent
    return Pages(ready=ready, sent=row.sent, done=done, dead=dead)


def _sum(*parts: Any) -> int:
    return sum(int(part or 0) for part in parts)


async def latest_crawl_id(connection: AsyncConnection) -> int | None:
    """The id of the newest crawl, None if there never was one."""
    newest: int | None = await connection.scalar(sa.select(sa.func.max(crawl.c.id)))
    return newest


def exit_code(status: CrawlStatus) -> int:
    """3 if a shop ended suspect, partial or failed, needs authorisation or waits for a budget, else 0."""
    unhappy = status.verdicts.unhappy or status.needs_authorisation
    return 3 if unhappy or status.waits_for else 0


async def unhappy_shops(connection: AsyncConnection, crawl_id: int, limit: int) -> list[UnhappyShop]:
    """Up to `limit` shops that ended failed, partial or suspect or are held, by that, then by source and key."""
    verdict = sa.case((shop_crawl.c.state == "held", HELD), else_=shop_crawl.c.verdict).label("verdict")
    query = (
        sa.select(shop.c.source, shop.c.key.label("shop"), verdict, shop_crawl.c.reason)
        .join(shop, shop.c.id == shop_crawl.c.shop_id)
        .where(shop_crawl.c.crawl_id == crawl_id)
        .where(shop_crawl.c.verdict.in_(UNHAPPY) | (shop_crawl.c.state == "held"))
        .order_by(verdict, shop.c.source, shop.c.key)
        .limit(limit)
    )
    rows = await connection.execute(query)
    return [UnhappyShop(row.source, row.shop, row.verdict, row.reason or "") for row in rows]


async def waiting(connection: AsyncConnection, crawl_id: int) -> list[Parked]:
    """The parked credentials of the sources that this crawl still has open shops of."""
    parked = await all_parked(connection)
    sources = {entry.source for entry in parked}
    concerned = {source for source in sources if await _has_open_shop(connection, crawl_id, source)}
    return [entry for entry in parked if entry.source in concerned]


async def _has_open_shop(connection: AsyncConnection, crawl_id: int, source: str) -> bool:
    open_shop = sa.select(shop_crawl.c.id).join(shop, shop.c.id == shop_crawl.c.shop_id)
    open_shop = open_shop.where(
        shop_crawl.c.crawl_id == crawl_id, shop_crawl.c.state == "open", shop.c.source == source
    )
    return await connection.scalar(open_shop.limit(1)) is not None


async def recent_crawls(connection: AsyncConnection, limit: int) -> list[CrawlLine]:
    """The newest crawls, newest first, with their shops by verdict."""
    newest = sa.select(crawl).order_by(crawl.c.id.desc()).limit(limit)
    crawls = (await connection.execute(newest)).all()
    counts = await _verdicts(connection, [row.id for row in crawls])
    return [
        CrawlLine(
            crawl=row.id,
            kind=row.kind,
            state=row.state,
            created_at=row.created_at,
            finished_at=row.finished_at,
            shops=sum(counts.get(row.id, {}).values()),
            verdicts=Verdicts(**{name: n for name, n in counts.get(row.id, {}).items() if name is not None}),
        )
        for row in crawls
    ]


async def _verdicts(connection: AsyncConnection, crawl_ids: Sequence[int]) -> dict[int, dict[str | None, int]]:
    """Shops of each crawl by verdict; those without one are under None."""
    columns = (shop_crawl.c.crawl_id, shop_crawl.c.verdict)
    query = sa.select(*columns, sa.func.count().label("shops")).where(shop_crawl.c.crawl_id.in_(crawl_ids))
    counts: dict[int, dict[str | None, int]] = {}
    for row in await connection.execute(query.group_by(*columns)):
        counts.setdefault(row.crawl_id, {})[row.verdict] = row.shops
    return counts
