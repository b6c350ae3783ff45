"""What to do after a failed call: a pure decision from the error, the counts so far and one random number."""

from dataclasses import dataclass

from models.errors import (
    BannedError,
    CredentialParkedError,
    FetchError,
    PageRefusedError,
    ShopRefusedError,
    ShopUnauthorisedError,
    SourceStoppedError,
    ThrottledError,
)
from models.settings import Settings

# A page turned away this often in a row gives its place to another one; by then the limit has shrunk to its floor.
THROTTLES_IN_A_ROW = 10

# Pages come back this much apart after a ban, so that they do not all arrive in one instant.
BAN_SPREAD = 2.0

# Doubling stops here, long past any cap, so that a huge count cannot overflow a float.
MAX_DOUBLINGS = 60


@dataclass(frozen=True)
class WaitHere:
    """Wait `delay` seconds inside the task and call again."""

    delay: float


@dataclass(frozen=True)
class PutBack:
    """Give the page back to the ledger, due in `delay` seconds; `burns_try`: the answer counts as a try."""

    delay: float
    burns_try: bool


@dataclass(frozen=True)
class ParkCredential:
    """Send nothing more with this credential; the page waits and keeps its tries."""

    reason: str


@dataclass(frozen=True)
class StopSource:
    """Send nothing more to this source; the page waits and keeps its tries."""

    reason: str


@dataclass(frozen=True)
class ObeyBan:
    """Ask for another permit; the limiter knows whether one is worth waiting for. The page keeps its tries."""

    reason: str


@dataclass(frozen=True)
class Dead:
    """Give up this page; other pages go on."""

    reason: str


@dataclass(frozen=True)
class FailShop:
    """Give up this shop, with the server's own message."""

    reason: str


@dataclass(frozen=True)
class Hold:
    """The shop needs a new session: its pages wait and keep their tries."""

    reason: str


Decision = WaitHere | PutBack | ParkCredential | StopSource | ObeyBan | Dead | FailShop | Hold


def decide(error: FetchError, *, tries: int, throttles: int, settings: Settings, random: float) -> Decision:
    """Choose the reaction to `error`.

    `tries` counts the page's failed answers including this one, `throttles` the throttled answers and bans in a row
    including this one, `random` is uniform in [0, 1).
    """
    match error:
        case CredentialParkedError():
            return ParkCredential(str(error))
        case SourceStoppedError():
            return StopSource(str(error))
        case ShopRefusedError():
            return FailShop(str(error))
        case ShopUnauthorisedError():
            return Hold(str(error))
        case PageRefusedError():
            return Dead(str(error))
        case BannedError() if throttles < THROTTLES_IN_A_ROW:
            return ObeyBan(str(error))
        case ThrottledError() | BannedError():
            return _after_throttle(error, throttles, settings, random)
        case _:
            return _after_fault(error, tries, settings, random)


def after_ban(seconds: float, random: float) -> float:
    """Seconds after which a page is due again that a ban of `seconds` keeps from being fetched."""
    return seconds + random * BAN_SPREAD


def _after_fault(error: FetchError, tries: int, settings: Settings, random: float) -> Decision:
    if tries >= settings.max_tries:
        return Dead(f"{error} (after {tries} tries)")
    delay = max(random * _ceiling(tries, settings.retry_cap, settings), error.retry_after or 0.0)
    return WaitHere(delay) if delay <= settings.inline_wait else PutBack(delay, burns_try=True)


def _after_throttle(error: FetchError, throttles: int, settings: Settings, random: float) -> Decision:
    """Half of each pause is fixed: a storm of callers must thin out, which full jitter alone does too slowly."""
    asked = error.retry_after or 0.0
    inline = throttles < THROTTLES_IN_A_ROW and 0 < settings.inline_wait >= asked
    cap = min(settings.inline_wait, settings.retry_cap) if inline else settings.retry_cap
    delay = max((0.5 + random / 2) * _ceiling(throttles, cap, settings), asked)
    return WaitHere(delay) if inline else PutBack(delay, burns_try=False)


def _ceiling(count: int, cap: float, settings: Settings) -> float:
    return min(cap, settings.retry_base * 2.0 ** min(max(count - 1, 0), MAX_DOUBLINGS))
