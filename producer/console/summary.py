"""The closing block: what a crawl brought, what it cost, where the data is and what to do next."""

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from models.status import CrawlStatus, UnhappyShop
from producer.console.figures import bars, figures, label_grid, unhappy_table
from producer.console.text import number, plain

UNREADABLE = "the database of SHOPCRAWL_DATABASE_URL"


def shown_location(url: str) -> str:
    """A database URL as a person may read it: the file of SQLite, else the address without password and options."""
    try:
        full = make_url(url)
    except (ArgumentError, ValueError):
        return UNREADABLE
    if url.count("@") > 1:  # a password with an @ of its own would be taken for a part of the host
        return UNREADABLE
    backend = full.get_backend_name()
    if backend == "sqlite":
        return full.database or "memory"
    return URL.create(backend, full.username, None, full.host, full.port, full.database).render_as_string()


def print_summary(
    console: Console,
    status: CrawlStatus,
    unhappy: Sequence[UnhappyShop],
    *,
    database: str,
    currency: str = "",
    setup: str = "",
    command: str = "shopcrawl",
) -> None:
    """Print the summary; `database` is its shown location, `unhappy` the first shops to name.

    `command` is how the reader calls shopcrawl, `setup` what must be entered before.
    """
    parts: list[RenderableType] = [_headline(status), "", *bars(status), figures(status, database, currency)]
    if unhappy:
        parts += ["", unhappy_table(status, unhappy)]
    parts += ["", _next_steps(status, setup, command)]
    console.print(Padding(Group(*parts), (1, 1)))


def _headline(status: CrawlStatus) -> Text:
    verdicts = status.verdicts
    if status.waits_for:
        words = f"▲ Crawl {status.crawl} waits: {plain(status.waits_for, 120)}; {number(status.open_shops)} shops "
        return Text(f"{words}are open, all work is kept", "bold yellow")
    if status.is_over and status.needs_authorisation:
        words = f"▲ Crawl {status.crawl}: {number(status.needs_authorisation)} of {number(status.shops)} shops need "
        return Text(f"{words}authorisation, the others have ended; all work is kept", "bold yellow")
    if not status.is_finished:
        words = f"… Crawl {status.crawl} is not finished: {number(status.open_shops)} shops open, all work is kept"
        return Text(words, "bold yellow")
    if verdicts.unhappy:
        what = ["incomplete"] * bool(verdicts.unhappy - verdicts.suspect) + ["suspect"] * bool(verdicts.suspect)
        words = f"▲ Crawl {status.crawl} finished: {number(verdicts.unhappy)} of {number(status.shops)} shops "
        return Text(words + " or ".join(what), "bold yellow")
    drifted = " or drifted" if verdicts.drifted else ""
    return Text(f"✔ Crawl {status.crawl} finished: all {number(status.shops)} shops complete{drifted}", "bold green")


def _next_steps(status: CrawlStatus, setup: str, command: str) -> Table:
    """Commands that make sense now, each with what it does."""
    steps = [("session set SHOP", "give a shop its new session")] if status.needs_authorisation else []
    steps += [(f"budget {status.crawl} --max-calls N", "give it another budget")] if status.waits_for else []
    steps += [("resume", "go on where it stopped")] if not status.is_finished else []
    steps.append(("export items --format csv > items.csv", "all items, as CSV"))
    if status.verdicts.suspect:
        steps.append(("recrawl --verdict suspect", "look once more at shops that shrank"))
    if status.verdicts.partial:
        steps.append(("recrawl --verdict partial", "retry partial shops"))
    if status.verdicts.failed:
        steps.append(("recrawl --failed", "retry failed shops"))
    steps.append(("status", "these figures again"))
    grid = label_grid()
    grid.add_column(no_wrap=True)
    grid.add_column(style="dim")
    rows = [(setup, "")] if setup else []
    rows += [(f"{command} {arguments}", meaning) for arguments, meaning in steps]
    for index, (line, meaning) in enumerate(rows):
        grid.add_row("" if index else "next", Text(line, "cyan"), meaning)
    return grid
