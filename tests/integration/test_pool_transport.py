"""The broker transport acknowledges with one client and survives reconnects."""

from collections.abc import Iterator
from typing import Any

import pytest
import redis
from kombu import transport
from kombu.connection import Connection
from kombu.entity import Queue

from worker.transport import Channel, install


@pytest.fixture
def connection(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(transport, "TRANSPORT_ALIASES", dict(transport.TRANSPORT_ALIASES))
    monkeypatch.setattr(transport, "_transport_cache", {"redis": transport.get_transport_cls("redis")})
    install()
    with Connection(redis_url) as connection:  # type: ignore[no-untyped-call]
        yield connection


def test_acknowledgements_share_a_client_until_the_channel_reconnects(connection: Any, redis_url: str) -> None:
    queue: Any = Queue("letters")  # type: ignore[no-untyped-call]
    channel: Any
    with connection.channel() as channel:
        assert type(channel).__module__ == Channel.__module__
        bound = queue.bind(channel)
        bound.declare()
        for number in range(3):
            channel.basic_publish(channel.prepare_message(str(number)), exchange="", routing_key="letters")
        letters = [bound.get() for _ in range(3)]
        with channel.conn_or_acquire() as first, channel.conn_or_acquire() as second:
            assert first is second
        letters[0].ack()
        with redis.Redis.from_url(redis_url) as other:
            assert other.hlen("unacked") == 2
            other.client_kill_filter(_type="normal", skipme=True)
            channel._disconnect_pools()
            letters[1].ack()
            letters[2].requeue()
            assert (other.hlen("unacked"), other.llen("letters")) == (0, 1)
        with channel.conn_or_acquire() as after:
            assert after is not first
