"""A small HTTP/1.1 keep-alive server that can also misbehave on the wire when a reply asks for it."""

import asyncio
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Literal, Protocol, cast
from urllib.parse import unquote_plus

import httptools

JSON_TYPE = b"application/json; charset=utf-8"
HTML_TYPE = b"text/html; charset=utf-8"
_REASONS = {status.value: status.phrase for status in HTTPStatus} | {
    439: "Subscription Expired",
    499: "Upstream Timeout",
}
_FLUSH_SECONDS = 0.01  # uvloop sends what was written only in its next turn; a reset before that would swallow it
_MAX_BODY = 16 * 1024 * 1024

Ending = Literal["whole", "reset", "close"]


@dataclass(slots=True)
class Request:
    """One parsed request; `nth` counts the requests of its connection from 1."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[bytes, bytes]
    body: bytes
    nth: int


@dataclass(slots=True)
class Reply:
    """What goes on the wire: a chunk iterator is sent chunked, `reset` cuts the body in half, `close` sends nothing."""

    status: int = 200
    body: bytes | Iterator[bytes] = b""
    content_type: bytes = JSON_TYPE
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    ending: Ending = "whole"
    drip_seconds: float = 0.0
    close_after: Literal["", "announced", "silent"] = ""


class Pending(Protocol):
    """An accepted request: rendered `delay` seconds later, settled exactly once."""

    delay: float
    holds: bool  # keep the slot until the delay is over although the client has gone

    def render(self) -> Reply:
        """Build the reply; called once, when the delay is over and the client still there."""

    def settle(self, delivered: bool) -> None:
        """Learn whether the reply left (as it was meant to), or the client had gone."""


class Instant:
    """A reply without delay or bookkeeping."""

    __slots__ = ("_reply", "delay", "holds")

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self.delay = 0.0
        self.holds = False

    def render(self) -> Reply:
        """Return the reply given at construction."""
        return self._reply

    def settle(self, delivered: bool) -> None:
        """Nothing to keep."""


Handler = Callable[[Request], Pending]


def parse_query(raw: str) -> dict[str, str]:
    """Decode a query string; the last of repeated keys wins, empty values stay."""
    if not raw:
        return {}
    pairs = (part.partition("=") for part in raw.split("&") if part)
    if "%" in raw or "+" in raw:
        return {unquote_plus(key): unquote_plus(value) for key, _, value in pairs}
    return {key: value for key, _, value in pairs}


def head(reply: Reply, length: int | None) -> bytes:
    """Render status line and headers; `length` None means chunked."""
    framing = b"Transfer-Encoding: chunked" if length is None else b"Content-Length: %d" % length
    extra = b"".join(b"%b: %b\r\n" % pair for pair in reply.headers)
    if reply.close_after == "announced":
        extra += b"Connection: close\r\n"
    reason = _REASONS.get(reply.status, "Unknown").encode()
    return b"HTTP/1.1 %d %b\r\nContent-Type: %b\r\n%b%b\r\n\r\n" % (
        reply.status,
        reason,
        reply.content_type,
        extra,
        framing,
    )


class Connection(asyncio.Protocol):
    """One client connection: answers its requests one after the other, in order."""

    def __init__(self, handler: Handler, loop: asyncio.AbstractEventLoop, peers: set["Connection"]) -> None:
        self._handler = handler
        self._loop = loop
        self._peers = peers
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[Request] = deque()
        self._current: Pending | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._stream: Iterator[bytes] | None = None
        self._writable = True
        self._nth = 0
        self._keep_alive = True
        self._transport: asyncio.Transport | None = None
        self.on_message_begin()

    # -- asyncio.Protocol ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class does not derive from asyncio's
        self._peers.add(self)

    def data_received(self, data: bytes) -> None:
        """Feed the parser; what is not HTTP ends the connection."""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._refuse(400)

    def connection_lost(self, exc: Exception | None) -> None:
        """Settle the request in progress as not delivered, at once or when its slot time is over."""
        self._transport = None
        self._peers.discard(self)
        self._waiting.clear()
        pending = self._current
        if pending is None or (pending.holds and self._timer is not None):
            return
        self.abandon()

    def pause_writing(self) -> None:
        """Stop a streamed body until the client has read."""
        self._writable = False

    def resume_writing(self) -> None:
        """Go on with a streamed body."""
        self._writable = True
        if self._stream is not None:
            self._pump()

    def abandon(self) -> None:
        """Drop the request in progress, if any."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._stream = None
        self._finish(delivered=False)

    def abort(self) -> None:
        """Close without waiting for anything."""
        if self._transport is not None:
            self._transport.abort()
        self.abandon()

    # -- httptools callbacks ---------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Start a new request."""
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._body = b""

    def on_url(self, url: bytes) -> None:
        """Collect the target; long ones come in pieces."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header under its lower-case name."""
        self._headers[name.lower()] = value

    def on_body(self, body: bytes) -> None:
        """Collect the body."""
        self._body += body
        if len(self._body) > _MAX_BODY:
            self._refuse(413)

    def on_message_complete(self) -> None:
        """Queue the request and start it if nothing is in progress."""
        path, _, query = self._url.decode("latin-1").partition("?")
        self._nth += 1
        self._keep_alive = self._parser.should_keep_alive()
        method = self._parser.get_method().decode("ascii")
        self._waiting.append(Request(method, path, parse_query(query), self._headers, self._body, self._nth))
        if self._current is None:
            self._start()

    # -- answering -------------------------------------------------------------------------------------------------

    def _refuse(self, status: int) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(head(Reply(status, close_after="announced"), 0))
            self._transport.close()

    def _start(self) -> None:
        if self._current is not None or not self._waiting or self._transport is None:
            return
        pending = self._handler(self._waiting.popleft())
        self._current = pending
        if pending.delay > 0:
            self._timer = self._loop.call_later(pending.delay, self._answer)
        else:
            self._answer()

    def _answer(self) -> None:
        self._timer = None
        transport, pending = self._transport, self._current
        if pending is None:
            return
        if transport is None or transport.is_closing():
            self._finish(delivered=False)
            return
        reply = pending.render()
        if isinstance(reply.body, bytes):
            self._send(transport, reply, reply.body)
        else:
            transport.write(head(reply, None))
            self._stream = reply.body
            self._pump()

    def _send(self, transport: asyncio.Transport, reply: Reply, body: bytes) -> None:
        if reply.ending == "close":
            transport.close()
        elif reply.ending == "reset":
            transport.write(head(reply, len(body)) + body[: len(body) // 2])
            self._loop.call_later(_FLUSH_SECONDS, self._reset)
        elif reply.drip_seconds > 0 and body:
            transport.write(head(reply, len(body)))
            size = max(1, len(body) // 50)
            pieces = deque(body[at : at + size] for at in range(0, len(body), size))
            self._drip(pieces, reply.drip_seconds / len(pieces))
            return
        else:
            transport.write(head(reply, len(body)) + body)
            if reply.close_after or not self._keep_alive:
                transport.close()
        self._finish(delivered=True)

    def _reset(self) -> None:
        if self._transport is None:
            return
        descriptor = os.dup(self._transport.get_extra_info("socket").fileno())
        with socket.socket(fileno=descriptor) as twin:  # linger 0 turns the close into a TCP reset
            twin.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def _drip(self, pieces: deque[bytes], interval: float) -> None:
        if self._transport is None or self._current is None:
            return
        self._transport.write(pieces.popleft())
        if pieces:
            self._loop.call_later(interval, self._drip, pieces, interval)
        else:
            self._finish(delivered=True)

    def _pump(self) -> None:
        """Write one chunk and come back in the next turn of the loop, so that a long stream delays nobody."""
        if self._stream is None or self._transport is None or not self._writable:
            return
        chunk = next(self._stream, b"")
        self._transport.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        if chunk:
            self._loop.call_soon(self._pump)
        else:
            self._stream = None
            self._finish(delivered=True)

    def _finish(self, *, delivered: bool) -> None:
        pending, self._current = self._current, None
        if pending is not None:
            pending.settle(delivered)
        if self._waiting:
            self._loop.call_soon(self._start)


class HttpServer:
    """Listens on one address and hands every request to one handler."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._connections)

    async def start(self, host: str, port: int) -> int:
        """Listen and return the port in use; OSError if the address is taken."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self._handler, loop, self._connections), host, port, backlog=4096
        )
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Stop listening and drop every connection."""
        if self._server is None:
            return
        self._server.close()
        for connection in list(self._connections):
            connection.abort()
        await self._server.wait_closed()
        self._server = None
