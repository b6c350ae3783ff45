"""Kombu's Redis transport with many messages to one round trip: taken, recorded and acknowledged in batches."""
# kombu has no types.
# mypy: disable-error-code="no-untyped-call"

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from queue import Empty  # by which kombu's pollers say that nothing came
from time import time
from typing import Any

import msgspec
from kombu import transport
from kombu.asynchronous import get_event_loop
from kombu.transport import redis, virtual
from kombu.utils.encoding import bytes_to_str

# Every blocking call to Redis makes the main thread hand over the interpreter's lock and fight for it again, so calls
# cost more than the work in them: batching halves the CPU of a page.
LARGEST_TAKE = 64
ACK_DELAY = 0.01  # seconds; a worker that dies meanwhile is sent those messages again, and their claims drop them

logger = logging.getLogger(__name__)


class QoS(redis.QoS):
    """Records what was taken, and acknowledges what was done, many at a time."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._done: list[str] = []
        self._taken: dict[str, Any] | None = None

    @contextmanager
    def taking(self) -> Iterator[None]:
        """Record all messages delivered in the body at once."""
        self._taken = {}
        try:
            yield
        finally:
            taken, self._taken = self._taken, None
            self._record(taken)

    def append(self, message: Any, delivery_tag: str) -> None:
        """Record a message as delivered and not yet acknowledged."""
        if self._taken is None:
            super().append(message, delivery_tag)
            return
        self._taken[delivery_tag] = message
        virtual.QoS.append(self, message, delivery_tag)

    def _record(self, taken: dict[str, Any]) -> None:
        if not taken:
            return
        now = time()
        with self.pipe_or_acquire() as pipe:
            pipe.zadd(self.unacked_index_key, dict.fromkeys(taken, now))
            pipe.hset(self.unacked_key, mapping={tag: _restorable(message) for tag, message in taken.items()})
            pipe.execute()
        for message in taken.values():
            message._raw = None  # Redis has it: that copy is the one to go back to the queue

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message together with others that end in the same moment."""
        hub = get_event_loop()
        if hub is None:  # no worker
            super().ack(delivery_tag)
            return
        self._done.append(delivery_tag)
        if len(self._done) == 1:
            hub.call_later(ACK_DELAY, self.flush_acks)
        virtual.QoS.ack(self, delivery_tag)

    def flush_acks(self) -> None:
        """Acknowledge what is done. Raises the connection's errors, which make Celery connect again."""
        done, self._done = self._done, []
        if done:
            with self.pipe_or_acquire() as pipe:
                pipe.zrem(self.unacked_index_key, *done).hdel(self.unacked_key, *done).execute()


def _restorable(message: Any) -> bytes:
    delivery = message.delivery_info
    return msgspec.json.encode([message._raw, delivery["exchange"], delivery["routing_key"]])


class Channel(redis.Channel):
    """A Redis channel that keeps its client and takes as many messages as there is room for."""

    QoS = QoS
    _kept_client: Any = None

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:
        """Yield the given client, or the kept one; it borrows a connection per command, so threads may share it."""
        yield client or self._keep_client()

    def _keep_client(self) -> Any:
        # A reconnect or fork replaces the pool, and the client with it.
        if self._kept_client is None or self._kept_client.connection_pool is not self._pool:
            self._kept_client = self._create_client()
        return self._kept_client

    def close(self) -> None:
        """Acknowledge what is done before what is not goes back to its queue."""
        if self._qos is not None:
            with suppress(*self.connection_errors, OSError):
                self._qos.flush_acks()
        super().close()

    def _brpop_read(self, **options: Any) -> bool:
        """Deliver the message that BRPOP waited for, and others behind it."""
        try:
            key, first = self._read_popped(options)
            queue = bytes_to_str(key).rsplit(self.sep, 1)[0]
            self._queue_cycle.rotate(queue)
            with self.qos.taking():
                self._deliver_all([first, *self._take_more(key)], queue)
            return True
        finally:
            self._in_poll: Any = None
            self._flush_brpop_reauth()

    def _read_popped(self, options: dict[str, Any]) -> tuple[bytes, bytes]:
        try:
            popped = self.client.parse_response(self.client.connection, "BRPOP", **options)
        except self.connection_errors:
            self.client.connection.disconnect()  # so that the next round connects again
            raise
        if not popped:
            raise Empty
        key, first = popped
        return key, first

    def _take_more(self, key: bytes) -> list[bytes]:
        room = self.qos.can_consume_max_estimate()
        count = LARGEST_TAKE if room is None else min(LARGEST_TAKE, room - 1)
        if count <= 0:
            return []
        with self.conn_or_acquire() as client:
            return client.rpop(key, count) or []

    def _deliver_all(self, payloads: Iterable[bytes], queue: str) -> None:
        for payload in payloads:
            try:
                # Not kombu's decoder: this one keeps a single copy of the names that all messages repeat.
                self.connection._deliver(msgspec.json.decode(payload), queue)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                # Stock Celery dies of such an entry, or connects anew and runs everything twice.
                logger.error("a broken message in queue %s is dropped: %s", queue, type(error).__name__)


class Transport(redis.Transport):
    """The transport of channels that work in batches."""

    Channel = Channel


def install() -> None:
    """Let every ``redis`` broker URL of this process, unix sockets and TLS included, use this transport."""
    path = f"{Transport.__module__}:{Transport.__qualname__}"
    for name in ("redis", "rediss"):
        transport.TRANSPORT_ALIASES[name] = path
        transport._transport_cache.pop(name, None)  # a connection made earlier has resolved the name already
