"""Chance that is a function of its cause, so that equal runs meet equal luck."""

import math
from hashlib import blake2b
from statistics import NormalDist
from struct import Struct

_DRAWS = Struct("<8Q")
_UNIT = 1 / 2**64
_P99 = NormalDist().inv_cdf(0.99)


def draws_of(cause: str) -> tuple[float, ...]:
    """Return eight uniform draws from [0, 1) that depend on the text only."""
    digest = blake2b(cause.encode("utf-8", "surrogatepass"), digest_size=64).digest()
    return tuple(number * _UNIT for number in _DRAWS.unpack(digest))


def latency_of(median: float, tail: float, draw: float) -> float:
    """Return log-normal seconds: half the draws below `median`, one in a hundred above `median * tail`."""
    if median == 0 or tail == 1:
        return median
    return median * math.exp(math.log(tail) / _P99 * NormalDist().inv_cdf(min(max(draw, 1e-9), 1 - 1e-9)))
