"""Figures of a crawl in blocks that line up: bars by verdict and outcome, totals, and the shops that need attention."""

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from models.status import CrawlStatus, UnhappyShop
from producer.console.money import cost_line, speed_line
from producer.console.text import (
    VERDICT_STYLES,
    duration,
    joined,
    number,
    outcome_style,
    plain,
    rate,
    share,
    small_bar,
)
from producer.outlook import Outlook

BAR = 24
MOST_UNHAPPY = 10
LABEL = 6

Bar = tuple[str, int, str]
"""Name, count and style of one bar."""


def bars(status: CrawlStatus) -> list[RenderableType]:
    """Shops by verdict and calls by outcome, one bar each."""
    shops: list[Bar] = [(name, getattr(status.verdicts, name), style) for name, style in VERDICT_STYLES.items()]
    shops.append(("needs authorisation", status.needs_authorisation, "yellow"))
    shops.append(("open", status.open_shops, "bright_black"))
    calls: list[Bar] = [(plain(code, 16), made, outcome_style(code)) for code, made in status.calls.items()]
    blocks: list[RenderableType] = []
    for label, bars in (("shops", shops), ("calls", calls)):
        present = [bar for bar in bars if bar[1]]
        if present:
            blocks += [_bar_grid(label, present), ""]
    return blocks


def _bar_grid(label: str, bars: Iterable[Bar]) -> Table:
    grid = label_grid()
    grid.add_column(min_width=10, no_wrap=True)
    grid.add_column(min_width=9, justify="right", no_wrap=True)
    grid.add_column(min_width=8, justify="right", no_wrap=True, style="dim")
    grid.add_column(no_wrap=True)
    bars = list(bars)
    whole = sum(count for _, count, _ in bars)
    for index, (name, count, style) in enumerate(bars):
        bar = Text(small_bar(count, whole, BAR), style)
        grid.add_row("" if index else label, Text(name, style), number(count), share(count, whole), bar)
    return grid


def label_grid() -> Table:
    """A grid whose first column holds dim labels of one width, so that blocks below each other line up."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=LABEL, style="dim", no_wrap=True)
    return grid


def figures(status: CrawlStatus, database: str, currency: str = "", ahead: Outlook | None = None) -> Table:
    items, pages = status.items, status.pages
    grid = label_grid()
    grid.add_column(overflow="fold")
    changes = [f"{number(items.new)} new", f"{number(items.changed)} changed"]
    grid.add_row(
        "items", joined([Text(f"{number(items.unique)} unique", "bold"), *changes, f"{number(items.seen)} rows seen"])
    )
    dead = Text(f"{number(pages.dead)} dead", "red") if pages.dead else ""
    waiting = pages.ready + pages.sent
    left = f"{number(waiting)} to go" if waiting else ""
    speed = f"{rate(pages.finished / status.elapsed_s)} pages/s" if status.elapsed_s else ""
    took = f"{duration(status.elapsed_s)} elapsed"
    grid.add_row("pages", joined([f"{number(pages.done)} done", dead, left, speed, took]))
    for label, words in (("cost", cost_line(status, currency)), ("now", _now(ahead))):
        if words:
            grid.add_row(label, words)
    grid.add_row("data", Text(plain(database)))
    return grid


def _now(ahead: Outlook | None) -> Text:
    if ahead is None or not ahead.per_second:
        return Text()
    left = "" if ahead.seconds_left is None else f"about {duration(ahead.seconds_left)} left"
    return joined([speed_line(ahead) or f"{rate(ahead.per_second)} pages/s", left])


def unhappy_table(status: CrawlStatus, shops: Sequence[UnhappyShop]) -> RenderableType:
    grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True, max_width=28, overflow="ellipsis")
    grid.add_column(no_wrap=True, ratio=1, overflow="ellipsis")  # takes what is left: the first to be cut
    for entry in shops[:MOST_UNHAPPY]:
        verdict = Text(entry.verdict, VERDICT_STYLES.get(entry.verdict, "red"))
        grid.add_row(verdict, Text(plain(entry.shop, 60)), Text(plain(entry.reason, 160), "dim"))
    unhappy = status.verdicts.unhappy + status.needs_authorisation
    rest = unhappy - min(len(shops), MOST_UNHAPPY)
    if rest <= 0:
        return grid
    return Group(grid, Text(f"and {number(rest)} more", "dim"))
