"""A Celery app with tasks that show what the asyncio pool does."""

import asyncio
import os
import time
from typing import Any

import redis.asyncio
from celery import Celery
from greenlet import GreenletExit  # type: ignore[import-untyped]

from worker.loop import on_loop_start, on_loop_stop
from worker.pool import AsyncioPool, async_task, light_task
from worker.transport import install

install()
app = Celery("pool_app", broker=os.environ["POOL_BROKER"])
app.conf.update(
    worker_pool=os.environ.get("POOL_CLASS", "worker.pool:AsyncioPool"),
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
    worker_enable_remote_control=True,
    task_ignore_result=True,
    worker_cancel_long_running_tasks_on_connection_loss=True,
    worker_soft_shutdown_timeout=float(os.environ.get("POOL_SOFT_SHUTDOWN", "0")),
    broker_connection_retry_on_startup=True,
    task_default_queue="pool",
)
# All but the task that looks at its request can be of either kind.
either_task = light_task if os.environ.get("POOL_TASKS") == "light" else async_task
journal = redis.asyncio.Redis.from_url(os.environ["POOL_BROKER"], client_name="journal", decode_responses=True)


class ImpatientPool(AsyncioPool):
    """The pool with a watchdog that a test can wait for."""

    watchdog_warn_after = 0.2
    watchdog_exit_after = 0.6


async def note(*words: object) -> None:
    await journal.rpush("journal", " ".join(map(str, words)))


@on_loop_start
async def note_start() -> None:
    await note("loop-start")


@on_loop_stop
async def note_stop() -> None:
    await note("loop-stop")
    await journal.aclose()


@app.task(name="nap", bind=True)  # type: ignore[untyped-decorator]
@async_task
async def nap(self: Any, name: str, seconds: float) -> None:
    """Sleep; note the request's id before and after."""
    await note("begin", name, self.request.id)
    await asyncio.sleep(seconds)
    await note("end", name, self.request.id)


@app.task(name="linger")  # type: ignore[untyped-decorator]
@either_task
async def linger(name: str, key: str) -> None:
    """Wait until a key exists; note on the way in how many wait, and on the way out how it ended."""
    await note("begin", name, await journal.incr("running"))
    try:
        while not await journal.exists(key):  # noqa: ASYNC110  # the key is set by another process
            await asyncio.sleep(0.02)
        await note("end", name)
    except asyncio.CancelledError:
        await note("cancelled", name)
        raise
    finally:
        await journal.decr("running")


@app.task(name="crash")  # type: ignore[untyped-decorator]
@either_task
async def crash(kind: str) -> None:
    """Raise what no task should."""
    await asyncio.sleep(0)
    raise {
        "exit": SystemExit(3),
        "interrupt": KeyboardInterrupt(),
        "cancel": asyncio.CancelledError(),
        "memory": MemoryError(),
        "greenlet": GreenletExit(),
        "error": ValueError("plain"),
    }[kind]


@app.task(name="crash_plainly")  # type: ignore[untyped-decorator]
def crash_plainly() -> None:
    """Raise SystemExit from a body that is no coroutine."""
    raise SystemExit(4)


@app.task(name="limited", time_limit=0.2)  # type: ignore[untyped-decorator]
@either_task
async def limited() -> None:
    """Run into the hard time limit."""
    await asyncio.sleep(60)


@app.task(name="soft_limited", soft_time_limit=0.2)  # type: ignore[untyped-decorator]
@either_task
async def soft_limited() -> None:
    """Run into the soft time limit."""
    await asyncio.sleep(60)


@app.task(name="block")  # type: ignore[untyped-decorator]
@either_task
async def block(seconds: float) -> None:
    """Block the loop."""
    time.sleep(seconds)  # noqa: ASYNC251  # the sin the watchdog is for
