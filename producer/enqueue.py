"""The only sender of messages: pages that the ledger has marked as sent go to Redis as Celery tasks, many at a time."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import msgspec
from redis.asyncio import Redis

from models.messages import TASK_NAME, PageTask, queue_for

LARGEST_PUSH = 500


async def send(redis: Redis, tasks: Sequence[PageTask]) -> None:
    """Send one message for each page, in order. Raises redis-py's errors; pages not sent are found missing later.

    Celery's own `send_task` costs 0.4 ms of CPU for each message, more than anything else the producer does; whole
    batches in one command cost a tenth of it.
    """
    by_queue: dict[str, list[bytes]] = defaultdict(list)
    for task in tasks:
        queue = queue_for(task.priority)
        by_queue[queue].append(encode(task, queue))
    for queue, messages in sorted(by_queue.items(), reverse=True):  # the urgent queue first
        for start in range(0, len(messages), LARGEST_PUSH):
            await redis.lpush(queue, *messages[start : start + LARGEST_PUSH])


def encode(task: PageTask, queue: str) -> bytes:
    """A task in Celery's message protocol 2, in the envelope of kombu's Redis transport.

    By queue name alone: Redis may lose an exchange's bindings, and messages to it silently vanish.
    """
    identity = task.message_id
    # What Flower and the log show of a message; one that a broken worker logs whole holds no secret either.
    shown = {"argsrepr": "()", "kwargsrepr": readable(task)}
    options = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    headers: dict[str, Any] = {
        **{"lang": "py", "task": TASK_NAME, "id": identity, "root_id": identity, "parent_id": None, "group": None},
        **{"retries": 0, "timelimit": (None, None), "eta": None, "expires": None, "origin": "shopcrawl", **shown},
    }
    envelope = {
        "body": msgspec.json.encode(([], task, options)).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": headers,
        "properties": {
            "correlation_id": identity,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "priority": 0,
            "delivery_tag": str(uuid4()),
        },
    }
    return msgspec.json.encode(envelope)


def readable(task: PageTask) -> str:
    """What Flower and the log show of a message."""
    return f"{task.source} {task.shop} page {task.page} (crawl {task.crawl_id}, sending {task.fence})"
