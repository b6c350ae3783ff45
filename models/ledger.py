"""The page ledger's write side: what became of a page is stored in one fenced transaction with its items."""

from array import array
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from datetime import datetime
from hashlib import blake2b
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from models.bulk import insert_rows, query_rows
from models.items import Diff, Sighting, diff, sightings_of, stored_hashes, write
from models.messages import PageTask
from models.source import FetchedPage
from models.tables import call, page, page_body

TERMINAL = ("done", "dead", "refused", "cancelled")


class Calls(msgspec.Struct, frozen=True):
    """Calls of one page that ended alike: which credential, which effective code, how many."""

    credential: str
    outcome: str
    count: int


class PageResult(msgspec.Struct, kw_only=True):
    """What became of one sending of a page.

    `state` is `done`, `dead`, `refused` (the API refuses the whole shop) or `ready` (put back, due at `due_at`).
    """

    task: PageTask
    state: str
    at: datetime
    tries: int
    outcome: str | None = None
    reason: str | None = None
    due_at: datetime | None = None
    fetched: FetchedPage | None = None
    body: bytes | None = None
    calls: Sequence[Calls] = ()

    @property
    def sightings(self) -> list[Sighting]:
        """The items this page shows."""
        if self.fetched is None:
            return []
        task = self.task
        return sightings_of(self.fetched.items, shop_id=task.shop_id, shop_crawl_id=task.shop_crawl_id, seen_at=self.at)


def pack_keys(item_ids: Iterable[str]) -> str:
    """Base64 of one 64-bit digest for each item id, in order: small enough to keep with every page."""
    digests = b"".join(blake2b(item_id.encode(), digest_size=8).digest() for item_id in item_ids)
    return b64encode(digests).decode()


def unpack_keys(packed: str | None) -> list[int]:
    """The 64-bit digests that `pack_keys` packed, in order."""
    return array("Q", b64decode(packed or "")).tolist()


_PAGE_COLUMNS = [
    page.c[name]
    for name in (
        "id", "fence", "state", "reviewed", "tries", "due_at", "finished_at", "outcome", "reason",
        "rows", "total", "page_size", "item_keys", "new_items", "changed_items",
    )
]  # fmt: skip
# Only the newest sending of a page that is still out may be stored: a zombie finds its fence outdated.
_FINISH = (
    "UPDATE page SET "
    + ", ".join(f'"{c.name}" = r."{c.name}"' for c in _PAGE_COLUMNS if c.name not in {"id", "fence", "due_at"})
    + ", due_at = COALESCE(r.due_at, page.due_at)"
    + " FROM {r} WHERE page.id = r.id AND page.fence = r.fence AND page.state = 'sent' RETURNING page.id"
)


async def store_results(connection: AsyncConnection, results: Sequence[PageResult]) -> set[int]:
    """Store results and their items inside the caller's transaction; returns the ids of the pages that were accepted.

    A page whose fence is outdated is not among them and nothing of it is stored, except that its calls are counted:
    they were made and may be billed.
    """
    sightings = [sighting for result in results for sighting in result.sightings]
    change = diff(await stored_hashes(connection, {s.key for s in sightings}), sightings)
    rows = _page_rows(results, change)
    found = await query_rows(connection, _FINISH, _PAGE_COLUMNS, sorted(rows, key=lambda row: row["id"]))
    accepted = {row.id for row in found}
    if len(accepted) < len(results):
        kept = [s for result in results if result.task.page_id in accepted for s in result.sightings]
        change = diff(await stored_hashes(connection, {s.key for s in kept}), kept)
    await write(connection, change)
    await insert_rows(connection, call, [row for result in results for row in _call_rows(result)])
    await _store_bodies(connection, [result for result in results if result.task.page_id in accepted and result.body])
    return accepted


def _page_rows(results: Sequence[PageResult], change: Diff) -> list[dict[str, Any]]:
    new, changed = {s.key for s in change.new}, {s.key for s in change.changed}
    rows = []
    for result in results:
        keys = {s.key for s in result.sightings}
        rows.append(_page_row(result, new_items=len(keys & new), changed_items=len(keys & changed)))
        new -= keys  # an item on two pages of one batch is new once
        changed -= keys
    return rows


def _page_row(result: PageResult, *, new_items: int, changed_items: int) -> dict[str, Any]:
    fetched = result.fetched
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
        "rows": len(fetched.items) if fetched else None,
        "total": fetched.total if fetched else None,
        "page_size": fetched.page_size if fetched else None,
        "item_keys": pack_keys(item.item_id for item in fetched.items) if fetched else None,
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
            "at": result.at,
        }
        for calls in result.calls
    ]


async def _store_bodies(connection: AsyncConnection, results: Sequence[PageResult]) -> None:
    if results:
        rows = [{"page_id": r.task.page_id, "fetched_at": r.at, "body": r.body} for r in results]
        await connection.execute(sa.insert(page_body), rows)
