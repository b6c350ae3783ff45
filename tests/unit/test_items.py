"""When an item counts as new, changed or the same, decided without a database."""

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.items import FIELDS, TRACKED, UNTRACKED, Sighting, content_hash, diff, sighting_of
from models.ledger import PageResult, with_page
from models.messages import PageTask
from models.source import FetchedPage, Item

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def seen(item_id: str, at: float = 0, *, shop: int = 1, **fields: Any) -> Sighting:
    item = Item(item_id=item_id, **fields)
    return sighting_of(item, shop_id=shop, shop_crawl_id=10, seen_at=NOON + timedelta(seconds=at))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"price": Decimal("3.90")}, {"price": Decimal("3.9")}),
        ({"price": Decimal("0")}, {"price": Decimal("0.000000")}),
        ({"price": Decimal("1E+3")}, {"price": Decimal("1000")}),
        ({"created_time": NOON}, {"created_time": NOON.astimezone(timezone(timedelta(hours=8)))}),
        *[({field: 1}, {field: 2}) for field in sorted(UNTRACKED)],
    ],
)
def test_equal_numbers_and_moments_and_moving_figures_are_no_change(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert content_hash(Item(item_id="1", **one)) == content_hash(Item(item_id="1", **other))


@pytest.mark.parametrize("field", TRACKED)
def test_a_change_of_any_tracked_field_is_a_change(field: str) -> None:
    values: list[Any] = [None, "a", "b"]
    if field in {"price", "drop_ship_price", "wholesale_price", "origin_price", "agent_price"}:
        values = [None, Decimal("0"), Decimal("0.01")]
    if field == "created_time":
        values = [None, NOON, NOON + timedelta(seconds=1)]
    assert len({content_hash(Item(item_id="1", **{field: value})) for value in values}) == 3


def test_values_that_swap_their_fields_are_a_change() -> None:
    assert content_hash(Item(item_id="1", unit="a", status="b")) != content_hash(
        Item(item_id="1", unit="b", status="a")
    )
    assert content_hash(Item(item_id="1", images=["a", "b"])) != content_hash(Item(item_id="1", images=["b", "a"]))


def test_every_field_is_either_tracked_or_known_to_move() -> None:
    assert set(TRACKED) | UNTRACKED == set(FIELDS)
    assert set(FIELDS) | {"item_id"} == set(Item.__struct_fields__)


@given(st.decimals(allow_nan=False, allow_infinity=False, places=6, max_value=10**13, min_value=-(10**13)))
def test_a_hash_fits_a_signed_64_bit_column_and_knows_every_decimal(price: Decimal) -> None:
    item = Item(item_id="1", price=price)
    assert -(2**63) <= content_hash(item) < 2**63
    assert content_hash(item) != content_hash(Item(item_id="1", price=price + Decimal("0.000001")))


def test_items_are_sorted_into_new_changed_and_unchanged() -> None:
    sightings = [seen("3", title="c"), seen("1", title="a"), seen("2", title="b"), seen("2", title="b", shop=2)]
    stored = {(1, "1"): content_hash(sightings[1].item), (1, "2"): 0}
    change = diff(stored, sightings)
    assert [s.key for s in change.new] == [(1, "3"), (2, "2")]
    assert [s.key for s in change.changed] == [(1, "2")]
    assert [s.key for s in change.unchanged] == [(1, "1")]


@given(st.permutations([seen("1", 3, title="late"), seen("1", 1, title="early"), seen("2"), seen("0")]))
def test_one_item_seen_twice_is_one_with_the_later_answer_in_an_order_that_all_writers_share(
    sightings: list[Sighting],
) -> None:
    change = diff({}, sightings)
    assert [s.key[1] for s in change.new] == ["0", "1", "2"]
    assert change.new[1].item.title == "late"
    assert not change.changed
    assert not change.unchanged


def test_of_two_answers_of_one_moment_the_last_one_counts() -> None:
    assert diff({}, [seen("1", title="a"), seen("1", title="b")]).new[0].item.title == "b"


@pytest.mark.parametrize("field", TRACKED)
def test_a_sighting_gives_its_item_back_and_knows_whether_a_tracked_field_was_not_sent(field: str) -> None:
    moving = {"gmv_30d": Decimal("0.50"), "sold_30d": 0, "extra": {"深": [1, None, 2.5]}}
    price = {name: Decimal("3.90") for name in TRACKED if name.endswith("price")}
    lists = {"images": ["a"], "category_path": [], "props": [["颜色", "红"]]}
    numbers = {"quantity_begin": 1, "stock": 0, "new_product": False, "created_time": NOON}
    full: dict[str, Any] = dict.fromkeys(TRACKED, "") | price | lists | numbers | moving
    whole, partly = seen("1", **full), seen("1", **full | {field: None})
    assert whole.item == Item(item_id="1", **full)
    assert partly.item == Item(item_id="1", **full | {field: None})
    assert (whole.silent, partly.silent) == (False, True)


@pytest.mark.parametrize("value", ["\ud83d", object(), {1.5j}])
def test_a_value_that_no_row_can_hold_makes_its_page_dead_at_once(value: object) -> None:
    task = PageTask("tmapi", "shop", page=1, page_id=1, fence=1, shop_id=1, shop_crawl_id=1, crawl_id=1)
    result = PageResult(task=task, state="done", at=NOON, tries=0, outcome="200", body=b"body")
    dead = with_page(result, FetchedPage([Item(item_id="1", extra={"x": value})]))
    assert (dead.state, dead.page, dead.body, dead.sightings) == ("dead", None, None, [])
    assert str(dead.reason).startswith("cannot be stored: ")
