"""The two Celery tasks, and the hands they share, made when the process's loop starts and put away when it stops."""

import asyncio
import gc
import logging
import os
import secrets
import socket
from contextlib import AsyncExitStack
from typing import Any

import msgspec
from celery.signals import worker_ready
from redis.asyncio import Redis

from models import fleet
from models.addresses import warn_if_plain_http
from models.background import stop_tasks
from models.broker import redis_url
from models.budget import daily_caps
from models.crawls import Submission, known_shops, submit_recrawl
from models.database import Clock, create_engine, require_schema
from models.errors import UsageError
from models.messages import RECRAWL_TASK_NAME, TASK_NAME, PageTask
from models.source import source_named, source_names
from models.vault import Vault
from worker import metrics
from worker.app import app, settings
from worker.circuits import Circuits
from worker.client import Client
from worker.crawl import crawl_page as crawl_one_page
from worker.credits import Credits
from worker.hands import Hands
from worker.limiter import Limiter
from worker.loop import on_loop_start, on_loop_stop
from worker.parking import Parking
from worker.pool import AsyncioPool, async_task, light_task
from worker.sessions import Sessions
from worker.writer import Writer

BEAT_SECONDS = 2.0
PROCESS = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"

logger = logging.getLogger(__name__)
_exit = AsyncExitStack()
_hands: Hands | None = None
_pool: AsyncioPool | None = None


@worker_ready.connect  # type: ignore[untyped-decorator]
def _meet_pool(sender: Any, **_: object) -> None:
    global _pool  # noqa: PLW0603 (see _make_hands)
    _pool = sender.pool
    # What start-up left behind stays: the collector need not look through it again and again. Pages make little
    # cyclic garbage, so it may also look less often; a fifth of the CPU went there. Not too seldom: tracebacks are such
    # garbage and hold their pages, and a worker whose pages all fail would grow by gigabytes.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 5)


def capacity() -> int:
    """Pages this process may hold now: remote control grows and shrinks its pool."""
    return _pool.limit if _pool is not None else settings.concurrency


def hands() -> Hands:
    """The hands of this process."""
    assert _hands is not None  # noqa: S101 (tasks run only after the loop has started)
    return _hands


@app.task(name=TASK_NAME, Request="worker.request:PageRequest")  # type: ignore[untyped-decorator]
@light_task
async def crawl_page(**message: Any) -> str:
    """Fetch and store one page of one shop."""
    return await crawl_one_page(msgspec.convert(message, PageTask), hands())


@app.task(name=RECRAWL_TASK_NAME)  # type: ignore[untyped-decorator]
@async_task
async def recrawl_shops(shops: list[str], source: str = "tmapi") -> dict[str, Any]:
    """Re-crawl shops ahead of other work; shops that were never crawled are refused by name."""
    submission = await _submit_recrawl(shops, source)
    logger.info("re-crawl asked for", extra={"crawl": submission.crawl_id, "shops": submission.shops})
    return msgspec.to_builtins(submission)  # type: ignore[no-any-return]


async def _submit_recrawl(shops: list[str], source: str) -> Submission:
    adapter = source_named(source)
    for key in shops:
        adapter.check_shop(key)
    now = hands().clock.now()
    async with hands().writer.engine.begin() as connection:
        known = await known_shops(connection, now=now, source=source, keys=shops)
        missing = sorted(set(shops) - {request.key for request in known})
        if missing:
            raise UsageError(f"never crawled before: {', '.join(missing[:5])}")
        return await submit_recrawl(connection, known, now=now, settings=settings)


@on_loop_start
async def _make_hands() -> None:
    global _hands  # noqa: PLW0603 (Celery tasks are module-level functions: the process's one state is, too)
    engine = create_engine(settings.database)
    _exit.push_async_callback(engine.dispose)
    await require_schema(engine)
    clock = Clock()
    await clock.synchronise(engine)
    redis = Redis.from_url(redis_url(settings), socket_timeout=10, socket_connect_timeout=5)
    _exit.push_async_callback(redis.aclose)
    limiter = Limiter(redis, process=PROCESS, patience=settings.inline_wait, urgent_share=settings.urgent_share)
    await limiter.start()
    _exit.push_async_callback(limiter.stop)
    client = await _exit.enter_async_context(Client(settings))
    writer = Writer(engine, caps=daily_caps(settings), tracked=settings.tracked_fields)
    writer.start()
    _exit.push_async_callback(writer.stop)
    sessions = Sessions(engine, Vault(settings), clock)
    _exit.push_async_callback(sessions.stop)
    parking, cap = Parking(engine, limiter, clock, settings), settings.credential_daily_calls
    credits_ = None if cap is None else Credits(engine, clock, cap)
    if credits_ is not None:
        _exit.push_async_callback(credits_.give_back)
    circuits = Circuits(redis, settings, process=PROCESS)
    circuits.start()
    _exit.push_async_callback(circuits.stop)
    _hands = Hands(settings, clock, limiter, client, writer, parking, sessions, circuits, credits_)
    _keep_running(clock.keep(engine), _keep_beating(redis, _hands))
    for name in source_names():
        warn_if_plain_http(source_named(name).base_url(settings))
    logger.info("worker ready", extra={"worker": PROCESS, "concurrency": settings.concurrency})


@on_loop_stop
async def _put_hands_away() -> None:
    await _exit.aclose()


def _keep_running(*coroutines: Any) -> None:
    for coroutine in coroutines:
        _exit.push_async_callback(stop_tasks, [asyncio.create_task(coroutine)])


async def _keep_beating(redis: Redis, hands: Hands) -> None:
    """Tell the fleet every few seconds that this process lives, and which pages it holds."""
    away = False
    while True:
        metrics.in_flight.set(len(hands.held))
        metrics.awaiting_store.set(len(hands.writer.intake))
        try:
            await fleet.beat(redis, PROCESS, capacity(), list(hands.held.items()))
            away = False
        except Exception as error:  # whatever is wrong with Redis, keep beating
            if not away:
                logger.warning("Redis is away: %s", type(error).__name__)
            away = True
        await asyncio.sleep(BEAT_SECONDS)
