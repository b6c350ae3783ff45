"""The simulated market is realistic, and the same for the same seed."""

import io
import json
from datetime import datetime
from decimal import Decimal
from random import Random

import pytest

from tests.simulator.catalogue import Shop, build_shops, write_shops
from tests.simulator.items import ItemFactory
from tests.simulator.listing import Listing, Selection
from tests.simulator.market import Change, Market
from tests.simulator.outcomes import ScriptError
from tests.simulator.switches import Switches, build_switches


def sizes(**options: int) -> dict[str, int]:
    shops = build_shops(options.pop("seed", 1), options.pop("shops", 1000), **options)  # type: ignore[arg-type]
    return {key: len(shop.alive) for key, shop in shops.items()}


def test_equal_seeds_give_equal_shops_and_other_seeds_give_others() -> None:
    assert sizes(seed=7) == sizes(seed=7)
    assert not sizes(seed=7).keys() & sizes(seed=8).keys()


def test_the_skewed_profile_has_about_5000_pages_of_very_unequal_shops() -> None:
    drawn = list(sizes().values())
    assert 4_500 <= sum(max(1, -(-size // 20)) for size in drawn) <= 5_600
    assert drawn.count(0) == 20
    assert sum(size > 2_000 for size in drawn) >= 5
    assert sum(size <= 40 for size in drawn) > 500
    assert sum(size > 0 and size % 20 == 0 for size in drawn) >= 100


def test_shop_keys_come_in_both_shapes() -> None:
    keys = list(sizes(shops=10))
    assert sum(key.startswith("b2b-") for key in keys) == 5
    assert len(set(keys)) == 10


def test_sizes_stay_within_the_asked_bounds() -> None:
    assert set(sizes(shops=50, items_min=3, items_max=5).values()) <= {3, 4, 5}


def test_the_shops_file_lists_every_shop_under_a_header() -> None:
    out = io.StringIO()
    write_shops(build_shops(1, 2, extra=[("exact", 45)]), out)
    assert out.getvalue().splitlines()[:2] == ["shop", "exact"]
    assert len(out.getvalue().splitlines()) == 4


def test_an_item_has_the_vendors_fields_and_types() -> None:
    item = json.loads(ItemFactory(1).render(3, 7, 0))
    assert list(item) == [
        *("item_id", "title", "img", "main_imgs", "video_id", "category_path", "category_name", "price", "price_info"),
        *("quantity_begin", "new_product", "sale_info", "primary_rank_score", "type", "unit", "created_time", "status"),
    ]
    texts = [item["item_id"], item["price"], item["quantity_begin"], item["primary_rank_score"], item["video_id"]]
    assert all(isinstance(text, str) for text in [*texts, *item["price_info"].values(), *item["sale_info"].values()])
    assert isinstance(item["new_product"], bool)
    assert len(item["main_imgs"]) == 4
    assert "!!" in item["img"]
    assert datetime.fromisoformat(item["created_time"]).utcoffset() is not None


def test_full_pages_are_about_21_kilobytes() -> None:
    page = b",".join(ItemFactory(1).render(3, index, 0) for index in range(20))
    assert 19_000 < len(page) < 23_000


def test_item_ids_are_unique_over_shops_and_9_to_13_digits_long() -> None:
    factory = ItemFactory(5)
    ids = [factory.item_id(shop, index) for shop in range(200) for index in range(200)]
    assert len(set(ids)) == len(ids)
    assert {len(str(item)) for item in ids} == {9, 10, 11, 12, 13}


def test_every_item_is_valid_json_and_some_titles_are_awkward() -> None:
    factory = ItemFactory(2)
    titles = [json.loads(factory.render(1, index, 0))["title"] for index in range(3000)]
    for sign in ('"', "\\", "\t", "😍", "<b>"):
        assert any(sign in title for title in titles)


def test_creation_times_never_decrease_with_the_index() -> None:
    factory = ItemFactory(1)
    times = [json.loads(factory.render(4, index, 0))["created_time"] for index in range(300)]
    assert times == sorted(times)


def test_money_of_equal_value_is_written_in_different_scales() -> None:
    factory = ItemFactory(1)
    pairs = [json.loads(factory.render(1, index, 0)) for index in range(200)]
    assert any(
        item["price"] != item["price_info"]["origin_price"]
        and Decimal(item["price"]) == Decimal(item["price_info"]["origin_price"])
        for item in pairs
    )


def test_variants_drop_null_or_empty_optional_parts_of_the_asked_share() -> None:
    factory = ItemFactory(1)
    plain = [json.loads(factory.render(1, index, 0)) for index in range(1000)]
    varied = [json.loads(factory.render(1, index, 0, 0.2)) for index in range(1000)]
    changed = [item for before, item in zip(plain, varied, strict=True) if before != item]
    assert 150 < len(changed) < 250
    assert any("price_info" not in item for item in changed)
    assert any(item.get("quantity_begin", 1) is None for item in changed)
    assert all(item["item_id"] == before["item_id"] for before, item in zip(plain, varied, strict=True))


def test_versions_of_an_item_differ_in_price_and_sales_only() -> None:
    factory = ItemFactory(1)
    prices = {factory.price(1, 5, version) for version in range(50)}
    assert len(prices) == 50
    first, second = (json.loads(factory.render(1, 5, version)) for version in (0, 1))
    assert {key for key in first if first[key] != second[key]} <= {"price", "price_info", "sale_info"}
    assert first["price"] != second["price"]


@pytest.fixture
def market() -> Market:
    return Market(1, build_shops(1, 0, extra=[("a", 60), ("b", 0)]), Switches())


def rows(market: Market, **selection: str) -> list[int]:
    return list(market.listing.rows(market.shops["a"], Selection(**selection)))


def test_time_orders_are_the_order_of_creation_and_its_reverse(market: Market) -> None:
    assert rows(market) == list(range(60))
    assert rows(market, sort="time_down") == list(range(60))[::-1]


def test_price_orders_follow_the_price(market: Market) -> None:
    prices = [market.factory.price(0, index, 0) for index in rows(market, sort="price_up")]
    assert prices == sorted(prices)
    prices = [market.factory.price(0, index, 0) for index in rows(market, sort="price_down")]
    assert prices == sorted(prices, reverse=True)


def test_filters_select_exactly_the_matching_items(market: Market) -> None:
    category = market.factory.categories(0, 0)[0]
    expected = [index for index in range(60) if category in market.factory.categories(0, index)]
    assert rows(market, category=category) == expected
    cheap = [index for index in range(60) if 1000 <= market.factory.price(0, index, 0) <= 3000]
    assert rows(market, price_start="10", price_end="30.00") == cheap


def test_a_popularity_order_moves_when_shuffled_and_keeps_its_items(market: Market) -> None:
    before = rows(market, sort="sales")
    market.reorder(market.shops["a"], Selection("sales"), 0.5, [0.5] * 8)
    assert rows(market, sort="sales") != before
    assert sorted(rows(market, sort="sales")) == sorted(before)


def test_orders_follow_the_goods(market: Market) -> None:
    shop = market.shops["a"]
    rows(market, sort="price_up")
    index = shop.appear(call=5)
    assert index in rows(market, sort="price_up")


def test_remembered_orders_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.simulator.listing._KEPT_ENTRIES", 250)
    listing = Listing(ItemFactory(1))
    for number in range(10):
        assert len(listing.rows(Shop(f"s{number}", number, 100), Selection("sales"))) == 100
    assert listing._entries <= 250


def truth(market: Market) -> list[dict[str, object]]:
    return [json.loads(line) for line in market.truth(market.shops["a"])]


def test_truth_tells_what_came_went_and_changed_and_when(market: Market) -> None:
    shop = market.shops["a"]
    shop.vanish(3, call=11)
    shop.reprice(4, call=12)
    new = shop.appear(call=13)
    shop.vanish(5, call=14)
    shop.restore(5)
    rows = truth(market)
    assert len(rows) == 61
    assert (rows[3]["vanished_at_call"], rows[3]["on_sale"], rows[3]["always_present"]) == (11, False, False)
    assert [version["from_call"] for version in rows[4]["versions"]] == [0, 12]  # type: ignore[attr-defined]
    assert rows[4]["versions"][-1]["price"] == rows[4]["item"]["price"]  # type: ignore[index]
    assert (rows[new]["appeared_at_call"], rows[new]["always_present"]) == (13, False)
    assert (rows[5]["on_sale"], rows[5]["always_present"]) == (True, False)
    assert rows[0]["always_present"]
    assert 5 in shop.alive
    assert list(shop.alive) == sorted(shop.alive)


def test_churn_keeps_its_rates_over_many_pages(market: Market) -> None:
    shop = market.shops["a"]
    switches = Switches(appear=0.5, vanish=0.25, reprice=1.5)
    for call in range(400):
        market.churn(shop, switches, [0.0] * 5 + [call / 400, 0.0, 0.0], call)
    lives = shop.lives.values()
    assert 150 < sum(life.appeared_at is not None for life in lives) < 250
    assert 60 < sum(life.vanished_at is not None for life in lives) < 140
    assert 500 < sum(len(life.repriced_at) for life in lives) < 700


def test_churn_brings_items_back_at_its_rate_and_to_their_places(market: Market) -> None:
    shop = market.shops["a"]
    for call in range(400):
        market.churn(shop, Switches(vanish=0.25, restore=0.25), [0.0] * 5 + [call / 400, 0.0, 0.0], call)
    assert sum(life.was_away for life in shop.lives.values()) > 50
    assert len(shop.vanished()) < 40  # all sixty if none came back
    assert list(shop.alive) == sorted(set(range(60)) - set(shop.vanished()))


def test_the_journal_is_kept_only_when_switched_on(market: Market) -> None:
    shop, draw = market.shops["a"], Random(1)
    market.change(shop, Change(vanish=1), 1, draw)
    market.board.change({"journal": True})
    market.change(shop, Change(vanish=1, reprice=1, restore=2, appear=1), 2, draw)
    moves = [json.loads(line) for line in market.story()]
    assert [move["move"] for move in moves] == ["vanish", "reprice", "restore", "restore", "appear"]
    assert [move["number"] for move in moves] == [1, 2, 3, 4, 5]
    assert moves[-1]["item_id"] == str(market.factory.item_id(0, 60))


def test_a_change_by_item_id_hits_that_item_or_fails(market: Market) -> None:
    shop = market.shops["a"]
    item = str(market.factory.item_id(0, 9))
    draw = Random(1)
    market.change(shop, Change(vanish=[item]), 1, draw)
    assert shop.vanished() == [9]
    with pytest.raises(ScriptError, match=item):
        market.change(shop, Change(vanish=[item]), 1, draw)


@pytest.mark.parametrize(
    "values",
    [
        {"gait": 3},
        {"gate": -1},
        {"beyond_end": "maybe"},
        {"latency_tail": 0.5},
        {"faults": {"418": 0.1}},
        {"faults": {"417:smoke": 0.1}},
        {"faults": {"417": 0.6, "500": 0.6}},
    ],
)
def test_switches_that_make_no_sense_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ScriptError):
        build_switches(values)
