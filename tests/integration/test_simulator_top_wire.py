"""How the simulated Taobao platform fails: error forms, damaged bodies, and broken transport."""

import json
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen
from xml.etree import ElementTree

import aiohttp
import psutil
import pytest

from tests.simulator.app import Simulator
from tests.simulator.process import SimulatorProcess
from tests.simulator.top.client import Client, signed


@pytest.fixture
async def sim() -> AsyncIterator[Simulator]:
    async with Simulator(shops=0, seed=3, top={"a": 45, "b": 450}) as simulator:
        yield simulator


@pytest.fixture
async def client(sim: Simulator) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession() as http:
        yield Client(sim, http)


async def test_scripted_errors_reach_the_calls_they_are_for(sim: Simulator, client: Client) -> None:
    sim.script(
        {"top": {"outcome": "isv:shop-not-exist", "shop": "b"}},
        {"top": {"outcome": "isp", "times": 3}},
        {"top": {"outcome": "code:10", "times": 1}},
        {"top": {"outcome": "isp:remote-service-error", "times": 1, "bare": True, "code": 50}},
        {"top": {"outcome": "sub:made.up", "times": 1, "sub_msg": "who knows"}},
    )
    burst = [await client.error() for _ in range(3)]
    assert {code for code, _ in burst} == {15}
    assert all(sub_code.startswith("isp.") for _, sub_code in burst)
    assert [await client.error() for _ in range(2)] == [(10, ""), (50, "")]
    body = (await client.get())["error_response"]
    assert (body["code"], body["sub_code"], body["sub_msg"]) == (15, "made.up", "who knows")
    assert (await client.get())["total_results"] == 45
    assert [await client.error("b") for _ in range(2)] == [(50, "isv.shop-not-exist")] * 2
    assert sim.top_calls()["injected"]["isp"] == 3


async def test_errors_can_be_xml_for_a_json_request_and_lack_their_request_id(sim: Simulator, client: Client) -> None:
    sim.script({"set": {"top_request_id": 0.0}}, {"top": {"outcome": "isp", "times": 1, "xml": True}})
    status, kind, text = await client.raw(client.params("a"))
    root = ElementTree.fromstring(text)
    assert (status, kind, root.tag) == (200, "text/xml", "error_response")
    assert [child.tag for child in root] == ["code", "msg", "sub_code", "sub_msg"]
    assert "request_id" not in await client.get()


async def test_faults_by_chance_are_equal_for_equal_seeds() -> None:
    async def fates() -> list[str]:
        options: dict[str, Any] = {"top_faults": {"isp": 0.3, "code:10": 0.2, "truncated": 0.1}, "seed": 5}
        async with Simulator(shops=0, top={"a": 45}, **options) as sim, aiohttp.ClientSession() as http:
            client = Client(sim, http)
            texts = [(await client.raw(client.params("a", page_no=page)))[2][:60] for page in (1, 2) * 20]
            assert sim.top_calls()["outcomes"]["200"] < 40
            return texts

    first, second = await fates(), await fates()
    assert first == second
    assert len(set(first)) > 3


@pytest.mark.parametrize(
    ("outcome", "status", "sign"),
    [
        ("502", 502, "<html>"),
        ("504", 504, "<html>"),
        ("redirect", 302, "moved"),
        ("html200", 200, "登录"),
        ("empty", 200, ""),
        ("truncated", 200, '{"total_results":45'),
        ("wrong_type", 200, '{"total_results":45'),
    ],
)
async def test_answers_that_are_not_the_page_look_real(
    sim: Simulator, client: Client, outcome: str, status: int, sign: str
) -> None:
    sim.script({"top": {"outcome": outcome, "times": 1}})
    got, kind, text = await client.raw(client.params("a"))
    assert (got, sign in text) == (status, True)
    assert kind == ("text/html" if outcome not in {"empty", "truncated"} else "text/javascript")
    assert (await client.get())["total_results"] == 45
    assert sum(sim.top_calls("a")["outcomes"].values()) == 2


@pytest.mark.parametrize("outcome", ["reset", "close"])
async def test_connections_break_as_asked(sim: Simulator, client: Client, outcome: str) -> None:
    sim.script({"top": {"outcome": outcome, "times": 2}})  # the client library asks again once by itself
    with pytest.raises(aiohttp.ClientError):
        await client.raw(client.params("a"))
    sim.script({"top": {"clear": True}})
    assert (await client.get())["total_results"] == 45
    assert sim.top_calls()["outcomes"][outcome] >= 1


async def test_slow_and_dripping_answers_arrive_whole(sim: Simulator, client: Client) -> None:
    sim.script(
        {"top": {"outcome": "drip", "times": 1, "seconds": 0.05}},
        {"top": {"outcome": "slow", "times": 1, "seconds": 0.05}},
        {"top": {"outcome": "short", "times": 1, "rows": 2}},
    )
    assert [len((await client.get())["items"]) for _ in range(3)] == [40, 40, 2]
    calls = sim.top_calls()
    assert (calls["pages_delivered"], calls["rows_delivered"], calls["repeated"]) == (3, 82, 1)


async def test_kept_connections_are_closed_by_the_server_when_switched(sim: Simulator, client: Client) -> None:
    sim.script({"set": {"top_keepalive_requests": 2, "top_keepalive_announce": True}})
    url = f"{sim.url}/router/rest"
    closing = []
    for _ in range(4):
        async with client.http.post(url, data=client.params("a")) as answer:
            closing.append(answer.headers.get("Connection"))
            await answer.read()
    assert closing == [None, "close", None, "close"]


async def test_only_get_and_post_are_allowed(client: Client) -> None:
    url = f"{client.simulator.url}/router/rest"
    async with client.http.put(url, data=client.params("a")) as answer:
        assert (answer.status, '"code":9' in await answer.text()) == (200, True)


async def test_a_client_that_leaves_is_counted_and_its_place_is_free_again(sim: Simulator, client: Client) -> None:
    sim.script({"set": {"top_latency": 30.0}})
    with pytest.raises(TimeoutError):
        await client.http.post(
            f"{sim.url}/router/rest", data=client.params("a"), timeout=aiohttp.ClientTimeout(total=0.1)
        )
    sim.script({"set": {"top_latency": 0.0}})
    assert (await client.get())["total_results"] == 45
    calls = sim.top_calls()
    assert (calls["outcomes"], calls["in_flight"]) == ({"200": 1, "abandoned": 1}, 0)


def test_the_command_serves_both_platforms_on_one_port() -> None:
    big = {"items": 30_000, "profile": "clustered"}
    with SimulatorProcess(shops=0, extra={"x": 3}, top={"seller-a": 45, "big": big}, switches={"top_edits": 1}) as sim:
        assert list(sim.top_sessions()) == ["seller-a", "big"]
        assert len(sim.top_truth("seller-a")) == 45
        ids = sim.top_ids("big")
        assert len(ids["ever"]) == len(set(ids["throughout"])) == 30_000
        assert sim.top_calls()["total"] == sim.top_calls("big")["total"] == 0
        assert sim.advance(31_062)["offset"] == 31_062
        assert sim.script({"top": {"outcome": "isp", "shop": "big"}}) == [1]
        assert len(sim.truth("x")) == 3
        with pytest.raises(ValueError, match="unknown seller"):
            sim.top_truth("x")


def test_a_seller_of_a_million_items_is_served_within_200_megabytes() -> None:
    with SimulatorProcess(shops=0, top={"big": {"items": 1_000_000, "profile": "clustered"}}) as sim:
        session = sim.top_sessions()["big"]
        counts = []
        for bounds in ({}, {"start_modified": "2022-01-01 00:00:00"}, {"end_modified": "2021-12-31 23:59:59"}):
            data = urlencode(signed(session, time.time(), page_size=200, page_no=100, **bounds)).encode()
            with urlopen(f"{sim.url}/router/rest", data) as answer:
                body = json.loads(answer.read())
            assert len(body["items"]) == 200
            counts.append(body["total_results"])
        assert counts[0] == counts[1] + counts[2] == 1_000_000
        ids = sim.top_ids("big")
        assert len(set(ids["throughout"])) == len(ids["ever"]) == 1_000_000
        assert psutil.Process(sim.pid).memory_info().rss < 200_000_000
