"""The first window of a shop whose listing is read by windows of time."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from models.durations import parse_duration
from models.source import WindowRules

LAST = "last"
"""The value of option `since` that goes on where the last whole crawl ended."""
ROOT = "root"


def first_slice(
    options: Mapping[str, Any], watermark: datetime | None, rules: WindowRules, now: datetime
) -> dict[str, Any]:
    """The columns of a shop crawl's first slice: all that changed since its start, up to a time that stays fixed."""
    end = (now - rules.margin).replace(microsecond=0)
    start = window_start(options.get("since"), watermark, rules, now)
    return {
        "number": 1,
        "round": 1,
        "kind": ROOT,
        "state": "counting",
        "start_at": None if start is None else min(start, end),
        "end_at": end,
        "cid": None,
        "expected": None,
        "cursor": 1,
        "behind": 0,
        "turn": 1,
        "calls": 0,
        "lost": 0,
        "missing": 0,
    }


def window_start(since: str | None, watermark: datetime | None, rules: WindowRules, now: datetime) -> datetime | None:
    """Where to begin, None for the beginning of time; `since` is `last`, an ISO time or a duration back from now."""
    if since is None or (since == LAST and watermark is None):
        return None
    if since == LAST and watermark is not None:
        start = watermark - rules.overlap
    else:
        try:
            start = datetime.fromisoformat(since)
        except ValueError:
            start = now - min(parse_duration(since), now - rules.earliest)
    return start.replace(microsecond=0) if start > rules.earliest else None
