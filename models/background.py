"""Jobs that run beside a body of code: they end with it, and it fails with them."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any

# redis-py on Python 3.11 can swallow a cancellation that arrives in the middle of a call: it is repeated until it took.
REPEAT_AFTER = 0.2


async def stop_tasks(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks until they have ended; what they ended with is theirs to tell."""
    open_tasks = {task for task in tasks if not task.done()}
    while open_tasks:
        for task in open_tasks:
            task.cancel()
        _, open_tasks = await asyncio.wait(open_tasks, timeout=REPEAT_AFTER)


@asynccontextmanager
async def background(*jobs: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run jobs beside the body and stop them after it; if one fails, the body is cancelled and the group raises."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(job) for job in jobs]
        try:
            yield
        finally:
            await stop_tasks(tasks)
