"""Who is next: urgent pages get most permits while others wait too, but never all of them."""

import heapq
from collections.abc import Iterator

from models.messages import NORMAL_PRIORITY
from worker.permits import Waiter


class Line:
    """Waiters in order of priority, then of arrival; urgent ones and the others in a line of their own.

    While both wait, urgent ones get `urgent_share` of the turns.
    """

    def __init__(self, urgent_share: float) -> None:
        self._urgent_share = urgent_share
        self._urgent: list[Waiter] = []
        self._normal: list[Waiter] = []
        self._credit = 0.0  # turns that the others are owed

    def add(self, waiter: Waiter) -> None:
        """Queue up."""
        heapq.heappush(self._urgent if waiter.order[0] < NORMAL_PRIORITY else self._normal, waiter)

    def __bool__(self) -> bool:
        """Whether anybody waits who has not given up."""
        return bool(_first(self._urgent) or _first(self._normal))

    def __iter__(self) -> Iterator[Waiter]:
        """Everybody, in no order."""
        yield from self._urgent
        yield from self._normal

    def pop(self) -> Waiter:
        """Take the next one. Raises IndexError if nobody waits."""
        urgent, normal = _first(self._urgent), _first(self._normal)
        if not (urgent and normal):
            self._credit = 0.0
            return heapq.heappop(self._urgent if urgent else self._normal)
        self._credit += 1 - self._urgent_share
        if self._credit < 0.999:  # sums of tenths are no whole numbers
            return heapq.heappop(self._urgent)
        self._credit -= 1
        return heapq.heappop(self._normal)


def _first(queue: list[Waiter]) -> Waiter | None:
    """The first one who still waits; those who gave up leave."""
    while queue and queue[0].future.done():
        heapq.heappop(queue)
    return queue[0] if queue else None
