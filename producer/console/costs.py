"""What `shopcrawl costs` prints: one line for each key, and the sum of all."""

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from models.costs import KEYS, CostRow, Costs
from producer.console.text import number, plain, share

MOST_ROWS = 60


def print_costs(console: Console, costs: Costs, currency: str) -> None:
    """Print the rows, the most expensive ones if they are too many, and the total; a dash is what nobody knows."""
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0), show_footer=True)
    names, total = KEYS[costs.by], _cells(costs.total)
    for place, name in enumerate(names):
        table.add_column(name, "" if place else "total", overflow="ellipsis", max_width=40, footer_style="bold")
    for name, footer in zip(("calls", currency, "share", "in flight", "unknown", "set aside"), total, strict=True):
        table.add_column(name, footer, justify="right", no_wrap=True, footer_style="bold")
    for row in costs.rows[:MOST_ROWS]:
        table.add_row(*(plain(part, 60) for part in row.key), *_cells(row))
    console.print(Padding(table, (1, 1)))
    if len(costs.rows) > MOST_ROWS:
        words = f" and {number(len(costs.rows) - MOST_ROWS)} more: --format csv has them all"
        console.print(Text(words, "dim"), highlight=False)


def _cells(row: CostRow) -> list[str]:
    part = "–" if row.share is None else share(float(row.share), 1)
    counts = ["–" if count is None else number(count) for count in (row.in_flight, row.unknown)]
    aside = "–" if row.set_aside is None else format(row.set_aside, "f")
    return [number(row.calls), format(row.cost, "f"), part, *counts, aside]
