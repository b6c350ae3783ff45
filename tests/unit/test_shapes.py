"""What two periods of answers have in common: invented fields, types and lengths, and every difference told once."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.archive import shapes
from producer.archive.shapes import Difference, Shape, differences


def shape(*answers: Any) -> Shape:
    found = Shape(lambda value: json.dumps(value)[:20])
    for answer in answers:
        found.add(answer)
    return found


def drift(before: list[Any], after: list[Any]) -> list[tuple[str, str]]:
    return [(each.kind, each.field) for each in differences(shape(*before).root, shape(*after).root)]


ITEM = {"id": 1, "price": "3.90", "tags": ["a"], "more": {"unit": "PCS"}}
CASES: dict[str, tuple[dict[str, Any], list[tuple[str, str]]]] = {
    "nothing": (ITEM, []),
    "a field more": ({**ITEM, "brand": "x"}, [("new", "items[].brand")]),
    "an object more, told once": ({**ITEM, "vendor": {"name": "x"}}, [("new", "items[].vendor")]),
    "a field less": ({key: ITEM[key] for key in ("id", "tags", "more")}, [("gone", "items[].price")]),
    "a field inside another": ({**ITEM, "more": {}}, [("gone", "items[].more.unit")]),
    "a number for a text": ({**ITEM, "price": 3.9}, [("type", "items[].price")]),
    "objects for texts": ({**ITEM, "tags": [{"t": 1}]}, [("new", "items[].tags[].t"), ("type", "items[].tags[]")]),
    "null only": ({**ITEM, "price": None}, [("type", "items[].price")]),
    "whole for broken numbers": ({**ITEM, "id": 1.5}, []),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_difference_between_two_periods_is_told(case: str) -> None:
    item, expected = CASES[case]
    assert sorted(drift([{"items": [ITEM]}] * 9, [{"items": [item]}] * 9)) == expected


def test_a_difference_has_counts_and_a_sample_of_what_is_unknown() -> None:
    before = shape(*[{"price": "3.90"}] * 6)
    after = shape(*[{"price": "3.90"}] * 4, {"price": 7}, {"price": None})
    assert list(differences(before.root, after.root)) == [
        Difference("type", "price", {"text": 6}, {"text": 4, "number": 1, "null": 1}, "7")
    ]


def test_a_rare_field_is_not_gone_before_it_should_have_come_again() -> None:
    before = [{"a": 1, "rare": 1}] * 5 + [{"a": 1}] * 95
    assert drift(before, [{"a": 1}] * 20) == []
    assert drift(before, [{"a": 1}] * 100) == [("gone", "rare")]


def test_keys_that_are_data_are_one_field_in_both_periods() -> None:
    few = [{"sku": {str(number): {"price": 1}}} for number in range(10)]
    many = [{"sku": {str(number): {"price": 1}}} for number in range(1000, 1300)]
    found = shape(*many)
    assert found.fields <= shapes.MOST_KEYS * 2 + 2
    assert drift(many, few) == drift(few, many) == []
    assert drift(many, [{"sku": {"77": {"price": 1, "stock": 2}}}] * 9) == [("new", "sku.*.stock")]


def test_memory_is_bounded_however_many_fields_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "MOST_FIELDS", 50)
    deep: Any = 1
    for _ in range(100):
        deep = {"deeper": deep}
    found = shape(deep, *({f"key{one}": {f"key{two}": 1 for two in range(9)}} for one in range(90)))
    assert found.fields == 50
    assert found.left_out > 0


answers = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from("abcdef"), inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(answers, min_size=1, max_size=6))
def test_answers_do_not_differ_from_themselves_in_any_order(given_answers: list[Any]) -> None:
    assert drift(given_answers, given_answers[::-1]) == []


@given(st.lists(answers, max_size=4), st.dictionaries(st.sampled_from("abc"), answers, max_size=3))
def test_a_field_never_seen_before_is_always_found(before: list[Any], answer: dict[str, Any]) -> None:
    assert ("new", "unseen") in drift([{}, *before], [{**answer, "unseen": 1}])
