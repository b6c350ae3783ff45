"""The ledger and the store."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

from models.tables import BigId, Json, Key, Money, UtcDateTime

revision: str = "0001"
down_revision: str | Sequence[str] | None = None
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "call",
        sa.Column("id", BigId, sa.Identity(always=False), nullable=False),
        sa.Column("crawl_id", BigId, nullable=False),
        sa.Column("shop_crawl_id", BigId, nullable=False),
        sa.Column("page_id", BigId, nullable=False),
        sa.Column("credential", sa.Text(), nullable=False, comment="fingerprint, never the secret"),
        sa.Column("outcome", sa.Text(), nullable=False, comment="effective code"),
        sa.Column("calls", sa.Integer(), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_call")),
    )
    op.create_index("ix_call_crawl_id_outcome", "call", ["crawl_id", "outcome"], unique=False)
    op.create_table(
        "crawl",
        sa.Column("id", BigId, sa.Identity(always=False), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False, comment="crawl or recrawl"),
        sa.Column("state", sa.Text(), nullable=False, comment="running or finished"),
        sa.Column(
            "fingerprint", sa.Text(), nullable=False, comment="of shops and options: the same command resumes its crawl"
        ),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("options", Json, nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("finished_at", UtcDateTime(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_crawl")),
    )
    op.create_index(
        "ix_crawl_running", "crawl", ["fingerprint"], unique=False, postgresql_where=sa.text("state <> 'finished'")
    )
    op.create_table(
        "credential",
        sa.Column("source", Key, nullable=False),
        sa.Column("name", Key, nullable=False, comment="fingerprint, never the secret"),
        sa.Column("parked_at", UtcDateTime(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("probe_at", UtcDateTime(), nullable=False, comment="when one page is tried with it again"),
        sa.Column("probe_wait", sa.Float(), nullable=False, comment="seconds between probes, doubling"),
        sa.PrimaryKeyConstraint("source", "name", name=op.f("pk_credential")),
    )
    op.create_table(
        "page_body",
        sa.Column("page_id", BigId, autoincrement=False, nullable=False),
        sa.Column("fetched_at", UtcDateTime(), nullable=False),
        sa.Column(
            "body", sa.LargeBinary(), nullable=False, comment="the decoded answer, zstd, without request or token"
        ),
        sa.PrimaryKeyConstraint("page_id", name=op.f("pk_page_body")),
    )
    op.create_index("ix_page_body_fetched_at", "page_body", ["fetched_at"], unique=False)
    op.create_table(
        "shop",
        sa.Column("id", BigId, sa.Identity(always=False), nullable=False),
        sa.Column("source", Key, nullable=False),
        sa.Column("key", Key, nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_shop")),
        sa.UniqueConstraint("source", "key", name=op.f("uq_shop_source_key")),
    )
    op.create_table(
        "item",
        sa.Column("shop_id", BigId, nullable=False),
        sa.Column("item_id", Key, nullable=False, comment="the source's own id"),
        sa.Column("title", sa.Text(), nullable=True),
        sa.Column("image", sa.Text(), nullable=True),
        sa.Column("images", Json, nullable=True),
        sa.Column("video_id", sa.Text(), nullable=True),
        sa.Column("category_id", sa.Text(), nullable=True),
        sa.Column("category_path", Json, nullable=True),
        sa.Column("category_name", sa.Text(), nullable=True),
        sa.Column("price", Money(), nullable=True, comment="yuan, as are all prices and GMV"),
        sa.Column("drop_ship_price", Money(), nullable=True),
        sa.Column("wholesale_price", Money(), nullable=True),
        sa.Column("origin_price", Money(), nullable=True),
        sa.Column("agent_price", Money(), nullable=True),
        sa.Column("quantity_begin", sa.BigInteger(), nullable=True, comment="smallest order"),
        sa.Column("stock", sa.BigInteger(), nullable=True),
        sa.Column("gmv_30d", Money(), nullable=True),
        sa.Column("gmv_90d", Money(), nullable=True),
        sa.Column("sold_30d", sa.BigInteger(), nullable=True),
        sa.Column("sold_90d", sa.BigInteger(), nullable=True),
        sa.Column("orders_30d", sa.BigInteger(), nullable=True),
        sa.Column("rank_score", Money(), nullable=True),
        sa.Column("new_product", sa.Boolean(), nullable=True),
        sa.Column("type", sa.Text(), nullable=True),
        sa.Column("unit", sa.Text(), nullable=True),
        sa.Column("status", sa.Text(), nullable=True),
        sa.Column("outer_id", sa.Text(), nullable=True),
        sa.Column("props", Json, nullable=True),
        sa.Column("created_time", UtcDateTime(), nullable=True),
        sa.Column("extra", Json, nullable=True, comment="fields the decoder does not know"),
        sa.Column(
            "content_hash", sa.BigInteger(), nullable=False, comment="of the tracked fields: differs when they changed"
        ),
        sa.Column("first_seen", UtcDateTime(), nullable=False),
        sa.Column("last_seen", UtcDateTime(), nullable=False),
        sa.Column("changed_at", UtcDateTime(), nullable=False),
        sa.Column("shop_crawl_id", BigId, nullable=False, comment="the shop crawl that saw it last"),
        sa.ForeignKeyConstraint(["shop_id"], ["shop.id"], name=op.f("fk_item_shop_id")),
        sa.PrimaryKeyConstraint("shop_id", "item_id", name=op.f("pk_item")),
    )
    op.create_table(
        "shop_crawl",
        sa.Column("id", BigId, sa.Identity(always=False), nullable=False),
        sa.Column("crawl_id", BigId, nullable=False),
        sa.Column("shop_id", BigId, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False, comment="as its crawl's"),
        sa.Column("state", sa.Text(), nullable=False, comment="open or settled"),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("options", Json, nullable=False),
        sa.Column("verdict", sa.Text(), nullable=True, comment="complete, drifted, partial or failed"),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("refusal", sa.Text(), nullable=True, comment="the server's words when it refuses the shop"),
        sa.Column("page_size", sa.Integer(), nullable=True, comment="rows a full page really has"),
        sa.Column("total_first", sa.BigInteger(), nullable=True),
        sa.Column("total_last", sa.BigInteger(), nullable=True),
        sa.Column("last_page", sa.Integer(), nullable=True, comment="the page after which the data proved to end"),
        sa.Column(
            "end_reason", sa.Text(), nullable=True, comment="how the end was proved: short, empty or repeated page"
        ),
        sa.Column("planned", sa.Integer(), nullable=False, comment="highest page number planned"),
        sa.Column(
            "extensions",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="times it was planned past the total",
        ),
        sa.Column("last_done", sa.Integer(), server_default="0", nullable=False, comment="highest page number had"),
        sa.Column(
            "last_dead", sa.Integer(), server_default="0", nullable=False, comment="highest page number given up"
        ),
        sa.Column("pages_done", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("pages_dead", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("pages_cancelled", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("rows", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("distinct_items", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("new_items", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("changed_items", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("settled_at", UtcDateTime(), nullable=True),
        sa.ForeignKeyConstraint(["crawl_id"], ["crawl.id"], name=op.f("fk_shop_crawl_crawl_id")),
        sa.ForeignKeyConstraint(["shop_id"], ["shop.id"], name=op.f("fk_shop_crawl_shop_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_shop_crawl")),
        sa.UniqueConstraint("crawl_id", "shop_id", name=op.f("uq_shop_crawl_crawl_id_shop_id")),
    )
    op.create_index(
        "ix_shop_crawl_open",
        "shop_crawl",
        ["crawl_id"],
        unique=False,
        postgresql_where=sa.text("state = 'open'"),
        sqlite_where=sa.text("state = 'open'"),
    )
    op.create_index("ix_shop_crawl_shop_id", "shop_crawl", ["shop_id", "settled_at"], unique=False)
    op.create_index(
        "uq_shop_crawl_pending_recrawl",
        "shop_crawl",
        ["shop_id"],
        unique=True,
        postgresql_where=sa.text("kind = 'recrawl' AND state = 'open'"),
        sqlite_where=sa.text("kind = 'recrawl' AND state = 'open'"),
    )
    op.create_table(
        "page",
        sa.Column("id", BigId, sa.Identity(always=False), nullable=False),
        sa.Column("shop_crawl_id", BigId, nullable=False),
        sa.Column("source", Key, nullable=False),
        sa.Column(
            "slice", sa.Integer(), server_default="0", nullable=False, comment="part of the listing; 0: all of it"
        ),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column(
            "rank", sa.Integer(), nullable=False, comment="ordinal inside its shop crawl: all shops advance together"
        ),
        sa.Column("state", sa.Text(), nullable=False, comment="ready, sent, done, dead, refused or cancelled"),
        sa.Column(
            "reviewed", sa.Boolean(), nullable=False, comment="the producer has drawn its conclusions from the result"
        ),
        sa.Column("fence", sa.Integer(), nullable=False, comment="number of sendings: only the newest may be stored"),
        sa.Column("tries", sa.SmallInteger(), nullable=False, comment="failed answers"),
        sa.Column("crashes", sa.SmallInteger(), nullable=False, comment="workers lost with it"),
        sa.Column("due_at", UtcDateTime(), nullable=False),
        sa.Column("sent_at", UtcDateTime(), nullable=True),
        sa.Column("finished_at", UtcDateTime(), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=True, comment="effective code of the last answer"),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("rows", sa.Integer(), nullable=True),
        sa.Column("total", sa.BigInteger(), nullable=True, comment="item count that the API claimed"),
        sa.Column("page_size", sa.Integer(), nullable=True, comment="page size that the API echoed"),
        sa.Column(
            "item_keys", sa.LargeBinary(), nullable=True, comment="64-bit digests of the item ids, in the order sent"
        ),
        sa.Column("new_items", sa.Integer(), nullable=True),
        sa.Column("changed_items", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(["shop_crawl_id"], ["shop_crawl.id"], name=op.f("fk_page_shop_crawl_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_page")),
        sa.UniqueConstraint("shop_crawl_id", "slice", "number", name=op.f("uq_page_shop_crawl_id_slice_number")),
    )
    op.create_index(
        "ix_page_ready",
        "page",
        ["source", "priority", "rank", "id"],
        unique=False,
        postgresql_where=sa.text("state = 'ready'"),
        sqlite_where=sa.text("state = 'ready'"),
    )
    op.create_index(
        "ix_page_sent",
        "page",
        ["sent_at"],
        unique=False,
        postgresql_where=sa.text("state = 'sent'"),
        sqlite_where=sa.text("state = 'sent'"),
    )
    op.create_index(
        "ix_page_unreviewed",
        "page",
        ["id"],
        unique=False,
        postgresql_where=sa.text("NOT reviewed"),
        sqlite_where=sa.text("NOT reviewed"),
    )
    if op.get_bind().dialect.name == "postgresql":
        # The ledger is rewritten page by page: room for updates in place, and vacuum long before a fifth of it is dead.
        op.execute("ALTER TABLE page SET (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02)")
        op.execute("ALTER TABLE page_body ALTER body SET STORAGE EXTERNAL")  # compressed already


def downgrade() -> None:
    op.drop_index(
        "ix_page_unreviewed",
        table_name="page",
        postgresql_where=sa.text("NOT reviewed"),
        sqlite_where=sa.text("NOT reviewed"),
    )
    op.drop_index(
        "ix_page_sent",
        table_name="page",
        postgresql_where=sa.text("state = 'sent'"),
        sqlite_where=sa.text("state = 'sent'"),
    )
    op.drop_index(
        "ix_page_ready",
        table_name="page",
        postgresql_where=sa.text("state = 'ready'"),
        sqlite_where=sa.text("state = 'ready'"),
    )
    op.drop_table("page")
    op.drop_index(
        "uq_shop_crawl_pending_recrawl",
        table_name="shop_crawl",
        postgresql_where=sa.text("kind = 'recrawl' AND state = 'open'"),
        sqlite_where=sa.text("kind = 'recrawl' AND state = 'open'"),
    )
    op.drop_index("ix_shop_crawl_shop_id", table_name="shop_crawl")
    op.drop_index(
        "ix_shop_crawl_open",
        table_name="shop_crawl",
        postgresql_where=sa.text("state = 'open'"),
        sqlite_where=sa.text("state = 'open'"),
    )
    op.drop_table("shop_crawl")
    op.drop_table("item")
    op.drop_table("shop")
    op.drop_index("ix_page_body_fetched_at", table_name="page_body")
    op.drop_table("page_body")
    op.drop_table("credential")
    op.drop_index("ix_crawl_running", table_name="crawl", postgresql_where=sa.text("state <> 'finished'"))
    op.drop_table("crawl")
    op.drop_index("ix_call_crawl_id_outcome", table_name="call")
    op.drop_table("call")
