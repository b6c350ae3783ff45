"""What one process hands out between what it hears and what Redis answers."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from models.source import Credential, Limits
from worker.bans import AllBanned
from worker.limiter_call import Answer, Call, LaneAnswer
from worker.limiter_pool import Pool, Terms
from worker.permits import Waiter

LIMITS = Limits(rate=0, start=4, floor=1, ceiling=8)


class Server:
    """Stands in for Redis: gives four permits, and answers when it may."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.bans: list[tuple[str, float, str]] = []
        self.calls: list[Call] = []

    async def ask(self, call: Call) -> Answer:
        """What Redis says now, told when `may_answer` is set."""
        self.calls.append(call)
        self.bans += call.bans
        answer = Answer(0, [], [LaneAnswer(4, 0, 4, 0, 1, "", 0, 0, 0) for _ in call.lanes], list(self.bans))
        await self.may_answer.wait()
        return answer


@pytest.fixture
async def server() -> Server:
    return Server()


@pytest.fixture
async def pool(server: Server) -> AsyncIterator[Pool]:
    pool = Pool("tmapi", Terms("a", lease=10, beat=5, patience=5), server.ask)
    pool.meet([Credential("one", "canary")], LIMITS)
    await asyncio.wait_for(asked(pool), 10)
    yield pool
    server.may_answer.set()
    await pool.leave()


def asked(pool: Pool) -> "asyncio.Future[object]":
    """Enter a waiter."""
    waiter = Waiter((5, 0), None, None, "a")
    pool.enter(waiter)
    return waiter.future  # type: ignore[return-value]


async def until_called(server: Server, calls: int) -> None:
    async with asyncio.timeout(10):
        while len(server.calls) < calls:  # noqa: ASYNC110 - the pool sets no event
            await asyncio.sleep(0.001)


async def test_after_news_nothing_is_handed_out_before_redis_has_answered(pool: Pool, server: Server) -> None:
    server.may_answer.clear()
    calls = len(server.calls)
    assert asked(pool).done()
    pool.hear_news()
    waiting = asked(pool)
    await until_called(server, calls + 1)
    assert not waiting.done()
    server.may_answer.set()
    await asyncio.wait_for(waiting, 10)


async def test_an_answer_that_is_older_than_the_news_does_not_count(pool: Pool, server: Server) -> None:
    server.may_answer.clear()
    calls = len(server.calls)
    pool.nudge(0)
    await until_called(server, calls + 1)  # on its way, and knows nothing of the ban
    server.bans.append(("*", 60_000.0, "7: enough"))
    pool.hear_news()
    waiting = asked(pool)
    server.may_answer.set()
    with pytest.raises(AllBanned):
        await asyncio.wait_for(waiting, 10)


async def test_who_learns_of_a_ban_stops_before_redis_knows(pool: Pool, server: Server) -> None:
    server.may_answer.clear()
    calls = len(server.calls)
    pool.ban("one", 60, "7: enough")
    waiting = asked(pool)
    assert isinstance(waiting.exception(), AllBanned)
    await until_called(server, calls + 1)
    assert [scope for scope, _, _ in server.calls[-1].bans] == ["one"]
