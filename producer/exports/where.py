"""Conditions such as `price>=10`: read from text, asked of a database with bound values only, or checked right here."""

import operator
import re
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.types import TypeEngine

from models.durations import parse_moment
from models.errors import UsageError
from models.tables import Money, UtcDateTime
from producer.exports.formats import Fields

CONTAINS, EMPTY, NOT_EMPTY = "~", "is empty", "is not empty"
COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_EMPTINESS = (EMPTY, NOT_EMPTY)
_OPERATOR = r"is\s+(?:not\s+)?empty\s*$|(?:[!<>]=|[=<>~])(?![=<>~])"
_SHAPE = re.compile(rf"\s*(\w+)\s*({_OPERATOR})\s*(.*?)\s*", re.DOTALL | re.IGNORECASE)
_NUMBER = re.compile(r"[-+]?[0-9]{1,20}(\.[0-9]{1,20})?")
_WHOLE = re.compile(r"[-+]?[0-9]{1,18}")
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_TRUTH = {"true": True, "false": False}


class Condition(msgspec.Struct, frozen=True):
    """A column's name, an operator, and a value of the column's Python type (None for emptiness).

    A row without a value in this column meets no other operator than `is empty`. Empty is what has no value or is an
    empty text. Text is compared byte by byte in UTF-8, so capitals count.
    """

    column: str
    operator: str
    value: Any = None

    def matches(self, found: Any) -> bool:
        """Whether a value of the column meets the condition."""
        if self.operator in _EMPTINESS:
            return (found is None or found == "") == (self.operator == EMPTY)
        if found is None:
            return False
        if self.operator == CONTAINS:
            return self.value in found
        return bool(COMPARE[self.operator](found, self.value))


def parse_condition(text: str, fields: Fields, now: datetime) -> Condition:
    """Read `COLUMN OPERATOR VALUE`; quotes around the value keep its spaces, a time may be `24h` before `now`.

    Raises UsageError in one line that names what is known.
    """
    found = _SHAPE.fullmatch(text)
    if found is None:
        known = " ".join(COMPARE)
        raise UsageError(
            f"condition {text[:60]!r}: write it as COLUMN OPERATOR VALUE; "
            f"operators: {known} {CONTAINS}, {EMPTY}, {NOT_EMPTY}"
        )
    column, sign, value = found[1], " ".join(found[2].lower().split()), found[3]
    if column not in fields:
        raise UsageError(f"unknown column {column[:40]!r} in a condition; columns: {', '.join(fields)}")
    allowed = operators(fields[column])
    if sign not in allowed:
        raise UsageError(f"{column} cannot be compared by {sign}; its operators: {', '.join(allowed)}")
    if sign in _EMPTINESS:
        return Condition(column, sign)
    try:
        return Condition(column, sign, _value(value, fields[column], now))
    except ValueError as error:
        raise UsageError(f"{column} {sign} {value[:40]!r}: {error}") from None


def operators(kind: TypeEngine[Any]) -> tuple[str, ...]:
    """The operators of a column of this type."""
    if isinstance(kind, sa.JSON):
        return _EMPTINESS
    if isinstance(kind, sa.Boolean):
        return ("=", "!=", *_EMPTINESS)
    return (*COMPARE, *((CONTAINS,) if _is_text(kind) else ()), *_EMPTINESS)


def clause(condition: Condition, column: sa.ColumnElement[Any], dialect: str) -> sa.ColumnElement[bool] | None:
    """The condition in SQL; None where this database cannot compare exactly, and `matches` has to be asked."""
    kind = column.type
    if condition.operator in _EMPTINESS:
        empty = sa.or_(column.is_(None), *([column == ""] if _is_text(kind) else []))
        return empty if condition.operator == EMPTY else sa.not_(empty)
    if isinstance(kind, Money) and dialect == "sqlite":
        return None  # decimal text there, and its own numbers are floats
    if condition.operator == CONTAINS:
        position = sa.func.strpos if dialect == "postgresql" else sa.func.instr
        return position(column, sa.literal(condition.value, sa.Text)) > 0
    compared: sa.ColumnElement[bool] = COMPARE[condition.operator](*_sides(condition.value, column, dialect))
    return compared


def _sides(
    value: Any, column: sa.ColumnElement[Any], dialect: str
) -> tuple[sa.ColumnElement[Any], sa.ColumnElement[Any]]:
    kind = column.type
    if isinstance(kind, Money):
        return column, sa.literal(value, sa.Numeric)  # Numeric(20, 6) would round the value
    if _is_text(kind) and dialect == "postgresql":
        return column.collate("C"), sa.literal(value, sa.Text)
    if isinstance(kind, UtcDateTime) and dialect == "sqlite":
        return _sortable(column), sa.literal(_micro_text(value), sa.Text)
    # A narrower integer's own type would refuse a large value.
    return column, sa.literal(value, sa.BigInteger if isinstance(kind, sa.Integer) else kind)


def _sortable(column: sa.ColumnElement[Any]) -> sa.ColumnElement[str]:
    """A time's text on SQLite, always with its fraction: without one, a whole second would come after its parts."""
    text = sa.type_coerce(column, sa.Text)
    return sa.case((sa.func.instr(text, ".") > 0, text), else_=sa.func.replace(text, "Z", ".000000Z"))


def _micro_text(value: datetime) -> str:
    return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _is_text(kind: TypeEngine[Any]) -> bool:
    return isinstance(kind, sa.Text)


def _value(text: str, kind: TypeEngine[Any], now: datetime) -> Any:
    """The value in the column's Python type. Raises ValueError with what is expected."""
    plain = _unquoted(text)
    if isinstance(kind, UtcDateTime):
        try:
            return parse_moment(plain, now)
        except UsageError as error:
            raise ValueError(str(error)) from None
    if isinstance(kind, Money):
        return _read(Decimal, _NUMBER, plain, "a number such as 12.50")
    if isinstance(kind, sa.Boolean):
        return _read(lambda word: _TRUTH[word.lower()], re.compile("true|false", re.IGNORECASE), plain, "true or false")
    if isinstance(kind, sa.Integer):
        return _read(int, _WHOLE, plain, "a whole number")
    if not text:
        raise ValueError(f"no value; write {EMPTY} for what has none")
    if _UNSTORABLE.search(plain):
        raise ValueError("no database keeps such characters")
    return plain


def _read(read: Callable[[str], Any], shape: re.Pattern[str], text: str, expected: str) -> Any:
    if not shape.fullmatch(text):
        raise ValueError(f"not {expected}")
    return read(text)


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"" else text
