"""Every call to the platform and its fate, in total and by seller."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from tests.simulator.ledger import Gauge, SlidingSecond


class Tally:
    """What was asked for and delivered."""

    def __init__(self) -> None:
        self.calls = self.pages = self.rows = self.repeated = self.during_ban = 0
        self.outcomes: Counter[str] = Counter()

    def report(self) -> dict[str, Any]:
        """Return the counters as JSON values."""
        return {
            "total": self.calls,
            "outcomes": dict(sorted(self.outcomes.items())),
            "pages_delivered": self.pages,
            "rows_delivered": self.rows,
            "repeated": self.repeated,
            "during_ban": self.during_ban,
        }


class TopLedger:
    """All counters of the platform; `clock` gives real seconds for the rate."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.number = 0  # of the latest call; never reset
        self.slots = Gauge()
        self.reset()

    def reset(self) -> None:
        """Set every counter to zero; calls in flight stay."""
        self.total = Tally()
        self.shops: dict[str, Tally] = {}
        self.injected: Counter[str] = Counter()
        self.attempts: Counter[int] = Counter()
        self.deliveries: Counter[int] = Counter()
        self.rate = SlidingSecond()
        self.slots.most = self.slots.now
        self.first_at: float | None = None
        self.last_at: float | None = None

    def arrive(self) -> int:
        """Count a call and return its number."""
        now = self._clock()
        self.number += 1
        self.total.calls += 1
        self.first_at = now if self.first_at is None else self.first_at
        self.last_at = now
        self.rate.add(now)
        self.slots.enter()
        return self.number

    def shop(self, nick: str) -> Tally:
        """Return a seller's tally, opened if need be."""
        return self.shops.setdefault(nick, Tally())

    def report(self) -> dict[str, Any]:
        """Return the totals as JSON values."""
        return self.total.report() | {
            "injected": dict(sorted(self.injected.items())),
            "shops": {nick: tally.calls for nick, tally in self.shops.items()},
            "in_flight": self.slots.now,
            "max_in_flight": self.slots.most,
            "max_per_second": self.rate.most,
            "first_at": self.first_at,
            "last_at": self.last_at,
        }
