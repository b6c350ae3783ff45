"""Items' history, sales series and changes; schedules and subscriptions."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op

from models.tables import BigId, Json, Key, Money, UtcDateTime

revision: str = "0004"
down_revision: str | Sequence[str] | None = "0003"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

FIGURES: dict[str, type[Any]] = {
    "gmv_30d": Money,
    "gmv_90d": Money,
    "sold_30d": sa.BigInteger,
    "sold_90d": sa.BigInteger,
    "orders_30d": sa.BigInteger,
    "rank_score": Money,
}
SHOP: dict[str, tuple[type[Any], str]] = {
    "baseline_at": (UtcDateTime, "its first complete crawl: items first seen later are new"),
    "known_items": (sa.BigInteger, "items that its last accepted whole crawl showed"),
    "suspect_items": (sa.BigInteger, "items that a suspiciously small crawl showed since"),
}
_MEANINGS = (
    ("item", "changed_at", "since when its tracked fields are as they are"),
    ("item", "shop_crawl_id", "the shop crawl that saw them so first"),
    ("shop_crawl", "verdict", "complete, drifted, suspect, partial or failed"),
    ("slice", "kind", "root of its round, part, check of a count; second pass: tail, seam, band"),
)


def _figures() -> list[sa.Column[Any]]:
    return [sa.Column(name, kind()) for name, kind in FIGURES.items()]


def _item_key(table: str, *more: str) -> list[sa.Column[Any] | sa.Constraint]:
    return [
        sa.Column("shop_id", BigId, nullable=False),
        sa.Column("item_id", Key, nullable=False, comment="the source's own id"),
        sa.PrimaryKeyConstraint("shop_id", "item_id", *more, name=op.f(f"pk_{table}")),
    ]


def upgrade() -> None:
    _extend_ledger()
    _move_what_is_seen()
    _create_sheets()
    _create_history()
    _create_schedules()
    _create_subscriptions()


def _extend_ledger() -> None:
    for name, (kind, comment) in SHOP.items():
        op.add_column("shop", sa.Column(name, kind(), comment=comment))
    for name, comment in (("price_start", "only from this price on"), ("price_end", "only up to this price")):
        op.add_column("slice", sa.Column(name, sa.Text(), comment=comment))
    size = sa.Column("page_size", sa.Integer(), comment="rows to ask for, if not as many as the crawl does")
    op.add_column("slice", size)
    mode = sa.Column(
        "mode", sa.Text(), nullable=False, server_default="full", comment="full, or new: until a page is known"
    )
    op.add_column("shop_crawl", mode)
    first = sa.Column(
        "first_distinct", sa.BigInteger(), comment="distinct items before the second pass, if there was one"
    )
    op.add_column("shop_crawl", first)
    begun = sa.Column(
        "second_pass", sa.SmallInteger(), nullable=False, server_default="0", comment="steps of the second pass begun"
    )
    op.add_column("shop_crawl", begun)
    op.add_column("shop_crawl", sa.Column("gone_items", sa.BigInteger(), nullable=False, server_default="0"))
    op.execute(
        "UPDATE shop SET baseline_at = (SELECT min(s.settled_at) FROM shop_crawl s"
        " WHERE s.shop_id = shop.id AND s.verdict = 'complete')"
    )


def _move_what_is_seen() -> None:
    """A table of its own for what every sighting changes; a hash of 0 makes the next sighting compare the values."""
    op.create_table(
        "item_seen",
        *_item_key("item_seen"),
        sa.Column("sheet_id", BigId, comment="the page that showed it last: its `last_seen` and `shop_crawl_id` count"),
        sa.Column("last_seen", UtcDateTime(), nullable=False, comment="of the item itself: see `sheet_id`"),
        sa.Column("shop_crawl_id", BigId, nullable=False, comment="the shop crawl that saw it then"),
        sa.Column("content_hash", sa.BigInteger(), nullable=False, comment="of its values as sent; 0: compare them"),
        *_figures(),
        sa.Column("figures_at", UtcDateTime(), comment="when they were first seen so"),
        sa.Column(
            "misses", sa.SmallInteger(), nullable=False, server_default="0", comment="whole crawls without it so far"
        ),
        sa.Column("missed_at", UtcDateTime(), comment="when the newest of them was settled: none is counted twice"),
        sa.Column("gone_at", UtcDateTime(), comment="since when it counts as gone"),
    )
    names = ", ".join(("shop_id", "item_id", "last_seen", "shop_crawl_id", *FIGURES))
    op.execute(f"INSERT INTO item_seen ({names}, figures_at, content_hash) SELECT {names}, last_seen, 0 FROM item")
    if op.get_bind().dialect.name == "sqlite":  # where equal figures have to be equal texts from now on
        for name in (name for name, kind in FIGURES.items() if kind is Money):
            op.execute(f"UPDATE item_seen SET {name} = rtrim(rtrim({name}, '0'), '.') WHERE {name} LIKE '%.%'")
    for name in ("last_seen", "content_hash", *FIGURES):
        op.drop_column("item", name)


def _create_sheets() -> None:
    op.create_table(
        "sheet",
        sa.Column("id", BigId, sa.Identity(always=False), nullable=False),
        sa.Column("shop_id", BigId, nullable=False),
        sa.Column("digest", sa.BigInteger(), comment="of all it showed; NULL: an item on it was seen otherwise since"),
        sa.Column("last_seen", UtcDateTime(), nullable=False),
        sa.Column("shop_crawl_id", BigId, nullable=False, comment="the shop crawl that saw it last"),
        sa.Column("body_digest", sa.BigInteger(), comment="of the answer in the archive"),
        sa.Column("body_page_id", BigId, comment="the page it was archived with"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sheet")),
    )
    for name, columns, condition in (
        ("ix_sheet_digest", ["shop_id", "digest"], "digest IS NOT NULL"),
        ("ix_sheet_loose", ["shop_id"], "digest IS NULL"),
    ):
        where = sa.text(condition)
        op.create_index(name, "sheet", columns, postgresql_where=where, sqlite_where=where)
    op.create_index("ix_sheet_body_page_id", "sheet", ["body_page_id"])
    same_as = sa.Column("same_as", BigId, comment="the page whose body was the same: `body` is empty then")
    op.add_column("page_body", same_as)
    where = sa.text("same_as IS NOT NULL")
    op.create_index("ix_page_body_same_as", "page_body", ["same_as"], postgresql_where=where, sqlite_where=where)
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE sheet SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02)")


def _create_history() -> None:
    values: list[sa.Column[Any]] = [
        sa.Column("title", sa.Text()),
        sa.Column("image", sa.Text()),
        sa.Column("images", Json),
        sa.Column("video_id", sa.Text()),
        sa.Column("category_id", sa.Text()),
        sa.Column("category_path", Json),
        sa.Column("category_name", sa.Text()),
        sa.Column("price", Money(), comment="yuan, as are all prices and GMV"),
        sa.Column("drop_ship_price", Money()),
        sa.Column("wholesale_price", Money()),
        sa.Column("origin_price", Money()),
        sa.Column("agent_price", Money()),
        sa.Column("quantity_begin", sa.BigInteger(), comment="smallest order"),
        sa.Column("stock", sa.BigInteger()),
        sa.Column("new_product", sa.Boolean()),
        sa.Column("type", sa.Text()),
        sa.Column("unit", sa.Text()),
        sa.Column("status", sa.Text()),
        sa.Column("outer_id", sa.Text()),
        sa.Column("props", Json),
        sa.Column("created_time", UtcDateTime()),
    ]
    op.create_table(
        "item_version",
        *_item_key("item_version", "valid_from"),
        sa.Column("valid_from", UtcDateTime(), nullable=False, comment="when it was first seen so"),
        sa.Column("valid_to", UtcDateTime(), nullable=False, comment="when it was first seen otherwise"),
        sa.Column("shop_crawl_id", BigId, nullable=False, comment="the shop crawl that saw it so first"),
        *values,
    )
    op.create_table(
        "item_sales",
        *_item_key("item_sales", "at"),
        sa.Column("at", UtcDateTime(), nullable=False, comment="when the figures were first seen so"),
        *_figures(),
    )
    op.create_index("ix_item_sales_at", "item_sales", ["at"], postgresql_using="brin")
    op.create_table(
        "change",
        sa.Column("id", BigId, sa.Identity(always=False), nullable=False),
        sa.Column("shop_id", BigId, nullable=False),
        sa.Column("item_id", Key, nullable=False),
        sa.Column("kind", Key, nullable=False, comment="new, gone, back, price, title, stock or another field's name"),
        sa.Column("at", UtcDateTime(), nullable=False, comment="when it was seen"),
        sa.Column("shop_crawl_id", BigId, nullable=False),
        sa.Column("before", Json, comment="values by field"),
        sa.Column("after", Json, comment="values by field"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_change")),
    )
    op.create_index("ix_change_at", "change", ["at", "id"])
    op.create_index("ix_change_kind", "change", ["kind", "at", "id"])
    op.create_index("ix_change_shop_id", "change", ["shop_id", "at", "id"])
    op.create_index("ix_change_shop_id_item_id", "change", ["shop_id", "item_id", "at"])
    op.create_index("ix_change_shop_crawl_id", "change", ["shop_crawl_id"])
    if op.get_bind().dialect.name == "postgresql":
        # Rewritten by every sighting: room for updates in place, and vacuum long before a fifth of it is dead.
        op.execute("ALTER TABLE item_seen SET (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02)")
        for table, column, comment in _MEANINGS:
            op.execute(f"COMMENT ON COLUMN {table}.{column} IS '{comment}'")


def _create_schedules() -> None:
    op.create_table(
        "schedule",
        sa.Column("id", BigId, sa.Identity(always=False), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False, comment="interval, cron, adaptive or budgeted"),
        sa.Column("source", Key, comment="only shops of this source; NULL: of all"),
        sa.Column("shop_id", BigId, comment="only this shop; NULL: all"),
        sa.Column("mode", sa.Text(), nullable=False, comment="full or new, as a crawl's"),
        sa.Column("every", sa.Float(), comment="seconds between crawls; adaptive: the first such interval"),
        sa.Column("cron", sa.Text(), comment="cron expression, in `timezone`"),
        sa.Column("timezone", sa.Text(), nullable=False, server_default="UTC"),
        sa.Column("shortest", sa.Float(), comment="seconds that an adaptive interval never falls below"),
        sa.Column("longest", sa.Float(), comment="seconds that an adaptive interval never exceeds"),
        sa.Column("daily_calls", sa.BigInteger(), comment="calls that a budgeted one may plan in a day (UTC)"),
        sa.Column("enabled", sa.Boolean(), nullable=False, server_default=sa.true()),
        sa.Column("next_at", UtcDateTime(), nullable=False, comment="when to look again what is due"),
        sa.Column(
            "cursor", BigId, nullable=False, server_default="0", comment="shops up to this one have had their turn"
        ),
        sa.Column("learned_at", UtcDateTime(), comment="it has learned from shop crawls settled until then"),
        sa.Column("last_crawl_id", BigId, comment="the crawl it started last"),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["shop_id"], ["shop.id"], name=op.f("fk_schedule_shop_id_shop")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_schedule")),
    )
    op.create_table(
        "schedule_shop",
        sa.Column("schedule_id", BigId, nullable=False),
        sa.Column("shop_id", BigId, nullable=False),
        sa.Column("every", sa.Float(), nullable=False, comment="seconds between its crawls"),
        sa.Column("due_at", UtcDateTime(), nullable=False, comment="no crawl before then"),
        sa.Column("shop_crawl_id", BigId, comment="the newest shop crawl that was learned from"),
        sa.Column("crawled_at", UtcDateTime(), comment="its last whole crawl: what changed since is not known"),
        sa.Column("items", sa.BigInteger(), comment="items that it showed"),
        sa.Column("rate", sa.Float(), comment="changes a day to expect"),
        sa.Column(
            "observed", sa.Float(), nullable=False, server_default="0", comment="days that the rate was learned from"
        ),
        sa.Column("calls", sa.Float(), comment="calls of a crawl to expect"),
        sa.ForeignKeyConstraint(
            ["schedule_id"], ["schedule.id"], name=op.f("fk_schedule_shop_schedule_id_schedule"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["shop_id"], ["shop.id"], name=op.f("fk_schedule_shop_shop_id_shop")),
        sa.PrimaryKeyConstraint("schedule_id", "shop_id", name=op.f("pk_schedule_shop")),
    )
    op.create_index("ix_schedule_shop_due_at", "schedule_shop", ["schedule_id", "due_at"])
    started_by = sa.Column("schedule_id", BigId, comment="the schedule that started it, as long as there is that")
    op.add_column("crawl", started_by)
    op.create_index("ix_crawl_schedule_id", "crawl", ["schedule_id", "finished_at"])
    op.create_index("ix_shop_crawl_settled_at", "shop_crawl", ["settled_at"])


def _create_subscriptions() -> None:
    op.create_table(
        "subscription",
        sa.Column("id", BigId, sa.Identity(always=False), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False, comment="the signing secret, a Fernet token"),
        sa.Column("kinds", Json, nullable=False, comment="kinds of changes that are delivered"),
        sa.Column("shop_id", BigId, comment="only this shop's; NULL: all"),
        sa.Column("state", sa.Text(), nullable=False, comment="active or paused"),
        sa.Column("cursor", BigId, nullable=False, server_default="0", comment="the newest change delivered"),
        sa.Column("delivered", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("failures", sa.Integer(), nullable=False, server_default="0", comment="attempts in vain since then"),
        sa.Column("reason", sa.Text(), comment="why the last attempt was in vain"),
        sa.Column("next_at", UtcDateTime(), nullable=False, comment="not before then is anything sent"),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["shop_id"], ["shop.id"], name=op.f("fk_subscription_shop_id_shop")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_subscription")),
    )
    op.create_table(
        "outbox",
        sa.Column("subscription_id", BigId, nullable=False),
        sa.Column("change_id", BigId, nullable=False, autoincrement=False, comment="not delivered yet"),
        sa.ForeignKeyConstraint(
            ["subscription_id"],
            ["subscription.id"],
            name=op.f("fk_outbox_subscription_id_subscription"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("subscription_id", "change_id", name=op.f("pk_outbox")),
    )


def _drop_sheets() -> None:
    op.drop_index("ix_page_body_same_as", table_name="page_body")
    op.execute(
        "UPDATE page_body SET body = (SELECT o.body FROM page_body o WHERE o.page_id = page_body.same_as)"
        " WHERE same_as IS NOT NULL"
    )
    op.drop_column("page_body", "same_as")
    for column in ("shop_crawl_id", "last_seen"):
        op.execute(
            f"UPDATE item_seen SET {column} = COALESCE("
            f"(SELECT s.{column} FROM sheet s WHERE s.id = item_seen.sheet_id), {column})"
        )
    op.drop_table("sheet")


def downgrade() -> None:
    op.drop_index("ix_shop_crawl_settled_at", "shop_crawl")
    op.drop_index("ix_crawl_schedule_id", "crawl")
    op.drop_column("crawl", "schedule_id")
    for table in ("outbox", "subscription", "schedule_shop", "schedule", "change", "item_sales", "item_version"):
        op.drop_table(table)
    _drop_sheets()
    for name, kind in FIGURES.items():
        op.add_column("item", sa.Column(name, kind()))
    op.add_column("item", sa.Column("content_hash", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("item", sa.Column("last_seen", UtcDateTime(), nullable=False, server_default="1970-01-01T00:00:00Z"))
    for name in ("last_seen", *FIGURES):
        op.execute(
            f"UPDATE item SET {name} = (SELECT s.{name} FROM item_seen s"
            " WHERE s.shop_id = item.shop_id AND s.item_id = item.item_id)"
        )
    op.drop_table("item_seen")
    for name in ("mode", "first_distinct", "second_pass", "gone_items"):
        op.drop_column("shop_crawl", name)
    for name in ("page_size", "price_end", "price_start"):
        op.drop_column("slice", name)
    for name in reversed(SHOP):
        op.drop_column("shop", name)
