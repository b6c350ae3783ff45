"""What `shopcrawl status` prints: the figures of one crawl, or a list of crawls."""

from collections.abc import Sequence
from datetime import datetime

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from models.circuits import OpenCircuit
from models.credentials import Parked
from models.fleet import LimitState
from models.status import CrawlLine, CrawlStatus, UnhappyShop, Verdicts
from producer.console.figures import bars, figures, unhappy_table
from producer.console.progress import ban_words, circuit_words, waiting_words, warning
from producer.console.text import VERDICT_STYLES, duration, number
from producer.outlook import Outlook

_STATE_STYLES = {"finished": "green", "running": "cyan"}


def print_status(
    console: Console,
    status: CrawlStatus,
    unhappy: Sequence[UnhappyShop] = (),
    waiting: Sequence[Parked] = (),
    limits: Sequence[LimitState] = (),
    circuits: Sequence[OpenCircuit] = (),
    *,
    database: str,
    currency: str = "",
    ahead: Outlook | None = None,
) -> None:
    """Print the figures of one crawl; `waiting` holds the parked credentials it is concerned by, `limits` the bans."""
    style = _STATE_STYLES.get(status.state, "yellow")
    title = Text.assemble((f"Crawl {status.crawl} ", "bold"), (status.state, style))
    parts: list[RenderableType] = [title, "", *bars(status), figures(status, database, currency, ahead)]
    if unhappy:
        parts += ["", unhappy_table(status, unhappy)]
    warnings = [*(waiting_words(entry) for entry in waiting), *ban_words(limits), *circuit_words(circuits)]
    if warnings:
        parts += ["", *map(warning, warnings)]
    console.print(Padding(Group(*parts), (1, 1)))


def print_crawls(console: Console, crawls: Sequence[CrawlLine], *, now: datetime) -> None:
    """Print a list of crawls."""
    if not crawls:
        console.print("no crawl yet: start one with `shopcrawl crawl shops.csv`", highlight=False, markup=False)
        return
    table = Table(box=None, header_style="dim", padding=(0, 1, 0, 0))
    for name in ("crawl", "started (UTC)", "took", "shops"):
        table.add_column(name, justify="left" if name == "started (UTC)" else "right", no_wrap=True)
    shown = [name for name in VERDICT_STYLES if name != "suspect" or any(entry.verdicts.suspect for entry in crawls)]
    for name in shown:
        table.add_column(name, justify="right", style=VERDICT_STYLES[name], no_wrap=True)
    table.add_column("state", no_wrap=True)
    for entry in crawls:
        table.add_row(*_crawl_row(entry, shown, now))
    console.print(Padding(table, (1, 1)))


def _crawl_row(entry: CrawlLine, verdicts: Sequence[str], now: datetime) -> list[str | Text]:
    took = ((entry.finished_at or now) - entry.created_at).total_seconds()
    kind = "" if entry.kind == "crawl" else f" {entry.kind}"
    return [
        str(entry.crawl),
        f"{entry.created_at:%Y-%m-%d %H:%M}",
        duration(took),
        number(entry.shops),
        *_verdict_cells(entry.verdicts, verdicts),
        Text(f"{entry.state}{kind}", _STATE_STYLES.get(entry.state, "yellow")),
    ]


def _verdict_cells(verdicts: Verdicts, names: Sequence[str]) -> list[str | Text]:
    counts = [getattr(verdicts, name) for name in names]
    return [number(count) if count else Text("–", "bright_black") for count in counts]
