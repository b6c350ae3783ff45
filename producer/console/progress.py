"""The live view of a running crawl: one compact block for a terminal, one line for a log."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from models.circuits import OpenCircuit
from models.credentials import Parked
from models.fleet import Ban, LimitState
from models.status import CrawlStatus, Verdicts
from producer.console.money import cost_line, speed_line
from producer.console.text import (
    VERDICT_STYLES,
    duration,
    joined,
    number,
    outcomes,
    plain,
    progress_bar,
    rate,
    share,
)
from producer.outlook import outlook
from producer.pauses import clock_words

SMOOTHING = 10.0
"""Seconds over which the speed is smoothed."""
MOST_CREDENTIALS = 5
SHORT_BAN = 5.0
"""Seconds; shorter bans are not worth a line, workers wait them out."""
LONGEST_BAR = 64


@dataclass(frozen=True, slots=True)
class Pace:
    """Pages per second, smoothed; fed with the number of finished pages at moments of one steady clock (s)."""

    per_second: float = 0.0
    finished: int | None = None
    at: float = 0.0
    measured: float = 0.0

    def step(self, finished: int, at: float) -> "Pace":
        """The pace after a further look; a count that falls (another crawl) starts over."""
        if self.finished is None or finished < self.finished:
            return Pace(finished=finished, at=at)
        passed = at - self.at
        if passed <= 0:
            return self
        now = (finished - self.finished) / passed
        measured = self.measured + passed
        # Weights of a young average are spread over the time it has seen, so that it does not start from zero.
        weight = (1 - exp(-passed / SMOOTHING)) / (1 - exp(-measured / SMOOTHING))
        speed = self.per_second + weight * (now - self.per_second)
        return replace(self, per_second=speed, finished=finished, at=at, measured=measured)


@dataclass(frozen=True, slots=True)
class Fleet:
    """What Redis says about the workers: how many live, each credential's limit, and what rests."""

    workers: int
    limits: tuple[LimitState, ...] = ()
    circuits: tuple[OpenCircuit, ...] = ()


@dataclass(frozen=True, slots=True)
class View:
    """Everything the live view shows; `fleet` is None when there is no Redis to ask, `trouble` says what is away."""

    status: CrawlStatus
    pace: Pace = Pace()
    fleet: Fleet | None = None
    waiting: tuple[Parked, ...] = ()
    trouble: str | None = None
    currency: str = ""
    permits: tuple[float, float] = (0.0, 0.0)
    """Calls in flight and allowed, smoothed as the pace is."""


def block(view: View, width: int) -> RenderableType:
    """The live view for a terminal of `width` columns."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    status = view.status
    grid.add_row("shops", _shops(status))
    grid.add_row("pages", _pages(view))
    grid.add_row("items", _items(status))
    if status.calls:
        grid.add_row("calls", outcomes(status.calls))
    ahead = outlook(status, view.pace.per_second, *view.permits)
    for label, words in (("cost", cost_line(status, view.currency)), ("speed", speed_line(ahead))):
        if words:
            grid.add_row(label, words)
    for index, line in enumerate(_fleet(view)):
        grid.add_row("" if index else "fleet", line)
    return Group(_head(status, width), grid, *warnings(view))


def _head(status: CrawlStatus, width: int) -> Table:
    """The crawl's name, a bar of its shops, and their share."""
    name = Text(f"crawl {status.crawl}", style="bold")
    percent = Text(share(status.verdicts.settled, status.shops), style="bold")
    room = width - name.cell_len - percent.cell_len - 6
    line = Table.grid(padding=(0, 2, 0, 0))
    line.add_row(name, progress_bar(status.verdicts.settled, status.shops, max(10, min(room, LONGEST_BAR))), percent)
    return line


def _shops(status: CrawlStatus) -> Text:
    held = Text(f"{number(status.needs_authorisation)} need authorisation", "yellow")
    settled = f"{number(status.verdicts.settled)} of {number(status.shops)} settled"
    return joined([settled, *_verdicts(status.verdicts), held if status.needs_authorisation else ""])


def _verdicts(verdicts: Verdicts) -> list[str | Text]:
    """Only what is out of the ordinary: most shops are complete."""
    unusual = {name: getattr(verdicts, name) for name in VERDICT_STYLES if name != "complete"}
    return [Text(f"{number(count)} {name}", style=VERDICT_STYLES[name]) for name, count in unusual.items() if count]


def _pages(view: View) -> Text:
    pages = view.status.pages
    dead = Text(f"{number(pages.dead)} dead", style="red") if pages.dead else Text()
    speed = f"{rate(view.pace.per_second)} pages/s" if view.pace.measured else ""
    return joined([f"{number(pages.done)} of {number(pages.known)}", dead, speed, *_times(view)])


def _times(view: View) -> list[str | Text]:
    times: list[str | Text] = [f"{duration(view.status.elapsed_s)} elapsed"]
    left = view.status.pages.known - view.status.pages.finished
    if view.pace.per_second >= 0.05 and left > 0 and not warnings(view):
        times.append(f"about {duration(left / view.pace.per_second)} left")
    return times


def _items(status: CrawlStatus) -> Text:
    items = status.items
    return joined(
        [
            f"{number(items.seen)} seen",
            f"{number(items.new)} new",
            f"{number(items.changed)} changed" if items.changed else "",
        ]
    )


def _fleet(view: View) -> list[Text]:
    """One line for each credential that matters, the number of workers on the first."""
    if view.fleet is None:
        return []
    workers = Text(f"{view.fleet.workers} worker{'' if view.fleet.workers == 1 else 's'}")
    if not view.fleet.workers:
        workers = Text("no worker yet", style="yellow")
    active = [limit for limit in view.fleet.limits if _is_usable(limit)]
    lines = [_limit(limit) for limit in active[:MOST_CREDENTIALS]]
    if len(active) > MOST_CREDENTIALS:
        lines.append(Text(f"and {len(active) - MOST_CREDENTIALS} more credentials", style="dim"))
    if not lines:
        return [workers]
    lines[0] = joined([lines[0], workers])
    return lines


def _limit(limit: LimitState) -> Text:
    queue = f"{number(limit.waiting)} waiting" if limit.waiting else ""
    name = f"{plain(limit.source, 20)} {plain(limit.credential, 20)}"
    return joined([f"{name}: limit {number(limit.limit)}", f"{number(limit.in_flight)} in flight", queue])


def warnings(view: View) -> list[Text]:
    """What keeps the crawl from going on, in words; nothing when all is well."""
    lines = [f"{view.trouble}; the crawl goes on by itself when it is back"] if view.trouble else []
    lines += [waiting_words(entry, alone=_is_alone(view, entry)) for entry in view.waiting]
    lines += [*ban_words(view.fleet.limits), *circuit_words(view.fleet.circuits)] if view.fleet else []
    return [warning(text) for text in lines]


def warning(text: str) -> Text:
    """A line that calls for attention."""
    return Text(f"▲ {text}", "yellow")


def waiting_words(entry: Parked, *, alone: bool = True) -> str:
    """Why a credential rests and what to do; `alone`: its source has no other one to go on with."""
    token = f"token {plain(entry.name, 20)} parked: {plain(entry.reason, 120)}"
    if not alone:
        return f"{entry.source} goes on without {token}"
    return f"{entry.source} waits: {token}. Top up or mend it, then `shopcrawl resume`; nothing is lost"


def _is_alone(view: View, entry: Parked) -> bool:
    limits = view.fleet.limits if view.fleet else ()
    return not any(limit.source == entry.source and limit.parked is None for limit in limits)


def ban_words(limits: Sequence[LimitState]) -> list[str]:
    """Which credentials are banned for some time yet, and until when; one line for a source that waits as a whole."""
    lines = []
    for source in dict.fromkeys(limit.source for limit in limits):
        ours = [limit for limit in limits if limit.source == source]
        bans = {limit.credential: limit.ban for limit in ours if limit.parked is None and limit.ban is not None}
        long = {name: ban for name, ban in bans.items() if ban.seconds > SHORT_BAN}
        if any(map(_is_usable, ours)):
            lines += [f"{source} goes on without {plain(name, 20)} {_until(ban)}" for name, ban in long.items()]
        elif long:
            first = min(long.values(), key=lambda ban: ban.seconds)
            lines.append(f"{source} waits {_until(first)}. It goes on by itself; nothing is lost")
    return lines


def circuit_words(circuits: Sequence[OpenCircuit]) -> list[str]:
    """One line for each source with something at rest: itself, or how many of its shops; not for shops given up."""
    lines = []
    resting = [circuit for circuit in circuits if circuit.state != "given up"]
    for source in dict.fromkeys(circuit.source for circuit in resting):
        first, *others = [circuit for circuit in resting if circuit.source == source]
        others = [] if first.shop is None else others
        more = f" and {number(len(others))} more" if others else ""
        who = f"all of {source}" if first.shop is None else f"{source} shop {plain(first.shop, 40)}"
        verb = "rest" if others else "rests"
        why = f"{first.share:.0%} failed: {plain(first.reason, 120)}"
        lines.append(f"{who}{more} {verb} ({rest_words(first)}), {why}. `shopcrawl circuits` shows all")
    return lines


def rest_words(circuit: OpenCircuit) -> str:
    """How a circuit stands."""
    if circuit.state == "resting" and circuit.until is not None:
        return f"until {circuit.until:%H:%M:%S} UTC"
    return {"probing": "one page is tried", "due": "one page is tried next"}.get(circuit.state, circuit.state)


def _until(ban: Ban) -> str:
    return f"until {clock_words(ban.until)}: {plain(ban.reason, 120)}"


def _is_usable(limit: LimitState) -> bool:
    return limit.parked is None and (limit.ban is None or limit.ban.seconds <= SHORT_BAN)


def line(view: View) -> str:
    """The live view as one line of plain text."""
    status = view.status
    parts = [
        f"{number(status.verdicts.settled)}/{number(status.shops)} shops",
        f"{number(status.pages.done)}/{number(status.pages.known)} pages",
        f"{number(status.pages.dead)} dead" if status.pages.dead else "",
        f"{rate(view.pace.per_second)} pages/s" if view.pace.measured else "",
        f"{number(status.items.seen)} items",
        "calls " + " ".join(f"{plain(code, 20)}:{made}" for code, made in status.calls.items()) if status.calls else "",
        f"{view.fleet.workers} workers" if view.fleet else "",
        duration(status.elapsed_s),
    ]
    return f"crawl {status.crawl}: " + ", ".join(part for part in parts if part)
