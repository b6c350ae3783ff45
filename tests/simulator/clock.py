"""A clock that can be moved: the machine's time plus an offset."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from email.utils import formatdate

CHINA = timezone(timedelta(hours=8))


class VirtualClock:
    """Seconds since the epoch, moved at will by tests of long waits."""

    def __init__(self, real: Callable[[], float] = time.time) -> None:
        self.real = real
        self.offset = 0.0

    def now(self) -> float:
        """Return the virtual time."""
        return self.real() + self.offset

    def advance(self, seconds: float) -> None:
        """Move the clock, backwards with a negative number."""
        self.offset += seconds

    def set(self, moment: float) -> None:
        """Let it be `moment` now."""
        self.offset = moment - self.real()

    def report(self) -> dict[str, float | str]:
        """Return the time as JSON values."""
        now = self.now()
        return {"now": now, "utc": iso_utc(now), "gmt8": china_text(now), "offset": self.offset}


def iso_utc(moment: float) -> str:
    """Write a time as ISO 8601 in UTC, whole seconds."""
    return datetime.fromtimestamp(int(moment), UTC).isoformat()


def china_text(moment: float) -> str:
    """Write a time as the platform does: GMT+8, no zone, whole seconds."""
    return datetime.fromtimestamp(int(moment), CHINA).strftime("%Y-%m-%d %H:%M:%S")


def from_china(text: str) -> int:
    """Read what `china_text` writes; ValueError for any other form."""
    moment = datetime.strptime(text, "%Y-%m-%d %H:%M:%S").replace(tzinfo=CHINA)
    if moment.strftime("%Y-%m-%d %H:%M:%S") != text:
        raise ValueError(text)
    return int(moment.timestamp())


def china_midnight(moment: float) -> float:
    """Return the next midnight of GMT+8 after `moment`."""
    day = 86_400
    shift = 8 * 3600
    return (int(moment + shift) // day + 1) * day - shift


def moment_of(value: datetime) -> float:
    """Return the seconds since the epoch; a time without a zone is GMT+8."""
    return (value if value.tzinfo else value.replace(tzinfo=CHINA)).timestamp()


def http_date(moment: float) -> bytes:
    """Write a time as a Date header does."""
    return formatdate(moment, usegmt=True).encode()
