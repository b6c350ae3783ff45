"""What `shopcrawl plan` prints: calls for each shop and in all, what they cost and how long they take."""

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from producer.console.text import duration, number, plain
from producer.estimate import Estimate, ShopEstimate
from producer.forecast import Forecast

MOST_SHOPS = 20


def print_estimate(console: Console, estimate: Estimate) -> None:
    """Print the shops that need most calls, and the sums."""
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0), show_footer=True)
    table.add_column("shop", f"{number(len(estimate.shops))} shops", overflow="ellipsis", max_width=40)
    table.add_column("source")
    table.add_column("items", number(estimate.items), justify="right", footer_style="bold")
    table.add_column("calls", number(estimate.calls), justify="right", footer_style="bold")
    table.add_column("from")
    largest = sorted(estimate.shops, key=lambda each: (each.calls is None, -(each.calls or 0)))
    for each in largest[:MOST_SHOPS]:
        table.add_row(*_cells(each))
    rest = largest[MOST_SHOPS:]
    if rest:
        calls = sum(each.calls or 0 for each in rest)
        table.add_row(f"and {number(len(rest))} more", "", "", number(calls), style="dim")
    console.print(Padding(table, (1, 1)))
    notes = [f"{number(estimate.unknown)} shops are not counted in"] if estimate.unknown else []
    notes += [f"{number(estimate.spent)} calls were made to count them"] if estimate.spent else []
    if notes:
        console.print(Text(f" {'; '.join(notes)}", "dim"), highlight=False)
    if estimate.forecast is not None:
        console.print(Padding(_forecast(estimate.forecast), (0, 1)))


def _forecast(forecast: Forecast) -> Table:
    """A line for each source: money, time, and what they follow from."""
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("source")
    for name in ("calls", forecast.currency, "at most", "limit", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("time from")
    for each in forecast.sources:
        amounts = ["–" if amount is None else f"{amount:f}" for amount in (each.cost, each.cost_highest)]
        limit = number(each.limit) if each.limit else "–"
        limit = limit if each.limit_is_known or not each.limit else f"from {limit}"
        time = "–" if each.hours is None else duration(each.hours * 3600)
        table.add_row(plain(each.source, 20), number(each.calls), *amounts, limit, time, plain(each.basis, 120))
    return table


def _cells(each: ShopEstimate) -> list[str]:
    figures = ["–" if figure is None else number(figure) for figure in (each.items, each.calls)]
    return [plain(each.shop, 60), plain(each.source, 20), *figures, plain(each.basis, 80)]
