"""What the fleet shares through Redis: live workers and what they hold, parks, bans, and the limits in force."""

import asyncio
import math
import struct
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime

import msgspec
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from models.messages import QUEUE, URGENT_QUEUE

PREFIX = "shopcrawl:"
CLAIM_PREFIX = f"{PREFIX}claim:"
WORK_PATTERNS = (
    *(QUEUE, URGENT_QUEUE, "unacked*", "_kombu*"),  # Celery's
    *(f"{PREFIX}{kind}*" for kind in ("claim:", "worker", "holders:", "producer:")),
)
WORKER_TTL = 15
"""Seconds after its last heartbeat that a worker counts as alive."""
WHOLE_SOURCE = "*"
"""The scope of a ban of every credential of a source."""
NEWS = f"{PREFIX}news"
"""The channel that names a source whose parks or bans have changed."""
NEWS_SILENCE = 10.0
NEWS_RETRY = 1.0

_WORKERS = f"{PREFIX}workers"
_CAPACITY = struct.Struct("<I")
_PAIR = struct.Struct("<QI")

# What lives is never made less: only a state that is missing, or that still searches, takes up what was learnt before.
_RESTORE = """
local known = redis.call('HMGET', KEYS[1], 'born', 'limit', 'knee', 'day', 'used')
local limit, knee, day, used = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
if tonumber(known[3] or '0') == 0 and tonumber(known[2] or '0') < limit then
  redis.call('HSET', KEYS[1], 'limit', limit, 'knee', knee)
end
if tonumber(known[4] or '0') < day or (tonumber(known[4] or '0') == day and tonumber(known[5] or '0') < used) then
  redis.call('HSET', KEYS[1], 'day', day, 'used', used)
end
"""

# Reading and pruning in one script: a beat between the two would otherwise be lost from the index.
_LIVE = """
local live = {}
for _, process in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local beat = redis.call('GET', ARGV[1] .. process)
  if beat then
    live[#live + 1] = process
    live[#live + 1] = beat
  else
    redis.call('SREM', KEYS[1], process)
  end
end
return live
"""


class WorkerBeat(msgspec.Struct, frozen=True):
    """A live worker process, the pages it can hold at once, and the (page_id, fence) pairs it holds now."""

    process: str
    capacity: int
    held: frozenset[tuple[int, int]]


class Ban(msgspec.Struct, frozen=True):
    """No call may be made with this credential, or with any (WHOLE_SOURCE), for `seconds` from the moment of reading.

    `until` is the end by Redis' clock.
    """

    scope: str
    until: datetime
    seconds: float
    reason: str


class Learnt(msgspec.Struct, frozen=True):
    """What the limiter has learnt about a credential: see LimitState; `used` calls of its own day number `day`."""

    limit: int = 0
    knee: int = 0
    day: int = 0
    used: int = 0


class LimitState(msgspec.Struct, frozen=True):
    """The limiter for one credential, in calls; `ceiling` is the highest limit known to be good, 0 for none yet."""

    source: str
    credential: str
    limit: int
    ceiling: int
    in_flight: int
    waiting: int
    processes: int
    parked: str | None
    ban: Ban | None = None


def worker_key(process: str) -> str:
    """The key of a worker's heartbeat."""
    return f"{PREFIX}worker:{process}"


def parked_key(source: str) -> str:
    """The hash of a source's parked credentials: name to reason."""
    return f"{PREFIX}parked:{source}"


def bans_key(source: str) -> str:
    """The hash of a source's bans: scope to `until reason` (ms of Redis' clock)."""
    return f"{PREFIX}bans:{source}"


def orders_key(source: str) -> str:
    """The hash of what an operator has set: a credential's name or WHOLE_SOURCE to `concurrency=40 rate=5`."""
    return f"{PREFIX}orders:{source}"


def credentials_key(source: str) -> str:
    """The set of credentials that a source's limiter has seen."""
    return f"{PREFIX}credentials:{source}"


def limit_key(source: str, credential: str) -> str:
    """The hash of a credential's limit and what it was learnt from."""
    return f"{PREFIX}limit:{source}:{credential}"


def holders_key(source: str, credential: str) -> str:
    """The hash of processes that hold permits: name to `quota in_use waiting deadline calls`.

    The deadline is in ms of Redis' clock; calls are those left of a limited day.
    """
    return f"{PREFIX}holders:{source}:{credential}"


async def beat(redis: Redis, process: str, capacity: int, held: Iterable[tuple[int, int]]) -> None:
    """Say that `process` lives, has room for `capacity` pages and holds these (page_id, fence) pairs."""
    payload = _CAPACITY.pack(capacity) + b"".join(_PAIR.pack(page_id, fence) for page_id, fence in held)
    async with redis.pipeline(transaction=True) as pipe:
        pipe.sadd(_WORKERS, process)
        pipe.set(worker_key(process), payload, ex=WORKER_TTL)
        await pipe.execute()


async def live_workers(redis: Redis) -> list[WorkerBeat]:
    """The workers whose heartbeat is younger than WORKER_TTL, by name."""
    flat: list[bytes] = await redis.eval(_LIVE, 1, _WORKERS, worker_key(""))
    return sorted(map(_parse_beat, flat[::2], flat[1::2]), key=lambda worker: worker.process)


async def park(redis: Redis, source: str, credential: str, reason: str) -> None:
    """Stop the whole fleet from calling with this credential; `credential` is its name, never the secret."""
    await redis.hset(parked_key(source), credential, reason)
    await redis.publish(NEWS, source)


async def unpark(redis: Redis, source: str, credential: str) -> None:
    """Let the fleet call with this credential again."""
    await redis.hdel(parked_key(source), credential)
    await redis.publish(NEWS, source)


async def set_order(redis: Redis, source: str, scope: str, order: Mapping[str, float]) -> None:
    """Have the whole fleet obey `concurrency`, `rate`, `floor` and `ceiling`; an empty order is forgotten.

    `scope` is a credential's name or WHOLE_SOURCE.
    """
    if order:
        text = " ".join(f"{name}={value:g}" for name, value in sorted(order.items()))
        await redis.hset(orders_key(source), scope, text)
    else:
        await redis.hdel(orders_key(source), scope)
    await redis.publish(NEWS, source)


async def orders(redis: Redis, source: str) -> dict[str, dict[str, float]]:
    """What an operator has set, by scope."""
    found = await redis.hgetall(orders_key(source))
    return {
        _text(scope): {name: float(value) for name, _, value in (part.partition("=") for part in _text(text).split())}
        for scope, text in found.items()
    }


async def restore(redis: Redis, source: str, credential: str, learnt: Learnt) -> None:
    """Give a limiter that lost its memory back what it had learnt about a credential."""
    await redis.eval(_RESTORE, 1, limit_key(source, credential), *msgspec.structs.astuple(learnt))


async def learnt(redis: Redis, source: str) -> dict[str, Learnt]:
    """What the limiter knows about each credential that it has seen."""
    names = sorted(map(_text, await redis.smembers(credentials_key(source))))
    async with redis.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.hmget(limit_key(source, name), "limit", "knee", "day", "used")
        replies = await pipe.execute()
    return {
        name: Learnt(*(int(float(value or 0)) for value in reply)) for name, reply in zip(names, replies, strict=True)
    }


async def parked(redis: Redis, source: str) -> dict[str, str]:
    """Each parked credential of a source with its reason."""
    found = await redis.hgetall(parked_key(source))
    return {_text(name): _text(reason) for name, reason in found.items()}


async def bans(redis: Redis, source: str) -> list[Ban]:
    """The bans of a source that are in force, by scope."""
    async with redis.pipeline(transaction=False) as pipe:
        pipe.time()
        pipe.hgetall(bans_key(source))
        (seconds, micros), found = await pipe.execute()
    now = seconds * 1000 + micros / 1000
    read = [_read_ban(_text(scope), _text(value), now) for scope, value in sorted(found.items())]
    return [ban for ban in read if ban.seconds > 0]


def ban_over(bans: Iterable[Ban], credential: str) -> Ban | None:
    """The ban that keeps a credential from being used the longest, if there is one."""
    concerned = (ban for ban in bans if ban.scope in {credential, WHOLE_SOURCE})
    return max(concerned, key=lambda ban: ban.seconds, default=None)


async def lift_bans(redis: Redis, source: str) -> int:
    """Forget the bans of a source in the whole fleet; returns how many were in force."""
    lifted = len(await bans(redis, source))
    await redis.delete(bans_key(source))
    await redis.publish(NEWS, source)
    return lifted


async def follow_news(redis: Redis, heard: Callable[[str | None], None]) -> None:
    """Call `heard` with each source whose parks or bans have changed, until cancelled.

    It is called with None when anything may have been missed. An outage of Redis is waited out in silence.
    """
    while True:
        with suppress(RedisError, OSError, TimeoutError):
            await _listen(redis, heard)
        await asyncio.sleep(NEWS_RETRY)


async def _listen(redis: Redis, heard: Callable[[str | None], None]) -> None:
    async with redis.pubsub() as channel:
        await channel.subscribe(NEWS)
        asked = False
        while True:
            message = await channel.get_message(timeout=NEWS_SILENCE)
            if message is None:
                if asked:
                    raise RedisConnectionError("no answer to a ping")
                await channel.ping()
            elif message["type"] != "pong":  # a message, or the word that we are subscribed (again)
                heard(_text(message["data"]) if message["type"] == "message" else None)
            asked = message is None


async def limit_states(redis: Redis, source: str) -> list[LimitState]:
    """The limiter's state for each credential that has been used or parked, by name."""
    reasons, banned = await parked(redis, source), await bans(redis, source)
    seen = await redis.smembers(credentials_key(source))
    names = sorted({_text(name) for name in seen} | reasons.keys() | {ban.scope for ban in banned} - {WHOLE_SOURCE})
    async with redis.pipeline(transaction=False) as pipe:
        pipe.time()
        for name in names:
            pipe.hmget(limit_key(source, name), "in_force", "knee")
            pipe.hvals(holders_key(source, name))
        (seconds, micros), *replies = await pipe.execute()
    now = seconds * 1000 + micros / 1000
    states = zip(names, replies[::2], replies[1::2], strict=True)
    found = []
    for name, limits, holders in states:
        live = [row for row in map(_parse_holder, holders) if row[3] > now]
        limit, ceiling = (int(float(value or 0)) for value in limits)
        in_flight, waiting = (int(sum(row[column] for row in live)) for column in (1, 2))
        used = (limit, ceiling, in_flight, waiting, len(live))
        found.append(LimitState(source, name, *used, reasons.get(name), ban_over(banned, name)))
    return found


def _parse_beat(process: bytes, payload: bytes) -> WorkerBeat:
    (capacity,) = _CAPACITY.unpack_from(payload)
    return WorkerBeat(process.decode(), capacity, frozenset(_PAIR.iter_unpack(payload[_CAPACITY.size :])))


def _parse_holder(text: bytes) -> list[float]:
    return [float(part) for part in text.split()]


def _read_ban(scope: str, value: str, now: float) -> Ban:
    end, _, reason = value.partition(" ")
    until = datetime.fromtimestamp(math.ceil(float(end) / 1000), UTC)
    return Ban(scope, until, (float(end) - now) / 1000, reason)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


async def forget_work(redis: Redis) -> None:
    """Drop queues, claims, heartbeats and held permits, but keep the limits found: for a host that starts alone."""
    keys = [key for pattern in WORK_PATTERNS async for key in redis.scan_iter(pattern, count=1_000)]
    for start in range(0, len(keys), 1_000):
        await redis.unlink(*keys[start : start + 1_000])
