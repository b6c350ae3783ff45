"""Conditions on exported rows, read from text."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import UsageError
from models.tables import item
from producer.exports.datasets import DATASETS, ITEMS
from producer.exports.where import Condition, clause, operators, parse_condition

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("price>=10", Condition("price", ">=", Decimal(10))),
        (" price != -0.50 ", Condition("price", "!=", Decimal("-0.5"))),
        ("stock<5", Condition("stock", "<", 5)),
        ("new_product = TRUE", Condition("new_product", "=", True)),
        ("title~连衣裙", Condition("title", "~", "连衣裙")),
        ("title = a = b", Condition("title", "=", "a = b")),
        ("title = =a", Condition("title", "=", "=a")),
        ("title='  two spaces  '", Condition("title", "=", "  two spaces  ")),
        ('title=""', Condition("title", "=", "")),
        ('title="', Condition("title", "=", '"')),
        ("title = one\ntwo", Condition("title", "=", "one\ntwo")),
        ("gone_at is empty", Condition("gone_at", "is empty")),
        ("gone_at IS  NOT\tEMPTY ", Condition("gone_at", "is not empty")),
        ("images is not empty", Condition("images", "is not empty")),
        ("last_seen<24h", Condition("last_seen", "<", NOW - timedelta(hours=24))),
        ("last_seen >= 2026-04-01", Condition("last_seen", ">=", datetime(2026, 4, 1, tzinfo=UTC))),
        ("source = top", Condition("source", "=", "top")),
    ],
)
def test_a_condition_is_column_operator_and_a_value_of_the_columns_type(text: str, condition: Condition) -> None:
    assert parse_condition(text, ITEMS.fields, NOW) == condition


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "write it as COLUMN OPERATOR VALUE; operators: = != < <= > >= ~, is empty, is not empty"),
        ("price", "write it as COLUMN"),
        ("price => 10", "write it as COLUMN"),
        ("title == a", "write it as COLUMN"),
        ("price > = 10", "price > '= 10': not a number"),
        ("price>=cheap", "price >= 'cheap': not a number such as 12.50"),
        ("price>=NaN", "not a number"),
        ("price>=1e9", "not a number"),
        ("price>=１０", "not a number"),
        ("price>=", "not a number"),
        ("price~1", "price cannot be compared by ~; its operators: =, !=, <, <=, >, >=, is empty, is not empty"),
        ("stock=1.5", "not a whole number"),
        ("stock=99999999999999999999", "not a whole number"),
        ("new_product=1", "not true or false"),
        ("new_product>true", "new_product cannot be compared by >; its operators: =, !=, is empty"),
        ("images=[]", "images cannot be compared by =; its operators: is empty, is not empty"),
        ("last_seen>soon", "'soon' is no time"),
        ("title=", "no value; write is empty"),
        ("title=a\0b", "no database keeps such characters"),
        ("title=\ud800", "no database keeps such characters"),
        ("content_hash=1", "unknown column 'content_hash' in a condition; columns: source, shop, item_id, title"),
        ("1=1; DROP TABLE item", "unknown column '1'"),
        ("price>=10 or 1=1", "price >= '10 or 1=1': not a number"),
    ],
)
def test_what_is_no_condition_is_told_in_one_line_with_what_is_known(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_condition(text, ITEMS.fields, NOW)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


NAMES = sorted({name for dataset in DATASETS.values() for name in dataset.fields})
PIECES = st.sampled_from([*NAMES, "=", "!=", "<", "<=", ">", ">=", "~", "is", "not", "empty", " ", "'", '"', "\n", "1"])


@given(text=st.lists(PIECES | st.text(max_size=8)).map("".join))
def test_any_text_is_a_condition_that_can_be_asked_or_a_line_that_says_why_not(text: str) -> None:
    for dataset in DATASETS.values():
        try:
            condition = parse_condition(text, dataset.fields, NOW)
        except UsageError as error:
            assert "\n" not in str(error)
            continue
        assert condition.operator in operators(dataset.fields[condition.column])


def test_text_is_compared_by_bytes_whatever_the_databases_locale() -> None:
    asked = clause(Condition("title", "<", "a"), item.c.title, "postgresql")
    assert str(asked) == '(item.title COLLATE "C") < :param_1'


@pytest.mark.parametrize(
    ("operator", "value", "found", "met"),
    [
        ("=", Decimal(10), Decimal("10.000000"), True),
        ("<", Decimal(10), Decimal(9), True),
        (">", 1, None, False),
        ("!=", 1, None, False),
        ("~", "裙", "连衣裙", True),
        ("~", "A", "a", False),
        ("is empty", None, None, True),
        ("is empty", None, "", True),
        ("is empty", None, 0, False),
        ("is not empty", None, False, True),
        ("is not empty", None, None, False),
    ],
)
def test_rows_without_a_value_meet_nothing_but_is_empty(operator: str, value: Any, found: Any, met: bool) -> None:
    assert Condition("any", operator, value).matches(found) is met
