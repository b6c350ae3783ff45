"""Listings in windows of time, and sellers' sessions."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

from models.tables import BigId, Key, UtcDateTime

revision: str = "0002"
down_revision: str | Sequence[str] | None = "0001"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_MEANINGS = (
    ("crawl", "state", "running, waiting (for sessions) or finished"),
    ("shop_crawl", "state", "open, held (needs authorisation) or settled"),
    ("page", "state", "ready, sent, held, done, dead, refused or cancelled"),
    ("page", "number", "page, or in a slice the ordinal of the call"),
)


PENDING = "uq_shop_crawl_pending_recrawl"


def _replace_pending_index(condition: str) -> None:
    """A held re-crawl is pending, too."""
    op.drop_index(PENDING, table_name="shop_crawl")
    where = sa.text(f"kind = 'recrawl' AND {condition}")
    op.create_index(PENDING, "shop_crawl", ["shop_id"], unique=True, postgresql_where=where, sqlite_where=where)


def upgrade() -> None:
    _replace_pending_index("state <> 'settled'")
    op.add_column(
        "shop",
        sa.Column(
            "watermark", UtcDateTime(), comment="changes up to then are in the store: the end of its last whole crawl"
        ),
    )
    for name, comment in (("slices", "windows of time opened so far"), ("pages_made", "pages made so far in windows")):
        op.add_column("shop_crawl", sa.Column(name, sa.Integer(), nullable=False, server_default="0", comment=comment))
    op.add_column(
        "page",
        sa.Column("page_no", sa.Integer(), comment="page to ask for, if not `number`; negative: from the other end"),
    )
    op.create_table(
        "slice",
        sa.Column("shop_crawl_id", BigId, nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("round", sa.Integer(), nullable=False, comment="1: the listing; then what was edited meanwhile"),
        sa.Column(
            "kind", sa.Text(), nullable=False, comment="root of its round, part of it, or check of the root's count"
        ),
        sa.Column("state", sa.Text(), nullable=False, comment="counting, paging, split, done or short"),
        sa.Column("start_at", UtcDateTime(), comment="first time of change, inclusive; NULL: from the beginning"),
        sa.Column("end_at", UtcDateTime(), nullable=False, comment="last time of change, inclusive"),
        sa.Column("cid", sa.Text(), comment="only this category"),
        sa.Column("expected", sa.BigInteger(), comment="rows that it can have at most, known before the first call"),
        sa.Column("rest_end", UtcDateTime(), comment="where the sibling ends that is opened once this one is counted"),
        sa.Column("rest_total", sa.BigInteger(), comment="rows of this slice and that sibling together"),
        sa.Column("total_first", sa.BigInteger()),
        sa.Column("total_last", sa.BigInteger()),
        sa.Column(
            "cursor", sa.Integer(), nullable=False, comment="page out or wanted next, negative: from the other end"
        ),
        sa.Column("behind", sa.Integer(), nullable=False, comment="pages to read from the other end"),
        sa.Column("kept_page", sa.Integer(), comment="page had out of turn: good as long as the total stays"),
        sa.Column("kept_total", sa.BigInteger()),
        sa.Column("turn", sa.Integer(), nullable=False, comment="times it has been read"),
        sa.Column("calls", sa.Integer(), nullable=False, comment="pages asked for so far"),
        sa.Column("lost", sa.Integer(), nullable=False, comment="pages that could not be had"),
        sa.Column("missing", sa.BigInteger(), nullable=False, comment="items announced and never shown"),
        sa.Column("reason", sa.Text()),
        sa.ForeignKeyConstraint(["shop_crawl_id"], ["shop_crawl.id"], name=op.f("fk_slice_shop_crawl_id_shop_crawl")),
        sa.PrimaryKeyConstraint("shop_crawl_id", "number", name=op.f("pk_slice")),
    )
    op.create_table(
        "learned",
        sa.Column("source", Key, nullable=False),
        sa.Column("name", Key, nullable=False, comment="what an API taught us about itself, such as reach"),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("source", "name", name=op.f("pk_learned")),
    )
    op.create_table(
        "session",
        sa.Column("shop_id", BigId, autoincrement=False, nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False, comment="Fernet token"),
        sa.Column("set_at", UtcDateTime(), nullable=False),
        sa.Column("refused_at", UtcDateTime()),
        sa.Column("reason", sa.Text(), comment="why it was refused"),
        sa.ForeignKeyConstraint(["shop_id"], ["shop.id"], name=op.f("fk_session_shop_id_shop")),
        sa.PrimaryKeyConstraint("shop_id", name=op.f("pk_session")),
    )
    if op.get_bind().dialect.name == "postgresql":  # SQLite keeps no comments
        for table, column, comment in _MEANINGS:
            op.execute(f"COMMENT ON COLUMN {table}.{column} IS '{comment}'")


def downgrade() -> None:
    _replace_pending_index("state = 'open'")
    for table in ("session", "learned", "slice"):
        op.drop_table(table)
    op.drop_column("page", "page_no")
    op.drop_column("shop_crawl", "pages_made")
    op.drop_column("shop_crawl", "slices")
    op.drop_column("shop", "watermark")
