"""The ledger's rows as the values that planning works with."""

from typing import Any

import sqlalchemy as sa

from models.tables import page
from producer.planning.plan import PageFact, Progress

FACT_COLUMNS = (
    page.c.id, page.c.slice, page.c.number, page.c.state, page.c.rows, page.c.total, page.c.page_size,
    page.c.item_keys, page.c.reason, page.c.outcome, page.c.new_items, page.c.changed_items, page.c.finished_at,
)  # fmt: skip
FACT_OF_SHOP = (page.c.shop_crawl_id, *FACT_COLUMNS)
"""What queries return in which `fact_names` follow the shop crawl's id."""
PROGRESS = (
    "planned", "page_size", "total_first", "total_last", "last_page", "end_reason", "extensions", "last_dead",
    "last_done", "pages_done", "pages_dead", "pages_cancelled", "rows", "new_items", "changed_items", "refusal",
    "slices", "pages_made", "second_pass", "first_distinct",
)  # fmt: skip


def fact_names(alias: str) -> str:
    """The columns of a fact in a query in which the page table is called `alias`."""
    return ", ".join(f'{alias}."{column.name}"' for column in FACT_COLUMNS)


def fact_of(row: sa.Row[Any]) -> PageFact:
    """What a row of the page table says."""
    return PageFact(
        number=row.number,
        state=row.state,
        rows=row.rows or 0,
        total=row.total,
        page_size=row.page_size,
        keys=row.item_keys,
        reason=row.reason,
        new_items=row.new_items or 0,
        changed_items=row.changed_items or 0,
        page_id=row.id,
        slice=row.slice,
        outcome=row.outcome,
        finished_at=row.finished_at,
    )


def progress_of(row: sa.Row[Any]) -> Progress:
    """What a row of the shop crawl table says."""
    kept = {name: row._mapping[name] for name in PROGRESS}
    return Progress(max_pages=row.options["max_pages"], asked_size=row.options["page_size"], mode=row.mode, **kept)
