"""Delivers changes to their subscribers: in order, at least once, and again for as long as it takes."""

import logging
import random
import time
from collections.abc import Sequence
from datetime import timedelta

import msgspec
from sqlalchemy.ext.asyncio import AsyncEngine

from models.database import Clock, reader
from models.errors import UnavailableError, UsageError
from models.feed import Entry
from models.settings import Settings
from models.subscriptions import (
    Delivery,
    Subscriber,
    count_waiting,
    delivered,
    failed,
    is_due,
    subscriber,
    take_delivery,
)
from models.vault import WRONG_KEY, Vault
from producer import metrics
from producer.webhooks.messages import SIGNATURE, Answer, Message, is_success, retry_pause, shown, sign, why

LANES = 4
"""Deliveries at a time of one producer: a slow receiver holds up no other."""
IDLE_PAUSE = 2.0
MEASURE_SECONDS = 15.0
LARGEST_LOAD = 0.02
"""Share of the time that counting what waits may take."""
LEASE_MARGIN = 30.0
"""Seconds after the longest delivery until another producer takes it over."""
GONE = 410

logger = logging.getLogger(__name__)


class Deliverer:
    """Sends what is due; any number of them may run, in any number of processes."""

    def __init__(self, settings: Settings, engine: AsyncEngine, clock: Clock) -> None:
        self._settings, self._engine, self._clock = settings, engine, clock
        self._vault = Vault(settings)

    async def step(self) -> float:
        """Make one delivery if one is due; returns the pause until the next step."""
        async with reader(self._engine).connect() as connection:  # so that idling never takes SQLite's one writer
            if not await is_due(connection, self._clock.now()):
                return IDLE_PAUSE
        now = self._clock.now()
        lease = now + timedelta(seconds=self._settings.webhook_timeout + LEASE_MARGIN)
        async with self._engine.begin() as connection:
            delivery = await take_delivery(connection, now=now, lease=lease)
        if delivery is None:
            return IDLE_PAUSE
        await self._settle(delivery, await self._answer(delivery))
        return 0

    async def ping(self, number: int) -> Answer:
        """Send a message without changes; returns the redacted answer. Raises UsageError."""
        async with reader(self._engine).connect() as connection:
            to = await subscriber(connection, number)
        return await self._send(to, (), "ping")

    async def measure(self) -> float:
        """Count what waits, for Prometheus; returns the pause until the next time."""
        started = time.monotonic()
        async with reader(self._engine).connect() as connection:
            metrics.webhook_waiting.set(await count_waiting(connection))
        return max(MEASURE_SECONDS, (time.monotonic() - started) / LARGEST_LOAD)

    async def _answer(self, delivery: Delivery) -> Answer:
        entries = delivery.entries
        if not entries:  # of what waited nothing exists any more
            return Answer(204, "")
        name = f"{delivery.to.id}-{entries[0].id}-{entries[-1].id}-{len(entries)}"
        return await self._send(delivery.to, entries, name)

    async def _send(self, to: Subscriber, entries: Sequence[Entry], name: str) -> Answer:
        try:
            secret = self._vault.open([to.sealed])[0]
        except (UsageError, UnavailableError) as error:
            return Answer(None, str(error))
        if secret is None:
            return Answer(None, f"its secret is {WRONG_KEY}")
        from producer.webhooks.post import post  # noqa: PLC0415 (the HTTP client takes a moment to import)

        body = msgspec.json.encode(Message(to.id, entries))
        headers = {
            "Content-Type": "application/json",
            "User-Agent": self._settings.user_agent,
            "X-Shopcrawl-Delivery": name,
            SIGNATURE: sign(secret, int(self._clock.now().timestamp()), body),
        }
        answer = await post(to.url, body, headers, timeout=self._settings.webhook_timeout)
        return msgspec.structs.replace(answer, text=shown(answer, (secret, *self._settings.secrets)))

    async def _settle(self, delivery: Delivery, answer: Answer) -> None:
        now, to = self._clock.now(), delivery.to
        if is_success(answer):
            async with self._engine.begin() as connection:
                await delivered(connection, delivery, now)
            if to.failures:
                logger.info("webhook %d gets changes again", to.id)
            metrics.webhook_changes.inc(len(delivery.entries))
            return
        pause = retry_pause(to.failures + 1, random.random())
        reason, stop = why(answer), answer.status == GONE
        async with self._engine.begin() as connection:
            await failed(connection, delivery, reason=reason, next_at=now + timedelta(seconds=pause), pause=stop)
        metrics.webhook_failures.inc()
        if stop:
            logger.warning("webhook %d is paused: %s", to.id, reason)
        elif not to.failures:
            logger.warning("webhook %d gets no changes, they wait: %s", to.id, reason)
