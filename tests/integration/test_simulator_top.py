"""What a client of the simulated Taobao platform sees, over real HTTP, and what the simulator remembers of it."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import datetime, timedelta, timezone
from typing import Any
from xml.etree import ElementTree

import aiohttp
import pytest

from tests.simulator.app import Simulator
from tests.simulator.top.client import WRAPPER, Client, sign
from tests.top_vectors import CHINESE, CHINESE_SIGNS

GMT8 = timezone(timedelta(hours=8))


@pytest.fixture
async def sim() -> AsyncIterator[Simulator]:
    top = {"a": 45, "b": 450, "none": 0, "one": 1, "big": {"items": 60, "big_ids": True}, "卖家": {"items": 5}}
    async with Simulator(shops=0, seed=3, extra=[("a", 45)], top=top) as simulator:
        yield simulator


@pytest.fixture
async def client(sim: Simulator) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession() as http:
        yield Client(sim, http)


@pytest.mark.parametrize("order_by", ["modified:asc", "modified:desc", "list_time:desc", "num:asc", None])
async def test_paging_to_the_end_delivers_exactly_the_truth(sim: Simulator, client: Client, order_by: str) -> None:
    for shop in ("a", "b", "none", "big", "卖家"):
        rows = await client.crawl(shop, size=50, order_by=order_by)
        truth = {row["num_iid"]: row["item"] for row in sim.top_truth(shop)}
        assert len(rows) == len(truth)
        assert {row["num_iid"]: row for row in rows} == truth
        assert {row["nick"] for row in rows} <= {shop}
        assert sim.top_ids(shop) == {"throughout": list(truth), "ever": list(truth)}


async def test_query_and_form_are_merged_and_chinese_text_is_signed_as_utf8(client: Client) -> None:
    params = client.params("b", q="项链", cid=50_000_017)
    query = {name: params.pop(name) for name in ("method", "v", "format", "q")}
    url = f"{client.simulator.url}/router/rest"
    async with client.http.post(url, params=query, data=params) as answer:
        split = json.loads(await answer.text())
    async with client.http.get(url, params=params | query) as answer:
        assert answer.content_type == "text/javascript"
        one = json.loads(await answer.text())
    assert split["items"] == one["items"]
    assert {row["cid"] for row in one["items"]} == {50_000_017}
    assert all("项链" in row["title"] for row in one["items"])


async def test_the_published_chinese_vector_passes_the_gateway() -> None:
    async with (
        Simulator(shops=0, top={"a": {"items": 100, "session": "test"}}) as sim,
        aiohttp.ClientSession() as http,
    ):
        client = Client(sim, http)
        await client.control("POST", "clock", {"set": "2016-01-01T12:00:00"})
        for method, wanted in CHINESE_SIGNS.items():
            _, _, text = await client.raw(CHINESE | {"sign_method": method, "sign": wanted})
            assert all("项链" in row["title"] for row in json.loads(text)["items"])
            _, _, text = await client.raw(CHINESE | {"sign_method": method, "sign": wanted, "q": "手链"})
            assert json.loads(text)["error_response"]["code"] == 25


async def test_answers_come_as_xml_unless_json_is_asked_and_simplified_on_demand(client: Client) -> None:
    status, kind, text = await client.raw(client.params("a", format=None, page_size=3))
    root = ElementTree.fromstring(text)
    assert (status, kind, root.tag, root.findtext("total_results")) == (200, "text/xml", WRAPPER, "45")
    plain = (await client.get(page_size=3, simplify=None))[WRAPPER]
    simple = await client.get(page_size=3)
    assert plain["items"]["item"] == simple["items"]
    assert [item.findtext("title") for item in root.iterfind("items/item")] == [row["title"] for row in simple["items"]]
    status, kind, text = await client.raw(client.params("a", format=None, session="x"))
    assert (status, kind) == (200, "text/xml")
    assert ElementTree.fromstring(text).findtext("code") == "27"


async def test_only_requested_fields_come_back(sim: Simulator, client: Client) -> None:
    rows = (await client.get(fields="num_iid,price,modified"))["items"]
    assert {tuple(row) for row in rows} == {("num_iid", "price")}
    sim.script({"set": {"top_fields": "narrow", "top_invalid_code": 50}})
    assert await client.error() == (50, "isv.invalid-parameter:fields")
    assert len((await client.get(fields="num_iid,title,nick,cid"))["items"]) == 40


async def test_windows_by_modified_time_are_exact_to_the_second(sim: Simulator, client: Client) -> None:
    truth = {row["num_iid"]: datetime.fromisoformat(row["modified"]) for row in sim.top_truth("b")}
    moments = sorted(truth.values())
    since, until = (moments[at].astimezone(GMT8).strftime("%Y-%m-%d %H:%M:%S") for at in (100, 300))
    body = await client.get("b", start_modified=since, end_modified=until, page_size=200)
    expected = [num_iid for num_iid, at in truth.items() if moments[100] <= at <= moments[300]]
    assert (body["total_results"], len(expected)) == (len(expected), 201)
    assert {row["num_iid"] for row in body["items"]} <= set(expected)
    sim.script({"set": {"top_end_exclusive": True}})
    assert (await client.get("b", start_modified=since, end_modified=until))["total_results"] == 200


async def test_pages_beyond_the_window_are_refused_whatever_there_is(sim: Simulator, client: Client) -> None:
    sim.script({"set": {"top_window": 300}})
    assert len((await client.get("b", page_no=1, page_size=200))["items"]) == 200
    assert await client.error("b", page_no=2, page_size=200) == (41, "isv.invalid-parameter:gain-number-too-large")


@pytest.mark.parametrize("backwards", [False, True])
async def test_editing_while_paged_loses_rows_forwards_and_none_backwards(
    sim: Simulator, client: Client, backwards: bool
) -> None:
    sim.script({"set": {"top_edits": 3.0}, "shop": "b"})
    end = datetime.fromtimestamp(sim.world.clock.now() - 120, GMT8).strftime("%Y-%m-%d %H:%M:%S")
    rows = await client.crawl("b", size=20, backwards=backwards, end_modified=end)
    truth = sim.top_truth("b")
    edited = {row["num_iid"] for row in truth if row["edited"]}
    missing = {row["num_iid"] for row in truth} - {row["num_iid"] for row in rows} - edited
    assert len(edited) > 50
    assert all(row["always_present"] for row in truth)
    assert bool(missing) is not backwards


async def test_edits_are_equal_for_equal_seeds_and_change_prices_as_switched() -> None:
    async def crawl(seed: int, price: float) -> tuple[list[Any], list[int]]:
        switches: dict[str, Any] = {"top_edits": 2.5, "top_appear": 0.3, "top_vanish": 0.3, "top_edit_price": price}
        async with Simulator(shops=0, seed=seed, top={"a": 400}, **switches) as sim, aiohttp.ClientSession() as http:
            rows = await Client(sim, http).crawl("a", size=20)
            return rows, [row["num_iid"] for row in sim.top_truth("a") if row["edited"] or not row["always_present"]]

    first, again, other, calm = [await crawl(*case) for case in ((1, 1.0), (1, 1.0), (2, 1.0), (1, 0.0))]
    assert first == again
    assert first[1] != other[1]
    assert first[1] == calm[1]
    assert [row["price"] for row in first[0]] != [row["price"] for row in calm[0]]


async def test_goods_change_on_demand_and_truth_tells(sim: Simulator, client: Client) -> None:
    rows = (await client.get(page_size=3))["items"]
    change = {"edit": [rows[0]["num_iid"]], "vanish": [rows[1]["num_iid"]], "appear": 2}
    sim.script({"top": {"change": change, "shop": "a"}})
    truth = {row["num_iid"]: row for row in sim.top_truth("a")}
    assert len(truth) == 47
    assert truth[rows[0]["num_iid"]]["edited"] == 1
    assert truth[rows[0]["num_iid"]]["item"]["price"] != rows[0]["price"]
    assert not truth[rows[1]["num_iid"]]["present"]
    ids = await client.control("GET", "top/truth?shop=a&ids=1")
    assert (len(ids["ever"]), len(ids["throughout"])) == (47, 44)
    assert (await client.get())["total_results"] == 46
    sim.script({"top": {"change": {"restore": 1}, "shop": "a"}})
    assert (await client.get())["total_results"] == 47


async def test_empty_results_look_as_switched(sim: Simulator, client: Client) -> None:
    looks: dict[str, Any] = {"list": [], "object": {}, "array": [], "missing": None}
    for name, items in looks.items():
        sim.script({"set": {"top_empty": name}})
        body = await client.get("none")
        assert (body["total_results"], body.get("items")) == (0, items)
    sim.script({"top": {"outcome": "empty_page", "shop": "a", "pages": 1, "times": 1}})
    body = await client.get("a")
    assert (body["total_results"], "items" in body) == (45, False)
    sim.script({"set": {"top_single_object": True, "top_raw_control": True}})
    assert isinstance((await client.get("one"))["items"], dict)


async def test_raw_control_characters_stand_in_titles(sim: Simulator, client: Client) -> None:
    sim.script({"set": {"top_raw_control": True}})
    _, _, text = await client.raw(client.params("b", page_size=200))
    with pytest.raises(json.JSONDecodeError):
        json.loads(text)
    rows = json.loads(text, strict=False)["items"]
    truth = {row["num_iid"]: row["item"] for row in sim.top_truth("b")}
    assert all(row == truth[row["num_iid"]] for row in rows)


async def test_a_session_ends_for_one_seller_only_and_a_new_one_works(sim: Simulator, client: Client) -> None:
    old = sim.top_sessions()["a"]
    sim.script({"top": {"expire": ["a"], "after": 2, "sub_code": "invalid-sessionkey"}})
    assert [len((await client.get())["items"]) for _ in range(2)] == [40, 40]
    assert await client.error() == await client.error() == (27, "invalid-sessionkey")
    assert (await client.get("b"))["total_results"] == 450
    assert await client.error(session=None) == (26, "")
    await client.control("POST", "script", {"top": {"renew": ["a"]}})
    shops = await client.control("GET", "top/shops")
    assert shops["a"]["session"] == sim.top_sessions()["a"] != old
    assert shops["a"]["items"] == 45
    assert (await client.get())["total_results"] == 45
    assert await client.error(session=old) == (27, "invalid-sessionkey")
    assert sim.top_calls("a")["outcomes"] == {"200": 3, "27/invalid-sessionkey": 3}


async def test_a_mixed_up_session_shows_the_other_sellers_goods(sim: Simulator, client: Client) -> None:
    sim.script({"top": {"mixup": {"a": "b"}}})
    body = await client.get("a")
    assert (body["total_results"], {row["nick"] for row in body["items"]}) == (450, {"b"})
    sim.script({"top": {"mixup": {"a": "a"}}})
    assert {row["nick"] for row in (await client.get("a"))["items"]} == {"a"}


async def test_other_apps_have_their_own_sessions(sim: Simulator, client: Client) -> None:
    sim.script({"set": {"top_apps": {"second": "s3cret"}}})
    token = (await client.control("GET", "top/shops"))["a"]["sessions"]["second"]
    params = client.params("a", app_key="second", session=token)
    del params["sign"]
    _, _, text = await client.raw(params | {"sign": sign(params, "s3cret")})
    assert json.loads(text)["total_results"] == 45
    params["session"] = sim.top_sessions()["a"]
    _, _, text = await client.raw(params | {"sign": sign(params, "s3cret")})
    assert json.loads(text)["error_response"]["sub_code"] == "sessionkey-not-generated-by-server"


async def test_a_long_ban_counts_down_on_the_virtual_clock_and_its_calls_are_counted(
    sim: Simulator, client: Client
) -> None:
    sim.script({"top": {"ban": {"scope": "app_daily", "seconds": 31062, "after": 1}}})
    assert (await client.get())["total_results"] == 45
    body = (await client.get())["error_response"]
    assert (body["code"], body["sub_code"]) == (7, "accesscontrol.limited-by-app-access-count")
    assert body["sub_msg"] == "This ban will last for 31062 more seconds"
    sim.advance(31_000)
    left = int((await client.get("b"))["error_response"]["sub_msg"].split()[-3])
    assert 0 < left <= 62
    await client.control("POST", "clock", {"advance": 62})
    assert (await client.get("b"))["total_results"] == 450
    calls = sim.top_calls()
    assert (calls["during_ban"], calls["during_ban_in_flight"], calls["after_ban_learned"]) == (2, 1, 1)
    assert calls["bans"][0]["calls"] == sim.top_calls("a")["during_ban"] + sim.top_calls("b")["during_ban"] == 2
    assert calls["outcomes"] == {"200": 2, "7/accesscontrol.limited-by-app-access-count": 2}


async def test_calls_in_flight_when_a_ban_is_learned_are_counted(sim: Simulator, client: Client) -> None:
    sim.script(
        {"set": {"top_latency": 1.0}, "shop": "b"}, {"top": {"ban": {"scope": "api", "seconds": 60, "after": 5}}}
    )
    slow = [asyncio.create_task(client.get("b")) for _ in range(5)]
    async with asyncio.timeout(10):
        while True:
            if sim.top_calls()["in_flight"] == 5:
                break
            await asyncio.sleep(0.005)
    assert (await client.error("a"))[0] == 7
    assert all("items" in body for body in await asyncio.gather(*slow))
    calls = sim.top_calls()
    assert (calls["during_ban"], calls["during_ban_in_flight"], calls["max_in_flight"]) == (1, 6, 6)


async def test_too_many_calls_a_second_begin_a_ban_by_themselves(sim: Simulator, client: Client) -> None:
    sim.script({"set": {"top_qps": 5, "top_qps_ban": 2.0}})
    bodies = await asyncio.gather(*(client.get() for _ in range(12)))
    refused = [body["error_response"] for body in bodies if "error_response" in body]
    assert {body["sub_code"] for body in refused} == {"accesscontrol.limited-by-app-api-access-count"}
    assert sim.top_calls()["during_ban"] == len(refused) > 0
    sim.script({"set": {"top_qps": 0}}, {"top": {"lift": True}})
    assert (await client.get())["total_results"] == 45


@pytest.mark.parametrize(
    ("stamp", "code"), [(-540, None), (540, None), (-660, 31), (660, 31), (-8 * 3600, 31)], ids=str
)
async def test_a_clock_may_be_nine_minutes_off_and_not_eleven(
    sim: Simulator, client: Client, stamp: int, code: int | None
) -> None:
    moment = datetime.fromtimestamp(sim.world.clock.now() + stamp, GMT8).strftime("%Y-%m-%d %H:%M:%S")
    body = await client.get(timestamp=moment)
    assert body.get("error_response", {}).get("code") == code
    sim.advance(86_400)
    assert (await client.error(timestamp=moment))[0] == 31
    sim.script({"set": {"top_timestamps": "real"}})
    assert (await client.get(timestamp=moment)).get("error_response", {}).get("code") == code


async def test_a_signed_call_sent_again_is_refused_when_switched(sim: Simulator, client: Client) -> None:
    sim.script({"set": {"top_replay": 2}})
    params = client.params("a")
    texts = [(await client.raw(params))[2] for _ in range(3)]
    assert ["isv.request-replay-error" in text for text in texts] == [False, False, True]
    assert (await client.get(page_size=7))["total_results"] == 45


async def test_control_requests_that_cannot_be_done_say_why(client: Client) -> None:
    for directive, reason in [
        ({"top": {"expire": ["nobody"]}}, "unknown seller 'nobody'"),
        ({"top": {"outcome": "isp", "shop": "nobody"}}, "unknown seller"),
        ({"top": {"outcome": "nonsense"}}, "unknown outcome"),
        ({"top": {"ban": {"scope": "moon"}}}, "moon"),
        ({"top": {"mixup": {"a": "nobody"}}}, "unknown seller"),
        ({"top": {"change": {"vanish": [17]}, "shop": "a"}}, "17"),
        ({"top": {"change": {"appear": 1}}}, "unknown seller None"),
        ({"top": {"dance": 1}}, "give one of"),
        ({"top": {"ban": {}, "shop": "a"}}, "do not go with"),
        ({"top": 5}, "JSON object"),
        ({"set": {"top_edits": -1}}, "edits"),
        ({"set": {"top_replay": 1}, "shop": "a"}, "not switchable per shop"),
    ]:
        assert reason in (await client.control("POST", "script", directive))["error"]
    assert "unknown seller" in (await client.control("GET", "top/truth"))["error"]
    assert "unknown seller" in (await client.control("GET", "top/calls?shop=x"))["error"]
    assert "error" in await client.control("POST", "clock", {"advance": "far"})


async def test_figures_start_anew_after_a_reset_and_switches_can_be_read(sim: Simulator, client: Client) -> None:
    await client.get()
    await client.get()
    calls = sim.top_calls()
    assert (calls["total"], calls["pages_delivered"], calls["rows_delivered"], calls["repeated"]) == (2, 2, 80, 1)
    assert calls["shops"] == {"a": 2}
    assert sim.calls()["total"] == 0
    await client.control("POST", "reset")
    assert sim.top_calls()["total"] == sim.top_calls("a")["total"] == 0
    sim.script({"set": {"top_edits": 2}}, {"top": {"outcome": "isp", "times": 2}})
    state = await client.control("GET", "top/script")
    assert (state["switches"]["edits"], state["rules"][0]["outcome"]) == (2, "isp")
    sim.script({"top": {"clear": True}})
    assert (await client.control("GET", "top/script"))["rules"] == []
    assert (await client.control("GET", "clock"))["gmt8"][:2] == "20"
