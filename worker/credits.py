"""A credential's daily budget, taken from the ledger in small blocks before calls are made."""

import asyncio

from sqlalchemy.ext.asyncio import AsyncEngine

from models import budget
from models.database import Clock

LARGEST_BLOCK = 16  # calls; what a worker that dies has left of a block counts as made


class Credits:
    """Calls that this process may make with each credential today; `cap` is what the whole fleet may make."""

    def __init__(self, engine: AsyncEngine, clock: Clock, cap: int) -> None:
        self._engine, self._clock, self.cap = engine, clock, cap
        self._left: dict[tuple[str, str, str], int] = {}
        self._taking = asyncio.Lock()

    async def take(self, source: str, credential: str) -> bool:
        """Take one call; False when the day's budget is used up. Raises SQLAlchemyError."""
        key = (budget.utc_day(self._clock.now()), source, credential)
        if not self._left.get(key):
            async with self._taking:
                if not self._left.get(key):
                    self._left[key] = await self._refill(source, credential)
        if not self._left[key]:
            return False
        self._left[key] -= 1
        return True

    async def _refill(self, source: str, credential: str) -> int:
        async with self._engine.begin() as connection:
            return await budget.take_credits(
                connection, source, credential, wanted=LARGEST_BLOCK, cap=self.cap, now=self._clock.now()
            )

    async def give_back(self) -> None:
        """Return what was not used, when the process stops."""
        left, self._left = {key: calls for key, calls in self._left.items() if calls}, {}
        for (day, source, credential), calls in left.items():
            async with self._engine.begin() as connection:
                await budget.return_credits(connection, day, source, credential, calls)

    def seconds_left(self) -> float:
        """Seconds until the next day begins (UTC)."""
        now = self._clock.now()
        return (budget.next_day(now) - now).total_seconds()
