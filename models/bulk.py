"""Many rows in one statement: they travel as one JSON parameter and the database unfolds them into a record set."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import dialect as postgresql_dialect
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.asyncio import AsyncConnection

from models.database import is_postgresql

Row = Mapping[str, Any]
_PG: Dialect = postgresql_dialect()  # type: ignore[no-untyped-call]


def as_json(rows: Sequence[Row | msgspec.Raw]) -> bytes:
    """The rows as one JSON array in UTF-8; decimals become text and stay exact, times become UTC text."""
    return msgspec.json.encode(rows)


def recordset(connection: AsyncConnection, columns: Sequence[sa.Column[Any]]) -> str:
    """SQL for a FROM item named `r` with these columns, fed from the parameter `:rows`."""
    return _recordset(is_postgresql(connection), tuple(columns))


@lru_cache
def _recordset(postgresql: bool, columns: tuple[sa.Column[Any], ...]) -> str:
    if postgresql:
        fields = ", ".join(f'"{c.name}" {c.type.compile(dialect=_PG)}' for c in columns)
        # Bytes, because a str of mixed scripts takes several times their memory here.
        return f"json_to_recordset(CAST(convert_from(CAST(:rows AS bytea), 'UTF8') AS json)) AS r({fields})"
    fields = ", ".join(f'{_extract(c)} AS "{c.name}"' for c in columns)
    return f"(SELECT {fields} FROM json_each(CAST(:rows AS TEXT))) AS r"


def _extract(column: sa.Column[Any]) -> str:
    value = f"json_extract(value, '$.{column.name}')"
    return f"CAST({value} AS BLOB)" if isinstance(column.type, sa.LargeBinary) else value


async def insert_rows(
    connection: AsyncConnection, table: sa.Table, rows: Sequence[Row], *, conflict: str = "", returning: str = ""
) -> Sequence[sa.Row[Any]]:
    """Insert rows that all have the first row's columns; `conflict` is ON CONFLICT …, `returning` column names."""
    if not rows:
        return []
    columns = [table.c[name] for name in rows[0]]
    return await insert_encoded(connection, table, columns, rows, conflict=conflict, returning=returning)


async def insert_encoded(
    connection: AsyncConnection,
    table: sa.Table,
    columns: Sequence[sa.Column[Any]],
    rows: Sequence[Row | msgspec.Raw],
    *,
    conflict: str = "",
    returning: str = "",
) -> Sequence[sa.Row[Any]]:
    """Insert rows that may be JSON objects already; a column that an object lacks becomes NULL."""
    names = ", ".join(f'"{c.name}"' for c in columns)
    tail = f" RETURNING {returning}" if returning else ""
    # WHERE true: SQLite cannot otherwise tell ON CONFLICT from a join's ON.
    source = f"SELECT {names} FROM {recordset(connection, columns)} WHERE true"
    statement = f'INSERT INTO "{table.name}" ({names}) {source} {conflict}{tail}'
    result = await connection.execute(sa.text(statement), {"rows": as_json(rows)})
    return result.all() if returning else []


async def change_rows(
    connection: AsyncConnection, sql: str, columns: Sequence[sa.Column[Any]], rows: Sequence[Row | msgspec.Raw]
) -> int:
    """Run `sql` as `query_rows` does; returns how many rows it has inserted, changed or deleted."""
    return (await connection.execute(_text(connection, sql, columns), {"rows": as_json(rows)})).rowcount if rows else 0


async def query_rows(
    connection: AsyncConnection,
    sql: str,
    columns: Sequence[sa.Column[Any]],
    rows: Sequence[Row | msgspec.Raw],
    *,
    returning: Sequence[sa.Column[Any]] = (),
    **parameters: Any,
) -> Sequence[sa.Row[Any]]:
    """Run `sql`, in which `{r}` stands for the record set `r` of the rows, and return what it returns.

    Rows may be JSON objects already; what `columns` does not name is passed over. `returning` names the result's
    columns where their values have to be read as Python's types.
    """
    if not rows:
        return []
    text = _text(connection, sql, columns)
    statement = text.columns(*returning) if returning else text
    result = await connection.execute(statement, {"rows": as_json(rows), **parameters})
    return result.all() if result.returns_rows else []


def _text(connection: AsyncConnection, sql: str, columns: Sequence[sa.Column[Any]]) -> sa.TextClause:
    return sa.text(sql.format(r=recordset(connection, columns)))
