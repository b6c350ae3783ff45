"""Messages are written in bulk without Celery: they must say what Celery itself would have said."""

import base64
import json
from typing import Any

import pytest
from celery import Celery
from kombu.connection import Connection
from redis.asyncio import Redis

from models.messages import NORMAL_PRIORITY, QUEUE, TASK_NAME, URGENT_PRIORITY, URGENT_QUEUE, PageTask
from producer.enqueue import LARGEST_PUSH, readable, send


def task(number: int, priority: int = NORMAL_PRIORITY) -> PageTask:
    return PageTask(
        source="tmapi",
        shop="店铺-1",
        page=number,
        page_id=number,
        fence=2,
        shop_id=1,
        shop_crawl_id=4,
        crawl_id=1,
        priority=priority,
        options={"sort": "time_up", "page_size": 20},
    )


def opened(raw: Any) -> tuple[dict[str, Any], Any]:
    """An envelope as kombu's transport reads it, and the body inside."""
    envelope = json.loads(raw)
    body = envelope.pop("body")
    if envelope["properties"].pop("body_encoding", None) == "base64":
        body = base64.b64decode(body)
    return envelope, json.loads(body)


async def test_a_message_says_what_celerys_own_would(redis_url: str) -> None:
    ours = task(7)
    app = Celery(set_as_current=False, broker=redis_url)
    app.conf.broker_transport_options = {"priority_steps": [0]}
    with app.connection_for_write() as connection, app.amqp.Producer(connection, auto_declare=False) as producer:
        app.send_task(
            TASK_NAME, kwargs=ours.kwargs(), task_id=ours.message_id, queue="reference", producer=producer,
            argsrepr="()", kwargsrepr=readable(ours),
        )  # fmt: skip
    async with Redis.from_url(redis_url) as redis:
        await send(redis, [ours])
        sent, sent_body = opened(await redis.rpop(QUEUE))
        reference, reference_body = opened(await redis.rpop("reference"))
    assert sent_body == reference_body
    assert sent["content-type"] == reference["content-type"]
    assert sent["content-encoding"] == reference["content-encoding"]
    for name, value in reference["headers"].items():
        if name != "origin" and value not in (None, {}, 0, False, [None, None]):
            assert sent["headers"][name] == value, name
    assert sent["properties"]["delivery_info"] == reference["properties"]["delivery_info"] | {"routing_key": QUEUE}
    assert reference["properties"].keys() - sent["properties"].keys() <= {"reply_to", "argsrepr", "kwargsrepr"}


async def test_kombu_delivers_and_acknowledges_a_message(redis_url: str) -> None:
    async with Redis.from_url(redis_url) as redis:
        await send(redis, [task(7)])
        broker: Any = Connection(redis_url)  # type: ignore[no-untyped-call]
        with broker as connection, connection.SimpleQueue(QUEUE) as queue:
            message = queue.get(timeout=10)
            assert message.headers["id"] == "7-2"
            assert json.loads(message.body)[1]["shop"] == "店铺-1"
            message.ack()
        assert await redis.hlen("unacked") == 0


@pytest.mark.parametrize("count", [0, 1, LARGEST_PUSH, LARGEST_PUSH + 1])
async def test_messages_wait_in_the_order_they_were_sent_each_in_its_queue(redis_url: str, count: int) -> None:
    tasks = [task(number) for number in range(1, count + 1)] + [task(9_999, URGENT_PRIORITY)]
    async with Redis.from_url(redis_url) as redis:
        await send(redis, tasks)
        waiting = [json.loads(raw)["headers"]["id"] for raw in reversed(await redis.lrange(QUEUE, 0, -1))]
        assert waiting == [f"{number}-2" for number in range(1, count + 1)]
        assert await redis.llen(URGENT_QUEUE) == 1
