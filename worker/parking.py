"""Parking a credential: first in SQL, which survives everything, then in Redis, which the whole fleet reads at once."""

import logging
from collections.abc import Sequence

from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from models import credentials
from models.database import Clock, unavailable
from models.settings import Settings
from worker.limiter import Limiter

logger = logging.getLogger(__name__)


class Parking:
    """Parks and unparks credentials for the fleet."""

    def __init__(self, engine: AsyncEngine, limiter: Limiter, clock: Clock, settings: Settings) -> None:
        self._engine, self._limiter, self._clock, self._settings = engine, limiter, clock, settings

    async def park(self, source: str, names: Sequence[str], reason: str) -> None:
        """Send nothing more with these credentials until an operator or a probe says otherwise."""
        try:
            async with self._engine.begin() as connection:
                for name in names:
                    await credentials.park(
                        connection, source, name, reason, now=self._clock.now(), wait=self._settings.probe_interval
                    )
        except (SQLAlchemyError, OSError) as error:  # the fleet stops all the same; a later call parks it for good
            logger.warning("a park of %s is not stored: %s", source, unavailable(error))
        for name in names:
            await self._limiter.park(source, name, reason)
            logger.warning("credential %s of %s is parked: %s", name, source, reason)

    async def unpark(self, source: str, name: str) -> None:
        """A probe went through: use the credential again. Whatever is away, the page that was paid for is kept."""
        try:
            async with self._engine.begin() as connection:
                await credentials.unpark(connection, source, [name])
            await self._limiter.unpark(source, name)
        except (SQLAlchemyError, RedisError, OSError) as error:  # the next probe or the producer lifts it
            logger.warning("credential %s of %s stays parked for now: %s", name, source, type(error).__name__)
            return
        logger.warning("credential %s of %s works again", name, source)
