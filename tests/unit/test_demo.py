"""The demo's verdict on itself: every way in which a store can differ from the truth is found and counted."""

import io
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from models.status import CrawlStatus, Items, Pages, Verdicts
from producer.demo import COMPARED, Comparison, Key, _report, _true_seller_values, _true_values, compare

Rows = dict[Key, list[int]]
KEYS = st.tuples(st.sampled_from(["tmapi", "top"]), st.sampled_from("ab"), st.sampled_from("12"))
VALUES = st.lists(st.integers(0, 1), min_size=1, max_size=1)
TRUTH: Rows = {("top", "a", "1"): [1], ("top", "a", "2"): [2], ("top", "b", "1"): [3]}


def test_equal_store_is_exact() -> None:
    assert compare(TRUTH, dict(TRUTH)) == Comparison(items=3, missing=0, invented=0, different=0)
    assert compare(TRUTH, dict(TRUTH)).is_exact


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ({("top", "a", "1"): [1], ("top", "a", "2"): [2]}, Comparison(2, missing=1, invented=0, different=0)),
        ({**TRUTH, ("top", "b", "2"): [1]}, Comparison(4, missing=0, invented=1, different=0)),
        ({**TRUTH, ("top", "b", "1"): [4]}, Comparison(3, missing=0, invented=0, different=1)),
        (
            {("top", "a", "1"): [1], ("top", "a", "2"): [2], ("top", "c", "1"): [3]},
            Comparison(3, missing=1, invented=1, different=0),
        ),
        ({}, Comparison(0, missing=3, invented=0, different=0)),
    ],
)
def test_each_difference_is_counted_and_spoils_the_demo(stored: Rows, expected: Comparison) -> None:
    assert compare(TRUTH, stored) == expected
    assert not expected.is_exact


@given(st.dictionaries(KEYS, VALUES), st.dictionaries(KEYS, VALUES))
def test_exact_means_equal(truth: Rows, stored: Rows) -> None:
    assert compare(truth, stored).is_exact == (stored == truth)
    assert compare(truth, dict(truth)).is_exact


def test_true_values_are_what_the_vendor_means_in_the_order_compared() -> None:
    raw = {"title": "Tea", "price": "12.50", "quantity_begin": "3", "unit": "件", "status": "published"}
    assert dict(zip(COMPARED, _true_values(raw), strict=True)) == {
        "title": "Tea",
        "price": Decimal("12.5"),
        "quantity_begin": 3,
        "unit": "件",
        "status": "published",
        "stock": None,
        "category_id": None,
        "outer_id": None,
    }
    assert _true_values({"title": "", "price": None, "unit": ""}) == [None] * len(COMPARED)


def test_true_values_of_a_seller_are_what_the_platform_means() -> None:
    raw = {"title": "茶", "price": "5.00", "num": 0, "approve_status": "instock", "cid": 1512, "outer_id": "A-1"}
    expected = {"title": "茶", "price": Decimal(5), "status": "instock", "stock": 0, "category_id": "1512"}
    shown = dict(zip(COMPARED, _true_seller_values(raw), strict=True))
    assert {name: value for name, value in shown.items() if value is not None} == expected | {"outer_id": "A-1"}
    assert _true_seller_values({}) == [None] * len(COMPARED)


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (Comparison(1_234, 0, 0, 0), ["✔", "all 1,234 items, none missing, none invented"]),
        (Comparison(9, 1, 2, 3), ["✘", "1 missing, 2 invented, 3 with other values"]),
    ],
)
def test_report_says_how_the_store_stands_and_counts_the_calls(result: Comparison, words: list[str]) -> None:
    told = io.StringIO()
    status = CrawlStatus(1, "finished", 2, Verdicts(complete=2), Pages(done=4), Items(), {"200": 4, "503": 2}, 1.0)
    calls = [{"total": 4, "max_in_flight": 5, "over_gate": 2}, {"total": 2, "max_in_flight": 1}]
    _report(Console(file=told, width=200), result, calls, status)
    for word in [*words, "the simulator counted 6, the ledger 6", "most in flight 5", "over the gate 2"]:
        assert word in told.getvalue()
