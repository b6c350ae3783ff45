"""Windows of time in the ledger: a seller is crawled whole and cheaply while it moves, is held, killed or refused."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta
from math import ceil
from pathlib import Path
from random import Random
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from models.crawls import ShopRequest, submit_crawl, submit_plan
from models.ledger import TOO_FAR, Calls, PageResult, store_results, with_page
from models.messages import PageTask
from models.sessions import save_sessions
from models.settings import load_settings
from models.source import FetchedPage, Item
from models.status import CrawlStatus, crawl_status
from models.tables import crawl, item, item_seen, learned, page, shop, shop_crawl, slice_
from models.vault import Vault, new_key
from producer.dispatch import Dispatcher
from producer.planning.review import review
from tests.ledger import engine_for, rows
from tests.windows_server import Seller, TooFarError, at, second_of, stirred

SIZE = 20
SETTINGS = load_settings(top_window_rows=200, top_window_margin=120, top_overlap=600)
MARGIN, OVERLAP = timedelta(seconds=120), timedelta(seconds=600)
OPTIONS: dict[str, Any] = {"page_size": SIZE, "max_pages": 1000, "order_by": "modified:asc"}
Fate = Callable[[PageTask], str]


def done(_: PageTask) -> str:
    """Every page is had."""
    return "done"


class Platform:
    """Sellers by shop, a clock, and everything between submission and verdict, with answers but without HTTP."""

    def __init__(self, engine: AsyncEngine, **sellers: Seller) -> None:
        self.engine, self.sellers = engine, sellers
        self.now = at(max((seller.now for seller in sellers.values()), default=0)) + timedelta(days=1)
        self.dispatcher = Dispatcher(SETTINGS)
        self.fetched: Counter[tuple[Any, ...]] = Counter()
        self.sent: list[PageTask] = []
        self.moves: Callable[[], None] = lambda: None

    async def submit(self, *keys: str, plan: bool = False, **options: object) -> int:
        requests = [ShopRequest("top", key, OPTIONS | options) for key in keys]
        async with self.engine.begin() as connection:
            start = submit_plan if plan else submit_crawl
            return (await start(connection, requests, now=self.now, settings=SETTINGS)).crawl_id

    def tick(self) -> None:
        self.now += timedelta(seconds=1)
        for seller in self.sellers.values():
            seller.now = second_of(self.now)

    async def dispatch(self, room: int = 100) -> list[PageTask]:
        self.tick()
        async with self.engine.begin() as connection:
            return await self.dispatcher.take_due(connection, sources=["top"], room=room, now=self.now)

    def answer(self, task: PageTask, state: str = "done") -> PageResult:
        """The result of a page by what the seller shows now."""
        self.sent.append(task)
        calls = [Calls("app-1", "200", 1)]
        result = PageResult(task=task, state=state, at=self.now, tries=1, outcome="200", calls=calls)
        if state != "done":
            result.reason, result.outcome = f"27: no {state}", "27"
            return result
        options, seller = task.options, self.sellers[task.shop]
        start, end = options.get("start_modified"), options["end_modified"]
        number = task.page if options["order_by"].endswith("asc") else -task.page
        try:
            ids, total = seller.listing(
                second_of(datetime.fromisoformat(start)) if start else None,
                second_of(datetime.fromisoformat(end)), number, options.get("cid"),
            )  # fmt: skip
        except TooFarError:
            result.state, result.outcome, result.reason = "dead", TOO_FAR, "too far"
            return result
        self.fetched[task.shop_crawl_id, start, end, options.get("cid"), number] += 1
        self.moves()
        found = [
            Item(item_id=f"{task.shop}-{key}", category_id=seller.rows[key].cid)
            if key in seller.rows
            else Item(item_id=f"{task.shop}-{key}")
            for key in ids
        ]
        return with_page(result, FetchedPage(found, total=total))

    async def store(self, *results: PageResult) -> None:
        async with self.engine.begin() as connection:
            assert None not in await store_results(connection, results)

    async def review(self) -> int:
        async with self.engine.begin() as connection:
            return (await review(connection, now=self.now, settings=SETTINGS)).pages

    async def status(self, crawl_id: int) -> CrawlStatus:
        async with self.engine.connect() as connection:
            return await crawl_status(connection, crawl_id, now=self.now)

    async def run(self, crawl_id: int, fate: Fate = done, room: int = 100) -> CrawlStatus:
        """Go on until nothing is out and nothing is wanted; figures are looked at all the way."""
        while True:
            tasks = await self.dispatch(room)
            status = await self.status(crawl_id)
            assert min(status.pages.ready, status.pages.sent) >= 0
            if not tasks and status.is_over:
                return status
            if not tasks:  # a later round waits for its time
                assert status.pages.ready > 0
                self.now += MARGIN
            await self.store(*(self.answer(task, fate(task)) for task in tasks))
            assert (await self.status(crawl_id)).pages.ready >= 0
            await self.review()

    @property
    def fetched_twice(self) -> set[tuple[Any, ...]]:
        """Pages had more than once, but for the second count of a whole round."""
        rounds = {key for key, count in self.fetched.items() if count == 2 and key[-1] == 1 and key[1] is None}
        return {key for key, count in self.fetched.items() if count > 1} - rounds

    async def ids(self) -> set[str]:
        return {row.item_id for row in await rows(self.engine, item)}

    async def crawled(self, crawl_id: int) -> Any:
        (found,) = await rows(self.engine, shop_crawl, shop_crawl.c.crawl_id == crawl_id)
        return found

    async def watermark(self) -> datetime | None:
        (found,) = await rows(self.engine, shop)
        return found.watermark  # type: ignore[no-any-return]


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    async with engine_for(database_url) as engine:
        yield engine


def seller(count: int, *, seed: int = 1, span: int = 100_000, limit: int = 200) -> Seller:
    random = Random(seed)
    made = Seller(SIZE, limit, random)
    made.stock(1000 + random.randrange(span) for _ in range(count))
    return made


async def assert_figures(platform: Platform, crawl_id: int) -> None:
    """Rows, counters and status of a settled crawl agree."""
    found = await platform.crawled(crawl_id)
    pages = await rows(platform.engine, page, page.c.shop_crawl_id == found.id)
    slices = await rows(platform.engine, slice_, slice_.c.shop_crawl_id == found.id)
    states = Counter(row.state for row in pages)
    assert (found.pages_made, found.planned) == (len(pages), len(pages))
    assert found.pages_done == states["done"]
    assert found.pages_dead == states["dead"] + states["refused"]
    assert found.pages_cancelled == states["cancelled"]
    assert [row.number for row in slices] == list(range(1, found.slices + 1))
    ended = Counter(row.slice for row in pages if row.state != "cancelled")
    assert ended == {row.number: row.calls for row in slices if row.calls}
    status = await platform.status(crawl_id)
    assert (status.pages.ready, status.pages.sent, status.state) == (0, 0, "finished")


async def test_a_seller_that_stays_as_it_is_is_crawled_whole_for_its_pages_and_little_more(engine: AsyncEngine) -> None:
    platform = Platform(engine, one=seller(1200))
    crawl_id = await platform.submit("one")
    begun = platform.now
    await platform.run(crawl_id)
    found = await platform.crawled(crawl_id)
    assert (found.state, found.verdict, found.distinct_items, found.total_first) == ("settled", "complete", 1200, 1200)
    assert await platform.ids() == {f"one-{key}" for key in platform.sellers["one"].rows}
    assert found.pages_made <= ceil(1200 / SIZE) + 7 * found.slices
    assert platform.fetched_twice == set()
    assert await platform.watermark() == begun - MARGIN
    await assert_figures(platform, crawl_id)


async def test_a_seller_of_one_page_costs_one_call(engine: AsyncEngine) -> None:
    platform = Platform(engine, one=seller(SIZE))
    crawl_id = await platform.submit("one")
    assert (await platform.run(crawl_id)).pages.done == 1
    assert (await platform.crawled(crawl_id)).verdict == "complete"


@pytest.mark.parametrize("room", [1, 100])
async def test_what_is_there_throughout_is_stored_though_rows_move_at_every_call(
    engine: AsyncEngine, room: int
) -> None:
    platform = Platform(engine, one=seller(800))
    there = set(platform.sellers["one"].rows)
    platform.moves = stirred(platform.sellers["one"], 0.3)
    crawl_id = await platform.submit("one")
    await platform.run(crawl_id, room=room)
    found = await platform.crawled(crawl_id)
    newest = max(row.end_at for row in await rows(engine, slice_))
    assert found.verdict == "complete"
    assert {f"one-{key}" for key in there - platform.sellers["one"].gone} <= await platform.ids()
    assert await platform.watermark() == newest
    await assert_figures(platform, crawl_id)


async def test_what_two_whole_crawls_do_not_show_is_gone_and_incremental_ones_say_nothing(engine: AsyncEngine) -> None:
    platform = Platform(engine, one=seller(100))
    await platform.run(await platform.submit("one"))
    away = sorted(platform.sellers["one"].rows)[10:15]
    kept = {key: platform.sellers["one"].rows.pop(key) for key in away}
    for since, missed, gone in (("last", 0, 0), (None, 1, 0), ("last", 1, 0), (None, 2, 5)):
        platform.now += timedelta(hours=1)
        crawl_id = await platform.submit("one", since=since)
        await platform.run(crawl_id)
        found = await platform.crawled(crawl_id)
        assert (found.verdict, found.gone_items) == ("complete", gone)
        seen = {row.item_id: row for row in await rows(engine, item_seen)}
        assert {seen[f"one-{key}"].misses for key in away} == {missed}
    assert {row.item_id for row in seen.values() if row.gone_at} == {f"one-{key}" for key in away}
    (known,) = await rows(engine, shop)
    assert (known.known_items, known.suspect_items) == (95, None)
    platform.sellers["one"].rows |= kept
    platform.now += timedelta(hours=1)
    await platform.run(await platform.submit("one"))
    assert {row.item_id for row in await rows(engine, item_seen) if row.gone_at} == set()


async def test_a_seller_that_lost_half_of_its_items_is_suspect_and_keeps_them(engine: AsyncEngine) -> None:
    platform = Platform(engine, one=seller(100))
    await platform.run(await platform.submit("one"))
    for key in sorted(platform.sellers["one"].rows)[:50]:
        del platform.sellers["one"].rows[key]
    verdicts = []
    for _ in range(2):
        platform.now += timedelta(hours=1)
        crawl_id = await platform.submit("one")
        await platform.run(crawl_id)
        verdicts.append((await platform.crawled(crawl_id)).verdict)
        assert not any(row.gone_at for row in await rows(engine, item_seen))
    assert verdicts == ["suspect", "complete"]


async def test_an_incremental_crawl_reads_only_what_changed_since_the_last_whole_one(engine: AsyncEngine) -> None:
    platform = Platform(engine, one=seller(800))
    await platform.run(await platform.submit("one"))
    mark = await platform.watermark()
    assert mark is not None
    for key in (3, 4):
        platform.tick()
        platform.sellers["one"].edit(key)
    platform.now += timedelta(hours=1)
    platform.sent.clear()
    crawl_id = await platform.submit("one", since="last")
    await platform.run(crawl_id)
    (task,) = platform.sent
    assert task.options["start_modified"] == (mark - OVERLAP).isoformat()
    assert (await platform.crawled(crawl_id)).distinct_items == 2
    later = await platform.watermark()
    assert later is not None and later > mark


async def test_a_crawl_that_began_after_the_watermark_leaves_it_where_the_gap_begins(engine: AsyncEngine) -> None:
    platform = Platform(engine, one=seller(80))
    await platform.run(await platform.submit("one"))
    mark = await platform.watermark()
    platform.now += timedelta(hours=3)
    crawl_id = await platform.submit("one", since="1h")
    await platform.run(crawl_id)
    assert (await platform.crawled(crawl_id)).verdict == "complete"
    assert await platform.watermark() == mark


@pytest.mark.parametrize("option", ["q", "cid"])
async def test_a_crawl_of_some_rows_moves_no_watermark(engine: AsyncEngine, option: str) -> None:
    platform = Platform(engine, one=seller(80))
    crawl_id = await platform.submit("one", **dict[str, Any]({option: "1"}))
    await platform.run(crawl_id)
    assert (await platform.crawled(crawl_id)).verdict == "complete"
    assert await platform.watermark() is None


async def test_a_crawl_that_is_not_complete_moves_no_watermark(engine: AsyncEngine) -> None:
    platform = Platform(engine, one=seller(80))
    crawl_id = await platform.submit("one")
    await platform.run(crawl_id, lambda task: "dead" if task.page == 2 else "done")
    found = await platform.crawled(crawl_id)
    assert (found.verdict, found.pages_dead) == ("partial", 1)
    assert await platform.watermark() is None
    await assert_figures(platform, crawl_id)


@pytest.mark.parametrize(("categories", "verdict", "shown"), [(5, "complete", 800), (1, "partial", 500)])
async def test_a_second_with_too_many_rows_is_read_by_category_or_reported(
    engine: AsyncEngine, categories: int, verdict: str, shown: int
) -> None:
    crowd = seller(100)
    for number in range(700):
        crowd.add(50_000, str(number % categories))
    platform = Platform(engine, one=crowd)
    crawl_id = await platform.submit("one")
    await platform.run(crawl_id)
    found = await platform.crawled(crawl_id)
    assert (found.verdict, found.distinct_items) == (verdict, shown)
    assert (verdict == "complete") != ("300 more were announced and never shown (too many rows" in found.reason)
    await assert_figures(platform, crawl_id)


@pytest.mark.parametrize("most", [1, 7, 30])
async def test_a_shop_never_costs_more_pages_than_it_may(engine: AsyncEngine, most: int) -> None:
    platform = Platform(engine, one=seller(800))
    crawl_id = await platform.submit("one", max_pages=most)
    await platform.run(crawl_id)
    found = await platform.crawled(crawl_id)
    assert (found.pages_made, found.verdict) == (most, "partial")
    assert f"stopped at the limit of {most} pages" in found.reason
    await assert_figures(platform, crawl_id)


async def test_a_refused_shop_fails_and_what_was_not_sent_is_cancelled(engine: AsyncEngine) -> None:
    platform = Platform(engine, one=seller(1200))
    crawl_id = await platform.submit("one")
    refused = iter(["done"] * 12 + ["refused"])
    await platform.run(crawl_id, lambda _: next(refused, "done"), room=1)
    found = await platform.crawled(crawl_id)
    assert (found.verdict, found.pages_dead, found.reason) == ("failed", 1, "27: no refused")
    assert found.pages_cancelled > 0
    assert await platform.watermark() is None
    await assert_figures(platform, crawl_id)


async def test_a_plan_ends_after_one_call_that_counts_a_shop(engine: AsyncEngine) -> None:
    platform = Platform(engine, one=seller(800))
    crawl_id = await platform.submit("one", plan=True)
    await platform.run(crawl_id)
    found = await platform.crawled(crawl_id)
    assert (found.state, found.verdict, found.total_first, found.pages_made) == ("settled", None, 800, 1)
    assert await platform.watermark() is None
    await assert_figures(platform, crawl_id)


async def test_a_nearer_reach_is_learned_once_and_for_every_shop(engine: AsyncEngine) -> None:
    platform = Platform(engine, one=seller(1200, limit=160), two=seller(1200, limit=160))
    first = await platform.submit("one")
    await platform.run(first, room=1)
    (found,) = await rows(engine, learned)
    assert (found.source, found.name, found.value) == ("top", "reach", 160)
    refused = await rows(engine, page, page.c.outcome == TOO_FAR)
    assert len(refused) >= 2
    platform.sent.clear()
    second = await platform.submit("two")
    await platform.run(second)
    assert max(task.page for task in platform.sent) * SIZE == 160
    assert len(await rows(engine, page, page.c.outcome == TOO_FAR)) == len(refused)
    for crawl_id in (first, second):
        assert (await platform.crawled(crawl_id)).distinct_items == 1200
    assert (await platform.crawled(second)).verdict == "complete"


async def test_a_held_shop_waits_alone_and_goes_on_where_it_was(engine: AsyncEngine, tmp_path: Path) -> None:
    platform = Platform(engine, one=seller(600), two=seller(600, seed=2))
    crawl_id = await platform.submit("one", "two")
    seen = Counter[str]()

    def refuse_after_ten(task: PageTask) -> str:
        seen[task.shop] += 1
        return "held" if task.shop == "one" and seen["one"] > 10 else "done"

    status = await platform.run(crawl_id, refuse_after_ten)
    assert (status.state, status.needs_authorisation, status.verdicts.complete) == ("waiting", 1, 1)
    states = Counter(row.state for row in await rows(engine, page))
    assert states.keys() == {"done", "held"}
    (held,) = await rows(engine, shop_crawl, shop_crawl.c.state == "held")
    assert held.reason == "27: no held"
    async with engine.begin() as connection:
        vault = Vault(load_settings(data_dir=tmp_path, secret_key=new_key()))
        assert await save_sessions(connection, vault, {held.shop_id: "fresh"}, platform.now) == 1
    status = await platform.run(crawl_id)
    assert (status.state, status.verdicts.complete) == ("finished", 2)
    assert len(await platform.ids()) == 1200
    assert platform.fetched_twice == set()


async def test_what_a_killed_producer_had_not_committed_is_done_again(engine: AsyncEngine) -> None:
    platform = Platform(engine, one=seller(600))
    crawl_id = await platform.submit("one")
    while True:
        tasks = await platform.dispatch()
        if not tasks and (await platform.status(crawl_id)).is_over:
            break
        await platform.store(*(platform.answer(task) for task in tasks))
        async with engine.connect() as killed:  # dies before its commit
            await review(killed, now=platform.now, settings=SETTINGS)
        await platform.review()
        platform.dispatcher = Dispatcher(SETTINGS)  # dies after its commit: another one dispatches
    assert (await platform.crawled(crawl_id)).verdict == "complete"
    assert platform.fetched_twice == set()
    await assert_figures(platform, crawl_id)


async def test_producers_side_by_side_open_every_window_once(postgres_url: str) -> None:
    async with engine_for(postgres_url, pool_size=4) as engine:
        keys = [f"shop{number}" for number in range(6)]
        platform = Platform(engine, **{key: seller(600, seed=number) for number, key in enumerate(keys)})
        crawl_id = await platform.submit(*keys)
        while not (await platform.status(crawl_id)).is_over:
            tasks = await platform.dispatch()
            await platform.store(*(platform.answer(task) for task in tasks))
            assert sum(await asyncio.gather(*(platform.review() for _ in range(4)))) <= len(tasks)
        assert {row.verdict for row in await rows(engine, shop_crawl)} == {"complete"}
        assert platform.fetched_twice == set()
        pages = await rows(engine, page)
        assert sum(row.pages_made for row in await rows(engine, shop_crawl)) == len(pages)
        assert len({(row.shop_crawl_id, row.slice, row.number) for row in pages}) == len(pages)
        assert [row.state for row in await rows(engine, crawl)] == ["finished"]
