"""Write the parts of the documentation that the code knows best: the settings table and the data model's diagram."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydantic import SecretStr

from models.settings import Settings
from models.tables import Money, UtcDateTime, metadata

ROOT = Path(__file__).resolve().parents[1]
# First match counts: a subclass stands before its base.
TYPES: tuple[tuple[type[Any], str], ...] = (
    (UtcDateTime, "timestamp"),
    (Money, "decimal"),
    (sa.SmallInteger, "smallint"),
    (sa.BigInteger, "bigint"),
    (sa.Integer, "integer"),
    (sa.Float, "float"),
    (sa.Boolean, "boolean"),
    (sa.LargeBinary, "bytes"),
    (sa.JSON, "json"),
    (sa.Text, "text"),
)


def settings_table() -> str:
    """A Markdown table of every setting: variable, default, meaning."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        rows.append(f"| `SHOPCRAWL_{name.upper()}` | {_default(field.default)} | {field.description} |")
    return "\n".join(rows)


def _default(value: Any) -> str:
    if value is None or value == ():
        return ""
    if isinstance(value, SecretStr):
        raise TypeError("a secret must not have a default")
    if isinstance(value, tuple):
        return f"`{','.join(value)}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def diagram() -> str:
    """The tables as a Mermaid diagram; a dotted line is a reference that the database does not enforce."""
    tables = sorted(metadata.tables.values(), key=lambda table: table.name)
    lines = ["```mermaid", "erDiagram"]
    for table in tables:
        lines += [f"    {line}" for line in _relations(table)]
    for table in tables:
        lines += [f"    {table.name} {{", *(f"        {_column(column)}" for column in table.c), "    }"]
    return "\n".join([*lines, "```"])


def _relations(table: sa.Table) -> Iterator[str]:
    for column in table.c:
        parent = column.name.removesuffix("_id")
        if column.foreign_keys:
            target = next(iter(column.foreign_keys)).column.table.name
            yield f'{target} ||--o{{ {table.name} : "{column.name}"'
        elif parent not in {column.name, table.name} and parent in metadata.tables:
            many = "o|" if column.primary_key else "o{"
            yield f'{parent} ||..{many} {table.name} : "{column.name}"'


def _column(column: sa.Column[Any]) -> str:
    kind = next(name for python_type, name in TYPES if isinstance(column.type, python_type))
    keys = ", ".join(key for key, held in (("PK", column.primary_key), ("FK", column.foreign_keys)) if held)
    comment = f'"{column.comment}"' if column.comment else ""
    return " ".join(part for part in (kind, column.name, keys, comment) if part)


PARTS = (("README.md", "settings", settings_table), ("docs/data-model.md", "diagram", diagram))


def generated(text: str, name: str, content: str) -> str:
    """The text with `content` between its two markers of that name. Raises ValueError if they are missing."""
    begin, end = f"<!-- generated: {name} -->", "<!-- end -->"
    pattern = re.compile(f"({re.escape(begin)}\n).*?({re.escape(end)})", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"no place for {name}: {begin} … {end}")
    return pattern.sub(lambda found: f"{found[1]}{content}\n{found[2]}", text)


def outdated() -> dict[Path, str]:
    """The files that are not up to date, each with the text it should have."""
    changes = {}
    for file, name, make in PARTS:
        path = ROOT / file
        text = path.read_text(encoding="utf-8")
        wanted = generated(text, name, make())
        if wanted != text:
            changes[path] = wanted
    return changes


def main() -> None:
    """Bring the files up to date and name those that were not."""
    for path, text in outdated().items():
        path.write_text(text, encoding="utf-8")
        sys.stdout.write(f"updated {path.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()
