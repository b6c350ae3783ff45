"""Every fault looks on the wire as it is described."""

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import pytest

from tests.simulator.app import Simulator
from tests.simulator.outcomes import CODES, SHAPES


class Wire(NamedTuple):
    """What came over a socket: `end` is whole, eof (before all was there) or reset."""

    status: int
    headers: dict[str, str]
    body: bytes
    end: str

    @property
    def json(self) -> Any:
        """The decoded body."""
        return json.loads(self.body)


class Socket:
    """A raw keep-alive connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self, page: int = 1, shop: str = "a", extra: str = "") -> Wire:
        """Send a request and read until its answer is complete or breaks off."""
        target = f"/1688/shop/items?apiToken=t&member_id={shop}&page={page}&sort=time_up"
        self.writer.write(f"GET {target} HTTP/1.1\r\nHost: sim\r\n{extra}\r\n".encode())
        return await self.answer()

    async def answer(self) -> Wire:
        """Read one answer."""
        try:
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        except asyncio.IncompleteReadError:
            return Wire(0, {}, b"", "eof")
        except ConnectionResetError:
            return Wire(0, {}, b"", "reset")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        if headers.get("transfer-encoding") == "chunked":
            body, end = await self._chunked(), "whole"
        else:
            body, end = await self._measured(int(headers["content-length"]))
        return Wire(int(head[0].split()[1]), headers, body, end)

    async def closed(self) -> bool:
        """Wait for the server to close the connection."""
        async with asyncio.timeout(10):
            return await self.reader.read(1) == b""

    async def _chunked(self) -> bytes:
        parts = []
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            parts.append((await self.reader.readexactly(size + 2))[:-2])
        await self.reader.readexactly(2)
        return b"".join(parts)

    async def _measured(self, length: int) -> tuple[bytes, str]:
        body = b""
        try:
            while len(body) < length:
                piece = await self.reader.read(length - len(body))
                if not piece:
                    return body, "eof"
                body += piece
        except ConnectionResetError:
            return body, "reset"
        return body, "whole"


@pytest.fixture
async def sim() -> AsyncIterator[Simulator]:
    async with Simulator(shops=0, extra=[("a", 45), ("b", 20)]) as simulator:
        yield simulator


@pytest.fixture
async def wire(sim: Simulator) -> AsyncIterator[Socket]:
    reader, writer = await asyncio.open_connection("127.0.0.1", sim.port, limit=2**20)
    yield Socket(reader, writer)
    writer.close()
    await asyncio.gather(writer.wait_closed(), return_exceptions=True)


async def fault(sim: Simulator, wire: Socket, outcome: str, **figures: Any) -> Wire:
    """Script one outcome for one call, make the call, and see it booked by its effective code."""
    sim.script({"outcome": outcome, "times": 1, **figures})
    async with asyncio.timeout(20):
        answer = await wire.ask()
    calls = sim.calls()
    assert calls["injected"] == ({} if outcome == "ok" else {outcome: 1})
    assert calls["outcomes"] == {SHAPES.get(outcome, outcome): 1}
    return answer


@pytest.mark.parametrize("code", sorted(CODES))
async def test_codes_come_by_status_with_json(sim: Simulator, wire: Socket, code: str) -> None:
    answer = await fault(sim, wire, code, channel="status", seconds=0)
    assert answer.status == int(code)
    assert answer.headers["content-type"].startswith("application/json")
    if code in {"401", "403", "404", "429", "502", "504"}:
        assert list(answer.json) == ["message"]
    else:
        assert answer.json["code"] == int(code)
    assert (await wire.ask()).status == 200


@pytest.mark.parametrize("code", ["417", "422", "439", "499", "500", "503"])
async def test_codes_come_in_the_body_as_text_empty_or_html_too(sim: Simulator, wire: Socket, code: str) -> None:
    sim.script(
        *({"outcome": code, "channel": each, "times": 1, "seconds": 0} for each in ("body", "text", "empty", "html"))
    )
    body, text, empty, html = [await wire.ask() for _ in range(4)]
    assert (body.status, body.json["code"]) == (200, int(code))
    assert (text.status, text.json["code"]) == (200, code)
    assert (empty.status, empty.body) == (int(code), b"")
    assert (html.status, html.headers["content-type"]) == (int(code), "text/html; charset=utf-8")
    assert html.body.startswith(b"<html>")
    assert sim.calls()["outcomes"] == {code: 4}


@pytest.mark.parametrize("code", ["502", "504"])
async def test_gateway_errors_are_html_pages(sim: Simulator, wire: Socket, code: str) -> None:
    answer = await fault(sim, wire, code)
    assert (answer.status, answer.headers["content-type"]) == (int(code), "text/html; charset=utf-8")


async def test_retry_after_is_sent_where_given(sim: Simulator, wire: Socket) -> None:
    assert (await fault(sim, wire, "429", retry_after=7)).headers["retry-after"] == "7"
    sim.script({"outcome": "429", "times": 1})
    assert "retry-after" not in (await wire.ask()).headers


async def test_499_keeps_its_caller_waiting_and_holds_its_slot(sim: Simulator, wire: Socket) -> None:
    sim.script({"outcome": "499", "seconds": 30, "times": 1})
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await wire.ask()
    assert sim.calls()["in_flight"] == 1


async def test_499_answers_when_its_delay_is_over(sim: Simulator, wire: Socket) -> None:
    sim.script({"set": {"delay_499": 0.05}})
    answer = await fault(sim, wire, "499")
    assert (answer.status, answer.json["code"]) == (499, 499)


async def test_html_with_status_200(sim: Simulator, wire: Socket) -> None:
    answer = await fault(sim, wire, "html200")
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert answer.body.startswith(b"<!doctype html>")


async def test_empty_body_with_status_200(sim: Simulator, wire: Socket) -> None:
    answer = await fault(sim, wire, "empty")
    assert (answer.status, answer.body, answer.end) == (200, b"", "whole")


async def test_truncated_json_of_the_announced_length(sim: Simulator, wire: Socket) -> None:
    answer = await fault(sim, wire, "truncated")
    assert (answer.end, int(answer.headers["content-length"])) == ("whole", len(answer.body))
    with pytest.raises(ValueError, match=r"."):
        json.loads(answer.body)


async def test_reset_in_the_middle_of_the_body(sim: Simulator, wire: Socket) -> None:
    answer = await fault(sim, wire, "reset")
    assert answer.end == "reset"
    assert 0 < len(answer.body) < int(answer.headers["content-length"])


async def test_connection_closed_before_any_answer(sim: Simulator, wire: Socket) -> None:
    answer = await fault(sim, wire, "close")
    assert (answer.status, answer.end) == (0, "eof")


async def test_good_json_under_the_wrong_content_type(sim: Simulator, wire: Socket) -> None:
    answer = await fault(sim, wire, "wrong_type")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert len(answer.json["data"]["items"]) == 20


async def test_code_as_text_and_no_code_at_all(sim: Simulator, wire: Socket) -> None:
    assert (await fault(sim, wire, "code_text")).json["code"] == "200"
    sim.script({"outcome": "no_code"})
    assert "code" not in (await wire.ask()).json


async def test_status_500_with_a_good_body(sim: Simulator, wire: Socket) -> None:
    answer = await fault(sim, wire, "ok_500")
    assert (answer.status, answer.json["code"], len(answer.json["data"]["items"])) == (500, 200, 20)


@pytest.mark.parametrize(("outcome", "kind"), [("data_text", str), ("data_null", type(None))])
async def test_success_with_data_that_is_no_object(sim: Simulator, wire: Socket, outcome: str, kind: type) -> None:
    answer = await fault(sim, wire, outcome)
    assert (answer.status, answer.json["code"], type(answer.json["data"])) == (200, 200, kind)


async def test_success_with_items_null_or_missing(sim: Simulator, wire: Socket) -> None:
    assert (await fault(sim, wire, "items_null")).json["data"]["items"] is None
    sim.script({"outcome": "items_missing"})
    data = (await wire.ask()).json["data"]
    assert "items" not in data
    assert data["total_count"] == "45"


async def test_oversize_as_a_small_gzip_bomb(sim: Simulator, wire: Socket) -> None:
    answer = await fault(sim, wire, "oversize", megabytes=64)
    assert answer.headers["content-encoding"] == "gzip"
    assert len(answer.body) < 500_000
    unpacker, size, packed = zlib.decompressobj(16 + zlib.MAX_WBITS), 0, answer.body
    while packed:
        size += len(unpacker.decompress(packed, 1_000_000))
        packed = unpacker.unconsumed_tail
    assert size > 64_000_000


async def test_oversize_without_compression(sim: Simulator, wire: Socket) -> None:
    answer = await fault(sim, wire, "oversize", megabytes=3, plain=True)
    assert "content-encoding" not in answer.headers
    assert len(answer.body) > 3_000_000
    assert answer.json["data"]["items"] == []


async def test_deep_nesting(sim: Simulator, wire: Socket) -> None:
    answer = await fault(sim, wire, "deep", depth=50_000)
    assert answer.body.count(b"[") == answer.body.count(b"]") == 50_000
    with pytest.raises(RecursionError):
        json.loads(answer.body)


async def test_a_slow_drip_begins_at_once_and_holds_its_slot(sim: Simulator, wire: Socket) -> None:
    sim.script({"outcome": "drip", "seconds": 1000})
    wire.writer.write(b"GET /1688/shop/items?apiToken=t&member_id=a HTTP/1.1\r\nHost: sim\r\n\r\n")
    async with asyncio.timeout(10):
        await wire.reader.readuntil(b"\r\n\r\n")
        assert (await wire.reader.read(10)).startswith(b'{"code"')
    assert sim.calls()["in_flight"] == 1


async def test_a_slow_drip_arrives_whole(sim: Simulator, wire: Socket) -> None:
    assert len((await fault(sim, wire, "drip", seconds=0.1)).json["data"]["items"]) == 20


async def test_a_redirect_leads_to_a_login_page(sim: Simulator, wire: Socket) -> None:
    answer = await fault(sim, wire, "redirect")
    assert (answer.status, answer.headers["location"]) == (302, "/login")
    wire.writer.write(b"GET /login HTTP/1.1\r\nHost: sim\r\n\r\n")
    page = await wire.answer()
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert sim.calls()["total"] == 1


async def test_pages_can_be_repeated_shortened_or_missing_from_the_middle(sim: Simulator, wire: Socket) -> None:
    async def ids(page: int) -> list[str]:
        return [item["item_id"] for item in (await wire.ask(page)).json["data"]["items"]]

    pages = [await ids(page) for page in (1, 2, 3)]
    for outcome, page, expected in (
        ("repeat_first", 2, pages[0]),
        ("repeat_last", 2, pages[2]),
        ("short", 2, pages[1][:7]),
        ("partial", 3, []),
        ("partial", 2, pages[1][:2]),
        ("slow", 2, pages[1]),
        ("ok", 2, pages[1]),
    ):
        sim.script({"outcome": outcome, "pages": [page, page], "times": 1, "seconds": 0})
        assert await ids(page) == expected
    assert await ids(2) == pages[1]


async def test_a_forced_good_page_overrides_chance(sim: Simulator, wire: Socket) -> None:
    sim.script({"set": {"faults": {"417": 1}}}, {"outcome": "ok", "shop": "b"})
    assert (await wire.ask(shop="a")).status == 417
    assert (await wire.ask(shop="b")).status == 200


async def test_keep_alive_ends_announced_or_not(sim: Simulator, wire: Socket) -> None:
    sim.script({"set": {"keepalive_requests": 2}})
    first, second = await wire.ask(), await wire.ask()
    assert (first.status, second.status, second.headers.get("connection")) == (200, 200, None)
    assert await wire.closed()
    sim.script({"set": {"keepalive_requests": 1, "keepalive_announce": True}})
    other = Socket(*await asyncio.open_connection("127.0.0.1", sim.port))
    assert (await other.ask()).headers["connection"] == "close"
    assert await other.closed()
    other.writer.close()


async def test_pipelined_requests_are_answered_in_order(sim: Simulator, wire: Socket) -> None:
    sim.script({"outcome": "slow", "pages": 1, "seconds": 0.05})
    for page in (1, 2, 3):
        wire.writer.write(
            f"GET /1688/shop/items?apiToken=t&member_id=a&page={page} HTTP/1.1\r\nHost: s\r\n\r\n".encode()
        )
    assert [(await wire.answer()).json["data"]["page"] for _ in range(3)] == [1, 2, 3]


async def test_what_is_not_http_is_refused(wire: Socket) -> None:
    wire.writer.write(b"\x16\x03\x01 not http\r\n\r\n")
    assert (await wire.answer()).status == 400
    assert await wire.closed()


async def test_a_client_that_closes_is_closed(wire: Socket) -> None:
    answer = await wire.ask(extra="Connection: close\r\nAccept-Encoding: gzip\r\n")
    assert answer.status == 200
    assert await wire.closed()


async def test_gzip_bodies_unpack_to_the_plain_page(sim: Simulator, wire: Socket) -> None:
    plain = await wire.ask()
    sim.script({"set": {"gzip": True}})
    packed = await wire.ask(extra="Accept-Encoding: gzip\r\n")
    assert gzip.decompress(packed.body) == plain.body
    assert len(packed.body) < len(plain.body) / 2
