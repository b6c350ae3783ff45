"""How a crawl goes on: its speed against what the limit allows, and when it will be done."""

from collections.abc import Sequence

import msgspec

from models.fleet import LimitState
from models.speed import possible
from models.status import CrawlStatus

SLOWEST = 0.05
"""Pages per second below which a time left says nothing."""


class Outlook(msgspec.Struct, frozen=True):
    """Pages per second now, those that the limit allows, and the seconds left; None: nobody knows."""

    per_second: float
    possible: float | None
    seconds_left: float | None


def permits(limits: Sequence[LimitState]) -> tuple[int, int]:
    """Calls in flight and calls allowed, of the credentials that are called with now."""
    used = [each for each in limits if each.in_flight and each.parked is None]
    return sum(each.in_flight for each in used), sum(max(each.limit, each.in_flight) for each in used)


def outlook(status: CrawlStatus, per_second: float, in_flight: float, limit: float) -> Outlook:
    """What follows from a speed, with so many calls in flight of so many allowed.

    The time left is for the pages known by now: more are found while shops are opened.
    """
    left = status.pages.known - status.pages.finished
    is_moving = per_second >= SLOWEST and left > 0 and not status.is_over
    return Outlook(per_second, possible(per_second, in_flight, limit), left / per_second if is_moving else None)
