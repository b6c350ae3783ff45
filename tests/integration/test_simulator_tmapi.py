"""What a client of the simulated TMAPI sees, over real HTTP, and what the simulator remembers of it."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from tests.simulator.app import Simulator

PATH = "/1688/shop/items"


class Client:
    """Asks one simulator, by page or for a whole shop."""

    def __init__(self, simulator: Simulator, session: aiohttp.ClientSession) -> None:
        self._simulator = simulator
        self._session = session

    async def get(self, shop: str = "a", page: object = 1, **params: object) -> tuple[int, Any]:
        """Return HTTP status and decoded body, or text where it is no JSON."""
        query = {"apiToken": "t", "member_id": shop, "page": str(page)} | {k: str(v) for k, v in params.items()}
        async with self._session.get(self._simulator.url + PATH, params=query, allow_redirects=False) as answer:
            text = await answer.text()
            try:
                return answer.status, json.loads(text)
            except json.JSONDecodeError:
                return answer.status, text

    async def ids(self, shop: str = "a", page: int = 1, **params: object) -> list[str]:
        """Return the item ids of a good page."""
        status, body = await self.get(shop, page, **{"sort": "time_up"} | params)
        assert (status, body["code"]) == (200, 200)
        return [item["item_id"] for item in body["data"]["items"]]

    async def control(self, method: str, path: str, body: Any = None) -> Any:
        """Call the control endpoint; lines of NDJSON as a list."""
        async with self._session.request(method, f"{self._simulator.url}/_sim/{path}", json=body) as answer:
            text = await answer.text()
            if answer.content_type == "application/x-ndjson":
                return [json.loads(line) for line in text.splitlines()]
            return json.loads(text)


@pytest.fixture
async def sim() -> AsyncIterator[Simulator]:
    async with Simulator(shops=4, seed=3, extra=[("a", 45), ("full", 40), ("none", 0)]) as simulator:
        yield simulator


@pytest.fixture
async def client(sim: Simulator) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession() as session:
        yield Client(sim, session)


async def until(condition: Callable[[], Awaitable[bool]] | Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while True:
            outcome = condition()
            if outcome if isinstance(outcome, bool) else await outcome:
                return
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("sort", ["time_up", "time_down", "price_up", "price_down", "default", "sales"])
async def test_paging_to_the_end_delivers_exactly_the_truth(sim: Simulator, client: Client, sort: str) -> None:
    seen: dict[str, Any] = {}
    for page in range(1, 5):
        _, body = await client.get(page=page, sort=sort)
        seen |= {item["item_id"]: item for item in body["data"]["items"]}
    assert seen == {row["item_id"]: row["item"] for row in sim.truth("a")}
    assert len(seen) == 45


async def test_equal_seeds_answer_alike_faults_included(client: Client) -> None:
    async def crawl() -> list[Any]:
        options: dict[str, Any] = {"faults": {"417": 0.3, "500:mixed": 0.3}, "shops": 3, "seed": 9}
        async with Simulator(**options) as one, aiohttp.ClientSession() as session:
            asker = Client(one, session)
            return [await asker.get(shop, page) for shop in one.market.shops for page in (1, 2) for _ in range(5)]

    first, second = await crawl(), await crawl()
    assert first == second
    assert {status for status, _ in first} >= {200, 417}


async def test_the_envelope_is_the_vendors(client: Client) -> None:
    _, body = await client.get(page=2, sort="time_up", page_size=20, price_start="1")
    assert list(body) == ["code", "msg", "data"]
    data = body["data"]
    assert list(data) == [
        *("page", "page_size", "total_count", "shop_cat_id", "keyword", "price_start", "price_end", "sort", "items"),
    ]
    assert (data["page"], data["page_size"], data["sort"], data["price_start"]) == (2, 20, "time_up", "1")
    assert isinstance(data["total_count"], str)


async def test_pages_beyond_the_end_and_of_an_empty_shop_are_empty(client: Client) -> None:
    assert await client.ids(page=4) == []
    assert await client.ids("full", page=3) == []
    _, body = await client.get("none")
    assert (body["data"]["items"], body["data"]["total_count"]) == ([], "0")


@pytest.mark.parametrize(
    "params",
    [
        {"page": 0},
        {"page": "abc"},
        {"page_size": 0},
        {"page_size": "abc"},
        {"shop": "nobody"},
        {"shop": ""},
        {"shop": "a'\n\x00\""},
        {"price_start": "cheap"},
    ],
)
async def test_wrong_parameters_answer_422(client: Client, params: dict[str, Any]) -> None:
    status, body = await client.get(**params)
    assert (status, body["code"]) == (422, 422)


async def test_unknown_shops_can_be_empty_instead(sim: Simulator, client: Client) -> None:
    sim.script({"set": {"unknown_shop": "empty"}})
    assert await client.ids("nobody") == []


async def test_unknown_paths_have_no_route(sim: Simulator) -> None:
    async with aiohttp.ClientSession() as session, session.get(f"{sim.url}/api/user/balance") as answer:
        assert answer.status == 404
        assert await answer.json() == {"message": "no Route matched with those values"}
    assert sim.calls()["total"] == 0


async def test_page_size_is_capped_silently_and_echoed_as_switched(sim: Simulator, client: Client) -> None:
    _, body = await client.get(page_size=50)
    assert (len(body["data"]["items"]), body["data"]["page_size"]) == (20, 20)
    sim.script({"set": {"page_size_echo": "asked"}})
    _, body = await client.get(page_size=50)
    assert (len(body["data"]["items"]), body["data"]["page_size"]) == (20, 50)
    assert len(await client.ids(page_size=7)) == 7


@pytest.mark.parametrize(("end", "items"), [("empty", []), ("missing", "absent"), ("null", None)])
async def test_the_end_of_data_has_variants(sim: Simulator, client: Client, end: str, items: object) -> None:
    sim.script({"set": {"beyond_end": end}})
    _, body = await client.get(page=9)
    assert body["data"].get("items", "absent") == items


async def test_the_end_of_data_may_repeat_pages_or_refuse(sim: Simulator, client: Client) -> None:
    first, last = await client.ids(page=1), await client.ids(page=3)
    sim.script({"set": {"beyond_end": "last"}, "shop": "a"})
    assert await client.ids(page=9) == last
    sim.script({"set": {"beyond_end": "first"}, "shop": "a"})
    assert await client.ids(page=9) == first
    sim.script({"set": {"beyond_end": "422"}, "shop": "a"})
    assert (await client.get(page=4))[0] == 422
    assert (await client.get(page=3))[0] == 200


async def test_total_count_can_lie_and_change_its_type(sim: Simulator, client: Client) -> None:
    async def total() -> object:
        return (await client.get())[1]["data"].get("total_count")

    assert await total() == "45"
    for switches, expected in (
        ({"total_factor": 10}, "450"),
        ({"total_factor": 0.1}, "4"),
        ({"total_count": "number"}, 4),
    ):
        sim.script({"set": switches})
        assert await total() == expected
    sim.script({"set": {"total_count": "display", "total_factor": 340}})
    assert await total() == "1.5万+"
    sim.script({"set": {"total_count": "missing"}})
    assert await total() is None
    sim.script({"set": {"total_count": "number", "total_factor": 1, "total_drift": 5}})
    totals = {await total() for _ in range(30)}
    assert len(totals) > 3
    assert totals <= set(range(40, 51))


async def test_popularity_orders_move_between_pages_and_time_does_not(sim: Simulator, client: Client) -> None:
    sim.script({"set": {"reorder": 0.5}})
    moved = [item for page in (1, 2, 3) for item in await client.ids(page=page, sort="sales")]
    assert len(moved) == 45 > len(set(moved))
    stable = [item for page in (1, 2, 3) for item in await client.ids(page=page, sort="time_up")]
    assert len(set(stable)) == 45


async def test_goods_change_during_the_crawl_and_truth_follows(sim: Simulator, client: Client) -> None:
    sim.script({"set": {"appear": 1, "vanish": 1, "reprice": 2}, "shop": "a"})
    for _ in range(10):
        await client.get(sort="time_up")
    rows = sim.truth("a")
    assert sum(row["appeared_at_call"] is not None for row in rows) == 10
    assert sum(row["vanished_at_call"] is not None for row in rows) == 10
    assert sum(len(row["versions"]) - 1 for row in rows) == 20
    sim.script({"clear": True, "shop": "a"})
    delivered: dict[str, Any] = {}
    for page in (1, 2, 3):
        delivered |= {item["item_id"]: item for item in (await client.get(page=page))[1]["data"]["items"]}
    assert delivered == {row["item_id"]: row["item"] for row in rows if row["on_sale"]}


async def test_goods_can_be_changed_by_order(sim: Simulator, client: Client) -> None:
    ids = await client.ids()
    sim.script({"shop": "a", "change": {"appear": 2, "vanish": ids[:3], "reprice": ids[3:4]}})
    assert (await client.get())[1]["data"]["total_count"] == "44"
    assert not set(ids[:3]) & set(await client.ids())
    sim.script({"shop": "a", "change": {"restore": 3}})
    assert set(ids[:3]) <= set(await client.ids())


@pytest.mark.parametrize(("refusal", "status"), [("401", 401), ("403", 403), ("body", 200)])
async def test_missing_and_wrong_tokens_are_refused(sim: Simulator, client: Client, refusal: str, status: int) -> None:
    sim.script({"set": {"tokens": ["t"], "token_refusal": refusal}})
    for token in ("", "wrong"):
        got, body = await client.get(apiToken=token)
        assert got == status
        assert body.get("code") == (401 if refusal == "body" else None)
        assert ("message" in body) == (refusal != "body")
    assert (await client.get())[0] == 200
    calls = sim.calls()
    assert calls["billed"] == 1
    assert calls["outcomes"][("403" if refusal == "403" else "401")] == 2


async def test_calls_over_the_gate_answer_503_at_once_and_the_gate_moves(sim: Simulator, client: Client) -> None:
    sim.script({"set": {"gate": 3, "latency": 30}})
    slow = [asyncio.create_task(client.get(page=page)) for page in (1, 2, 3)]
    await until(lambda: sim.calls()["in_flight"] == 3)
    assert (await client.get())[0] == 503
    sim.script({"set": {"gate_channel": "body"}})
    status, body = await client.get()
    assert (status, body["code"]) == (200, 503)
    sim.script({"set": {"gate": 4, "latency": 0}})
    assert (await client.get())[0] == 200
    calls = sim.calls()
    assert (calls["over_gate"], calls["max_in_flight"], calls["tokens"]["t"]["max_in_flight"]) == (2, 4, 4)
    for task in slow:
        task.cancel()
    await asyncio.gather(*slow, return_exceptions=True)
    await until(lambda: sim.calls()["in_flight"] == 0)
    assert sim.calls()["outcomes"]["abandoned"] == 3


async def test_the_gate_counts_each_token_apart(sim: Simulator, client: Client) -> None:
    sim.script({"set": {"gate": 1, "latency": 30}})
    slow = asyncio.create_task(client.get(apiToken="other"))
    await until(lambda: sim.calls()["in_flight"] == 1)
    sim.script({"set": {"latency": 0}})
    assert (await client.get())[0] == 200
    slow.cancel()


async def test_a_slot_can_outlive_its_client(sim: Simulator, client: Client) -> None:
    sim.script({"set": {"gate": 1, "latency": 30, "hold_after_disconnect": True}})
    task = asyncio.create_task(client.get())
    await until(lambda: sim.calls()["in_flight"] == 1)
    task.cancel()
    await until(lambda: sim.connections == 0)
    assert sim.calls()["in_flight"] == 1
    assert (await client.get())[0] == 503


async def test_a_slot_that_outlived_its_client_is_freed_in_the_end(sim: Simulator, client: Client) -> None:
    sim.script({"set": {"latency": 0.2, "hold_after_disconnect": True}})
    task = asyncio.create_task(client.get())
    await until(lambda: sim.calls()["in_flight"] == 1)
    task.cancel()
    await until(lambda: sim.calls()["in_flight"] == 0)
    assert sim.calls()["outcomes"] == {"abandoned": 1}


@pytest.mark.parametrize(("bill_failures", "good"), [(False, 5), (True, 3)])
async def test_an_empty_purse_answers_439_until_topped_up(
    sim: Simulator, client: Client, bill_failures: bool, good: int
) -> None:
    sim.script(
        {"set": {"balance": 5, "bill_failures": bill_failures}}, {"outcome": "417", "shop": "a", "pages": 2, "times": 2}
    )
    codes = [(await client.get(page=2))[0] for _ in range(2)] + [(await client.get())[0] for _ in range(8)]
    assert codes == [417, 417] + [200] * good + [439] * (8 - good)
    token = sim.calls()["tokens"]["t"]
    assert (token["billed"], token["after_439"]) == (5, 7 - good)
    assert (await client.control("POST", "topup", {"token": "t", "calls": 1}))["left"] == {"t": 1}
    assert [(await client.get())[0] for _ in range(2)] == [200, 439]
    assert sim.calls()["tokens"]["t"]["after_439"] == 7 - good


async def test_sticky_417_hits_the_same_shops_every_time(client: Client) -> None:
    async with Simulator(shops=40, sticky_417=0.3) as sim, aiohttp.ClientSession() as session:
        asker = Client(sim, session)
        rounds = [[(await asker.get(shop))[0] for shop in sim.market.shops] for _ in range(2)]
    assert rounds[0] == rounds[1]
    assert 4 <= rounds[0].count(417) <= 22


async def test_the_ledger_counts_calls_by_shop_and_page_and_repeats(sim: Simulator, client: Client) -> None:
    sim.script({"outcome": "500", "shop": "a", "pages": 2, "times": 1})
    for page in (1, 2, 2, 2, 3):
        await client.get(page=page)
    calls = sim.calls()
    assert (calls["total"], calls["repeated"], calls["outcomes"]) == (5, 1, {"200": 4, "500": 1})
    assert calls["injected"] == {"500": 1}
    assert calls["max_per_second"] == calls["tokens"]["t"]["max_per_second"] <= 5
    assert 0 < calls["first_at"] <= calls["last_at"]
    shop = sim.calls("a")
    assert shop["outcomes"] == {"200": 4, "500": 1}
    assert shop["pages"] == {
        "1": {"calls": 1, "delivered": 1},
        "2": {"calls": 3, "delivered": 2},
        "3": {"calls": 1, "delivered": 1},
    }
    await client.control("POST", "reset")
    assert sim.calls()["total"] == 0
    assert sim.calls("a")["pages"] == {}


async def test_the_same_page_of_another_selection_is_no_repeat(sim: Simulator, client: Client) -> None:
    await client.get(sort="time_up")
    await client.get(sort="time_up", price_start="1")
    assert sim.calls()["repeated"] == 0


async def test_the_control_endpoint_is_outside_every_count(sim: Simulator, client: Client) -> None:
    assert await client.control("GET", "shops") == list(sim.market.shops)
    assert (await client.control("GET", "shops?sizes"))["a"] == 45
    assert len(await client.control("GET", "truth")) == sum(sim.control.shops().values())
    assert [row["item"] for row in await client.control("GET", "truth?shop=a&items=0")] == [None] * 45
    rules = await client.control("POST", "script", [{"outcome": "417", "times": 1}, {"set": {"latency": 0.001}}])
    assert rules == {"rules": [1]}
    state = await client.control("GET", "script")
    assert (state["switches"]["latency"], state["rules"][0]["outcome"]) == (0.001, "417")
    await client.control("POST", "script", {"clear": True})
    assert (await client.control("GET", "script"))["rules"] == []
    calls = await client.control("GET", "calls")
    assert (calls["total"], calls["tokens"]) == (0, {})


@pytest.mark.parametrize(
    ("directive", "complaint"),
    [
        ({"outcome": "418"}, "unknown outcome"),
        ({"outcome": "417", "page": 3}, "page"),
        ({"outcome": "417", "shop": "nobody"}, "unknown shop"),
        ({"set": {"lattency": 1}}, "lattency"),
        ({"set": {"gate": 1}, "shop": "a"}, "gate"),
        ({"change": {"appear": 1}}, "no directive"),
        ("clear", "JSON object"),
    ],
)
async def test_the_control_endpoint_says_what_it_cannot_do(client: Client, directive: Any, complaint: str) -> None:
    assert complaint in (await client.control("POST", "script", directive))["error"]


async def test_gzip_is_used_only_when_switched_on_and_accepted(sim: Simulator) -> None:
    async def encoding(accepted: str) -> str | None:
        headers = {"Accept-Encoding": accepted}
        query = {"apiToken": "t", "member_id": "a"}
        async with (
            aiohttp.ClientSession() as session,
            session.get(sim.url + PATH, params=query, headers=headers) as got,
        ):
            assert (await got.json())["code"] == 200
            return got.headers.get("Content-Encoding")

    assert await encoding("gzip") is None
    sim.script({"set": {"gzip": True}})
    assert await encoding("gzip, br") == "gzip"
    assert await encoding("identity") is None


async def test_latency_can_hold_for_one_shop_only(sim: Simulator, client: Client) -> None:
    sim.script({"set": {"latency": 30}, "shop": "full"})
    slow = asyncio.create_task(client.get("full"))
    await until(lambda: sim.calls()["in_flight"] == 1)
    assert (await client.get("a"))[0] == 200
    assert not slow.done()
    slow.cancel()


async def test_the_journal_tells_what_each_answer_showed_and_what_moved_in_between() -> None:
    options: dict[str, Any] = {"shops": 0, "extra": [("a", 30)], "journal": True}
    async with Simulator(**options) as sim, aiohttp.ClientSession() as session:
        client = Client(sim, session)
        _, first = await client.get("a", 2, sort="time_up")
        sim.script({"change": {"reprice": [first["data"]["items"][0]["item_id"]]}, "shop": "a"})
        sim.script({"outcome": "html200", "times": 1}, {"outcome": "short", "rows": 3, "times": 1})
        await client.get("a", 2, sort="time_up")
        _, third = await client.get("a", 2, sort="time_up")
        story = sim.journal()
    assert [entry.get("delivered") for entry in story] == [True, None, False, True]
    assert story[1]["move"] == "reprice"
    for body, entry in ((first, story[0]), (third, story[3])):
        assert body["request_id"] == str(entry["number"])
        assert entry["items"] == [[item["item_id"], item["price"]] for item in body["data"]["items"]]
        assert (entry["shop"], entry["page"], entry["size"], entry["sort"]) == ("a", 2, 20, "time_up")
        assert entry["total"] == 30
    assert [len(entry["items"]) for entry in (story[0], story[3])] == [10, 3]


async def test_hidden_items_are_neither_listed_nor_counted(sim: Simulator, client: Client) -> None:
    sim.script({"set": {"hidden": 0.5}, "shop": "a"})
    _, body = await client.get("a", 2, sort="time_up")
    assert (body["data"]["total_count"], len(body["data"]["items"])) == ("23", 3)
    assert "request_id" not in body
    sim.script({"clear": True})
    assert len(await client.ids("a", 3)) == 5
