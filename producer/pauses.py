"""Why a source cannot be called now, and for how long."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from models.credentials import Parked
from models.fleet import Ban, ban_over


@dataclass(frozen=True, slots=True)
class Pause:
    """Nothing is sent to a source for this reason; `until` None: until somebody acts."""

    reason: str
    until: datetime | None = None

    def __str__(self) -> str:
        if self.until is None:
            return f"{self.reason}. Then run `shopcrawl resume`"
        return f"until {clock_words(self.until)}: {self.reason}. It goes on by itself"


def pause(names: Collection[str], parked: Sequence[Parked], bans: Sequence[Ban], patience: float) -> Pause | None:
    """Why none of a source's credentials may be used; None if one may, or will within `patience` seconds.

    `parked` and `bans` are those of this source.
    """
    reasons = {entry.name: entry.reason for entry in parked}
    usable = [name for name in names if name not in reasons]
    if not usable:
        return Pause("; ".join(sorted(set(reasons.values()))))
    banned = [ban for name in usable if (ban := ban_over(bans, name))]
    if len(banned) < len(usable):
        return None
    first = min(banned, key=lambda ban: ban.seconds)
    return Pause(first.reason, first.until) if first.seconds > patience else None


def clock_words(at: datetime) -> str:
    """A time of day (UTC), rounded up to whole minutes."""
    return f"{at + timedelta(seconds=-at.timestamp() % 60):%H:%M} UTC"
