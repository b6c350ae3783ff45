"""Every table, by the names that the rest of the code uses."""

from models.tables.ledger import (
    call,
    crawl,
    credential,
    daily_use,
    learned,
    page,
    session,
    shop,
    shop_crawl,
    slice_,
)
from models.tables.store import change, item, item_sales, item_seen, item_version, page_body, sheet
from models.tables.types import BigId, Document, Json, Key, Money, UtcDateTime, metadata, utc_text
from models.tables.upkeep import outbox, schedule, schedule_shop, subscription

__all__ = [
    "BigId",
    "Document",
    "Json",
    "Key",
    "Money",
    "UtcDateTime",
    "call",
    "change",
    "crawl",
    "credential",
    "daily_use",
    "item",
    "item_sales",
    "item_seen",
    "item_version",
    "learned",
    "metadata",
    "outbox",
    "page",
    "page_body",
    "schedule",
    "schedule_shop",
    "session",
    "sheet",
    "shop",
    "shop_crawl",
    "slice_",
    "subscription",
    "utc_text",
]
