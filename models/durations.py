"""Durations as people write them: 90m, 24h, 7d."""

import re
from datetime import timedelta

from models.errors import UsageError

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parse_duration(text: str) -> timedelta:
    """Read a whole number with a unit (s, m, h, d or w). Raises UsageError."""
    found = re.fullmatch(r"(\d{1,6})([smhdw])", text.strip())
    if found is None:
        raise UsageError(f"{text[:20]!r} is no duration; write it as 90m, 24h or 7d")
    return timedelta(**{UNITS[found[2]]: int(found[1])})
