"""The limiter's one Redis call: the request and answer of limiter.lua as typed values."""

from importlib.resources import files

import msgspec

from models import fleet

CLAIM_TTL = 1200
FINISHED_TTL = 60


class LaneCall(msgspec.Struct):
    """What a process says about one credential; `throttles` are (level, sent at) of refused calls.

    Of a limited day: its number and the calls `used` as last heard, and the `calls` left here, which go back if `idle`.
    """

    name: str
    quota: int
    in_use: int
    slots: int
    probes: int
    ok: int
    throttles: list[tuple[int, float]]
    park: str
    born: int
    limit: int
    knee: int
    rate: float
    start: float
    floor: float
    ceiling: float
    per_day: int = 0
    day_shift: float = 0
    day: int = 0
    used: int = 0
    calls: int = 0
    idle: bool = False


class Call(msgspec.Struct):
    """One call; times in ms.

    Claims are (page_id, fence, value), `unclaimed` (page_id, start of value), bans (scope, time left, reason).
    """

    process: str
    claims: list[tuple[str, int, str]]
    unclaimed: list[tuple[str, str]]
    finished: list[str]
    waiting: int
    lanes: list[LaneCall]
    lease: int
    grace: int
    bans: list[tuple[str, float, str]] = []
    leaving: bool = False
    offset: int = 0
    claim_ttl: int = CLAIM_TTL
    finished_ttl: int = FINISHED_TTL


class LaneAnswer(msgspec.Struct, array_like=True):
    """The share of one credential, and rate slots: how many, ms until the first, ms between them.

    `rate` is the one in force. `calls` are those added to what the process may still make today, -1: any number; the
    day ends in `day_left` ms.
    """

    quota: int
    others: int
    limit: int
    knee: int
    born: int
    parked: str
    slots: int
    delay: float
    spacing: float
    rate: float = 0
    day: int = 0
    used: int = 0
    calls: int = -1
    day_left: float = 0


class Answer(msgspec.Struct, array_like=True):
    """The script's answer: Redis' time in ms, the indexes of duplicate claims, a share for each lane, bans in force."""

    now: float
    duplicates: list[int]
    lanes: list[LaneAnswer]
    bans: list[tuple[str, float, str]] = []


def script_text() -> bytes:
    """The Lua source."""
    return files("worker").joinpath("limiter.lua").read_bytes()


def script_arguments(source: str, call: Call) -> tuple[list[str], list[str | bytes]]:
    """KEYS and ARGV of the script for one call."""
    keys = [f(source) for f in (fleet.parked_key, fleet.credentials_key, fleet.bans_key, fleet.orders_key)]
    for lane in call.lanes:
        keys += (fleet.limit_key(source, lane.name), fleet.holders_key(source, lane.name))
    return keys, [msgspec.msgpack.encode(call), fleet.CLAIM_PREFIX, fleet.NEWS, source]


read_answer = msgspec.msgpack.Decoder(Answer).decode
