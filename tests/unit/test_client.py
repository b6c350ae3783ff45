"""The HTTP client against a raw loopback server that misbehaves in every way we know."""

import asyncio
import gzip
import logging
import socket
import ssl
import traceback
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import brotli
import pytest

from models.addresses import warn_if_plain_http
from models.compression import zstd
from models.errors import FetchError, SourceStoppedError, TransientError
from models.settings import Settings
from models.source import HttpRequest
from worker.client import Client

CANARY = "canary-5f1d0c"
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """Reads one request after another from each connection and lets `answer` write what it likes."""

    def __init__(self, answer: Handler) -> None:
        self.answer = answer
        self.requests: list[bytes] = []
        self.connections = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while not writer.is_closing():
                self.requests.append(await reader.readuntil(b"\r\n\r\n"))
                await self.answer(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving(answer: Handler, **kwargs: Any) -> AsyncIterator[tuple[Server, str]]:
    server = Server(answer)
    listener = await asyncio.start_server(server.handle, "127.0.0.1", 0, **kwargs)
    port = listener.sockets[0].getsockname()[1]
    try:
        yield server, f"http{'s' if kwargs else ''}://127.0.0.1:{port}/1688/shop/items"
    finally:
        listener.close()


def settings(**changes: object) -> Settings:
    limits = {"connect_timeout": 5, "read_timeout": 5, "total_timeout": 5}
    values: dict[str, Any] = {"_env_file": None, **limits, **changes}
    return Settings(**values)


def call(url: str) -> HttpRequest:
    return HttpRequest("GET", url, {"apiToken": CANARY, "member_id": "义乌 1"}, {"Accept": "application/json"})


def answering(*parts: bytes, close: bool = False) -> Handler:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
        if close:
            writer.close()

    return answer


def ok(body: bytes, *headers: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def failure(answer: Handler, **changes: object) -> FetchError:
    """The error of one call, proved to be free of the address' secret all the way down."""
    async with serving(answer) as (_, url), Client(settings(**changes)) as client:
        with pytest.raises(FetchError) as caught:
            await client.fetch(call(url))
    assert_silent(caught.value)
    return caught.value


def assert_silent(error: FetchError) -> None:
    shown = "".join(traceback.format_exception(error)) + repr(error) + repr(vars(error))
    assert CANARY not in shown
    assert error.__cause__ is None
    assert error.__context__ is None


async def test_sends_an_honest_request_without_cookies_and_reads_the_answer() -> None:
    answer = answering(ok(b'{"a":1}', "Set-Cookie: id=7", "X-Kind: y"))
    async with serving(answer) as (server, url), Client(settings(user_agent="shopcrawl/test")) as client:
        first = await client.fetch(call(url))
        await client.fetch(call(url))
    assert (first.status, first.body, first.headers["x-kind"]) == (200, b'{"a":1}', "y")
    head = server.requests[1].decode()
    assert head.startswith(f"GET /1688/shop/items?apiToken={CANARY}&member_id=%E4%B9%89%E4%B9%8C+1 HTTP/1.1\r\n")
    assert "User-Agent: shopcrawl/test\r\n" in head
    assert "Accept-Encoding: gzip, deflate, br, zstd\r\n" in head
    assert "cookie" not in head.lower()
    assert server.connections == 1, "the connection is kept alive"


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": lambda data: bytes(brotli.compress(data, quality=5)),
    "zstd": zstd.compress,
}


@pytest.mark.parametrize("encoding", PACKERS)
async def test_decodes_every_compression_it_asks_for(encoding: str) -> None:
    body = "项链".encode() * 5_000
    packed = ok(PACKERS[encoding](body), f"Content-Encoding: {encoding}")
    async with serving(answering(packed)) as (_, url), Client(settings()) as client:
        assert (await client.fetch(call(url))).body == body


@pytest.mark.parametrize("encoding", PACKERS)
async def test_a_bomb_is_refused_before_it_fills_the_memory(encoding: str) -> None:
    cap = 1024 * 1024
    packed = ok(PACKERS[encoding](bytes(100 * cap)), f"Content-Encoding: {encoding}")
    async with serving(answering(packed)) as (_, url), Client(settings(max_body_bytes=cap)) as client:
        tracemalloc.start()
        try:
            with pytest.raises(TransientError) as caught:
                await client.fetch(call(url))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert caught.value.code == "oversize"
    assert peak < 4 * cap


async def test_a_body_of_exactly_the_cap_is_accepted_and_one_byte_more_is_not() -> None:
    async with serving(answering(ok(b"x" * 4096))) as (_, url):
        async with Client(settings(max_body_bytes=4096)) as client:
            assert len((await client.fetch(call(url))).body) == 4096
        async with Client(settings(max_body_bytes=4095)) as client:
            with pytest.raises(TransientError, match="oversize"):
                await client.fetch(call(url))


@pytest.mark.parametrize("encoding", PACKERS)
async def test_damaged_compression_is_a_truncated_answer(encoding: str) -> None:
    error = await failure(answering(ok(b"\x00not packed at all", f"Content-Encoding: {encoding}")))
    assert (type(error), error.code) == (TransientError, "truncated")


@pytest.mark.parametrize("encoding", PACKERS)
async def test_compression_that_stops_early_never_yields_a_whole_body(encoding: str) -> None:
    body = bytes(range(256)) * 400
    packed = PACKERS[encoding](body)
    async with (
        serving(answering(ok(packed[: len(packed) // 2], f"Content-Encoding: {encoding}"))) as (_, url),
        Client(settings()) as client,
    ):
        try:
            assert (await client.fetch(call(url))).body != body
        except TransientError as error:
            assert error.code in {"truncated", "malformed"}


async def test_content_cut_short_is_truncated() -> None:
    error = await failure(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{}", close=True))
    assert (type(error), error.code) == (TransientError, "truncated")


async def test_a_connection_reset_inside_the_body_is_truncated() -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
        await writer.drain()
        reset(writer)

    error = await failure(answer)
    assert (type(error), error.code) == (TransientError, "truncated")


def reset(writer: asyncio.StreamWriter) -> None:
    linger = (1).to_bytes(4, "little") + (0).to_bytes(4, "little")
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


@pytest.mark.parametrize("how", ["reset", "closed"])
async def test_a_connection_lost_before_the_answer_is_a_reset_and_the_call_is_not_repeated(how: str) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reset(writer) if how == "reset" else writer.close()

    async with serving(answer) as (server, url), Client(settings()) as client:
        with pytest.raises(TransientError, match="reset: the connection was lost") as caught:
            await client.fetch(call(url))
    assert_silent(caught.value)
    assert len(server.requests) == 1


async def test_an_idle_connection_closed_by_the_server_is_replaced_unnoticed() -> None:
    closed = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(ok(b"{}"))
        writer.write_eof()
        assert await reader.read() == b"", "the client has seen the end and closed its side"
        writer.close()
        closed.set()

    async with serving(answer) as (server, url), Client(settings()) as client:
        for _ in range(3):
            closed.clear()
            assert (await client.fetch(call(url))).status == 200
            await asyncio.wait_for(closed.wait(), 5)
    assert (server.connections, len(server.requests)) == (3, 3)


async def test_a_redirect_is_handed_over_and_not_followed() -> None:
    redirect = b"HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n"
    async with serving(answering(redirect)) as (server, url), Client(settings()) as client:
        response = await client.fetch(call(url))
    assert (response.status, response.headers["Location"], len(server.requests)) == (302, "/login", 1)


async def test_an_error_status_is_handed_over_with_its_body() -> None:
    answer = b"HTTP/1.1 439 Odd\r\nContent-Length: 2\r\n\r\n{}"
    async with serving(answering(answer)) as (_, url), Client(settings()) as client:
        response = await client.fetch(call(url))
    assert (response.status, response.body) == (439, b"{}")


async def test_silence_ends_with_the_read_timeout() -> None:
    async def answer(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    error = await failure(answer, read_timeout=0.05)
    assert (type(error), error.code, error.message) == (TransientError, "timeout", "silent for 0.05 s")


async def test_a_slow_drip_ends_with_the_total_timeout() -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while not writer.is_closing():
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.01)

    error = await failure(answer, total_timeout=0.2)
    assert (type(error), error.code) == (TransientError, "timeout")
    assert "0.2 s" in error.message


async def test_something_else_than_http_is_malformed() -> None:
    error = await failure(answering(b"SSH-2.0-OpenSSH\r\n\r\n", close=True))
    assert (type(error), error.code) == (TransientError, "malformed")


async def test_a_refused_connection_is_a_connect_fault() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/"
        async with Client(settings()) as client:
            with pytest.raises(TransientError, match=r"^connect: ") as caught:
                await client.fetch(call(url))
    assert_silent(caught.value)


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/", "http://", "no address", "http://127.0.0.1:99999/"])
async def test_an_unusable_address_stops_the_source(url: str) -> None:
    async with Client(settings()) as client:
        with pytest.raises(SourceStoppedError, match=r"^address: ") as caught:
            await client.fetch(call(url))
    assert_silent(caught.value)


async def test_an_unreachable_proxy_is_named_without_its_password() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        proxy = f"http://user:{CANARY}@127.0.0.1:{taken.getsockname()[1]}"
        async with Client(settings(proxy=proxy)) as client:
            with pytest.raises(TransientError, match=r"^proxy: ") as caught:
                await client.fetch(call("http://127.0.0.1:1/"))
    assert_silent(caught.value)


async def test_calls_go_through_the_proxy_of_the_settings_and_not_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    async with serving(answering(ok(b"{}"))) as (server, url), Client(settings(proxy=url)) as client:
        assert (await client.fetch(call("http://api.example/x"))).status == 200
    assert server.requests[0].startswith(b"GET http://api.example/x?apiToken=")
    async with serving(answering(ok(b"{}"))) as (server, url), Client(settings()) as client:
        assert (await client.fetch(call(url))).status == 200


async def test_cancelling_a_call_is_a_cancellation_and_frees_its_connection() -> None:
    arrived = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        arrived.set()
        await reader.read()

    async with serving(answer) as (server, url), Client(settings(), max_connections=1) as client:
        for _ in range(2):
            arrived.clear()
            task = asyncio.create_task(client.fetch(call(url)))
            await asyncio.wait_for(arrived.wait(), 5)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
    assert server.connections == 2


@pytest.fixture
def tls() -> ssl.SSLContext:
    """A server's side of TLS with a certificate that nobody signed; its key protects nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(Path(__file__).with_name("untrusted.pem"))
    return context


async def test_an_untrusted_certificate_stops_the_source(tls: ssl.SSLContext) -> None:
    async with serving(answering(ok(b"{}")), ssl=tls) as (server, url), Client(settings()) as client:
        with pytest.raises(SourceStoppedError, match=r"^tls: .*certificate") as caught:
            await client.fetch(call(url))
    assert_silent(caught.value)
    assert server.requests == []


async def test_a_server_that_speaks_no_tls_is_a_tls_fault() -> None:
    async def answer_at_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)  # a client's hello has no end that a reader of lines would see
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer_at_once, "127.0.0.1", 0) as listener, Client(settings()) as client:
        port = listener.sockets[0].getsockname()[1]
        with pytest.raises(TransientError) as caught:
            await client.fetch(call(f"https://127.0.0.1:{port}/1688/shop/items"))
    assert_silent(caught.value)
    assert caught.value.code in {"tls", "reset", "connect"}


async def test_a_client_outside_its_block_says_so() -> None:
    with pytest.raises(RuntimeError, match="async with"):
        await Client(settings()).fetch(call("http://127.0.0.1:1/"))


def test_plain_http_is_warned_about_once_and_never_on_loopback(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for url in ("http://api.tmapi.top/a", "http://api.tmapi.top/b", "https://api.tmapi.io"):
            warn_if_plain_http(url)
        for url in ("http://127.0.0.1:8000", "http://[::1]:8000", "http://localhost/x"):
            warn_if_plain_http(url)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["plain http to api.tmapi.top"]
