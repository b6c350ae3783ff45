"""The tables of what goes on by itself: schedules of re-crawls, and subscriptions to changes."""

import sqlalchemy as sa

from models.tables.types import BigId, Json, Key, UtcDateTime, count_column, id_column, metadata

schedule = sa.Table(
    "schedule",
    metadata,
    id_column(),
    sa.Column("kind", sa.Text, nullable=False, comment="interval, cron, adaptive or budgeted"),
    sa.Column("source", Key, comment="only shops of this source; NULL: of all"),
    sa.Column("shop_id", BigId, sa.ForeignKey("shop.id"), comment="only this shop; NULL: all"),
    sa.Column("mode", sa.Text, nullable=False, comment="full or new, as a crawl's"),
    sa.Column("every", sa.Float, comment="seconds between crawls; adaptive: the first such interval"),
    sa.Column("cron", sa.Text, comment="cron expression, in `timezone`"),
    sa.Column("timezone", sa.Text, nullable=False, server_default="UTC"),
    sa.Column("shortest", sa.Float, comment="seconds that an adaptive interval never falls below"),
    sa.Column("longest", sa.Float, comment="seconds that an adaptive interval never exceeds"),
    sa.Column("daily_calls", sa.BigInteger, comment="calls that a budgeted one may plan in a day (UTC)"),
    sa.Column("enabled", sa.Boolean, nullable=False, server_default=sa.true()),
    sa.Column("next_at", UtcDateTime, nullable=False, comment="when to look again what is due"),
    sa.Column("cursor", BigId, nullable=False, server_default="0", comment="shops up to this one have had their turn"),
    sa.Column("learned_at", UtcDateTime, comment="it has learned from shop crawls settled until then"),
    sa.Column("last_crawl_id", BigId, comment="the crawl it started last"),
    sa.Column("created_at", UtcDateTime, nullable=False),
)

# How a schedule treats each of its shops; only adaptive and budgeted ones treat them differently.
schedule_shop = sa.Table(
    "schedule_shop",
    metadata,
    sa.Column("schedule_id", BigId, sa.ForeignKey("schedule.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("shop_id", BigId, sa.ForeignKey("shop.id"), primary_key=True),
    sa.Column("every", sa.Float, nullable=False, comment="seconds between its crawls"),
    sa.Column("due_at", UtcDateTime, nullable=False, comment="no crawl before then"),
    sa.Column("shop_crawl_id", BigId, comment="the newest shop crawl that was learned from"),
    sa.Column("crawled_at", UtcDateTime, comment="its last whole crawl: what changed since is not known"),
    sa.Column("items", sa.BigInteger, comment="items that it showed"),
    sa.Column("rate", sa.Float, comment="changes a day to expect"),
    sa.Column("observed", sa.Float, nullable=False, server_default="0", comment="days that the rate was learned from"),
    sa.Column("calls", sa.Float, comment="calls of a crawl to expect"),
    sa.Index("ix_schedule_shop_due_at", "schedule_id", "due_at"),
)

subscription = sa.Table(
    "subscription",
    metadata,
    id_column(),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("sealed", sa.LargeBinary, nullable=False, comment="the signing secret, a Fernet token"),
    sa.Column("kinds", Json, nullable=False, comment="kinds of changes that are delivered"),
    sa.Column("shop_id", BigId, sa.ForeignKey("shop.id"), comment="only this shop's; NULL: all"),
    sa.Column("state", sa.Text, nullable=False, comment="active or paused"),
    sa.Column("cursor", BigId, nullable=False, server_default="0", comment="the newest change delivered"),
    count_column("delivered"),
    sa.Column("failures", sa.Integer, nullable=False, server_default="0", comment="attempts in vain since then"),
    sa.Column("reason", sa.Text, comment="why the last attempt was in vain"),
    sa.Column("next_at", UtcDateTime, nullable=False, comment="not before then is anything sent"),
    sa.Column("created_at", UtcDateTime, nullable=False),
)

outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column("subscription_id", BigId, sa.ForeignKey("subscription.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("change_id", BigId, primary_key=True, autoincrement=False, comment="not delivered yet"),
)
