"""Durations and times as people write them: 90m, 24h, 7d, 2026-01-31."""

import re
from datetime import UTC, datetime, timedelta

from models.errors import UsageError

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def parse_duration(text: str) -> timedelta:
    """Read a whole number with a unit (s, m, h, d or w). Raises UsageError."""
    found = re.fullmatch(r"([0-9]{1,6})([smhdw])", text.strip())
    if found is None:
        raise UsageError(f"{text[:20]!r} is no duration; write it as 90m, 24h or 7d")
    return timedelta(**{UNITS[found[2]]: int(found[1])})


def parse_moment(text: str, now: datetime) -> datetime:
    """Read a time in UTC: ISO 8601, where no zone means UTC, or a duration for so long before `now`. Raises UsageError.

    A duration reaches back to 1970 at most.
    """
    try:
        if re.fullmatch(r"\d+[a-z]", text.strip()):
            return now - min(parse_duration(text), now - EPOCH)
        moment = datetime.fromisoformat(text.strip())
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise UsageError(f"{text[:40]!r} is no time; write it as 24h, 2026-01-31 or 2026-01-31T12:30:00Z") from None
