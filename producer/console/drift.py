"""The drift report for a terminal."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from producer.console.text import number, plain

if TYPE_CHECKING:
    from producer.archive.drift import SourceDrift

WORDS = {"new": "new", "gone": "gone", "type": "type changed"}
STYLES = {"new": "cyan", "gone": "red", "type": "yellow"}


def print_drift(console: Console, found: "Sequence[SourceDrift]") -> None:
    """Print a table for each source, or that nothing changed."""
    if not found:
        console.print("nothing to compare: no source has archived answers in both periods")
    for each in found:
        read = f"{number(each.after)} answers against {number(each.before)} earlier ones"
        notes = [read]
        if each.unreadable:
            notes.append(f"{number(each.unreadable)} more are no JSON")
        if each.left_out:
            notes.append(f"too many fields: {number(each.left_out)} values were not looked at")
        console.print(f"{each.source}: {'; '.join(notes)}", highlight=False)
        if each.differences:
            console.print(_table(each))
        else:
            console.print("  no field is new or gone, and none changed its type", highlight=False)


def _table(each: "SourceDrift") -> Table:
    table = Table(box=None, padding=(0, 1), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for found in each.differences:
        counts = [
            f"{_types(types)} {when}" for types, when in ((found.before, "before"), (found.after, "now")) if types
        ]
        detail = f"{'; '.join(counts)}, as {plain(found.sample)}"
        table.add_row(Text(WORDS[found.kind], STYLES[found.kind]), Text(f"{plain(found.field)}\n{detail}"))
    return table


def _types(types: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {number(count)}" for name, count in sorted(types.items(), key=lambda pair: -pair[1]))
