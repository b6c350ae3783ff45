"""Conditions of exports: both databases choose what a plain filter chooses, and see values only as parameters."""

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncEngine

from models.source import Item
from models.tables import Money, UtcDateTime, item
from producer.exports.batches import Batches
from producer.exports.datasets import ITEMS
from producer.exports.where import operators, parse_condition
from tests.ledger import engine_for, rows
from tests.store import SEEN, stock

NOW = SEEN + timedelta(days=1)
WHOLE = datetime(2026, 5, 1, 12, tzinfo=UTC)
TEXTS = [
    "",
    "a",
    "A",
    "ä",
    "'; DROP TABLE item; --",
    "100%",
    "1_0",
    ":x",
    "\\",
    '"q"',
    "连衣裙",
    "裙",
    "𝄞",
    "\uffff",
    "\n",
]
PRICES = [Decimal(text) for text in ("9", "10", "9.5", "100", "-1", "0", "0.000001", "12345678901234.123456")]
TIMES = [WHOLE, WHOLE + timedelta(microseconds=1), WHOLE + timedelta(seconds=0.25), WHOLE + timedelta(seconds=1)]
COUNTS = [0, 9, 10, -3, 2**40]


def _pick(values: list[Any], number: int) -> Any:
    return ([None, *values])[number % (len(values) + 1)]


STORED = [
    Item(
        item_id=str(number),
        title=_pick(TEXTS, number),
        status=_pick(TEXTS[::-1], number * 7),
        price=_pick(PRICES, number),
        gmv_30d=_pick(PRICES[::-1], number),
        stock=_pick(COUNTS, number),
        sold_30d=_pick(COUNTS[::-1], number),
        new_product=_pick([True, False], number),
        created_time=_pick(TIMES, number),
        images=_pick([["a"], []], number),
    )
    for number in range(48)
]


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """An engine on a database with two shops of the same items, one of each source."""
    async with engine_for(database_url) as engine:
        await stock(engine, "one", STORED)
        await stock(engine, "two", STORED, source="top", at=WHOLE)
        yield engine


async def read(batches: Batches) -> list[Sequence[Any]]:
    """All rows."""
    return [row async for batch in batches.read() for row in batch]


def conditions() -> st.SearchStrategy[tuple[str, str, Any]]:
    """A column, one of its operators, and a value near those that are stored."""
    texts = st.sampled_from([*TEXTS, "one", "two", "top", "tmapi", "7"]) | st.text(max_size=3)
    texts = texts.filter(lambda text: "\0" not in text and text.isprintable())
    numbers = st.sampled_from(PRICES) | st.decimals(-20, 200, places=7).map(lambda value: value + 0)
    moments = st.sampled_from(TIMES) | st.datetimes(timezones=st.just(UTC))
    values: dict[type, st.SearchStrategy[Any]] = {Money: numbers, UtcDateTime: moments, sa.JSON: st.none()}
    values |= {sa.Boolean: st.booleans(), sa.Integer: st.sampled_from(COUNTS) | st.integers(-(10**17), 10**17)}

    def of(name: str) -> st.SearchStrategy[tuple[str, str, Any]]:
        kind = ITEMS.fields[name]
        value = next((found for known, found in values.items() if isinstance(kind, known)), texts)
        return st.tuples(st.just(name), st.sampled_from(operators(kind)), value)

    return st.sampled_from(list(ITEMS.fields)).flatmap(of)


def written(column: str, sign: str, value: Any) -> str:
    """The condition as a user writes it."""
    if sign.startswith("is"):
        return f"{column} {sign}"
    if isinstance(value, datetime):
        return f"{column} {sign} {value.isoformat()}"
    plain = (
        format(value, "f") if isinstance(value, Decimal) else str(value).lower() if value in (True, False) else value
    )
    return f'{column} {sign} "{plain}"'


def chosen(found: Any, sign: str, value: Any) -> bool:
    """The plain filter; text is compared byte by byte."""
    if sign.startswith("is"):
        return (found in (None, "")) is (sign == "is empty") if not isinstance(found, int) else sign != "is empty"
    if found is None:
        return False
    left, right = (found.encode(), value.encode()) if isinstance(found, str) else (found, value)
    order = (left > right) - (left < right)
    tests = {"=": order == 0, "!=": order != 0, "<": order < 0, "<=": order <= 0, ">": order > 0, ">=": order >= 0}
    return left.find(right) >= 0 if sign == "~" else tests[sign]


SHAPES: dict[tuple[str, str, str], list[str]] = {}
"""The statements of a condition, by database, column and operator."""
EVERY: dict[str, list[dict[str, Any]]] = {}
"""All rows, by database."""


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@example(asked=("price", "<", Decimal("9.5000001")))
@example(asked=("created_time", ">", WHOLE))
@given(asked=conditions())
async def test_every_condition_chooses_what_a_plain_filter_chooses_and_is_sent_as_a_parameter(
    engine: AsyncEngine, asked: tuple[str, str, Any]
) -> None:
    column, sign, value = asked
    names, statements = list(ITEMS.fields), list[str]()
    every = [
        dict(zip(names, row, strict=True)) async for batch in Batches(engine, ITEMS, names).read() for row in batch
    ]
    assert len(every) == 2 * len(STORED)

    def note(*arguments: Any) -> None:
        statements.append(arguments[2])

    sa.event.listen(engine.sync_engine, "before_cursor_execute", note)
    reading = Batches(engine, ITEMS, ["shop", "item_id"], [parse_condition(written(*asked), ITEMS.fields, NOW)])
    found = await read(reading)
    sa.event.remove(engine.sync_engine, "before_cursor_execute", note)
    assert found == [[row["shop"], row["item_id"]] for row in every if chosen(row[column], sign, value)]
    if column not in {"source", "shop"}:
        # Whatever the value, the statement's text is the same.
        assert SHAPES.setdefault((engine.dialect.name, column, sign), statements) == statements


async def test_conditions_must_all_be_met_and_need_not_be_exported(engine: AsyncEngine) -> None:
    texts = ["price >= 9", "price < 100", "stock > 0", "source = top"]
    asked = [parse_condition(text, ITEMS.fields, NOW) for text in texts]
    found = [row async for batch in Batches(engine, ITEMS, ["shop", "item_id"], asked).read() for row in batch]
    fitting = [
        ["two", each.item_id]
        for each in STORED
        if each.price and 9 <= each.price < 100 and each.stock and each.stock > 0
    ]
    assert found == sorted(fitting)
    assert fitting


async def test_text_that_is_meant_to_be_sql_is_text(engine: AsyncEngine) -> None:
    asked = [parse_condition("title = '; DROP TABLE item; --", ITEMS.fields, NOW)]
    found = await read(Batches(engine, ITEMS, ["title"], asked))
    assert {title for (title,) in found} == {"'; DROP TABLE item; --"}
    assert len(await rows(engine, item)) == 2 * len(STORED)
