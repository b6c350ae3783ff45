"""The tables of the ledger: what is to be done, and what became of it."""

import sqlalchemy as sa

from models.tables.types import BigId, Json, Key, Money, UtcDateTime, count_column, id_column, metadata

crawl = sa.Table(
    "crawl",
    metadata,
    id_column(),
    sa.Column("kind", sa.Text, nullable=False, comment="crawl or recrawl"),
    sa.Column("state", sa.Text, nullable=False, comment="running, waiting (for sessions) or finished"),
    sa.Column(
        "fingerprint", sa.Text, nullable=False, comment="of shops and options: the same command resumes its crawl"
    ),
    sa.Column("priority", sa.SmallInteger, nullable=False),
    sa.Column("options", Json, nullable=False),
    sa.Column("max_calls", sa.BigInteger, comment="budget of calls"),
    sa.Column("max_spend", Money, comment="budget of money"),
    count_column("reserved", "calls reserved: settled, in flight, or never heard of again"),
    sa.Column("spend", Money, nullable=False, server_default="0", comment="money reserved or spent"),
    sa.Column("reason", sa.Text, comment="what it waits for"),
    sa.Column("schedule_id", BigId, comment="the schedule that started it, as long as there is that"),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("finished_at", UtcDateTime),
    sa.Index("ix_crawl_running", "fingerprint", postgresql_where=sa.text("state <> 'finished'")),
    sa.Index("ix_crawl_schedule_id", "schedule_id", "finished_at"),
)

shop = sa.Table(
    "shop",
    metadata,
    id_column(),
    sa.Column("source", Key, nullable=False),
    sa.Column("key", Key, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("watermark", UtcDateTime, comment="changes up to then are in the store: the end of its last whole crawl"),
    sa.Column("baseline_at", UtcDateTime, comment="its first complete crawl: items first seen later are new"),
    sa.Column("known_items", sa.BigInteger, comment="items that its last accepted whole crawl showed"),
    sa.Column("suspect_items", sa.BigInteger, comment="items that a suspiciously small crawl showed since"),
    sa.UniqueConstraint("source", "key"),
)

shop_crawl = sa.Table(
    "shop_crawl",
    metadata,
    id_column(),
    sa.Column("crawl_id", BigId, sa.ForeignKey("crawl.id"), nullable=False),
    sa.Column("shop_id", BigId, sa.ForeignKey("shop.id"), nullable=False),
    sa.Column("kind", sa.Text, nullable=False, comment="as its crawl's"),
    sa.Column("mode", sa.Text, nullable=False, server_default="full", comment="full, or new: until a page is known"),
    sa.Column("state", sa.Text, nullable=False, comment="open, held (needs authorisation) or settled"),
    sa.Column("priority", sa.SmallInteger, nullable=False),
    sa.Column("options", Json, nullable=False),
    sa.Column("verdict", sa.Text, comment="complete, drifted, suspect, partial or failed"),
    sa.Column("reason", sa.Text),
    sa.Column("refusal", sa.Text, comment="the server's words when it refuses the shop"),
    sa.Column("slices", sa.Integer, nullable=False, server_default="0", comment="windows of time opened so far"),
    sa.Column("pages_made", sa.Integer, nullable=False, server_default="0", comment="pages made so far in windows"),
    sa.Column("page_size", sa.Integer, comment="rows a full page really has"),
    sa.Column("total_first", sa.BigInteger),
    sa.Column("total_last", sa.BigInteger),
    sa.Column("last_page", sa.Integer, comment="the page after which the data proved to end"),
    sa.Column("end_reason", sa.Text, comment="how the end was proved: short, empty or repeated page"),
    sa.Column("planned", sa.Integer, nullable=False, comment="highest page number planned"),
    sa.Column(
        "extensions", sa.Integer, nullable=False, server_default="0", comment="times it was planned past the total"
    ),
    sa.Column("last_done", sa.Integer, nullable=False, server_default="0", comment="highest page number had"),
    sa.Column("last_dead", sa.Integer, nullable=False, server_default="0", comment="highest page number given up"),
    count_column("pages_done"),
    count_column("pages_dead"),
    count_column("pages_cancelled"),
    count_column("rows"),
    count_column("distinct_items"),
    sa.Column("first_distinct", sa.BigInteger, comment="distinct items before the second pass, if there was one"),
    sa.Column(
        "second_pass", sa.SmallInteger, nullable=False, server_default="0", comment="steps of the second pass begun"
    ),
    count_column("new_items"),
    count_column("changed_items"),
    count_column("gone_items"),
    count_column("reserved", "calls reserved: settled, in flight, or never heard of again"),
    sa.Column("spend", Money, nullable=False, server_default="0", comment="money reserved or spent"),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("settled_at", UtcDateTime),
    sa.UniqueConstraint("crawl_id", "shop_id"),
    sa.Index("ix_shop_crawl_shop_id", "shop_id", "settled_at"),
    sa.Index("ix_shop_crawl_settled_at", "settled_at"),
    sa.Index(
        "ix_shop_crawl_open",
        "crawl_id",
        postgresql_where=sa.text("state = 'open'"),
        sqlite_where=sa.text("state = 'open'"),
    ),
    # One pending re-crawl of a shop: an operator's second click finds the first.
    sa.Index(
        "uq_shop_crawl_pending_recrawl",
        "shop_id",
        unique=True,
        postgresql_where=sa.text("kind = 'recrawl' AND state <> 'settled'"),
        sqlite_where=sa.text("kind = 'recrawl' AND state <> 'settled'"),
    ),
)

page = sa.Table(
    "page",
    metadata,
    id_column(),
    sa.Column("shop_crawl_id", BigId, sa.ForeignKey("shop_crawl.id"), nullable=False),
    sa.Column("source", Key, nullable=False),
    sa.Column("slice", sa.Integer, nullable=False, server_default="0", comment="part of the listing; 0: all of it"),
    sa.Column("number", sa.Integer, nullable=False, comment="page, or in a slice the ordinal of the call"),
    sa.Column("page_no", sa.Integer, comment="page to ask for, if not `number`; negative: from the other end"),
    sa.Column("priority", sa.SmallInteger, nullable=False),
    sa.Column("rank", sa.Integer, nullable=False, comment="ordinal inside its shop crawl: all shops advance together"),
    sa.Column("state", sa.Text, nullable=False, comment="ready, sent, held, done, dead, refused or cancelled"),
    sa.Column("reviewed", sa.Boolean, nullable=False, comment="the producer has drawn its conclusions from the result"),
    sa.Column("fence", sa.Integer, nullable=False, comment="number of sendings: only the newest may be stored"),
    sa.Column("tries", sa.SmallInteger, nullable=False, comment="failed answers"),
    sa.Column("crashes", sa.SmallInteger, nullable=False, comment="workers lost with it"),
    sa.Column("due_at", UtcDateTime, nullable=False),
    sa.Column("sent_at", UtcDateTime),
    sa.Column("finished_at", UtcDateTime),
    sa.Column("outcome", sa.Text, comment="effective code of the last answer"),
    sa.Column("reason", sa.Text),
    sa.Column("rows", sa.Integer),
    sa.Column("total", sa.BigInteger, comment="item count that the API claimed"),
    sa.Column("page_size", sa.Integer, comment="page size that the API echoed"),
    sa.Column("item_keys", sa.LargeBinary, comment="64-bit digests of the item ids, in the order sent"),
    sa.Column("new_items", sa.Integer),
    sa.Column("changed_items", sa.Integer),
    sa.UniqueConstraint("shop_crawl_id", "slice", "number"),
    sa.Index(
        "ix_page_ready",
        "source",
        "priority",
        "rank",
        "id",
        postgresql_where=sa.text("state = 'ready'"),
        sqlite_where=sa.text("state = 'ready'"),
    ),
    sa.Index(
        "ix_page_sent",
        "sent_at",
        postgresql_where=sa.text("state = 'sent'"),
        sqlite_where=sa.text("state = 'sent'"),
    ),
    sa.Index(
        "ix_page_held",
        "shop_crawl_id",
        postgresql_where=sa.text("state = 'held'"),
        sqlite_where=sa.text("state = 'held'"),
    ),
    sa.Index(
        "ix_page_unreviewed",
        "id",
        postgresql_where=sa.text("NOT reviewed"),
        sqlite_where=sa.text("NOT reviewed"),
    ),
)

slice_ = sa.Table(
    "slice",
    metadata,
    sa.Column("shop_crawl_id", BigId, sa.ForeignKey("shop_crawl.id"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("round", sa.Integer, nullable=False, comment="1: the listing; then what was edited meanwhile"),
    sa.Column(
        "kind", sa.Text, nullable=False, comment="root of its round, part, check of a count; second pass: tail, seam, band"
    ),
    sa.Column("state", sa.Text, nullable=False, comment="counting, paging, split, done or short"),
    sa.Column("start_at", UtcDateTime, comment="first time of change, inclusive; NULL: from the beginning"),
    sa.Column("end_at", UtcDateTime, nullable=False, comment="last time of change, inclusive"),
    sa.Column("cid", sa.Text, comment="only this category"),
    sa.Column("price_start", sa.Text, comment="only from this price on"),
    sa.Column("price_end", sa.Text, comment="only up to this price"),
    sa.Column("page_size", sa.Integer, comment="rows to ask for, if not as many as the crawl does"),
    sa.Column("expected", sa.BigInteger, comment="rows that it can have at most, known before the first call"),
    sa.Column("rest_end", UtcDateTime, comment="where the sibling ends that is opened once this one is counted"),
    sa.Column("rest_total", sa.BigInteger, comment="rows of this slice and that sibling together"),
    sa.Column("total_first", sa.BigInteger),
    sa.Column("total_last", sa.BigInteger),
    sa.Column("cursor", sa.Integer, nullable=False, comment="page out or wanted next, negative: from the other end"),
    sa.Column("behind", sa.Integer, nullable=False, comment="pages to read from the other end"),
    sa.Column("kept_page", sa.Integer, comment="page had out of turn: good as long as the total stays"),
    sa.Column("kept_total", sa.BigInteger),
    sa.Column("turn", sa.Integer, nullable=False, comment="times it has been read"),
    sa.Column("calls", sa.Integer, nullable=False, comment="pages asked for so far"),
    sa.Column("lost", sa.Integer, nullable=False, comment="pages that could not be had"),
    sa.Column("missing", sa.BigInteger, nullable=False, comment="items announced and never shown"),
    sa.Column("reason", sa.Text),
)

learned = sa.Table(
    "learned",
    metadata,
    sa.Column("source", Key, primary_key=True),
    sa.Column("name", Key, primary_key=True, comment="what an API taught us about itself, such as reach"),
    sa.Column("value", sa.BigInteger, nullable=False),
    sa.Column("at", UtcDateTime, nullable=False),
)

session = sa.Table(
    "session",
    metadata,
    sa.Column("shop_id", BigId, sa.ForeignKey("shop.id"), primary_key=True, autoincrement=False),
    sa.Column("sealed", sa.LargeBinary, nullable=False, comment="Fernet token"),
    sa.Column("set_at", UtcDateTime, nullable=False),
    sa.Column("refused_at", UtcDateTime),
    sa.Column("reason", sa.Text, comment="why it was refused"),
)

call = sa.Table(
    "call",
    metadata,
    id_column(),
    sa.Column("crawl_id", BigId, nullable=False),
    sa.Column("shop_crawl_id", BigId, nullable=False),
    sa.Column("page_id", BigId, nullable=False),
    sa.Column("credential", sa.Text, nullable=False, comment="fingerprint, never the secret"),
    sa.Column("outcome", sa.Text, nullable=False, comment="effective code"),
    sa.Column("calls", sa.Integer, nullable=False),
    sa.Column("cost", Money, nullable=False, server_default="0", comment="in SHOPCRAWL_CURRENCY"),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Index("ix_call_crawl_id_outcome", "crawl_id", "outcome"),
)

daily_use = sa.Table(
    "daily_use",
    metadata,
    sa.Column("day", Key, primary_key=True, comment="UTC, as 2026-01-31"),
    sa.Column("source", Key, primary_key=True),
    sa.Column("credential", Key, primary_key=True, comment="fingerprint, empty: all of the source"),
    count_column("reserved", "calls reserved: settled, in flight, or never heard of again"),
    sa.Column("spend", Money, nullable=False, server_default="0", comment="money reserved or spent"),
)

credential = sa.Table(
    "credential",
    metadata,
    sa.Column("source", Key, primary_key=True),
    sa.Column("name", Key, primary_key=True, comment="fingerprint, never the secret"),
    sa.Column("parked_at", UtcDateTime, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("probe_at", UtcDateTime, nullable=False, comment="when one page is tried with it again"),
    sa.Column("probe_wait", sa.Float, nullable=False, comment="seconds between probes, doubling"),
)
