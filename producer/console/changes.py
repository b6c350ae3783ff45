"""What `shopcrawl changes` prints: a line for each change, with what was and what is."""

from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from models.feed import PRICES, Entry
from producer.console.text import number, plain

LONGEST_VALUE = 40
MOST_COUNTED = 10_000
_STYLES = {"new": "green", "back": "green", "gone": "red", "price": "yellow"}


def print_changes(console: Console, entries: Sequence[Entry], more: int) -> None:
    """Print changes, the newest last, and how many `more` there are, which are counted up to MOST_COUNTED."""
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for name in ("seen (UTC)", "shop", "item", "kind"):
        table.add_column(name, no_wrap=True)
    table.add_column("title", overflow="ellipsis", no_wrap=True, max_width=30)
    table.add_column("change", overflow="fold")
    for entry in entries:
        kind = Text(plain(entry.kind, 20), _STYLES.get(entry.kind, ""))
        names = (plain(entry.shop, 30), plain(entry.item_id, 30), kind, plain(entry.title or "", 60))
        cells = (f"{entry.at:%Y-%m-%d %H:%M}", *names, change_words(entry))
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))
    console.print(Padding(table, (1, 1)))
    if more > 0:
        words = f" and {number(more)}{' or more' if more >= MOST_COUNTED else ''} before these"
        console.print(Text(f"{words}: --limit shows more, --format csv all", "dim"), highlight=False)


def change_words(entry: Entry) -> str:
    """What a change was: `12.5 → 11 (-12.0 %)`, with the field's name where the kind does not say it."""
    before, after = entry.before or {}, entry.after or {}
    if entry.kind == "new":
        return _value(after["price"]) if "price" in after else ""
    names = dict.fromkeys((*before, *after))
    return ", ".join(_field(entry.kind, name, before.get(name), after.get(name)) for name in names)


def _field(kind: str, name: str, before: Any, after: Any) -> str:
    label = "" if name == kind else f"{name} "
    percent = _percent(before, after) if name in PRICES else ""
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return f"{label}changed"
    return f"{label}{_value(before)} → {_value(after)}{percent}"


def _value(value: Any) -> str:
    if value is None:
        return "–"
    return f"{len(value)} entries" if isinstance(value, list) else plain(str(value), LONGEST_VALUE)


def _percent(before: Any, after: Any) -> str:
    try:
        old, new = Decimal(before), Decimal(after)
    except (InvalidOperation, TypeError, ValueError):
        return ""
    return f" ({(new - old) / old:+.1%})".replace("%", " %") if old else ""
