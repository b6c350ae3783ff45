"""Modes: what is new is read only where the rest is known, and only shops whose data is old are refreshed."""

from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from models.crawls import ShopRequest, Submission, known_shops, submit_crawl, submit_recrawl
from models.modes import NEW, REFRESH, WHOLE, Mode
from models.tables import crawl, shop, shop_crawl, slice_
from tests.ledger import OPTIONS, SETTINGS, START, after, engine_for, requests, rows

ONLY_NEW = Mode(NEW)


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    async with engine_for(database_url) as engine:
        yield engine


def older_than(seconds: float) -> Mode:
    return Mode(REFRESH, timedelta(seconds=seconds))


async def ask(
    engine: AsyncEngine, shops: Sequence[ShopRequest], mode: Mode = WHOLE, *, at: float = 0, recrawl: bool = False
) -> Submission:
    submit = submit_recrawl if recrawl else submit_crawl
    async with engine.begin() as connection:
        return await submit(connection, shops, now=after(at), settings=SETTINGS, mode=mode)


async def crawled(engine: AsyncEngine, *keys: str, verdict: str = "complete", at: float = 1, **options: Any) -> None:
    """Crawl these shops as a producer would."""
    await settle(engine, await ask(engine, requests(*keys, **options), at=at), verdict, at)


async def settle(engine: AsyncEngine, submission: Submission, verdict: str, at: float) -> None:
    values = {"state": "settled", "verdict": verdict, "settled_at": after(at)}
    async with engine.begin() as connection:
        mine = shop_crawl.c.crawl_id == submission.crawl_id
        await connection.execute(sa.update(shop_crawl).where(mine).values(values))
        await connection.execute(sa.update(crawl).where(crawl.c.id == submission.crawl_id).values(state="finished"))


async def modes(engine: AsyncEngine, submission: Submission) -> dict[str, tuple[str, Any]]:
    """Mode and order of each shop of a crawl."""
    keys = {row.id: row.key for row in await rows(engine, shop)}
    found = await rows(engine, shop_crawl, shop_crawl.c.crawl_id == submission.crawl_id)
    return {keys[row.shop_id]: (row.mode, row.options.get("sort")) for row in found}


async def test_what_is_new_is_read_newest_first_and_other_shops_are_read_in_full(engine: AsyncEngine) -> None:
    await crawled(engine, "complete", sort="time_up")
    await crawled(engine, "drifted", verdict="drifted", sort="time_up")
    await crawled(engine, "partial", verdict="partial", sort="time_up")
    await crawled(engine, "later failed", sort="time_up")
    await crawled(engine, "later failed", verdict="failed", at=5, sort="time_up")
    await crawled(engine, "running", sort="time_up")
    await ask(engine, requests("running", sort="time_up"), at=6)
    await crawled(engine, "only a category", sort="time_up", shop_cat_id="7")
    shops = ["complete", "drifted", "partial", "later failed", "running", "only a category", "never crawled"]
    asked = await ask(engine, requests(*shops, sort="time_up"), ONLY_NEW, at=10)
    found = await modes(engine, asked)
    assert {key for key, how in found.items() if how == (NEW, "time_down")} == {"complete", "drifted"}
    assert {key for key, how in found.items() if how == ("full", "time_up")} == set(shops) - {"complete", "drifted"}


async def test_one_crawl_of_what_is_new_may_follow_another(engine: AsyncEngine) -> None:
    await crawled(engine, "a", sort="time_up")
    first = await ask(engine, requests("a", sort="time_up"), ONLY_NEW, at=10)
    await settle(engine, first, "complete", 11)
    second = await ask(engine, requests("a", sort="time_up"), ONLY_NEW, at=20, recrawl=True)
    assert await modes(engine, second) == {"a": (NEW, "time_down")}


async def test_a_crawl_of_what_is_new_leaves_the_options_of_the_next_full_one_alone(engine: AsyncEngine) -> None:
    await crawled(engine, "a", sort="time_up")
    await settle(engine, await ask(engine, requests("a", sort="time_up"), ONLY_NEW, at=10), "complete", 11)
    async with engine.connect() as connection:
        (known,) = await known_shops(connection, now=after(20))
    assert known.options == OPTIONS | {"sort": "time_up"}


async def test_a_listing_by_time_goes_on_where_its_last_whole_crawl_ended(engine: AsyncEngine) -> None:
    sellers = [ShopRequest("top", key, {"page_size": 200, "max_pages": 10}) for key in ("known", "unknown")]
    await settle(engine, await ask(engine, sellers), "complete", 1)
    async with engine.begin() as connection:
        await connection.execute(sa.update(shop).where(shop.c.key == "known").values(watermark=after(-900)))
    asked = await ask(engine, sellers, ONLY_NEW, at=100)
    assert {key: mode for key, (mode, _) in (await modes(engine, asked)).items()} == {"known": NEW, "unknown": "full"}
    found = await rows(engine, shop_crawl, shop_crawl.c.crawl_id == asked.crawl_id)
    assert [row.options.get("since") for row in found] == ["last", None]
    starts = [row.start_at for row in await rows(engine, slice_, slice_.c.shop_crawl_id.in_([row.id for row in found]))]
    assert starts == [after(-900 - SETTINGS.top_overlap), None]


async def test_the_same_command_resumes_its_crawl_in_its_mode(engine: AsyncEngine) -> None:
    await crawled(engine, "a", "b")
    for mode in (WHOLE, ONLY_NEW, older_than(5)):
        first = await ask(engine, requests("a", "b"), mode, at=10)
        again = await ask(engine, requests("b", "a"), mode, at=20)
        assert (first.resumed, again.resumed, again.crawl_id) == (False, True, first.crawl_id)
    assert (await ask(engine, requests("a", "b"), older_than(6), at=20)).resumed is False
    assert len(await rows(engine, crawl, crawl.c.state == "running")) == 4


async def test_only_shops_whose_last_happy_whole_crawl_is_old_are_refreshed(engine: AsyncEngine) -> None:
    await crawled(engine, "old", "partial since", "new since", "category since", at=100)
    await crawled(engine, "fresh", verdict="drifted", at=900)
    await crawled(engine, "partial since", verdict="partial", at=900)
    await crawled(engine, "category since", at=900, shop_cat_id="7")
    await settle(engine, await ask(engine, requests("new since"), ONLY_NEW, at=900), "complete", 901)
    shops = ["old", "partial since", "new since", "category since", "fresh", "never crawled"]
    for recrawl in (False, True):
        asked = await ask(engine, requests(*shops), older_than(500), at=1_000, recrawl=recrawl)
        assert (asked.shops, asked.fresh, asked.pending) == (5, 1, 0)
        assert await modes(engine, asked) == {key: ("full", None) for key in shops if key != "fresh"}
    again = await ask(engine, requests(*shops), older_than(500), at=1_000, recrawl=True)
    assert (again.crawl_id, again.shops, again.fresh, again.pending) == (asked.crawl_id, 0, 1, 5)


@pytest.mark.parametrize("recrawl", [False, True])
async def test_nothing_to_refresh_is_no_crawl(engine: AsyncEngine, recrawl: bool) -> None:
    await crawled(engine, "a", "b", at=900)
    before = len(await rows(engine, crawl))
    asked = await ask(engine, requests("a", "b"), older_than(500), at=1_000, recrawl=recrawl)
    assert asked == Submission(0, resumed=False, shops=0, fresh=2)
    assert len(await rows(engine, crawl)) == before


async def test_an_age_of_ages_is_no_error(engine: AsyncEngine) -> None:
    await crawled(engine, "a")
    endless = Mode(REFRESH, timedelta(weeks=999_999))
    assert (await ask(engine, requests("a"), endless, at=START.second + 10)).fresh == 1
