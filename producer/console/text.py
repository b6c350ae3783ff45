"""Small pieces of text: numbers, durations, bars, and foreign words made harmless."""

import unicodedata
from collections.abc import Mapping

from rich.progress_bar import ProgressBar
from rich.text import Text

LONGEST_WORDS = 300
FRACTION = "▏▎▍▌▋▊▉█"
VERDICT_STYLES = {"complete": "green", "drifted": "cyan", "suspect": "magenta", "partial": "yellow", "failed": "red"}
# Throttling and running dry are the account's business, everything else is trouble with a page.
_OUTCOME_STYLES = {"200": "green", "503": "yellow", "429": "yellow", "439": "bold yellow"}


def plain(text: str, longest: int = LONGEST_WORDS) -> str:
    """Foreign text on one line: control, direction and other invisible characters become spaces, and it is cut."""
    clean = "".join(" " if unicodedata.category(char)[0] == "C" else char for char in text[: longest * 4])
    words = " ".join(clean.split())
    return words if len(words) <= longest else words[: longest - 1] + "…"


def number(value: float) -> str:
    """A count with thousands separated."""
    return f"{value:,.0f}"


def rate(per_second: float) -> str:
    """A speed in pages per second; small ones with one decimal."""
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.1f}"


def share(part: float, whole: float) -> str:
    """A percentage; never 0 % for something nor 100 % for less than all."""
    if not whole:
        return "–"
    percent = 100 * part / whole
    if 0 < percent < 0.1:
        return "<0.1 %"
    if 99.9 < percent < 100:
        return ">99.9 %"
    return f"{percent:.1f} %"


def duration(seconds: float) -> str:
    """0:07, 12:30 or 3:05:00; from two days on `2 d 4 h`."""
    whole = int(max(0.0, seconds))
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def small_bar(part: float, whole: float, width: int) -> str:
    """A horizontal bar of up to `width` cells in eighths of a cell; anything above nothing shows."""
    if part <= 0 or whole <= 0:
        return ""
    eighths = max(1, round(min(1.0, part / whole) * width * 8))
    full, rest = divmod(eighths, 8)
    return "█" * full + (FRACTION[rest - 1] if rest else "")


def outcome_style(code: str) -> str:
    """The style of an outcome code."""
    return _OUTCOME_STYLES.get(code, "red")


def outcomes(calls: Mapping[str, int]) -> Text:
    """Calls by outcome, those that occurred, on one line."""
    text = Text()
    for code, made in calls.items():
        text.append("   " if text else "")
        text.append(plain(code, 20), style=outcome_style(code)).append(f" {number(made)}")
    return text


def joined(parts: list[str | Text], separator: str = " · ") -> Text:
    """Parts with a dim separator between them; empty ones are left out."""
    line = Text()
    for part in parts:
        if not part:
            continue
        if line:
            line.append(separator, style="dim")
        line.append_text(part if isinstance(part, Text) else Text(part))
    return line


def progress_bar(done: float, total: float, width: int) -> ProgressBar:
    """A thin bar of `width` cells."""
    return ProgressBar(
        total=max(total, 1),
        completed=done,
        width=width,
        complete_style="cyan",
        finished_style="green",
        style="bright_black",
    )
