"""What `shopcrawl show SHOP` prints: the shop, its verdicts over time, its number of items, and its latest changes."""

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from models.feed import Entry
from models.modes import HAPPY, NEW
from models.profiles import MOST_COUNTED, ShopCrawl, ShopProfile
from producer.console.changes import change_words
from producer.console.plot import sparkline
from producer.console.text import VERDICT_STYLES, joined, number, plain

CRAWLS_SHOWN = 12
ROOMY, WIDE = 100, 140
"""Columns from which on there is room between figures, and for the reasons of verdicts beside them."""
TRUSTED = (*HAPPY, "suspect")
"""Verdicts of crawls that read all that they were shown."""
TIME = "%Y-%m-%d %H:%M"
CHANGE_STYLES = {"new": "green", "back": "green", "gone": "red", "price": "yellow"}


def print_shop(console: Console, profile: ShopProfile) -> None:
    """Print the page of a shop; times are UTC."""
    parts: list[RenderableType] = [_title(profile), "", _facts(profile)]
    if profile.crawls:
        wide = console.width >= WIDE
        parts += ["", _crawls(profile.crawls[:CRAWLS_SHOWN], console.width)]
        parts += [] if wide else _reasons(profile.crawls[:CRAWLS_SHOWN])
    else:
        parts += ["", Text("no crawl of it has ended yet", "dim")]
    if profile.changes:
        parts += ["", Text("latest changes", "dim"), _changes(profile.changes)]
    console.print(Padding(Group(*parts), (1, 1)))


def _title(profile: ShopProfile) -> Text:
    title = Text.assemble((plain(profile.shop, 60), "bold"), "  ", (profile.source, "dim"))
    return title if profile.running is None else title.append(f"  crawl {profile.running} is running", "cyan")


def facts_grid() -> Table:
    """A grid of labels and what belongs to them."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    return grid


def _facts(profile: ShopProfile) -> Table:
    grid = facts_grid()
    grid.add_row("items", _items(profile))
    trend = _trend([each.distinct for each in reversed(profile.crawls) if each.whole and each.verdict in TRUSTED])
    if trend:
        grid.add_row("over time", trend)
    if profile.baseline_at is not None:
        grid.add_row("baseline", f"{profile.baseline_at:{TIME}}: items first seen later are new")
    if profile.watermark is not None:
        grid.add_row("watermark", f"{profile.watermark:{TIME}}: changes up to then are stored")
    if profile.next is not None:
        date = profile.next
        grid.add_row("next crawl", f"{date.at:{TIME}} by schedule {date.schedule} ({date.kind}, {date.mode})")
    return grid


def _items(profile: ShopProfile) -> Text:
    counts = profile.items
    if counts is None:
        parts: list[str | Text] = [f"more than {number(MOST_COUNTED)} stored"]
    else:
        gone = Text(f"{number(counts.gone)} gone", "red") if counts.gone else Text()
        parts = [f"{number(counts.present)} present", gone]
    if profile.known_items is not None:
        parts.append(f"{number(profile.known_items)} in the last accepted crawl")
    return joined(parts)


def _trend(counts: Sequence[int]) -> Text:
    """The number of items in crawls that asked for all of them, the oldest first."""
    if len(counts) < 2:
        return Text()
    low, high = min(counts), max(counts)
    between = number(low) if low == high else f"{number(low)} to {number(high)}"
    return Text.assemble((sparkline(counts, 40), "cyan"), f"  {between} in {len(counts)} whole crawls")


def _crawls(crawls: Sequence[ShopCrawl], width: int) -> Table:
    wide, gap = width >= WIDE, 2 if width >= ROOMY else 1
    table = Table(box=None, header_style="dim", padding=(0, gap, 0, 0), expand=wide)
    table.add_column("crawl", justify="right", no_wrap=True)
    table.add_column("ended (UTC)", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for name in ("items", "new", "changed", "gone", "calls"):
        table.add_column(name, justify="right", no_wrap=True)
    if wide:
        table.add_column("reason", no_wrap=True, ratio=1, overflow="ellipsis", style="dim")
    for each in crawls:
        reason = [Text(plain(each.reason or "", 200))] if wide else []
        table.add_row(*_crawl_cells(each), *reason)
    return table


def _crawl_cells(each: ShopCrawl) -> list[str | Text]:
    total = "" if each.total in {None, each.distinct} else f"/{number(each.total or 0)}"
    events = [number(count) if count else Text("–", "bright_black") for count in (each.new, each.changed, each.gone)]
    items = f"{number(each.distinct)}{total}"
    return [str(each.crawl), f"{each.settled_at:{TIME}}", _verdict(each), items, *events, number(each.calls)]


def _verdict(each: ShopCrawl) -> Text:
    verdict = each.verdict or "none"
    text = Text(verdict, VERDICT_STYLES.get(verdict, "yellow"))
    return text if each.whole else text.append(" new" if each.mode == NEW else " part", "dim")


def _reasons(crawls: Sequence[ShopCrawl]) -> list[RenderableType]:
    grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
    grid.add_column(justify="right", no_wrap=True, min_width=5)
    grid.add_column(no_wrap=True, ratio=1, overflow="ellipsis", style="dim")
    for each in crawls:
        if each.reason:
            grid.add_row(str(each.crawl), Text(plain(each.reason, 200)))
    return ["", grid] if grid.row_count else []


def _changes(entries: Sequence[Entry]) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
    for _ in range(3):
        grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True, ratio=1, overflow="ellipsis")  # takes what is left: the first to be cut
    for entry in reversed(entries):
        kind = Text(plain(entry.kind, 20), CHANGE_STYLES.get(entry.kind, ""))
        title = "" if entry.kind == "title" else plain(entry.title or "", 60)
        words = joined([plain(change_words(entry), 100), Text(title, "dim")])
        grid.add_row(f"{entry.at:{TIME}}", Text(plain(entry.item_id, 24)), kind, words)
    return grid
