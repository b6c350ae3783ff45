"""Call limits that have been hit: which calls they refuse, for how long, and how clients behaved meanwhile."""

import math
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec

from tests.simulator.clock import china_midnight, iso_utc, moment_of
from tests.simulator.switches import Amount, Count
from tests.simulator.top.errors import TopError

Scope = Literal["api", "app_api", "dynamic", "app_daily", "closed"]

_SUB_CODES: dict[Scope, str] = {
    "api": "accesscontrol.limited-by-api-access-count",
    "app_api": "accesscontrol.limited-by-app-api-access-count",
    "dynamic": "accesscontrol.limited-by-dynamic-access-count",
    "app_daily": "accesscontrol.limited-by-app-access-count",
    "closed": "accesscontrol.limited-by-api-access-count",
}
_FOR_ALL_APPS = {"api", "closed"}


class BanOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A ban to come.

    It begins after `after` more calls and not before `since`; it lasts `seconds`, or to `until`, or to the next
    midnight of GMT+8. Each call during it adds `prolong` seconds. Of several `times` one follows the other. Times
    are virtual, without a zone GMT+8.
    """

    scope: Scope = "app_api"
    seconds: Amount | Literal["midnight"] = 1.0
    after: Count = 0
    since: datetime | None = None
    until: datetime | None = None
    app: str | None = None
    sentence: bool = True
    prolong: Amount = 0.0
    times: Annotated[int, msgspec.Meta(ge=1)] = 1


class Ban:
    """One ban in force or over; times are virtual seconds since the epoch."""

    def __init__(self, order: BanOrder, now: float) -> None:
        self.order = order
        self.since = now
        self.until = _end(order, now)
        self.calls = 0
        self.after_learned = 0
        self.in_flight: int | None = None  # when the first refusal left, that one included

    def refuse(self, now: float) -> TopError:
        """Count a call made during the ban and return its answer."""
        self.calls += 1
        self.after_learned += self.in_flight is not None
        self.until += self.order.prolong
        sub_msg = "调用次数超限"
        if self.order.sentence:
            sub_msg = f"This ban will last for {math.ceil(self.until - now)} more seconds"
        return TopError(7, _SUB_CODES[self.order.scope], sub_msg)

    def learned(self, in_flight: int) -> None:
        """A refusal leaves while so many calls, itself included, are in flight."""
        if self.in_flight is None:
            self.in_flight = in_flight

    def report(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {
            "scope": self.order.scope,
            "app": self.order.app,
            "since": iso_utc(self.since),
            "until": iso_utc(self.until),
            "calls": self.calls,
            "in_flight": self.in_flight or 0,
            "after_learned": self.after_learned,
        }


class Bans:
    """All bans ordered, in force, and over."""

    def __init__(self) -> None:
        self._ordered: list[tuple[BanOrder, int]] = []  # with the calls left before each begins
        self._in_force: list[Ban] = []
        self.all: list[Ban] = []

    def order(self, order: BanOrder, now: float) -> None:
        """Let a ban begin, now or later."""
        for _ in range(order.times):
            self._ordered.append((order, order.after))
        self._begin(now)

    def lift(self) -> None:
        """End every ban and forget those to come."""
        self._ordered.clear()
        self._in_force.clear()

    def forget(self) -> None:
        """Forget the figures of bans that are over."""
        self.all = list(self._in_force)

    def arrive(self, app: str, now: float) -> Ban | None:
        """Return the ban in force for a call of an app, the one that lasts longest; count the call otherwise."""
        self._in_force = [ban for ban in self._in_force if ban.until > now]
        self._begin(now)
        hit = [ban for ban in self._in_force if _covers(ban.order, app)]
        if hit:
            return max(hit, key=lambda ban: ban.until)
        counted: list[BanOrder] = []
        for at, (order, left) in enumerate(self._ordered):
            if _covers(order, app) and not any(order is other for other in counted):
                self._ordered[at] = (order, left - 1)
                counted.append(order)
        return None

    def _begin(self, now: float) -> None:
        waiting: list[tuple[BanOrder, int]] = []
        for order, left in self._ordered:
            early = order.since is not None and moment_of(order.since) > now
            if early or left > 0 or any(ban.order is order for ban in self._in_force):
                waiting.append((order, left))
                continue
            ban = Ban(order, now)
            self._in_force.append(ban)
            self.all.append(ban)
        self._ordered = waiting


def _end(order: BanOrder, now: float) -> float:
    if order.until is not None:
        return moment_of(order.until)
    return china_midnight(now) if order.seconds == "midnight" else now + order.seconds


def _covers(order: BanOrder, app: str) -> bool:
    return order.scope in _FOR_ALL_APPS or order.app is None or order.app == app
