"""The drift report for a terminal."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from producer.console.text import number, plain

if TYPE_CHECKING:
    from producer.drift import SourceDrift

WORDS = {"new": "never seen before", "gone": "sent no more", "type": "type changed"}
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
    table = Table("field", "what", "before", "now", "sample", box=None, padding=(0, 2))
    for found in each.differences:
        what = f"[{STYLES[found.kind]}]{WORDS[found.kind]}[/]"
        sample = plain(found.sample).replace("[", "\\[")
        table.add_row(plain(found.field).replace("[", "\\["), what, _types(found.before), _types(found.after), sample)
    return table


def _types(types: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {number(count)}" for name, count in sorted(types.items(), key=lambda pair: -pair[1]))
