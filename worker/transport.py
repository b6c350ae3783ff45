"""Kombu's Redis transport with one client per channel instead of a new one for each acknowledgement."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kombu import transport
from kombu.transport import redis


class Channel(redis.Channel):
    """A Redis channel that keeps the client it acknowledges with."""

    _kept_client: Any = None

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:
        """Yield the given client, or the kept one; it borrows a connection per command, so threads may share it."""
        yield client or self._keep_client()

    def _keep_client(self) -> Any:
        # A reconnect or fork replaces the pool, and the client with it.
        if self._kept_client is None or self._kept_client.connection_pool is not self._pool:
            self._kept_client = self._create_client()  # type: ignore[no-untyped-call]
        return self._kept_client


class Transport(redis.Transport):
    """The transport of channels that keep their client."""

    Channel = Channel


def install() -> None:
    """Let every ``redis`` broker URL of this process, unix sockets and TLS included, use this transport."""
    path = f"{Transport.__module__}:{Transport.__qualname__}"
    for name in ("redis", "rediss"):
        transport.TRANSPORT_ALIASES[name] = path
        transport._transport_cache.pop(name, None)  # a connection made earlier has resolved the name already
