"""How TMAPI's items are read: every documented field typed, every oddity kept, nothing invented."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from models.source import FetchedPage, Item
from tests.tmapi_pages import ITEM, PAGE, ROW, WHOLE, decode, item, page


def test_every_field_of_the_vendors_page_is_typed() -> None:
    assert decode(PAGE) == FetchedPage([ITEM], 2465, 20, ())
    price = decode(PAGE).items[0].created_time
    assert price is not None and price.tzinfo is UTC


@pytest.mark.parametrize(
    ("total", "read", "anomalies"),
    [
        ("2465", 2465, ()),
        (2465, 2465, ()),
        (0, 0, ()),
        ("2,465", 2465, ()),
        ("1.5万+", 15_000, ("rounded-total",)),
        ("3500+", 3500, ("rounded-total",)),
        ("2亿", 200_000_000, ("rounded-total",)),
        (None, None, ()),
        ("", None, ()),
        (-1, None, ("bad-total",)),
        (10**9 + 1, None, ("bad-total",)),
        (10**400, None, ("bad-total",)),
        ("9" * 5_000, None, ("bad-total",)),
        ("many", None, ("bad-total",)),
        ("٣", None, ("bad-total",)),
        (True, None, ("bad-total",)),
        ([], None, ("bad-total",)),
        (2.5, None, ("bad-total",)),
    ],
)
def test_totals_are_read_in_every_style(total: Any, read: int | None, anomalies: tuple[str, ...]) -> None:
    fetched = decode(page(total_count=total))
    assert (fetched.total, fetched.anomalies) == (read, anomalies)


@pytest.mark.parametrize(
    ("echo", "read", "anomalies"),
    [(3, 3, ()), ("3", 3, ()), (None, None, ()), (0, None, ("bad-page-size",)), ("x", None, ("bad-page-size",)),
     (10**6, None, ("bad-page-size",)), ([1], None, ("bad-page-size",))],
)  # fmt: skip
def test_the_echoed_page_size_is_believed_only_if_it_makes_sense(
    echo: Any, read: int | None, anomalies: tuple[str, ...]
) -> None:
    fetched = decode(page(page_size=echo))
    assert (fetched.page_size, fetched.anomalies) == (read, anomalies)


def test_missing_null_and_empty_all_mean_absent() -> None:
    for nothing in (None, ""):
        sent = {**dict.fromkeys(ROW, nothing), "item_id": "7"}
        assert decode(page(items=[sent])) == FetchedPage([Item(item_id="7")], 2465, 20, ())
    assert decode(page(items=[{"item_id": "7"}])).items == [Item(item_id="7")]
    assert item(sale_info={"gmv_30days": None}, price_info=[])[1] == ()
    assert item(category_path=[])[0].category_path == []


def test_unknown_fields_are_kept_where_they_were() -> None:
    price_info = {**ROW["price_info"], "vip": "1"}
    found, anomalies = item(price_info=price_info, badge={"a": [1, None, 2.5]}, huge=2**70)
    assert found.extra == {"price_info": {"vip": "1"}, "badge": {"a": [1, None, 2.5]}, "huge": str(2**70)}
    assert found.agent_price == Decimal("3.9")
    assert anomalies == ()


def test_the_shape_of_version_two_is_kept_too() -> None:
    found, anomalies = item(sale_info={"sale_quantity": 5, "sale_amount": 9.5}, quantity_begin=None, item_id=12)
    assert found.extra == {"sale_info": {"sale_quantity": 5, "sale_amount": 9.5}}
    assert (found.item_id, found.sold_30d, found.quantity_begin, anomalies) == ("12", None, None, ())


@pytest.mark.parametrize(
    ("key", "sent", "field", "read"),
    [
        ("price", 3.9, "price", Decimal("3.9")),
        ("price", 4, "price", Decimal(4)),
        ("price", "1,234.50", "price", Decimal("1234.5")),
        ("price", " 3.90 ", "price", Decimal("3.9")),
        ("price", "-0.000001", "price", Decimal("-0.000001")),
        ("price", "99999999999999.999999", "price", Decimal("99999999999999.999999")),
        ("quantity_begin", 2, "quantity_begin", 2),
        ("quantity_begin", "2.0", "quantity_begin", 2),
        ("quantity_begin", 2**63 - 1, "quantity_begin", 2**63 - 1),
        ("new_product", "true", "new_product", True),
        ("new_product", 0, "new_product", False),
        ("video_id", 347500941890, "video_id", "347500941890"),
        ("category_path", [1, "2", None], "category_path", ["1", "2"]),
        ("main_imgs", "one", "images", ["one"]),
        ("created_time", "2024-06-27 09:22:26", "created_time", datetime(2024, 6, 27, 1, 22, 26, tzinfo=UTC)),
        ("created_time", "2024-06-27T09:22:26.000+00:00", "created_time", datetime(2024, 6, 27, 9, 22, 26, tzinfo=UTC)),
        ("title", "nul\0l", "title", "null"),
        ("title", "x" * 10_000, "title", "x" * 10_000),
    ],
)
def test_habits_of_vendors_are_understood(key: str, sent: Any, field: str, read: Any) -> None:
    found, anomalies = item(**{key: sent})
    assert (getattr(found, field), type(getattr(found, field))) == (read, type(read))
    assert (found.extra, anomalies) == (None, ())


WRONG: dict[str, list[Any]] = {
    "price": [
        *("NaN", "Infinity", "1e5", "1e999999999", "3.9元", "1.2.3", "1_0", "３", "9" * 40, "1.0000001"),
        *(".", "-", "x" * 20_000, 1e-9, 10**14, True, [], {}, ["1"]),
    ],
    "quantity_begin": ["3500+", "2.5", "²", 2.5, True, [2], {"a": 1}],
    "new_product": ["yes", 2, [], {}, 0.5],
    "title": [True, 1.5, [], {"zh": "t"}, "x" * 10_001],
    "category_path": [7, {"a": 1}, [[1]], [True], ["x"] * 501],
    "created_time": ["yesterday", 1669605960, "0001-01-01T00:00:00+0800", []],
}


@pytest.mark.parametrize(("key", "sent"), [(key, sent) for key, values in WRONG.items() for sent in values])
def test_a_wrong_value_costs_only_its_own_field(key: str, sent: Any) -> None:
    found, anomalies = item(**{key: sent})
    assert getattr(found, key) is None
    assert found.extra == {key: sent}
    assert anomalies == (f"bad-{key}",)
    assert found.status == "published"


@pytest.mark.parametrize("group", ["price_info", "sale_info"])
@pytest.mark.parametrize("sent", ["soon", 7, [1], True])
def test_a_wrong_group_costs_only_the_group(group: str, sent: Any) -> None:
    found, anomalies = item(**{group: sent})
    assert (found.extra, anomalies) == ({group: sent}, (f"bad-{group}",))
    assert found.price == Decimal("3.9")


@pytest.mark.parametrize("bad", [None, "", " ", 0, -1, 2**63, True, 1.5, [], {}, "a b", "a'b", "x" * 65, "项", "1\0 2"])
def test_a_row_without_a_usable_id_is_skipped_and_noted(bad: Any) -> None:
    fetched = decode(page(items=[{**ROW, "item_id": bad}, ROW]))
    assert (fetched.items, fetched.anomalies) == ([ITEM], ("item-without-id",))


def test_rows_that_are_no_objects_are_skipped_and_noted() -> None:
    assert decode(page(items=[None, "x", 7, [], ROW])) == FetchedPage([ITEM], 2465, 20, ("item-not-object",))


def test_repeated_rows_and_repeated_keys_are_harmless() -> None:
    assert decode(page(items=[ROW, ROW])).items == [ITEM, ITEM]
    assert decode(WHOLE.replace(b'"price": "3.90"', b'"price": "1", "price": "3.90"')).items == [ITEM]


def test_text_that_a_database_rejects_is_repaired() -> None:
    cut = WHOLE.replace(
        b'"status": "published"', rb'"status": "a\ud83d", "b\u0000": "\udc00\ud800c\td\\u0000", "n":"x	y"'
    )
    found = decode(cut).items[0]
    assert found.status == "a\ufffd"
    assert found.extra == {"b": "\ufffd\ufffdc\td\\u0000", "n": "x\ty"}
    nul = WHOLE.replace(b'"published"', rb'"a\u0000b\\u0000"')
    assert decode(nul).items[0].status == "ab\\u0000"


def test_absurd_nesting_inside_an_unknown_field_is_dropped_and_noted() -> None:
    deep: Any = 1
    for _ in range(100):
        deep = [deep]
    found, anomalies = item(deep=deep, price=deep)
    assert (found.extra, found.price) == (None, None)
    assert sorted(anomalies) == ["bad-price", "dropped-field"]
    assert found.title == ITEM.title


def test_many_anomalies_stay_few_and_different() -> None:
    rows = [{**ROW, "price": "x", "unit": [n]} for n in range(500)]
    assert decode(page(items=rows)).anomalies == ("bad-price", "bad-unit")
