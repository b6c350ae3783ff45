"""Shops and sources that rest because nearly every call for them fails alike: kept in Redis, and cheap to lose."""

import math
from datetime import UTC, datetime

import msgspec
from redis.asyncio import Redis

from models.fleet import PREFIX

WHOLE_SOURCE = 0
"""The number of a source's own circuit; all others have the number of their shop crawl."""

# Reading and pruning in one script: a circuit that opens between the two would otherwise be lost from the index.
_READ = """
local found = {}
for _, number in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local circuit = redis.call('GET', ARGV[1] .. number)
  if circuit then
    found[#found + 1] = number
    found[#found + 1] = circuit
  else
    redis.call('SREM', KEYS[1], number)
  end
end
return {redis.call('TIME'), found}
"""


class Circuit(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the fleet knows about one shop crawl or a whole source; times in ms of Redis' clock.

    `recent` are the newest answers, oldest first: 0 for a good one, else the shop crawl whose call failed. `level`
    counts the rests in a row, 0: closed. `probe` names who may make the one call that is tried after a rest,
    `probe_ends` when it has taken too long.
    """

    recent: tuple[int, ...] = ()
    level: int = 0
    until: int = 0
    probe: str = ""
    probe_ends: int = 0
    given_up: bool = False
    shop: str = ""
    reason: str = ""

    @property
    def share(self) -> float:
        """The failed share of the newest answers, from 0 to 1."""
        return sum(map(bool, self.recent)) / max(1, len(self.recent))

    def wait(self, now: float) -> float:
        """Milliseconds until a call may be tried, 0 or less if one may be tried now."""
        return max(self.until, self.probe_ends if self.probe else 0) - now


class OpenCircuit(msgspec.Struct, frozen=True):
    """A circuit that is not closed, as shown; `shop` is None for the whole source.

    `state` is `resting`, `probing` (one call is out), `due` (the next page is tried) or `given up`. The next call may
    be tried in `seconds`, at `until` by Redis' clock; both are None once the shop is given up. `share` is the failed
    share of the newest answers, `level` the number of rests in a row.
    """

    source: str
    shop: str | None
    shop_crawl: int | None
    state: str
    level: int
    share: float
    seconds: float | None
    until: datetime | None
    reason: str


def circuit_key(source: str, number: int | str) -> str:
    """The key of a circuit, closed ones under suspicion included."""
    return f"{PREFIX}circuit:{source}:{number}"


def open_key(source: str) -> str:
    """The set of the numbers of a source's circuits that are not closed."""
    return f"{PREFIX}circuits:{source}"


async def open_circuits(redis: Redis, source: str) -> list[OpenCircuit]:
    """A source's circuits that are not closed: its own first, then those of shops by key."""
    (seconds, micros), flat = await redis.eval(_READ, 1, open_key(source), circuit_key(source, ""))
    now = int(seconds) * 1000 + int(micros) / 1000
    found = [
        _shown(source, int(number), msgspec.json.decode(text, type=Circuit), now)
        for number, text in zip(flat[::2], flat[1::2], strict=True)
    ]
    return sorted(found, key=lambda circuit: (circuit.shop or "", circuit.shop_crawl or 0))


async def reset_circuits(redis: Redis, source: str, shop: str | None = None) -> list[OpenCircuit]:
    """Close a shop's circuits, or all of a source's, in the whole fleet; returns those that were not closed."""
    found = [circuit for circuit in await open_circuits(redis, source) if shop is None or circuit.shop == shop]
    if found:
        numbers = [circuit.shop_crawl or WHOLE_SOURCE for circuit in found]
        async with redis.pipeline(transaction=True) as pipe:
            pipe.delete(*(circuit_key(source, number) for number in numbers))
            pipe.srem(open_key(source), *numbers)
            await pipe.execute()
    return found


def _shown(source: str, number: int, circuit: Circuit, now: float) -> OpenCircuit:
    wait = circuit.wait(now)
    state = "resting" if circuit.until > now else "probing" if wait > 0 else "due"
    seconds = None if circuit.given_up else max(0.0, wait / 1000)
    return OpenCircuit(
        source=source,
        shop=circuit.shop or None,
        shop_crawl=number or None,
        state="given up" if circuit.given_up else state,
        level=circuit.level,
        share=circuit.share,
        seconds=seconds,
        until=None if seconds is None else datetime.fromtimestamp(math.ceil(now / 1000 + seconds), UTC),
        reason=circuit.reason,
    )
