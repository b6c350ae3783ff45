"""Pages of shops with sessions: who has none is not called, who is refused is held, and nothing shows a session."""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
import sqlalchemy as sa
from redis.asyncio import Redis
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from models.compression import zstd
from models.crawls import ShopRequest, shop_ids, submit_crawl
from models.database import Clock
from models.errors import ShopUnauthorisedError, UsageError
from models.messages import PageTask
from models.sessions import forget_session, load_sessions, save_sessions
from models.settings import load_settings
from models.source import Credential, HttpRequest, HttpResponse
from models.tables import call, item, page, page_body, session
from models.vault import Vault, new_key
from tests.ledger import START, after, engine_for, rows
from tests.session_source import session_source
from worker import sessions as worker_sessions
from worker.circuits import Circuits
from worker.client import Client
from worker.crawl import crawl_page
from worker.hands import Hands
from worker.limiter import Limiter
from worker.parking import Parking
from worker.sessions import Sessions
from worker.writer import Writer

__all__ = ["session_source"]
pytestmark = pytest.mark.usefixtures("session_source")

SETTINGS = load_settings(secret_key=new_key(), retry_base=0.001)
GOOD, BAD, NEWER = "canary-good-session", "canary-bad-session", "canary-newer-session"


class FakePermit:
    credential = Credential("app-1", "app-secret")

    def release(self, *, ok: bool, throttled: bool) -> None:
        """Nobody counts."""


class FakeLimiter:
    """Gives a permit to everybody."""

    permits = 0

    async def acquire(self, *_: object, **__: object) -> FakePermit:
        self.permits += 1
        return FakePermit()

    def finished(self, page_id: int) -> None:
        """Nobody keeps claims."""

    unclaim = finished


@dataclass
class FakeClient:
    """Knows the valid sessions, and gives back what it was sent."""

    valid: set[str] = field(default_factory=set)
    code: int = 200
    used: Counter[str] = field(default_factory=Counter)
    meanwhile: Any = None
    """Awaited before the next answer."""

    async def fetch(self, request: HttpRequest) -> HttpResponse:
        text = (request.body or b"").decode().partition("=")[2]
        self.used[text] += 1
        if self.meanwhile is not None:
            action, self.meanwhile = self.meanwhile, None
            await action
        code = self.code if text in self.valid else 27
        return HttpResponse(200, {}, json.dumps({"code": code, "msg": f"session={text} seen {text}"}).encode())


@dataclass
class World:
    """One worker process's hands on a database, with the pages of two shops, `a` and `b`."""

    engine: AsyncEngine
    hands: Hands
    vault: Vault
    client: FakeClient
    limiter: FakeLimiter
    ids: dict[str, int]

    async def save(self, **sessions: str) -> None:
        async with self.engine.begin() as connection:
            by_id = {self.ids[key]: text for key, text in sessions.items()}
            await save_sessions(connection, self.vault, by_id, after(0))

    async def crawl(self, key: str) -> str:
        """Send the shop's page to this worker."""
        async with self.engine.begin() as connection:
            wanted = sa.text("SELECT p.id, p.fence, c.id, c.crawl_id FROM page p JOIN shop_crawl c ON"
                             " c.id = p.shop_crawl_id WHERE c.shop_id = :shop")  # fmt: skip
            row = (await connection.execute(wanted, {"shop": self.ids[key]})).one()
            sent = sa.update(page).where(page.c.id == row[0])
            await connection.execute(sent.values(state="sent", fence=row[1] + 1, reviewed=True))
        task = PageTask("top", key, 1, row[0], row[1] + 1, self.ids[key], row[2], row[3], options={"page_size": 20})
        async with asyncio.timeout(30):
            return await crawl_page(task, self.hands)

    async def page(self, key: str) -> Any:
        wanted = sa.text("SELECT p.* FROM page p JOIN shop_crawl c ON c.id = p.shop_crawl_id WHERE c.shop_id = :shop")
        async with self.engine.connect() as connection:
            return (await connection.execute(wanted, {"shop": self.ids[key]})).one()

    async def calls(self) -> Counter[str]:
        return Counter({row.outcome: row.calls for row in await rows(self.engine, call)})


@asynccontextmanager
async def world_on(url: str) -> AsyncIterator[World]:
    async with engine_for(url) as engine:
        requests = [ShopRequest("top", key, {}) for key in "ab"]
        async with engine.begin() as connection:
            await submit_crawl(connection, requests, now=START, settings=SETTINGS)
            ids = {key: shop_id for (_, key), shop_id in (await shop_ids(connection, requests, START)).items()}
        vault, clock, client, limiter = Vault(SETTINGS), Clock(), FakeClient({GOOD, NEWER}), FakeLimiter()
        writer, sessions = Writer(engine), Sessions(engine, vault, clock)
        writer.start()
        parking = Parking(engine, cast(Limiter, limiter), clock, SETTINGS)
        circuits = Circuits(Redis(), SETTINGS, process="test")  # never called: nothing of this source is sticky
        given = (cast(Limiter, limiter), cast(Client, client), writer, parking, sessions, circuits)
        hands = Hands(SETTINGS, clock, *given)
        yield World(engine, hands, vault, client, limiter, ids)
        await writer.stop()
        await sessions.stop()


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[World]:
    async with world_on(database_url) as world:
        yield world


async def test_a_shop_with_a_session_is_called_with_it_and_it_is_stored_nowhere(world: World) -> None:
    await world.save(a=GOOD, b=BAD)
    assert await world.crawl("a") == "done"
    assert world.client.used == {GOOD: 1}
    assert [row.title for row in await rows(world.engine, item)] == ["session=*** seen ***"]
    (body,) = await rows(world.engine, page_body)
    assert json.loads(zstd.decompress(body.body))["msg"] == "session=*** seen ***"


async def test_a_shop_without_a_session_is_held_and_costs_no_call(world: World) -> None:
    assert await world.crawl("a") == "held"
    found = await world.page("a")
    assert (found.state, found.reason, found.outcome, found.tries) == (
        "held",
        "needs authorisation: no session",
        None,
        0,
    )
    assert not found.reviewed and found.finished_at is None
    assert (world.limiter.permits, world.client.used, await world.calls()) == (0, {}, {})


async def test_a_refused_session_holds_its_shop_only_and_uses_up_no_try(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    await world.save(a=BAD, b=GOOD)
    assert [await world.crawl("a"), await world.crawl("b")] == ["held", "done"]
    found = await world.page("a")
    assert (found.state, found.outcome, found.tries) == ("held", "27", 0)
    assert found.reason == "needs authorisation: 27: session=*** seen ***"
    refused = {row.shop_id: row.reason for row in await rows(world.engine, session) if row.refused_at}
    assert refused == {world.ids["a"]: found.reason}
    assert await world.crawl("a") == "held"
    assert world.client.used == {BAD: 1, GOOD: 1}, "what was refused once is not used again"
    assert await world.calls() == {"27": 1, "200": 1}
    assert "canary" not in repr([vars(record) for record in caplog.records])
    await world.save(a=NEWER)
    assert (await world.page("a")).state == "ready"
    assert await world.crawl("a") == "done"


async def test_a_session_that_was_replaced_meanwhile_is_tried_at_once(world: World) -> None:
    await world.save(a=BAD)
    world.client.meanwhile = world.save(a=NEWER)
    assert await world.crawl("a") == "done"
    assert world.client.used == {BAD: 1, NEWER: 1}
    assert (await world.page("a")).tries == 0
    assert [row.refused_at for row in await rows(world.engine, session)] == [None]


async def test_a_session_that_was_forgotten_meanwhile_holds_its_shop(world: World) -> None:
    async def forget() -> None:
        async with world.engine.begin() as connection:
            await forget_session(connection, "top", "a")

    await world.save(a=BAD)
    world.client.meanwhile = forget()
    assert await world.crawl("a") == "held"


async def test_other_faults_of_a_shop_with_a_session_show_no_session_either(world: World) -> None:
    await world.save(a=GOOD)
    world.client.code = 500
    assert await world.crawl("a") == "dead"
    found = await world.page("a")
    assert (found.reason, found.tries) == ("500: session=*** seen ***", SETTINGS.max_tries)


async def test_a_session_that_no_key_opens_lets_the_page_wait_without_a_call(world: World) -> None:
    async with world.engine.begin() as connection:
        foreign = Vault(load_settings(secret_key=new_key()))
        await save_sessions(connection, foreign, {world.ids["a"]: GOOD}, START)
    assert await world.crawl("a") == "ready"
    found = await world.page("a")
    assert found.reason.startswith("waits: the shop's session is sealed with a key that SHOPCRAWL_SECRET_KEY")
    assert found.tries == 0 and not world.client.used


# The sessions at hand


class Counted:
    """`load_sessions`, counting its queries; `before` is awaited in each."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.failures = 0

    async def __call__(self, connection: AsyncConnection, vault: Vault, shops: Iterable[int]) -> dict[int, str | None]:
        self.asked.append(list(shops))
        if self.failures:
            self.failures -= 1
            raise OperationalError("SELECT", {}, OSError("gone"))
        return await load_sessions(connection, vault, self.asked[-1])


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    counted = Counted()
    monkeypatch.setattr(worker_sessions, "load_sessions", counted)
    return counted


async def test_sessions_wanted_together_are_read_in_one_query_and_kept(world: World, counted: Counted) -> None:
    await world.save(a="one", b="two")
    sessions = world.hands.sessions
    a, b = world.ids["a"], world.ids["b"]
    asked = [a, b, a, b, 4711, a]
    found = await asyncio.gather(*(sessions.get(shop_id) for shop_id in asked), return_exceptions=True)
    assert [text for text in found if isinstance(text, str)] == ["one", "two", "one", "two", "one"]
    assert isinstance(found[4], ShopUnauthorisedError)
    assert counted.asked == [sorted({a, b, 4711})]
    assert [await sessions.get(a), await sessions.get(b)] == ["one", "two"]
    assert len(counted.asked) == 1
    with pytest.raises(ShopUnauthorisedError):
        await sessions.get(4711)
    assert counted.asked[1:] == [[4711]], "that there is none is not kept: one may come"


async def test_a_session_is_read_again_after_its_time(
    world: World, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.save(a="one")
    a = world.ids["a"]
    assert await world.hands.sessions.get(a) == "one"
    await world.save(a="two")
    assert await world.hands.sessions.get(a) == "one"
    monkeypatch.setattr(worker_sessions, "KEPT_SECONDS", 0.0)
    assert await world.hands.sessions.get(a) == "two"


async def test_the_sessions_used_last_are_the_ones_kept(
    world: World, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_sessions, "KEPT", 1)
    await world.save(a="one", b="two")
    a, b = world.ids["a"], world.ids["b"]
    for shop_id in (a, b, b, a):
        await world.hands.sessions.get(shop_id)
    assert counted.asked == [[a], [b], [a]]


async def test_while_the_database_is_away_pages_wait_for_their_sessions(
    world: World, counted: Counted, caplog: pytest.LogCaptureFixture
) -> None:
    await world.save(a="one")
    counted.failures = 2
    assert await world.hands.sessions.get(world.ids["a"]) == "one"
    assert len(counted.asked) == 3
    assert "the database is away" in caplog.text


async def test_an_error_in_reading_reaches_everyone_who_waits(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    await world.save(a="one")
    (tmp_path / "secret.key").touch(mode=0o644)
    sessions = Sessions(world.engine, Vault(load_settings(data_dir=tmp_path, secret_key="")), Clock())
    found = await asyncio.gather(*(sessions.get(world.ids[key]) for key in "ab"), return_exceptions=True)
    assert [type(error) for error in found] == [UsageError] * 2
    assert "chmod 600" in str(found[0])
    await sessions.stop()
