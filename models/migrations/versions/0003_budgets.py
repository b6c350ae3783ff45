"""Calls and money reserved before each call, and budgets for them."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

from models.tables import Key, Money

revision: str = "0003"
down_revision: str | Sequence[str] | None = "0002"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

RESERVED = "calls reserved: settled, in flight, or never heard of again"
SPEND = "money reserved or spent"


def _reserved() -> sa.Column[int]:
    return sa.Column("reserved", sa.BigInteger(), nullable=False, server_default="0", comment=RESERVED)


def _spend() -> sa.Column[object]:
    return sa.Column("spend", Money(), nullable=False, server_default="0", comment=SPEND)


def upgrade() -> None:
    op.add_column("crawl", sa.Column("max_calls", sa.BigInteger(), comment="budget of calls"))
    op.add_column("crawl", sa.Column("max_spend", Money(), comment="budget of money"))
    op.add_column("crawl", sa.Column("reason", sa.Text(), comment="what it waits for"))
    for table in ("crawl", "shop_crawl"):
        op.add_column(table, _reserved())
        op.add_column(table, _spend())
    cost: sa.Column[object] = sa.Column(
        "cost", Money(), nullable=False, server_default="0", comment="in SHOPCRAWL_CURRENCY"
    )
    op.add_column("call", cost)
    op.create_table(
        "daily_use",
        sa.Column("day", Key, nullable=False, comment="UTC, as 2026-01-31"),
        sa.Column("source", Key, nullable=False),
        sa.Column("credential", Key, nullable=False, comment="fingerprint, empty: all of the source"),
        _reserved(),
        _spend(),
        sa.PrimaryKeyConstraint("day", "source", "credential", name=op.f("pk_daily_use")),
    )
    op.execute("UPDATE crawl SET reserved = (SELECT COALESCE(SUM(calls), 0) FROM call WHERE call.crawl_id = crawl.id)")
    held = sa.text("state = 'held'")
    op.create_index("ix_page_held", "page", ["shop_crawl_id"], postgresql_where=held, sqlite_where=held)


def downgrade() -> None:
    op.drop_index("ix_page_held", table_name="page")
    op.drop_table("daily_use")
    op.drop_column("call", "cost")
    for table in ("shop_crawl", "crawl"):
        op.drop_column(table, "spend")
        op.drop_column(table, "reserved")
    for column in ("reason", "max_spend", "max_calls"):
        op.drop_column("crawl", column)
