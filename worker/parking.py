"""Parking a credential: first in SQL, which survives everything, then in Redis, which the whole fleet reads at once."""

import logging
from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncEngine

from models import credentials
from models.database import Clock
from models.settings import Settings
from worker.limiter import Limiter

logger = logging.getLogger(__name__)


class Parking:
    """Parks and unparks credentials for the fleet."""

    def __init__(self, engine: AsyncEngine, limiter: Limiter, clock: Clock, settings: Settings) -> None:
        self._engine, self._limiter, self._clock, self._settings = engine, limiter, clock, settings

    async def park(self, source: str, names: Sequence[str], reason: str) -> None:
        """Send nothing more with these credentials until an operator or a probe says otherwise."""
        async with self._engine.begin() as connection:
            for name in names:
                await credentials.park(
                    connection, source, name, reason, now=self._clock.now(), wait=self._settings.probe_interval
                )
        for name in names:
            await self._limiter.park(source, name, reason)
            logger.warning("credential %s of %s is parked: %s", name, source, reason)

    async def unpark(self, source: str, name: str) -> None:
        """A probe went through: use the credential again."""
        async with self._engine.begin() as connection:
            await credentials.unpark(connection, source, [name])
        await self._limiter.unpark(source, name)
        logger.warning("credential %s of %s works again", name, source)
