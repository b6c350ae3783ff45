"""What the tables are made of: column types that mean the same on SQLite and PostgreSQL, and names of constraints."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}
metadata = sa.MetaData(naming_convention=NAMING)


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC datetime; SQLite, which has no such type, keeps it as ISO 8601 text."""

    impl = sa.DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        return dialect.type_descriptor(sa.DateTime(timezone=True) if dialect.name == "postgresql" else sa.Text())

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        if value is None or dialect.name == "postgresql":
            return value and value.astimezone(UTC)
        return utc_text(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:  # noqa: ARG002 (the base's signature)
        return datetime.fromisoformat(value).astimezone(UTC) if isinstance(value, str) else value


def utc_text(value: datetime) -> str:
    """The text that SQLite keeps of a time: the one by which JSON rows carry it too."""
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z")


class Money(TypeDecorator[Decimal]):
    """An exact decimal: NUMERIC on PostgreSQL, decimal text on SQLite, which would otherwise round it to a float."""

    impl = sa.Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        return dialect.type_descriptor(sa.Numeric(20, 6) if dialect.name == "postgresql" else sa.Text())

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> Any:
        return value if value is None or dialect.name == "postgresql" else format(value, "f")

    def process_result_value(self, value: Any, dialect: Dialect) -> Decimal | None:  # noqa: ARG002 (the base's signature)
        return None if value is None else Decimal(value)


BigId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # SQLite numbers rows by itself only for INTEGER keys
Json = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")
# What nothing asks into, kept as it came: PostgreSQL takes a third of the time to store that it takes for JSONB.
Document = sa.JSON(none_as_null=True)
Key = sa.Text(collation="C").with_variant(sa.Text(), "sqlite")  # byte order: cheap to compare, the same everywhere


def id_column() -> sa.Column[int]:
    return sa.Column("id", BigId, sa.Identity(always=False), primary_key=True)


def count_column(name: str, comment: str | None = None) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=False, server_default="0", comment=comment)
