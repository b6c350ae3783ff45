"""The fleet's circuits as one process sees them: decided in `circuit`, kept in Redis by compare and swap."""

import asyncio
import logging
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from models.background import stop_tasks
from models.circuits import WHOLE_SOURCE, Circuit, circuit_key, open_key
from models.errors import ShopcrawlError
from models.messages import PageTask
from models.settings import Settings
from models.source import source_named, source_names
from worker.circuit import CLOSED, Stop, after_fault, after_good, let_go, rules_for, stop_for, taken

LOOK_SECONDS = 2.0
REMEMBERED_SHOPS = 10_000
SUSPECT_TTL = 3_600
OPEN_TTL = 86_400
PROBE_SLACK = 30.0
REDIS_TIMEOUT = 5.0
LONGEST_REASON = 200
REDIS_AWAY = (RedisError, OSError, TimeoutError)

# Writes the source's circuit and the shop's, unless somebody else has written one meanwhile.
_SWAP = """
for i = 1, 2 do
  if (redis.call('GET', KEYS[i]) or '') ~= ARGV[5 * i - 4] then return 0 end
end
for i = 1, 2 do
  local old, new, number, open, ttl = unpack(ARGV, 5 * i - 4, 5 * i)
  if old ~= new then
    if new == '' then redis.call('DEL', KEYS[i]) else redis.call('SET', KEYS[i], new, 'EX', ttl) end
    redis.call(open == '1' and 'SADD' or 'SREM', KEYS[3], number)
  end
end
return 1
"""


class AtRest(ShopcrawlError):  # noqa: N818 - a state of the shop or source, not a fault
    """No call for this page now; `stop` says for how long."""

    def __init__(self, stop: Stop) -> None:
        super().__init__(stop.reason)
        self.stop = stop


Pair = tuple[Circuit, Circuit]
"""The circuit of a source and that of one of its shop crawls."""

logger = logging.getLogger(__name__)


class Circuits:
    """Stops calls for shops and sources that rest; without Redis everything goes on.

    A call costs no Redis call unless its shop or source rests, or it failed in a way that the source calls sticky.
    """

    def __init__(self, redis: Redis, settings: Settings, *, process: str) -> None:
        self._redis, self._process = redis, process
        self._swap = redis.register_script(_SWAP)
        self._rules = rules_for(settings)
        self._lease = (settings.total_timeout + PROBE_SLACK) * 1000
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._open: defaultdict[str, set[int]] = defaultdict(set)
        self._goods: Counter[tuple[str, int]] = Counter()
        """Good answers since the last failed one, of sources and shop crawls that had one."""
        self._probes: set[str] = set()
        self._changes = 0
        self._is_away = False
        self._looking: asyncio.Task[None] | None = None
        self._partings: set[asyncio.Task[Any]] = set()

    def start(self) -> None:
        """Follow what other processes find out."""
        self._looking = asyncio.create_task(self._keep_looking(), name="circuits")

    async def stop(self) -> None:
        """Follow no more, and leave no probe behind."""
        await asyncio.gather(*self._partings)
        if self._looking:
            await stop_tasks([self._looking])

    async def enter(self, task: PageTask) -> None:
        """Return if this page may be called, perhaps as the one that is tried after a rest. Raises AtRest."""
        if self.admits(task):
            return
        holder = self._holder(task)

        def enter(pair: Pair, now: float) -> Pair:
            if _first_stop(pair, holder, now):
                return pair
            if any(circuit.level for circuit in pair):
                self._probes.add(holder)
            return taken(pair[0], holder, now, self._lease), taken(pair[1], holder, now, self._lease)

        pair, now = await self._update(task, enter)
        stopped = _first_stop(pair, holder, now)
        if stopped is not None:
            raise AtRest(stopped)

    def admits(self, task: PageTask) -> bool:
        """Whether this process knows of nothing that keeps the page from being called; costs nothing."""
        resting = self._open.get(task.source)
        if not resting:
            return True
        return resting.isdisjoint((WHOLE_SOURCE, task.shop_crawl_id)) or self._holder(task) in self._probes

    async def fault(self, task: PageTask, reason: str) -> Stop | None:
        """Take a sticky fault into account; returns what keeps the page from being called again."""
        holder, numbers = self._holder(task), (WHOLE_SOURCE, task.shop_crawl_id)
        goods = [self._goods[task.source, number] for number in numbers]
        self._suspect(task.source, numbers)
        chance = random.random()

        def fail(pair: Pair, now: float) -> Pair:
            source, shop = (
                after_fault(circuit, task.shop_crawl_id, good, holder, now, chance, rules)
                for circuit, good, rules in zip(pair, goods, self._rules, strict=True)
            )
            return _named(source, pair[0], reason, ""), _named(shop, pair[1], reason, task.shop)

        self._probes.discard(holder)
        pair, now = await self._update(task, fail)
        return _first_stop(pair, holder, now)

    async def good(self, task: PageTask) -> None:
        """Take a good answer into account."""
        for number in (WHOLE_SOURCE, task.shop_crawl_id):
            if (task.source, number) in self._goods:
                self._goods[task.source, number] += 1
        holder = self._holder(task)
        if holder in self._probes:
            self._probes.discard(holder)
            await self._update(task, lambda pair, _now: (after_good(pair[0], holder), after_good(pair[1], holder)))

    def let_go(self, task: PageTask) -> None:
        """This sending is over: should it have been a probe without an answer, another page is tried."""
        holder = self._holder(task)
        if holder in self._probes:
            self._probes.discard(holder)
            change = self._update(task, lambda pair, _now: (let_go(pair[0], holder), let_go(pair[1], holder)))
            parting = asyncio.create_task(change)
            self._partings.add(parting)
            parting.add_done_callback(self._partings.discard)

    def _holder(self, task: PageTask) -> str:
        return f"{task.message_id} {self._process}"

    def _suspect(self, source: str, numbers: tuple[int, int]) -> None:
        """Count good answers from here on; whoever failed longest ago is forgotten."""
        for number in numbers:
            self._goods.pop((source, number), None)
            self._goods[source, number] = 0
        while len(self._goods) > REMEMBERED_SHOPS:
            del self._goods[next(iter(self._goods))]

    async def _update(self, task: PageTask, change: Callable[[Pair, float], Pair]) -> tuple[Pair, float]:
        """Change the circuits of a page's source and shop; returns them, and Redis' time in ms.

        A process changes one circuit at a time, so that only processes compete.
        """
        try:
            async with self._locks[task.source], asyncio.timeout(REDIS_TIMEOUT):
                while True:
                    old, texts, now = await self._read(task)
                    new = change(old, now)
                    if new == old or await self._write(task, new, texts):
                        break
        except REDIS_AWAY as error:
            if not self._is_away:
                logger.warning("the circuits of %s are not known now: %s", task.source, type(error).__name__)
            self._is_away = True
            self._learn(task, (CLOSED, CLOSED))
            return (CLOSED, CLOSED), 0.0
        self._is_away = False
        self._learn(task, new)
        for before, after, name in zip(old, new, (task.source, f"shop {task.shop} of {task.source}"), strict=True):
            _tell(name, before, after, now)
        return new, now

    async def _read(self, task: PageTask) -> tuple[Pair, list[bytes], float]:
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.mget(self._keys(task))
            (seconds, micros), found = await pipe.execute()
        texts = [text or b"" for text in found]
        source, shop = (msgspec.json.decode(text, type=Circuit) if text else CLOSED for text in texts)
        return (source, shop), texts, seconds * 1000 + micros / 1000

    async def _write(self, task: PageTask, new: Pair, texts: list[bytes]) -> bool:
        arguments: list[bytes | int] = []
        for number, circuit, text in zip((WHOLE_SOURCE, task.shop_crawl_id), new, texts, strict=True):
            written = b"" if circuit == CLOSED else msgspec.json.encode(circuit)
            arguments += [text, written, number, int(circuit.level > 0), OPEN_TTL if circuit.level else SUSPECT_TTL]
        return bool(await self._swap(keys=[*self._keys(task), open_key(task.source)], args=arguments))

    def _keys(self, task: PageTask) -> list[str]:
        return [circuit_key(task.source, number) for number in (WHOLE_SOURCE, task.shop_crawl_id)]

    def _learn(self, task: PageTask, pair: Pair) -> None:
        known = self._open[task.source]
        self._changes += 1
        for number, circuit in zip((WHOLE_SOURCE, task.shop_crawl_id), pair, strict=True):
            (known.add if circuit.level else known.discard)(number)

    async def _keep_looking(self) -> None:
        """Learn which circuits others have opened or closed; what is not known yet costs a call that fails."""
        sources = [name for name in source_names() if source_named(name).sticky_outcomes]
        while True:
            for source in sources:
                changes = self._changes
                with suppress(*REDIS_AWAY):
                    async with asyncio.timeout(REDIS_TIMEOUT):
                        found = {int(number) for number in await self._redis.smembers(open_key(source))}
                    if changes == self._changes:
                        self._open[source] = found
            await asyncio.sleep(LOOK_SECONDS)


def _first_stop(pair: Pair, holder: str, now: float) -> Stop | None:
    source, shop = pair
    return stop_for(source, holder, now, whole_source=True) or stop_for(shop, holder, now, whole_source=False)


def _named(circuit: Circuit, before: Circuit, reason: str, shop: str) -> Circuit:
    """A circuit that has just opened tells whose it is and why."""
    if not circuit.level or circuit == before:
        return circuit
    return msgspec.structs.replace(circuit, reason=reason[:LONGEST_REASON], shop=shop)


def _tell(name: str, before: Circuit, after: Circuit, now: float) -> None:
    """Log what became of a circuit; only the process that changed it does."""
    if before.level and not after.level:
        logger.warning("%s works again after %d rests", name, before.level)
    elif after.given_up and not before.given_up:
        logger.warning("%s is given up after %d rests: %s", name, after.level, after.reason)
    elif after.level > before.level:
        seconds = (after.until - now) / 1000
        logger.warning("%s rests for %.0f s, then one page is tried: %s", name, seconds, after.reason)
