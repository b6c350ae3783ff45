"""The tables of the store: items as they are, how they were, what changed, and the page bodies they came from."""

from typing import Any

import sqlalchemy as sa

from models.tables.types import BigId, Document, Key, Money, UtcDateTime, id_column, metadata


def _item_key() -> list[sa.Column[Any]]:
    # No foreign keys: a check for each row takes longer than reading it, and no shop is ever deleted.
    return [
        sa.Column("shop_id", BigId, primary_key=True),
        sa.Column("item_id", Key, primary_key=True, comment="the source's own id"),
    ]


def _values() -> list[sa.Column[Any]]:
    """What an item is, but for figures that always move."""
    return [
        sa.Column("title", sa.Text),
        sa.Column("image", sa.Text),
        sa.Column("images", Document),
        sa.Column("video_id", sa.Text),
        sa.Column("category_id", sa.Text),
        sa.Column("category_path", Document),
        sa.Column("category_name", sa.Text),
        sa.Column("price", Money, comment="yuan, as are all prices and GMV"),
        sa.Column("drop_ship_price", Money),
        sa.Column("wholesale_price", Money),
        sa.Column("origin_price", Money),
        sa.Column("agent_price", Money),
        sa.Column("quantity_begin", sa.BigInteger, comment="smallest order"),
        sa.Column("stock", sa.BigInteger),
        sa.Column("new_product", sa.Boolean),
        sa.Column("type", sa.Text),
        sa.Column("unit", sa.Text),
        sa.Column("status", sa.Text),
        sa.Column("outer_id", sa.Text),
        sa.Column("props", Document),
        sa.Column("created_time", UtcDateTime),
    ]


def _figures() -> list[sa.Column[Any]]:
    """What moves by itself from day to day."""
    return [
        sa.Column("gmv_30d", Money),
        sa.Column("gmv_90d", Money),
        sa.Column("sold_30d", sa.BigInteger),
        sa.Column("sold_90d", sa.BigInteger),
        sa.Column("orders_30d", sa.BigInteger),
        sa.Column("rank_score", Money),
    ]


item = sa.Table(
    "item",
    metadata,
    *_item_key(),
    *_values(),
    sa.Column("extra", Document, comment="fields the decoder does not know"),
    sa.Column("first_seen", UtcDateTime, nullable=False),
    sa.Column("changed_at", UtcDateTime, nullable=False, comment="since when its tracked fields are as they are"),
    sa.Column("shop_crawl_id", BigId, nullable=False, comment="the shop crawl that saw them so first"),
)

# What one page showed. While a page shows exactly the same again, only this row moves, for all items on it.
sheet = sa.Table(
    "sheet",
    metadata,
    id_column(),
    sa.Column("shop_id", BigId, nullable=False),
    sa.Column("digest", sa.BigInteger, comment="of all it showed; NULL: an item on it was seen otherwise since"),
    sa.Column("last_seen", UtcDateTime, nullable=False),
    sa.Column("shop_crawl_id", BigId, nullable=False, comment="the shop crawl that saw it last"),
    sa.Column("body_digest", sa.BigInteger, comment="of the answer in the archive"),
    sa.Column("body_page_id", BigId, comment="the page it was archived with"),
    sa.Index(
        "ix_sheet_digest",
        "shop_id",
        "digest",
        postgresql_where=sa.text("digest IS NOT NULL"),
        sqlite_where=sa.text("digest IS NOT NULL"),
    ),
    sa.Index("ix_sheet_body_page_id", "body_page_id"),
    sa.Index(
        "ix_sheet_loose",
        "shop_id",
        postgresql_where=sa.text("digest IS NULL"),
        sqlite_where=sa.text("digest IS NULL"),
    ),
)

# What sightings change stands in a row of its own, which is slim: PostgreSQL copies a row to change it. No index
# on any of it: the row can then be updated in place.
item_seen = sa.Table(
    "item_seen",
    metadata,
    *_item_key(),
    sa.Column("sheet_id", BigId, comment="the page that showed it last: its `last_seen` and `shop_crawl_id` count"),
    sa.Column("last_seen", UtcDateTime, nullable=False, comment="of the item itself: see `sheet_id`"),
    sa.Column("shop_crawl_id", BigId, nullable=False, comment="the shop crawl that saw it then"),
    sa.Column("content_hash", sa.BigInteger, nullable=False, comment="of its values as sent; 0: compare them"),
    *_figures(),
    sa.Column("figures_at", UtcDateTime, comment="when they were first seen so"),
    sa.Column("misses", sa.SmallInteger, nullable=False, server_default="0", comment="whole crawls without it so far"),
    sa.Column("missed_at", UtcDateTime, comment="when the newest of them was settled: none is counted twice"),
    sa.Column("gone_at", UtcDateTime, comment="since when it counts as gone"),
)

item_version = sa.Table(
    "item_version",
    metadata,
    *_item_key(),
    sa.Column("valid_from", UtcDateTime, primary_key=True, comment="when it was first seen so"),
    sa.Column("valid_to", UtcDateTime, nullable=False, comment="when it was first seen otherwise"),
    sa.Column("shop_crawl_id", BigId, nullable=False, comment="the shop crawl that saw it so first"),
    *_values(),
)

item_sales = sa.Table(
    "item_sales",
    metadata,
    *_item_key(),
    sa.Column("at", UtcDateTime, primary_key=True, comment="when the figures were first seen so"),
    *_figures(),
    sa.Index("ix_item_sales_at", "at", postgresql_using="brin"),
)

change = sa.Table(
    "change",
    metadata,
    id_column(),
    sa.Column("shop_id", BigId, nullable=False),
    sa.Column("item_id", Key, nullable=False),
    sa.Column("kind", Key, nullable=False, comment="new, gone, back, price, title, stock or another field's name"),
    sa.Column("at", UtcDateTime, nullable=False, comment="when it was seen"),
    sa.Column("shop_crawl_id", BigId, nullable=False),
    sa.Column("before", Document, comment="values by field"),
    sa.Column("after", Document, comment="values by field"),
    # One order, (at, id), for all, for a kind and for a shop: the feed reads any of them without sorting.
    sa.Index("ix_change_at", "at", "id"),
    sa.Index("ix_change_kind", "kind", "at", "id"),
    sa.Index("ix_change_shop_id", "shop_id", "at", "id"),
    sa.Index("ix_change_shop_id_item_id", "shop_id", "item_id", "at"),
    sa.Index("ix_change_shop_crawl_id", "shop_crawl_id"),
)

page_body = sa.Table(
    "page_body",
    metadata,
    sa.Column("page_id", BigId, primary_key=True, autoincrement=False),
    sa.Column("fetched_at", UtcDateTime, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False, comment="the decoded answer, zstd, without request or token"),
    sa.Column("same_as", BigId, comment="the page whose body was the same: `body` is empty then"),
    sa.Index("ix_page_body_fetched_at", "fetched_at"),
    sa.Index(
        "ix_page_body_same_as",
        "same_as",
        postgresql_where=sa.text("same_as IS NOT NULL"),
        sqlite_where=sa.text("same_as IS NOT NULL"),
    ),
)
