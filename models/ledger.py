"""The page ledger's write side: what became of a page is stored in one fenced transaction with its items."""

from array import array
from base64 import b64decode, b64encode
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from hashlib import blake2b
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from models.archive import Answer, archive
from models.billing import FREE
from models.budget import DailyCaps, Settlement, settle
from models.bulk import insert_rows, query_rows
from models.database import is_postgresql
from models.items import Diff, Sighting, digest, sightings_of
from models.messages import PageTask
from models.settings import TRACKED_FIELDS
from models.sheets import Sheet, SheetKey
from models.source import FetchedPage
from models.store import PageSeen, observe_pages
from models.tables import call, page

TOO_FAR = "window-too-large"
"""The outcome of a page that lies beyond what the API reaches, whatever the API calls it."""
NO_CAPS: DailyCaps = {}
TERMINAL = ("done", "dead", "refused", "cancelled")


class Calls(msgspec.Struct, frozen=True):
    """Calls of one page that ended alike: which credential, which effective code, how many, at what cost in all."""

    credential: str
    outcome: str
    count: int
    cost: Decimal = FREE


class SeenPage(msgspec.Struct, frozen=True):
    """What a page showed, ready for the store: its sightings and `pack_keys` of their ids, in the order sent.

    `digest` is of all that it showed.
    """

    sightings: list[Sighting]
    digest: int
    item_keys: str
    total: int | None
    page_size: int | None


class PageResult(msgspec.Struct, kw_only=True):
    """What became of one sending of a page.

    `state` is `done`, `dead`, `refused` (the API refuses the whole shop), `held` (it refuses the shop's session),
    `ready` (put back, due at `due_at`) or `sent`: not an end, but calls so far, for which one more is to be reserved.
    `reserved` is how many reservations this result settles, `price` what each of them counted.
    """

    task: PageTask
    state: str
    at: datetime
    tries: int
    outcome: str | None = None
    reason: str | None = None
    due_at: datetime | None = None
    page: SeenPage | None = None
    body: bytes | None = None
    calls: Sequence[Calls] = ()
    reserved: int = 1
    price: Decimal = FREE
    window_end: datetime | None = None
    """Where the page's window must end instead, if nothing of it has been read."""

    @property
    def settlement(self) -> Settlement:
        """What became of the reservations."""
        calls, cost = sum(each.count for each in self.calls), sum((each.cost for each in self.calls), FREE)
        return Settlement(self.task, calls, cost, self.reserved, self.price, wants_more=self.state == "sent")

    @property
    def sightings(self) -> list[Sighting]:
        """The items this page shows."""
        return self.page.sightings if self.page else []


def seen(task: PageTask, fetched: FetchedPage, at: datetime) -> SeenPage:
    """What a decoded page showed at this time; raises what `sightings_of` raises."""
    sightings, shown = sightings_of(fetched.items, shop_id=task.shop_id, shop_crawl_id=task.shop_crawl_id, seen_at=at)
    keys = pack_keys(item.item_id for item in fetched.items).decode()
    return SeenPage(sightings, shown, keys, fetched.total, fetched.page_size)


def with_page(result: PageResult, fetched: FetchedPage) -> PageResult:
    """A result with what its page showed, encoded at once: it may wait long, and is smaller that way."""
    try:
        return msgspec.structs.replace(result, page=seen(result.task, fetched, result.at))
    except Exception as error:  # a bug in a source's decoder must fail its page, not send it round for ever
        return not_storable(result, f"{type(error).__name__}: {error}")


def not_storable(result: PageResult, reason: str) -> PageResult:
    """The result of a page that was had in vain."""
    reason = f"cannot be stored: {reason[:300]}"
    return msgspec.structs.replace(result, state="dead", reason=reason, page=None, body=None)


class Stored(msgspec.Struct, frozen=True):
    """What the store made of an accepted result: the page's state now, and its items that were new or changed.

    `refused` says why the call that a result of state `sent` asked for may not be made.
    """

    state: str
    new: int = 0
    changed: int = 0
    refused: str | None = None


def pack_keys(item_ids: Iterable[str]) -> bytes:
    """Base64 of one 64-bit digest for each item id, in order: small enough to keep with every page."""
    digests = b"".join(blake2b(item_id.encode(), digest_size=8).digest() for item_id in item_ids)
    return b64encode(digests)


def unpack_keys(packed: bytes | None) -> list[int]:
    """The 64-bit digests that `pack_keys` packed, in order."""
    return array("Q", b64decode(packed or b"")).tolist()


_PAGE_COLUMNS = [
    page.c[name]
    for name in (
        "id", "fence", "state", "reviewed", "tries", "due_at", "finished_at", "outcome", "reason",
        "rows", "total", "page_size", "item_keys", "new_items", "changed_items",
    )
]  # fmt: skip
# Only the newest sending of a page that is still out may be stored: a zombie finds its fence outdated.
_CURRENT = (
    "SELECT p.id, p.fence FROM {r} JOIN page p ON p.id = r.id AND p.fence = r.fence"
    " WHERE p.state = 'sent' ORDER BY p.id"
)
_FINISH = (
    "UPDATE page SET "
    + ", ".join(f'"{c.name}" = r."{c.name}"' for c in _PAGE_COLUMNS if c.name not in {"id", "fence", "due_at"})
    + ", due_at = COALESCE(r.due_at, page.due_at)"
    + " FROM {r} WHERE page.id = r.id"
)


async def store_results(
    connection: AsyncConnection,
    results: Sequence[PageResult],
    *,
    caps: DailyCaps = NO_CAPS,
    once_more: bool = False,
    tracked: Collection[str] = TRACKED_FIELDS,
) -> list[Stored | None]:
    """Store results and their items inside the caller's transaction; returns None for each one not accepted.

    Of a page whose fence is outdated, and of a second result for one sending, nothing is stored, except that its
    calls are counted: they were made and may be billed. `once_more`: an earlier attempt may have been committed.
    `tracked`: the item fields of which each change is kept.
    """
    current = await _lock_current(connection, results)
    kept: dict[int, PageResult] = {}
    for place, result in enumerate(results):
        sending = (result.task.page_id, result.task.fence)
        if sending in current:
            if result.state != "sent":
                current.remove(sending)
            kept[place] = result
    ends = {place: result for place, result in kept.items() if result.state != "sent"}
    rows = await _store_accepted(connection, list(ends.values()), tracked)
    refused = await _account(connection, results, kept, caps, once_more=once_more)
    stored: list[Stored | None] = [None] * len(results)
    for place in kept.keys() - ends.keys():
        stored[place] = Stored("sent", refused=refused[place])
    for place, row in zip(ends, rows, strict=True):
        stored[place] = Stored(row["state"], new=row["new_items"], changed=row["changed_items"])
    return stored


async def _account(
    connection: AsyncConnection,
    results: Sequence[PageResult],
    kept: Container[int],
    caps: DailyCaps,
    *,
    once_more: bool,
) -> list[str | None]:
    """Count calls and settle their reservations; why a further call was refused, for each result."""
    known = await _counted_before(connection, results) if once_more else set()
    fresh = [place for place, result in enumerate(results) if (result.task.page_id, result.at) not in known]
    await insert_rows(connection, call, [row for place in fresh for row in _call_rows(results[place])])
    # A sending that is outdated asks for nothing any more.
    settlements = [
        msgspec.structs.replace(results[place].settlement, wants_more=results[place].state == "sent" and place in kept)
        for place in fresh
    ]
    now = max((result.at for result in results), default=None)
    refused: list[str | None] = [None] * len(results)
    if now is not None:
        for place, why in zip(fresh, await settle(connection, settlements, caps, now), strict=True):
            refused[place] = why.reason if why else None
    for place in set(range(len(results))) - set(fresh):
        refused[place] = "the database was away when it was asked"  # whether a call was reserved is not known
    return refused


async def _counted_before(connection: AsyncConnection, results: Sequence[PageResult]) -> set[tuple[int, datetime]]:
    """(page id, time) of the results whose calls an earlier attempt has counted already."""
    query = sa.select(call.c.page_id, call.c.at).where(
        call.c.crawl_id.in_({result.task.crawl_id for result in results}),
        call.c.page_id.in_({result.task.page_id for result in results}),
    )
    return {(row.page_id, row.at) for row in await connection.execute(query)}


async def _lock_current(connection: AsyncConnection, results: Sequence[PageResult]) -> set[tuple[int, int]]:
    """(page id, fence) of the sendings that may be stored, locked until the transaction ends."""
    rows = [{"id": result.task.page_id, "fence": result.task.fence} for result in results]
    sql = _CURRENT + (" FOR UPDATE OF p" if is_postgresql(connection) else "")
    return {(row.id, row.fence) for row in await query_rows(connection, sql, [page.c.id, page.c.fence], rows)}


async def _store_accepted(
    connection: AsyncConnection, results: Sequence[PageResult], tracked: Collection[str]
) -> list[dict[str, Any]]:
    """Store results; returns the columns that each one's page got."""
    digests = {result.task.page_id: digest(result.body) for result in results if result.body}
    pages = [
        PageSeen(result.page.sightings, _sheet(result, result.page, digests))
        for result in results
        if result.page is not None
    ]
    diff, same = await observe_pages(connection, pages, tracked=tracked)
    rows = _page_rows(results, diff)
    await query_rows(connection, _FINISH, _PAGE_COLUMNS, rows)
    await archive(connection, [_answer(result, digests, same) for result in results if result.body])
    await _move_windows(connection, [result for result in results if result.window_end])
    return rows


def _sheet(result: PageResult, shown: SeenPage, digests: Mapping[int, int]) -> Sheet:
    task, body_digest = result.task, digests.get(result.task.page_id)
    body_page_id = None if body_digest is None else task.page_id
    return Sheet(task.shop_id, shown.digest, result.at, task.shop_crawl_id, body_digest, body_page_id)


def _answer(result: PageResult, digests: Mapping[int, int], same: Mapping[SheetKey, Sheet]) -> Answer:
    page_id, shown = result.task.page_id, result.page
    known = same.get((result.task.shop_id, shown.digest)) if shown is not None else None
    return Answer(page_id, result.at, result.body or b"", digests[page_id], known)


def _page_rows(results: Sequence[PageResult], diff: Diff) -> list[dict[str, Any]]:
    # By identity: of an item seen twice only that sighting counts which made it new or changed it.
    new, changed = {id(s) for s in diff.new}, {id(s) for s in diff.changed}
    rows = []
    for result in results:
        shown = {id(s) for s in result.sightings}
        rows.append(_page_row(result, new_items=len(shown & new), changed_items=len(shown & changed)))
    return rows


def _page_row(result: PageResult, *, new_items: int, changed_items: int) -> dict[str, Any]:
    shown = result.page
    return {
        "id": result.task.page_id,
        "fence": result.task.fence,
        "state": result.state,
        "reviewed": result.state == "ready",
        "tries": result.tries,
        "due_at": result.due_at,
        "finished_at": result.at if result.state in TERMINAL else None,
        "outcome": result.outcome,
        "reason": result.reason,
        "rows": len(shown.sightings) if shown else None,
        "total": shown.total if shown else None,
        "page_size": shown.page_size if shown else None,
        "item_keys": shown.item_keys if shown else None,
        "new_items": new_items,
        "changed_items": changed_items,
    }


def _call_rows(result: PageResult) -> list[dict[str, Any]]:
    task = result.task
    return [
        {
            "crawl_id": task.crawl_id,
            "shop_crawl_id": task.shop_crawl_id,
            "page_id": task.page_id,
            "credential": calls.credential,
            "outcome": calls.outcome,
            "calls": calls.count,
            "cost": calls.cost,
            "at": result.at,
        }
        for calls in result.calls
    ]


async def _move_windows(connection: AsyncConnection, results: Sequence[PageResult]) -> None:
    """End windows earlier: our clock was ahead of the API's when they were made."""
    sql = (
        "UPDATE slice SET end_at = r.due_at FROM {r} JOIN page p ON p.id = r.id"
        " WHERE slice.shop_crawl_id = p.shop_crawl_id AND slice.number = p.slice"
        " AND slice.calls = 0 AND slice.kind = 'root' AND (slice.start_at IS NULL OR slice.start_at <= r.due_at)"
    )
    rows = [{"id": result.task.page_id, "due_at": result.window_end} for result in results]
    await query_rows(connection, sql, [page.c.id, page.c.due_at], rows)
