"""What `shopcrawl doctor` shows: one line for each check, with the cure."""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from producer.doctor import Check

SIGNS = {True: ("✔", "green"), None: ("▲", "yellow"), False: ("✘", "red")}


def print_checks(console: Console, checks: Sequence[Check]) -> None:
    """Print the checks; where something is to be done, the cure follows."""
    for check in checks:
        sign, style = SIGNS[check.ok]
        line = Text.assemble((f"{sign} ", style), (f"{check.name}: ", "bold"), check.detail)
        if check.cure:
            line.append(f": {check.cure}", style="cyan")
        console.print(line, soft_wrap=True)
