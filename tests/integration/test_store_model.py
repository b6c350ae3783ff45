"""Whatever pages show in whatever batches, the store says what a plain reading of them says."""

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncConnection

from models.crawls import shop_ids
from models.database import create_engine
from models.items import FIGURES, sightings_of
from models.settings import TRACKED_FIELDS, async_url
from models.sheets import LAST_SEEN, SEEN_BY, WITH_SHEET, Sheet, loosen_unseen
from models.source import Item
from models.store import PageSeen, observe_pages
from models.tables import change, item, item_sales, item_seen, item_version, shop
from tests.history import plain
from tests.ledger import START, requests

TICK = timedelta(minutes=1, microseconds=1)
FIELDS = ("title", "price", "agent_price", "video_id", "images", "extra")
KINDS = {"agent_price": "price", "images": "image"}
GONE = "gone"

ITEMS = st.builds(
    Item,
    item_id=st.sampled_from("abc"),
    title=st.sampled_from((None, "", "cup")),
    price=st.sampled_from((None, Decimal("3.9"), Decimal("3.90"), Decimal("39E-1"), Decimal(4))),
    agent_price=st.sampled_from((None, Decimal(0))),
    video_id=st.sampled_from((None, "1", "2")),
    images=st.sampled_from((None, [], ["a", "b"], ["b", "a"])),
    extra=st.sampled_from((None, {"x": [1, None]}, {"x": [1.5]})),
    gmv_30d=st.sampled_from((None, Decimal("1.5"), Decimal("1.50"), Decimal(2))),
    sold_30d=st.sampled_from((None, 0, 1)),
)
# Few pages that come again and again: most of the time a page shows what it showed before.
PAGES = st.lists(st.lists(ITEMS, max_size=4), min_size=1, max_size=3)
BATCHES = st.lists(st.one_of(st.just(GONE), st.lists(st.integers(0, 9), min_size=1, max_size=4)), max_size=8)


@dataclass
class Known:
    """One item as the model knows it."""

    values: dict[str, Any]
    figures: dict[str, Any]
    first_seen: datetime
    changed_at: datetime
    changed_by: int
    last_seen: datetime
    seen_by: int
    figures_at: datetime | None
    gone: bool = False
    versions: list[tuple[Any, ...]] = field(default_factory=list)
    sales: list[tuple[Any, ...]] = field(default_factory=list)


@dataclass
class Model:
    """What is known after each page has been read in order of time."""

    tracked: Sequence[str]
    baseline: bool
    items: dict[str, Known] = field(default_factory=dict)
    changes: list[tuple[Any, ...]] = field(default_factory=list)

    def see(self, shown: Sequence[Item], at: datetime, crawl: int) -> tuple[int, int]:
        """Read a page; returns how many items were new, and how many changed."""
        before = len(self.items)
        changed = [self._see(each, at, crawl) for each in {each.item_id: each for each in shown}.values()]
        return len(self.items) - before, sum(changed)

    def _see(self, seen: Item, at: datetime, crawl: int) -> bool:
        sent = {name: value for name in FIELDS if (value := getattr(seen, name)) is not None}
        figures = {name: value for name in FIGURES if (value := getattr(seen, name)) is not None}
        known = self.items.get(seen.item_id)
        if known is None:
            values = dict.fromkeys(FIELDS) | sent
            self.items[seen.item_id] = Known(
                values, dict.fromkeys(FIGURES) | figures, at, at, crawl, at, crawl, at if figures else None
            )
            if self.baseline:
                shown = {name: sent[name] for name in ("title", "price") if name in sent}
                self.changes.append((seen.item_id, "new", at, crawl, None, shown))
            return False
        if known.gone:
            self.changes.append((seen.item_id, "back", at, crawl, None, None))
        moved = {name: value for name, value in sent.items() if known.values[name] != value}
        events: dict[str, list[str]] = {}
        for name in moved:
            if name in self.tracked:
                events.setdefault(KINDS.get(name, name), []).append(name)
        for kind, names in events.items():
            sides = [{name: values[name] for name in names} for values in (known.values, sent)]
            self.changes.append((seen.item_id, kind, at, crawl, *sides))
        if events:
            known.versions.append((known.changed_at, at, known.changed_by, dict(known.values)))
            known.changed_at, known.changed_by = at, crawl
        known.values |= moved
        if any(known.figures[name] != value for name, value in figures.items()):
            if known.figures_at is not None:
                known.sales.append((known.figures_at, dict(known.figures)))
            known.figures |= figures
            known.figures_at = at
        known.last_seen, known.seen_by, known.gone = at, crawl, False
        return bool(events)


class World:
    """A shop of its own in a real database, and the model of it."""

    def __init__(self, connection: AsyncConnection, shop_id: int, model: Model) -> None:
        self.connection, self.shop_id, self.model = connection, shop_id, model
        self.pages = 0

    def now(self) -> datetime:
        return START + self.pages * TICK

    async def store(self, pages: Sequence[Sequence[Item]]) -> None:
        """Store pages in one batch, the newest first; the model reads them in order of time."""
        batch, new, changed = list[PageSeen](), 0, 0
        for shown in pages:
            self.pages += 1
            at, crawl = self.now(), 100 + self.pages
            sightings, digest = sightings_of(shown, shop_id=self.shop_id, shop_crawl_id=crawl, seen_at=at)
            batch.insert(0, PageSeen(sightings, Sheet(self.shop_id, digest, at, crawl)))
            counts = self.model.see(shown, at, crawl)
            new, changed = new + counts[0], changed + counts[1]
        diff, _same = await observe_pages(self.connection, batch, tracked=self.model.tracked)
        assert (len(diff.new), len(diff.changed)) == (new, changed)

    async def lose(self) -> None:
        """All items count as gone."""
        self.pages += 1
        await loosen_unseen(self.connection, self.shop_id, self.now())
        lost = sa.update(item_seen).where(item_seen.c.shop_id == self.shop_id).values(misses=2, gone_at=self.now())
        await self.connection.execute(lost)
        for known in self.model.items.values():
            known.gone = True

    async def rows(self, table: sa.Table, *names: str) -> list[tuple[Any, ...]]:
        query = sa.select(*(table.c[name] for name in names)).where(table.c.shop_id == self.shop_id)
        return sorted((tuple(map(plain, row)) for row in await self.connection.execute(query)), key=repr)

    async def check(self) -> None:
        """The database says what the model says."""
        known = self.model.items
        items = [
            (key, *(k.values[n] for n in FIELDS), k.first_seen, k.changed_at, k.changed_by) for key, k in known.items()
        ]
        assert await self.rows(item, "item_id", *FIELDS, "first_seen", "changed_at", "shop_crawl_id") == told(items)
        columns = [item_seen.c[name] for name in ("item_id", *FIGURES, "figures_at")]
        more = [LAST_SEEN, SEEN_BY, item_seen.c.gone_at.is_not(None), item_seen.c.misses > 0]
        query = sa.select(*columns, *more).select_from(WITH_SHEET).where(item_seen.c.shop_id == self.shop_id)
        seen = [
            (key, *k.figures.values(), k.figures_at, k.last_seen, k.seen_by, k.gone, k.gone) for key, k in known.items()
        ]
        assert told(await self.connection.execute(query)) == told(seen)
        kept = [name for name in FIELDS if name != "extra"]
        versions = [(key, *v[:3], *(v[3][n] for n in kept)) for key, k in known.items() for v in k.versions]
        spans = ("item_id", "valid_from", "valid_to", "shop_crawl_id")
        assert await self.rows(item_version, *spans, *kept) == told(versions)
        sales = [(key, at, *figures.values()) for key, k in known.items() for at, figures in k.sales]
        assert await self.rows(item_sales, "item_id", "at", *FIGURES) == told(sales)
        names = ("item_id", "kind", "at", "shop_crawl_id", "before", "after")
        texts = [(*c[:4], as_text(c[4]), as_text(c[5])) for c in self.model.changes]
        assert await self.rows(change, *names) == told(texts)


def told(rows: Any) -> list[tuple[Any, ...]]:
    return sorted((tuple(map(plain, row)) for row in rows), key=repr)


def as_text(values: dict[str, Any] | None) -> dict[str, Any] | None:
    """Values as a change keeps them: decimals as text."""
    return values and {name: str(value) if isinstance(value, Decimal) else value for name, value in values.items()}


@pytest.mark.parametrize("tracked", [TRACKED_FIELDS, ("video_id", "images")])
def test_the_store_agrees_with_a_plain_model(database_url: str, tracked: Sequence[str]) -> None:
    engine = create_engine(async_url(database_url))
    shops = iter(range(10_000))

    async def play(pages: list[list[Item]], batches: list[Any], baseline: bool) -> None:
        async with engine.begin() as connection:
            ((_key, shop_id),) = (await shop_ids(connection, requests(f"shop-{next(shops)}"), START)).items()
            if baseline:
                await connection.execute(sa.update(shop).where(shop.c.id == shop_id).values(baseline_at=START))
            world = World(connection, shop_id, Model(tracked, baseline))
            for batch in batches:
                if batch == GONE:
                    await world.lose()
                else:
                    await world.store([pages[number % len(pages)] for number in batch])
            await world.check()

    with asyncio.Runner() as runner:
        run: Any = runner.run

        @settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
        @given(pages=PAGES, batches=BATCHES, baseline=st.booleans())
        def example(pages: list[list[Item]], batches: list[Any], baseline: bool) -> None:
            run(play(pages, batches, baseline))

        try:
            example()
        finally:
            closing: Coroutine[Any, Any, None] = engine.dispose()
            run(closing)
