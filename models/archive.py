"""The archive of answers: one that is byte for byte what the page answered before is kept once."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from models.sheets import Sheet
from models.tables import page_body, sheet

_kept = page_body.alias("kept")
BODY: sa.ColumnElement[bytes] = sa.case((page_body.c.same_as.is_(None), page_body.c.body), else_=_kept.c.body)
"""An answer as it came, compressed, in a query of `WITH_BODY`."""
WITH_BODY = page_body.outerjoin(_kept, _kept.c.page_id == page_body.c.same_as)
"""`page_body` with what its rows stand for."""


class Answer(msgspec.Struct, frozen=True):
    """A page's compressed answer on its way into the archive; `digest` is that of `body`.

    `sheet` is what the page showed already before, with the answer archived then.
    """

    page_id: int
    fetched_at: datetime
    body: bytes
    digest: int
    sheet: Sheet | None = None


async def archive(connection: AsyncConnection, answers: Sequence[Answer]) -> None:
    """Keep answers, in the transaction that moved their sheets."""
    if answers:
        await connection.execute(sa.insert(page_body), [_row(answer) for answer in answers])


def _row(answer: Answer) -> dict[str, Any]:
    known = answer.sheet
    same_as = known.body_page_id if known is not None and known.body_digest == answer.digest else None
    body = answer.body if same_as is None else b""
    return {"page_id": answer.page_id, "fetched_at": answer.fetched_at, "body": body, "same_as": same_as}


async def prune_bodies(connection: AsyncConnection, before: datetime, *, batch: int) -> int:
    """Delete at most `batch` answers that no page has given since `before`; returns how many."""
    repeat = page_body.alias("repeat")
    repeated = sa.exists().where(repeat.c.same_as == page_body.c.page_id, repeat.c.fetched_at >= before)
    shown = sa.exists().where(sheet.c.body_page_id == page_body.c.page_id, sheet.c.last_seen >= before)
    old = sa.select(page_body.c.page_id).where(page_body.c.fetched_at < before, ~repeated, ~shown).limit(batch)
    ids = list(await connection.scalars(old))
    # First the sheets: whoever moves one now waits, or has moved it in time and keeps its answer.
    of_old = sheet.c.body_page_id.in_(ids) & (sheet.c.last_seen < before)
    await connection.execute(sa.update(sheet).where(of_old).values(body_page_id=None, body_digest=None))
    still_shown = sa.exists().where(sheet.c.body_page_id == page_body.c.page_id)
    deleted = await connection.execute(sa.delete(page_body).where(page_body.c.page_id.in_(ids), ~still_shown))
    return deleted.rowcount
