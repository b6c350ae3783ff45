"""Permits as one process sees them: who waits, what is handed out, and its share of each credential's limit."""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping

from models.errors import ShopcrawlError
from models.source import Credential, Limits
from worker.limiter_call import LaneAnswer, LaneCall

SLOT_LATENESS = 0.01  # a rate slot missed by more is lost: using it late would crowd a second


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
        self.deadline = 0.0
        self.answer = LaneAnswer(0, 0, 0, 0, 0, "", 0, 0, 0)

    @property
    def name(self) -> str:
        return self.credential.name

    def has_room(self, now: float) -> bool:
        """Whether a permit may be handed out at loop time `now`."""
        if self.in_use >= self.quota or now >= self.deadline:
            return False
        if not self.limits.rate:
            return True
        while self.slots and self.slots[0] < now - SLOT_LATENESS:
            self.slots.popleft()
        return bool(self.slots) and self.slots[0] <= now

    def hand_out(self) -> Permit:
        """Take one permit from the share."""
        self.in_use += 1
        if self.limits.rate:
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

    def call(self, probes: int, now: float) -> LaneCall:
        """What to tell Redis; after an expired lease the share is only what is in use."""
        known, limits = self.answer, self.limits
        quota = self.quota if now < self.deadline else self.in_use
        bounds = (limits.rate, limits.start, limits.floor, limits.ceiling)
        report = (quota, self.in_use, len(self.slots), probes, self.ok, self.throttles.copy(), self.park_unsent)
        return LaneCall(self.name, *report, known.born, known.limit, known.knee, *bounds)

    def apply(self, said: LaneCall, answer: LaneAnswer, deadline: float, now: float) -> None:
        """Take over an answer; what came up since the call stays for the next one, retired permits included."""
        self.ok -= said.ok
        del self.throttles[: len(said.throttles)]
        if self.park_unsent == said.park:
            self.park_unsent = ""
        self.parked = self.park_unsent or answer.parked
        self.quota = max(0, answer.quota - len(self.throttles))
        self.deadline = deadline
        self.answer = answer
        first = now + answer.delay / 1000
        self.slots.extend(first + index * answer.spacing / 1000 for index in range(answer.slots))
