"""Permits as one process sees them: who waits, what is handed out, and its share of each credential's limit."""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping

from models.errors import ShopcrawlError
from models.source import Credential, Limits
from worker.limiter_call import LaneAnswer, LaneCall

SLOT_LATENESS = 0.006  # a rate slot missed by more is lost: using it late would crowd a second
SLOT_MARGIN = 0.01  # unless it is late by less than this part of the pause between slots, which they are spread by


class DuplicateDelivery(ShopcrawlError):  # noqa: N818 - an event to act on, not a fault
    """This sending of the page, or a newer one, was already taken up: drop the message."""


class AllParked(ShopcrawlError):  # noqa: N818 - a state of the source, not a fault
    """Every credential that may be used is parked; `reasons` by credential name."""

    def __init__(self, reasons: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"{name}: {reason}" for name, reason in reasons.items()) or "no credential")
        self.reasons = dict(reasons)


class Waiter:
    """One page waiting for a permit; `value` is what its claim is stored as."""

    __slots__ = ("claim", "future", "only", "order", "value")

    def __init__(self, order: tuple[int, int], claim: tuple[int, int] | None, only: str | None, owner: str) -> None:
        self.order = order
        self.claim = claim
        self.only = only
        self.value = f"{claim[1]} {owner}:{order[1]};" if claim else ""
        self.future: asyncio.Future[Permit] = asyncio.get_running_loop().create_future()

    def __lt__(self, other: "Waiter") -> bool:
        return self.order < other.order


class Permit:
    """The right to make one call with `credential`; give it back with `release`."""

    __slots__ = ("_lane", "_level", "_sent", "credential")

    def __init__(self, lane: "Lane", level: int, sent: float) -> None:
        self.credential = lane.credential
        self._lane: Lane | None = lane
        self._level = level
        self._sent = sent

    def release(self, *, ok: bool, throttled: bool) -> None:
        """Give the permit back, once; `ok`: the answer shows the API healthy, `throttled`: it was a 503 or 429."""
        lane, self._lane = self._lane, None
        if lane is not None:
            lane.give_back(ok, (self._level, self._sent) if throttled else None)


class Lane:
    """One credential as this process sees it: its share, and what happened since the last call."""

    def __init__(
        self, credential: Credential, limits: Limits, redis_now: Callable[[], float], freed: Callable[[bool], None]
    ) -> None:
        self.credential = credential
        self._redis_now = redis_now
        self._freed = freed
        self.limits = limits
        self.parked = ""
        self.park_unsent = ""
        self.quota = self.in_use = self.ok = 0
        self.throttles: list[tuple[int, float]] = []
        self.slots: deque[float] = deque()
        self.calls = 0
        self.deadline = self.day_end = 0.0
        self.answer = LaneAnswer(0, 0, 0, 0, 0, "", 0, 0, 0)

    @property
    def name(self) -> str:
        return self.credential.name

    @property
    def rate(self) -> float:
        """Requests per second, 0 for no such limit: as Redis says, which knows what an operator has set."""
        return self.answer.rate if self.answer.born else self.limits.rate

    def has_room(self, now: float) -> bool:
        """Whether a permit may be handed out at loop time `now`."""
        if self.in_use >= self.quota or now >= self.deadline:
            return False
        if self.limits.per_day and (self.calls <= 0 or now >= self.day_end):
            return False
        if not self.rate:
            return True
        oldest = now - max(SLOT_LATENESS, SLOT_MARGIN * self.answer.spacing / 1000)
        while self.slots and self.slots[0] < oldest:
            self.slots.popleft()
        return bool(self.slots) and self.slots[0] <= now

    def hand_out(self) -> Permit:
        """Take one permit from the share."""
        self.in_use += 1
        self.calls -= self.limits.per_day > 0
        if self.rate:
            self.slots.popleft()
        return Permit(self, self.answer.others + self.in_use, self._redis_now())

    def give_back(self, ok: bool, refused: tuple[int, float] | None) -> None:
        """Take a permit back; a refused one is retired at once, because one call too many was in flight."""
        self.in_use -= 1
        self.ok += ok
        if refused:
            self.throttles.append(refused)
            self.quota = max(0, self.quota - 1)
        self._freed(refused is not None)

    def call(self, probes: int, now: float, *, idle: bool = False) -> LaneCall:
        """What to tell Redis; after an expired lease the share is only what is in use.

        `idle`: nobody waits, so that the calls left of a limited day go back.
        """
        known, limits = self.answer, self.limits
        quota = self.quota if now < self.deadline else self.in_use
        calls = self.calls
        if idle:
            self.calls = 0
        return LaneCall(
            name=self.name,
            quota=quota,
            in_use=self.in_use,
            slots=len(self.slots),
            probes=probes,
            ok=self.ok,
            throttles=self.throttles.copy(),
            park=self.park_unsent,
            born=known.born,
            limit=known.limit,
            knee=known.knee,
            rate=limits.rate,
            start=limits.start,
            floor=limits.floor,
            ceiling=limits.ceiling,
            per_day=limits.per_day,
            day_shift=limits.day_shift * 1000,
            day=known.day,
            used=known.used,
            calls=calls,
            idle=idle,
        )

    def apply(self, said: LaneCall, answer: LaneAnswer, deadline: float, now: float) -> None:
        """Take over an answer; what came up since the call stays for the next one, retired permits included."""
        self.ok -= said.ok
        del self.throttles[: len(said.throttles)]
        if self.park_unsent == said.park:
            self.park_unsent = ""
        self.parked = self.park_unsent or answer.parked
        self.quota = max(0, answer.quota - len(self.throttles))
        self.deadline = deadline
        if answer.day != self.answer.day:
            self.calls = 0
        self.calls += max(0, answer.calls)
        self.day_end = now + answer.day_left / 1000
        self.answer = answer
        if not self.rate:
            self.slots.clear()
        first = now + answer.delay / 1000
        self.slots.extend(first + index * answer.spacing / 1000 for index in range(answer.slots))
