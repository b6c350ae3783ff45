"""Back-pressure: no page is called for while the store has its hands full, so that paid answers never pile up."""

import asyncio
from collections import deque

TICK = 0.1  # seconds between looks at a store that has nothing to do while pages wait for their calls
PART = 4  # one more, or one less, page for so many that were stored


def next_window(window: int, *, in_hand: int, stored: int, unstored: int, least: int, most: int) -> int:
    """How many pages may be in hand after `stored` more of them have been stored, given how many they are now.

    `unstored` of them are answered: fewer than `least` leave the store waiting, more than `most` wait themselves.
    """
    step = max(1, stored // PART)
    if unstored > most:
        return max(most, min(window, in_hand) - step)
    if unstored < least and in_hand >= window:
        return window + step
    return window


class Intake:
    """Lets pages in one after the other: `window` may be in hand, from before their call until they are stored.

    The window follows what the store can take. Urgent pages go in at once. Not safe for threads.
    """

    def __init__(self, *, batch: int, lanes: int) -> None:
        self._batch = batch
        self._least = batch * (lanes + 2)  # every lane writes a batch, and has another to take when it is done
        self._most = self.window = self._least + batch
        self.in_hand = 0
        self._unstored = 0
        self._line: deque[asyncio.Future[None]] = deque()
        self._alarm: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """How many pages wait to be let in."""
        return len(self._line)

    async def enter(self, *, urgent: bool = False) -> None:
        """Return once the page may be called for; each return is to be followed by one `leave`."""
        if urgent or (not self._line and self.in_hand < self.window):
            self.in_hand += 1
            return
        place = asyncio.get_running_loop().create_future()
        self._line.append(place)
        self._watch()
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():
                self.leave()  # it was let in the moment before
            raise

    def leave(self) -> None:
        """The page is stored, or will not be."""
        self.in_hand -= 1
        self._let_in()

    def answered(self) -> None:
        """A result has been handed to the store."""
        self._unstored += 1

    def stored(self, count: int) -> None:
        """The store is done with so many results."""
        self.window = next_window(
            self.window,
            in_hand=self.in_hand,
            stored=count,
            unstored=self._unstored,
            least=self._least,
            most=self._most,
        )
        self._unstored -= count
        self._let_in()

    def _let_in(self) -> None:
        while self._line and self.in_hand < self.window:
            place = self._line.popleft()
            if not place.done():
                self.in_hand += 1
                place.set_result(None)

    def _watch(self) -> None:
        if self._alarm is None and self._line:
            self._alarm = asyncio.get_running_loop().call_later(TICK, self._tick)

    def _tick(self) -> None:
        """While no answer comes, which a slow API can cause, nothing is stored, and nothing else widens the window."""
        self._alarm = None
        if not self._unstored:
            self.window += self._batch
            self._let_in()
        self._watch()
