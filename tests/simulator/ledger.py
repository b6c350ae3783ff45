"""Every call and its fate, counted in memory that does not grow with the number of calls."""

import time
from array import array
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

_MAX_PAGE = 100_000  # 1.2 MB a shop; calls for pages beyond are counted per shop but not per page
_MAX_TOKENS = 1_000
OTHER_TOKENS = "(others)"  # where tokens are counted once a client has tried too many


class SlidingSecond:
    """The largest number of arrivals in any second."""

    def __init__(self) -> None:
        self._arrivals: deque[float] = deque()
        self.most = 0

    @property
    def now(self) -> int:
        """The arrivals in the second up to the latest one."""
        return len(self._arrivals)

    def add(self, now: float) -> None:
        """Count an arrival at `now` seconds."""
        arrivals = self._arrivals
        arrivals.append(now)
        while arrivals[0] <= now - 1.0:
            arrivals.popleft()
        self.most = max(self.most, len(arrivals))


class Gauge:
    """How many are in flight, and the most there were."""

    __slots__ = ("most", "now")

    def __init__(self) -> None:
        self.now = 0
        self.most = 0

    def enter(self) -> None:
        """One more."""
        self.now += 1
        self.most = max(self.most, self.now)

    def leave(self) -> None:
        """One less."""
        self.now -= 1


class Account:
    """One token: its slots, its money, and what it did after being told to stop."""

    def __init__(self) -> None:
        self.spent = 0
        self.topped_up = 0
        self.slots = Gauge()
        self.broke = False
        self.refused = False
        self.forget()

    def forget(self) -> None:
        """Reset the counters; money spent and slots in use stay."""
        self.calls = self.billed = self.over_gate = self.after_439 = self.after_refusal = 0
        self.slots.most = self.slots.now
        self.rate = SlidingSecond()

    def left(self, balance: int | None) -> int | None:
        """Return the calls that can still be paid; None is without end."""
        return None if balance is None else max(0, balance + self.topped_up - self.spent)

    def report(self) -> dict[str, Any]:
        """Return the counters as JSON values."""
        return {
            "calls": self.calls,
            "billed": self.billed,
            "spent": self.spent,
            "in_flight": self.slots.now,
            "max_in_flight": self.slots.most,
            "over_gate": self.over_gate,
            "after_439": self.after_439,
            "after_refusal": self.after_refusal,
            "max_per_second": self.rate.most,
        }


class PageTally:
    """Calls, attempts past the gate, and whole deliveries per page, twelve bytes a page."""

    def __init__(self) -> None:
        self._counts = array("I")

    def add(self, page: int, column: int) -> int:
        """Count and return the new figure (0 for a page beyond those counted); columns: call, attempt, delivery."""
        if not 1 <= page <= _MAX_PAGE:
            return 0
        if (missing := page * 3 - len(self._counts)) > 0:
            self._counts.frombytes(bytes(missing * self._counts.itemsize))
        at = (page - 1) * 3 + column
        self._counts[at] += 1
        return self._counts[at]

    def report(self) -> dict[str, dict[str, int]]:
        """Return the figures by page number, pages never asked for left out."""
        rows = range(0, len(self._counts), 3)
        return {
            str(at // 3 + 1): {"calls": self._counts[at], "delivered": self._counts[at + 2]}
            for at in rows
            if self._counts[at]
        }


CALL, ATTEMPT, DELIVERY = range(3)


class ShopTally:
    """What was asked of one shop."""

    __slots__ = ("calls", "outcomes", "selections")

    def __init__(self) -> None:
        self.calls = 0
        self.outcomes: Counter[str] = Counter()
        self.selections: dict[tuple[object, ...], PageTally] = {}

    def pages(self, selection: tuple[object, ...]) -> PageTally:
        """Return the tally of one way of listing the shop."""
        tally = self.selections.get(selection)
        if tally is None:
            tally = self.selections[selection] = PageTally()
        return tally


class Ledger:
    """All counters of one API."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.accounts: dict[str, Account] = {}
        self.slots = Gauge()
        self.number = 0  # of the latest call; never reset, it dates what happens to the goods
        self.reset()

    def reset(self) -> None:
        """Set every counter to zero; calls in flight, money spent and the call number stay."""
        self.total = self.billed = self.over_gate = self.repeated = 0
        self.outcomes: Counter[str] = Counter()
        self.injected: Counter[str] = Counter()
        self.shops: dict[str, ShopTally] = {}
        self.slots.most = self.slots.now
        self.rate = SlidingSecond()
        self.first_at: float | None = None
        self.last_at: float | None = None
        for account in self.accounts.values():
            account.forget()

    def arrive(self, token: str) -> Account:
        """Count a call and return the account it runs on."""
        now = self._clock()
        self.number += 1
        self.total += 1
        self.first_at = now if self.first_at is None else self.first_at
        self.last_at = now
        self.rate.add(now)
        account = self.account(token)
        account.calls += 1
        account.rate.add(now)
        account.after_439 += account.broke
        account.after_refusal += account.refused
        return account

    def account(self, token: str) -> Account:
        """Return a token's account, opened if need be."""
        if token not in self.accounts:
            if len(self.accounts) >= _MAX_TOKENS:
                token = OTHER_TOKENS
            self.accounts.setdefault(token, Account())
        return self.accounts[token]

    def shop(self, key: str) -> ShopTally:
        """Return a shop's tally, opened if need be."""
        tally = self.shops.get(key)
        if tally is None:
            tally = self.shops[key] = ShopTally()
        return tally

    def bill(self, account: Account) -> None:
        """Charge one call."""
        self.billed += 1
        account.billed += 1
        account.spent += 1

    def report(self) -> dict[str, Any]:
        """Return the totals as JSON values."""
        return {
            "total": self.total,
            "outcomes": dict(sorted(self.outcomes.items())),
            "injected": dict(sorted(self.injected.items())),
            "billed": self.billed,
            "in_flight": self.slots.now,
            "max_in_flight": self.slots.most,
            "over_gate": self.over_gate,
            "repeated": self.repeated,
            "max_per_second": self.rate.most,
            "first_at": self.first_at,
            "last_at": self.last_at,
            "shops": len(self.shops),
            "tokens": {token: account.report() for token, account in self.accounts.items()},
        }

    def shop_report(self, key: str) -> dict[str, Any]:
        """Return one shop's figures; pages are summed over all ways the shop was listed."""
        tally = self.shops.get(key, ShopTally())
        pages: dict[str, Counter[str]] = {}
        for selection in tally.selections.values():
            for page, figures in selection.report().items():
                pages.setdefault(page, Counter()).update(figures)
        ordered = sorted(pages.items(), key=lambda pair: int(pair[0]))
        return {
            "shop": key,
            "calls": tally.calls,
            "outcomes": dict(sorted(tally.outcomes.items())),
            "pages": {page: dict(figures) for page, figures in ordered},
        }
