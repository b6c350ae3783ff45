"""The bans of one source as one process knows them, and what follows from them for those who wait."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from models.errors import ShopcrawlError
from models.fleet import WHOLE_SOURCE
from worker.permits import AllParked, Lane

LONGEST_BAN = 90_000.0
"""Seconds; the longest real ban lasts for a day, and a server's misprint must not silence a source for ever."""


class AllBanned(ShopcrawlError):  # noqa: N818 - a state of the source, not a fault
    """No credential may be used for another `seconds`; `reasons` by credential name, parked ones included."""

    def __init__(self, seconds: float, reasons: Mapping[str, str]) -> None:
        super().__init__(f"{seconds:.0f} s: {'; '.join(dict.fromkeys(reasons.values()))}")
        self.seconds = seconds
        self.reasons = dict(reasons)


class Ban(NamedTuple):
    """When a ban ends, in seconds of the process's steady clock, and why it was made."""

    ends: float
    reason: str


class Bans:
    """Bans by scope: a credential's name, or WHOLE_SOURCE.

    A ban stays in force here until Redis has said that it is over, so that one that was prolonged elsewhere is obeyed.
    """

    def __init__(self) -> None:
        self._known: dict[str, Ban] = {}
        self._unsent: dict[str, Ban] = {}
        self._told: dict[str, Ban] = {}

    def learn(self, scope: str, seconds: float, reason: str, now: float) -> bool:
        """Obey a ban from now on and tell Redis with the next call; a longer one stays. True: there was none."""
        ban = Ban(now + min(max(0.0, seconds), LONGEST_BAN), reason)
        known = self._known.get(scope)
        if known is None or ban.ends > known.ends:
            self._known[scope] = self._unsent[scope] = ban
        return known is None

    def over(self, credential: str) -> Ban | None:
        """The ban that keeps this credential from being used the longest, if there is one."""
        if not self._known:
            return None
        found = [self._known[scope] for scope in (credential, WHOLE_SOURCE) if scope in self._known]
        return max(found, default=None)

    def next_end(self) -> float | None:
        """When the first ban ends: then Redis is to be asked."""
        return min((ban.ends for ban in self._known.values()), default=None)

    def call(self, now: float) -> list[tuple[str, float, str]]:
        """What to tell Redis: scope, ms left, reason."""
        self._told = self._unsent.copy()
        return [(scope, max(0.0, ban.ends - now) * 1000, ban.reason) for scope, ban in self._told.items()]

    def apply(self, answer: Iterable[tuple[str, float, str]], now: float, *, forgotten: bool) -> None:
        """Take over what Redis knows; `forgotten`: it was emptied, so that what is remembered here is told again."""
        for scope, ban in self._told.items():
            if self._unsent.get(scope) is ban:
                del self._unsent[scope]
        if forgotten:
            self._unsent = self._known | self._unsent
        self._known = {scope: Ban(now + left / 1000, reason) for scope, left, reason in answer}
        for scope, ban in list(self._unsent.items()):
            known = self._known.get(scope)
            if ban.ends <= now or (known and known.ends >= ban.ends):
                del self._unsent[scope]
            else:
                self._known[scope] = ban

    @property
    def untold(self) -> bool:
        """Whether Redis does not know of a ban yet."""
        return bool(self._unsent)


def refusal(lanes: Sequence[Lane], bans: Bans, only: str | None, patience: float, now: float) -> ShopcrawlError | None:
    """What to tell a page that may use these credentials; None if it is worth waiting, up to `patience` seconds.

    `only`: the page is to try this credential although it is parked.
    """
    usable = lanes if only else [lane for lane in lanes if not lane.parked]
    if not usable:
        return AllParked({lane.name: lane.parked for lane in lanes}) if lanes else None
    banned = {lane.name: ban for lane in usable if (ban := bans.over(lane.name))}
    if len(banned) < len(usable):
        return None
    seconds = min(ban.ends for ban in banned.values()) - now
    if seconds <= patience:
        return None
    reasons = {lane.name: banned[lane.name].reason if lane.name in banned else lane.parked for lane in lanes}
    return AllBanned(seconds, reasons)
