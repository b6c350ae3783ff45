"""Stored sessions: sealed, refused one by one, and a new one lets go on exactly what it was missing for."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from models.crawls import ShopRequest, shop_ids, submit_crawl, submit_recrawl
from models.sessions import (
    forget_session,
    list_sessions,
    load_sessions,
    mark_refused,
    reseal_all,
    save_sessions,
)
from models.settings import load_settings
from models.tables import crawl, page, session, shop, shop_crawl
from models.vault import Vault, new_key
from tests.ledger import SETTINGS, START, after, engine_for, rows
from tests.session_source import session_source

__all__ = ["session_source"]
pytestmark = pytest.mark.usefixtures("session_source")

OLD, NEW = new_key(), new_key()


def vault(folder: Path, *keys: str) -> Vault:
    return Vault(load_settings(data_dir=folder, secret_key=",".join(keys)))


@pytest.fixture
def safe(tmp_path: Path) -> Vault:
    return vault(tmp_path, OLD)


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    async with engine_for(database_url) as engine:
        yield engine


def wanted(*keys: str) -> list[ShopRequest]:
    return [ShopRequest("top", key, {}) for key in keys]


async def crawled(engine: AsyncEngine, *keys: str) -> tuple[int, dict[str, int]]:
    """A new crawl of these shops and their ids."""
    async with engine.begin() as connection:
        crawl_id = (await submit_crawl(connection, wanted(*keys), now=START, settings=SETTINGS)).crawl_id
        ids = await shop_ids(connection, wanted(*keys), START)
    return crawl_id, {key: shop_id for (_, key), shop_id in ids.items()}


async def save(engine: AsyncEngine, safe: Vault, sessions: dict[int, str], at: float = 0) -> int:
    async with engine.begin() as connection:
        return await save_sessions(connection, safe, sessions, after(at))


async def load(engine: AsyncEngine, safe: Vault, *shops: int) -> dict[int, str | None]:
    async with engine.connect() as connection:
        return await load_sessions(connection, safe, shops)


async def refuse(engine: AsyncEngine, safe: Vault, shop_id: int, text: str, reason: str = "27: expired") -> bool:
    async with engine.begin() as connection:
        return await mark_refused(connection, safe, shop_id, text, reason, after(5))


async def hold(connection: AsyncConnection, *shops: int, reviewed: bool = True) -> None:
    """Hold these shops as worker and producer do; unreviewed, the producer has not seen it yet."""
    mine = sa.select(shop_crawl.c.id).where(shop_crawl.c.shop_id.in_(shops), shop_crawl.c.state != "settled")
    held = sa.update(page).where(page.c.shop_crawl_id.in_(mine), page.c.state == "ready")
    await connection.execute(held.values(state="held", reviewed=reviewed, fence=1))
    if reviewed:
        await connection.execute(
            sa.update(shop_crawl).where(shop_crawl.c.id.in_(mine)).values(state="held", reason="27")
        )
        no_open = ~sa.exists().where(shop_crawl.c.crawl_id == crawl.c.id, shop_crawl.c.state == "open")
        waits = sa.update(crawl).where(crawl.c.state == "running", no_open)
        await connection.execute(waits.values(state="waiting"))


async def test_a_session_is_stored_sealed_and_read_back(engine: AsyncEngine, safe: Vault) -> None:
    _, ids = await crawled(engine, "a", "b", "c")
    assert await save(engine, safe, {ids["a"]: "canary-a", ids["b"]: "canary-b"}) == 0
    assert await load(engine, safe, *ids.values(), 4711) == {ids["a"]: "canary-a", ids["b"]: "canary-b"}
    stored = await rows(engine, session)
    assert all(b"canary" not in row.sealed and row.sealed.startswith(b"gAAAA") for row in stored)
    assert [(row.shop_id, row.set_at, row.refused_at) for row in stored] == [
        (ids["a"], START, None),
        (ids["b"], START, None),
    ]
    assert await save(engine, safe, {}) == 0
    assert await load(engine, safe) == {}


async def test_a_session_that_no_key_opens_spoils_no_other(engine: AsyncEngine, safe: Vault, tmp_path: Path) -> None:
    _, ids = await crawled(engine, "a", "b")
    await save(engine, safe, {ids["a"]: "one"})
    await save(engine, vault(tmp_path, NEW), {ids["b"]: "two"})
    assert await load(engine, safe, *ids.values()) == {ids["a"]: "one", ids["b"]: None}


async def test_a_refused_session_is_given_to_nobody_until_a_new_one_comes(engine: AsyncEngine, safe: Vault) -> None:
    _, ids = await crawled(engine, "a", "b")
    a, b = ids["a"], ids["b"]
    await save(engine, safe, {a: "first-secret", b: "other"})
    assert await refuse(engine, safe, a, "first-secret", "27: session=x first-secret expired")
    assert await load(engine, safe, a, b) == {b: "other"}
    async with engine.connect() as connection:
        lines = await list_sessions(connection)
    assert [(line.source, line.shop, line.state, line.set_at) for line in lines] == [
        ("top", "a", "refused", START),
        ("top", "b", "valid", START),
    ]
    assert lines[0].reason == "27: session=*** *** expired" and lines[1].reason is None
    assert await refuse(engine, safe, a, "first-secret"), "another page that it was refused to"
    await save(engine, safe, {a: "second"}, at=9)
    assert await load(engine, safe, a) == {a: "second"}
    (row, _) = await rows(engine, session)
    assert (row.set_at, row.refused_at, row.reason) == (after(9), None, None)


async def test_a_refusal_that_comes_late_does_not_touch_the_new_session(engine: AsyncEngine, safe: Vault) -> None:
    _, ids = await crawled(engine, "a")
    await save(engine, safe, {ids["a"]: "first"})
    await save(engine, safe, {ids["a"]: "second"})
    assert not await refuse(engine, safe, ids["a"], "first")
    assert await load(engine, safe, ids["a"]) == {ids["a"]: "second"}


async def test_a_session_can_be_forgotten(engine: AsyncEngine, safe: Vault) -> None:
    _, ids = await crawled(engine, "a", "b")
    await save(engine, safe, {ids["a"]: "one", ids["b"]: "two"})
    async with engine.begin() as connection:
        assert await forget_session(connection, "top", "a")
        assert not await forget_session(connection, "top", "a")
        assert not await forget_session(connection, "tmapi", "b")
    assert await load(engine, safe, *ids.values()) == {ids["b"]: "two"}
    assert await refuse(engine, safe, ids["a"], "one"), "a page that still used it: the shop has none left"
    assert len(await rows(engine, session)) == 1


@pytest.mark.parametrize("reviewed", [True, False])
async def test_a_new_session_lets_go_on_what_its_shop_was_held_for(
    engine: AsyncEngine, safe: Vault, reviewed: bool
) -> None:
    crawl_id, ids = await crawled(engine, "a", "b", "c")
    async with engine.begin() as connection:
        await hold(connection, ids["a"], ids["b"], reviewed=reviewed)
    assert await save(engine, safe, {ids["a"]: "new", ids["c"]: "also"}, at=7) == int(reviewed)
    key_of = {row.id: row.key for row in await rows(engine, shop)}
    crawls = {key_of[row.shop_id]: row for row in await rows(engine, shop_crawl)}
    assert {key: row.state for key, row in crawls.items()} == {
        "a": "open",
        "b": "held" if reviewed else "open",
        "c": "open",
    }
    assert crawls["a"].reason is None
    pages = {row.shop_crawl_id: row for row in await rows(engine, page)}
    first, second, third = (pages[crawls[key].id] for key in "abc")
    assert (first.state, first.reviewed, first.due_at, first.fence, first.tries) == ("ready", True, after(7), 1, 0)
    assert (second.state, second.reviewed) == ("held", reviewed)
    assert (third.state, third.due_at) == ("ready", START)
    assert [row.state for row in await rows(engine, crawl, crawl.c.id == crawl_id)] == ["running"]


async def test_a_crawl_that_waited_for_sessions_runs_again_with_the_first_of_them(
    engine: AsyncEngine, safe: Vault
) -> None:
    crawl_id, ids = await crawled(engine, "a", "b")
    other, other_ids = await crawled(engine, "z")
    async with engine.begin() as connection:
        await hold(connection, *ids.values(), *other_ids.values())
    assert {row.state for row in await rows(engine, crawl)} == {"waiting"}
    assert await save(engine, safe, {ids["b"]: "new"}) == 1
    assert {row.id: row.state for row in await rows(engine, crawl)} == {crawl_id: "running", other: "waiting"}


async def test_one_session_lets_go_on_the_crawl_and_the_recrawl_of_its_shop(engine: AsyncEngine, safe: Vault) -> None:
    _, ids = await crawled(engine, "a")
    async with engine.begin() as connection:
        await submit_recrawl(connection, wanted("a"), now=START, settings=SETTINGS)
    async with engine.begin() as connection:
        await hold(connection, ids["a"])
    assert await save(engine, safe, {ids["a"]: "new"}) == 2
    assert {row.state for row in await rows(engine, page)} == {"ready"}
    assert {row.state for row in await rows(engine, crawl)} == {"running"}


async def test_settled_shop_crawls_and_finished_pages_stay_as_they_are(engine: AsyncEngine, safe: Vault) -> None:
    crawl_id, ids = await crawled(engine, "a")
    async with engine.begin() as connection:
        await connection.execute(sa.update(shop_crawl).values(state="settled", verdict="partial"))
        await connection.execute(sa.update(crawl).values(state="finished"))
        await connection.execute(sa.update(page).values(state="dead"))
    assert await save(engine, safe, {ids["a"]: "new"}) == 0
    assert [row.state for row in await rows(engine, page)] == ["dead"]
    assert [row.state for row in await rows(engine, crawl, crawl.c.id == crawl_id)] == ["finished"]


async def test_a_shop_that_is_being_held_this_moment_is_waited_for_and_seen(postgres_url: str, safe: Vault) -> None:
    async with engine_for(postgres_url) as engine:
        _, ids = await crawled(engine, "a")
        async with engine.begin() as producer:
            await producer.execute(sa.select(shop_crawl.c.id).with_for_update())
            saving = asyncio.create_task(save(engine, safe, {ids["a"]: "new"}))
            async with asyncio.timeout(30), engine.connect() as other:
                waiting = sa.text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
                while not await other.scalar(waiting):
                    await other.rollback()
                    await asyncio.sleep(0.01)
            await hold(producer, ids["a"])
        assert await saving == 1
        assert [row.state for row in await rows(engine, shop_crawl)] == ["open"]
        assert [row.state for row in await rows(engine, page)] == ["ready"]
        assert [row.state for row in await rows(engine, crawl)] == ["running"]


async def test_a_rotation_seals_every_row_with_the_newest_key(
    engine: AsyncEngine, safe: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.sessions.RESEAL_BATCH", 3)
    _, ids = await crawled(engine, *(f"shop{number}" for number in range(8)))
    shops = list(ids.values())
    await save(engine, safe, {shop_id: f"s-{shop_id}" for shop_id in shops})
    await refuse(engine, safe, shops[0], f"s-{shops[0]}")
    await save(engine, vault(tmp_path, new_key()), {shops[4]: "lost"})
    assert await reseal_all(engine, vault(tmp_path, NEW, OLD)) == (7, 1)
    expected = {shop_id: f"s-{shop_id}" for shop_id in shops[1:]} | {shops[4]: None}
    assert await load(engine, vault(tmp_path, NEW), *shops) == expected
    assert [row.shop_id for row in await rows(engine, session) if row.refused_at] == [shops[0]]
    assert await reseal_all(engine, vault(tmp_path, NEW)) == (7, 1)


async def test_sessions_of_thousands_of_shops_are_stored_and_read_at_once(engine: AsyncEngine, safe: Vault) -> None:
    _, ids = await crawled(engine, *(f"shop{number}" for number in range(3000)))
    async with engine.begin() as connection:
        await hold(connection, *list(ids.values())[:1000])
    sessions = {shop_id: f"session-{key}" for key, shop_id in ids.items()}
    assert await save(engine, safe, sessions) == 1000
    assert await load(engine, safe, *sessions) == sessions


async def test_a_held_recrawl_is_pending_so_that_asking_again_does_not_double_it(
    engine: AsyncEngine, safe: Vault
) -> None:
    _, ids = await crawled(engine, "a")
    for expected in (1, 0):
        async with engine.begin() as connection:
            asked = await submit_recrawl(connection, wanted("a"), now=START, settings=SETTINGS)
        assert asked.shops == expected
        async with engine.begin() as connection:
            await hold(connection, ids["a"])
    await save(engine, safe, {ids["a"]: "new"})
