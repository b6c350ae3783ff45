"""What a sighting says otherwise than the store, and which events that makes, decided without a database."""

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.changes import Change
from models.items import FIGURES, VALUES, Sighting, changes_of, content_hash, difference, same, sighting_of, waves
from models.ledger import PageResult, with_page
from models.messages import PageTask
from models.settings import TRACKABLE_FIELDS, TRACKED_FIELDS
from models.source import FetchedPage, Item
from models.tables import item, item_seen, item_version

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
CHINA = timezone(timedelta(hours=8))


def seen(item_id: str, at: float = 0, *, shop: int = 1, **fields: Any) -> Sighting:
    item = Item(item_id=item_id, **fields)
    return sighting_of(item, shop_id=shop, shop_crawl_id=10, seen_at=NOON + timedelta(seconds=at))


STORED = dict.fromkeys(VALUES) | {
    "title": "cup",
    "price": Decimal("3.900000"),
    "agent_price": Decimal("3.5"),
    "images": ["a", "b"],
    "category_id": "7",
    "category_path": ["1", "7"],
    "created_time": NOON,
    "extra": {"a": [1, 2.5]},
}


@pytest.mark.parametrize(
    ("sent", "tracked", "rest"),
    [
        ({}, {}, {}),
        (
            {"title": "cup", "price": Decimal("3.9"), "created_time": NOON.astimezone(timezone(timedelta(hours=8)))},
            {},
            {},
        ),
        ({"price": Decimal("3.9000004")}, {}, {}),
        ({"price": Decimal("3.9000005")}, {"price": (Decimal("3.9"), Decimal("3.9000005"))}, {}),
        ({"price": Decimal("0")}, {"price": (Decimal("3.9"), Decimal("0"))}, {}),
        ({"title": "", "images": []}, {"title": ("cup", ""), "images": (["a", "b"], [])}, {}),
        ({"images": ["b", "a"]}, {"images": (["a", "b"], ["b", "a"])}, {}),
        ({"stock": 0}, {"stock": (None, 0)}, {}),
        ({"extra": {"a": [1, 2.5]}, "sold_30d": 9}, {}, {}),
        ({"extra": {}, "new_product": False}, {}, {"extra": ({"a": [1, 2.5]}, {}), "new_product": (None, False)}),
    ],
)
def test_a_difference_is_a_field_that_was_sent_and_has_another_value(
    sent: dict[str, Any], tracked: dict[str, Any], rest: dict[str, Any]
) -> None:
    found = difference(STORED, seen("1", **sent), TRACKED_FIELDS)
    assert (found.tracked, found.rest, found.back) == (tracked, rest, False)


def test_which_fields_leave_a_version_is_a_setting() -> None:
    found = difference(STORED, seen("1", title="mug", extra={}), ["extra"])
    assert (set(found.tracked), set(found.rest)) == ({"extra"}, {"title"})


def test_fields_of_one_kind_make_one_change_with_only_what_changed() -> None:
    sighting = seen("1", 5, title="mug", price=Decimal("4.50"), agent_price=Decimal(4), category_id="8", images=[])
    found = difference(STORED, sighting, TRACKED_FIELDS, back=True)
    common: dict[str, Any] = {"shop_id": 1, "item_id": "1", "at": NOON + timedelta(seconds=5), "shop_crawl_id": 10}
    assert {change.kind: change for change in changes_of(found)} == {
        "back": Change(kind="back", **common),
        "title": Change(kind="title", before={"title": "cup"}, after={"title": "mug"}, **common),
        "price": Change(
            kind="price",
            before={"price": Decimal("3.9"), "agent_price": Decimal("3.5")},
            after={"price": Decimal("4.5"), "agent_price": Decimal(4)},
            **common,
        ),
        "category": Change(kind="category", before={"category_id": "7"}, after={"category_id": "8"}, **common),
        "image": Change(kind="image", before={"images": ["a", "b"]}, after={"images": []}, **common),
    }


@pytest.mark.parametrize(
    ("stored", "sent", "equal"),
    [
        (None, Decimal(1), False),
        (Decimal("1E+3"), Decimal("1000.00"), True),
        (Decimal("-0.0000005"), Decimal("-0.000001"), True),
        (1, True, True),
        ("1", 1, False),
    ],
)
def test_values_are_the_same_if_the_database_keeps_them_alike(stored: Any, sent: Any, equal: bool) -> None:
    assert same(stored, sent) is equal


@pytest.mark.parametrize("field", VALUES)
def test_every_value_has_its_part_in_the_hash_and_no_figure_has(field: str) -> None:
    values: list[Any] = [None, Decimal(0), Decimal("0.01")] if field.endswith("price") else [None, "a", "b"]
    if field == "created_time":
        values = [None, NOON, NOON + timedelta(seconds=1)]
    assert len({content_hash(Item(item_id="1", **{field: value})) for value in values}) == 3
    figures: list[dict[str, Any]] = [{figure: 1} for figure in FIGURES]
    assert {content_hash(Item(item_id="1", **each)) for each in figures} == {content_hash(Item(item_id="1"))}


def test_values_that_swap_their_fields_have_another_hash() -> None:
    assert content_hash(Item(item_id="1", unit="a", status="b")) != content_hash(
        Item(item_id="1", unit="b", status="a")
    )


def test_the_tables_hold_every_field_and_versions_all_that_can_be_tracked() -> None:
    assert set(FIGURES) | set(VALUES) | {"item_id"} == set(Item.__struct_fields__)
    assert set(VALUES) <= set(item.c.keys())
    assert set(FIGURES) <= set(item_seen.c.keys())
    assert set(TRACKED_FIELDS) <= set(TRACKABLE_FIELDS) == set(VALUES) - {"extra"}
    assert set(TRACKABLE_FIELDS) <= set(item_version.c.keys())


@given(st.decimals(allow_nan=False, allow_infinity=False, places=6, max_value=10**13, min_value=-(10**13)))
def test_a_hash_fits_a_signed_64_bit_column_and_knows_every_decimal(price: Decimal) -> None:
    item = Item(item_id="1", price=price)
    assert -(2**63) <= content_hash(item) < 2**63
    assert content_hash(item) != content_hash(Item(item_id="1", price=price + Decimal("0.000001")))


@given(st.permutations([seen("1", 3), seen("1", 1), seen("2"), seen("0", shop=2), seen("0", 7), seen("1", 2)]))
def test_waves_show_each_item_once_in_the_order_of_time_and_in_one_order_for_all_writers(given: list[Sighting]) -> None:
    found = waves(given)
    assert [[(s.key, s.seen_at) for s in wave] for wave in found] == [
        [
            ((1, "0"), NOON + timedelta(seconds=7)),
            ((1, "1"), NOON + timedelta(seconds=1)),
            ((1, "2"), NOON),
            ((2, "0"), NOON),
        ],
        [((1, "1"), NOON + timedelta(seconds=2))],
        [((1, "1"), NOON + timedelta(seconds=3))],
    ]


def test_of_two_answers_of_one_moment_the_last_one_counts() -> None:
    assert [[s.item.title for s in wave] for wave in waves([seen("1", title="a"), seen("1", title="b")])] == [["b"]]


@given(st.decimals(allow_nan=False, allow_infinity=False, places=6, max_value=10**13, min_value=-(10**13)))
def test_equal_figures_are_equal_texts_and_others_are_not(gmv: Decimal) -> None:
    texts = [
        seen("1", gmv_30d=value).seen for value in (gmv, gmv * 10 / 10, gmv.normalize(), gmv + Decimal("0.000001"))
    ]
    assert bytes(texts[0]) == bytes(texts[1]) == bytes(texts[2]) != bytes(texts[3])


def test_a_sighting_gives_its_item_back() -> None:
    figures = {"gmv_30d": Decimal("0.50"), "sold_30d": 0}
    full: dict[str, Any] = {name: value for name, value in STORED.items() if value is not None} | figures
    sighting = seen("1", **full)
    figured = {name: value for name, value in sighting.figures.items() if value is not None}
    assert msgspec.structs.replace(sighting.item, **figured) == Item(item_id="1", **full)
    assert (seen("1").item, set(seen("1").figures.values())) == (Item(item_id="1"), {None})


@pytest.mark.parametrize("figure", FIGURES)
def test_a_field_nobody_knows_may_be_named_like_a_figure(figure: str) -> None:
    extra = {"a": 1, figure: 2, "b": [f',"{figure}":3'], "c": {"d": 4, figure: 5}}
    known: dict[str, Any] = {"title": f',"{figure}":6', "extra": extra}
    value: dict[str, Any] = {figure: Decimal(7) if figure in {"gmv_30d", "gmv_90d", "rank_score"} else 7}
    sighting = seen("1", **known, **value)
    assert (sighting.item, sighting.figures[figure]) == (Item(item_id="1", **known), 7)
    assert content_hash(Item(item_id="1", **known, **value)) == content_hash(Item(item_id="1", **known))


@pytest.mark.parametrize("value", ["\ud83d", object(), {1.5j}])
def test_a_value_that_no_row_can_hold_makes_its_page_dead_at_once(value: object) -> None:
    task = PageTask("tmapi", "shop", page=1, page_id=1, fence=1, shop_id=1, shop_crawl_id=1, crawl_id=1)
    result = PageResult(task=task, state="done", at=NOON, tries=0, outcome="200", body=b"body")
    dead = with_page(result, FetchedPage([Item(item_id="1", extra={"x": value})]))
    assert (dead.state, dead.page, dead.body, dead.sightings) == ("dead", None, None, [])
    assert str(dead.reason).startswith("cannot be stored: ")
