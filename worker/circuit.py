"""When a shop or a source rests because nearly every call fails alike: pure transitions of one circuit."""

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from models.circuits import Circuit
from models.settings import Settings
from worker.retry import Decision, PutBack, WaitHere

# Doubling stops here, long past any cap, so that a huge count cannot overflow a float.
MAX_DOUBLINGS = 60
# The newest answers that are remembered, as a multiple of those that are needed to judge.
REMEMBERED = 2
# Pages come back this much apart (s), so that the first one's answer is known before most of the others arrive.
REST_SPREAD = 5.0
# While one page is tried, the others ask again after so long (s).
PROBE_WAIT = 5.0

CLOSED = Circuit()


@dataclass(frozen=True)
class Rules:
    """When a circuit opens and how long it rests.

    It opens when of at least `answers` newest answers this `share` failed, for `shops` different shops; `answers` 0:
    never. Rests are in ms, `first` doubling to `longest`. After `probes` failed probes it is given up, 0: never.
    """

    answers: int
    share: float
    shops: int
    first: float
    longest: float
    probes: int


@dataclass(frozen=True)
class Stop:
    """No call for now: try again in `seconds`, or never if the shop is given up."""

    seconds: float
    reason: str
    whole_source: bool
    given_up: bool = False


def rules_for(settings: Settings) -> tuple[Rules, Rules]:
    """The rules for a whole source and for one shop."""
    first, longest = settings.sticky_rest * 1000, settings.sticky_rest_cap * 1000
    source = Rules(
        settings.sticky_source_answers, settings.sticky_source_share, settings.sticky_source_shops, first, longest, 0
    )
    return source, Rules(settings.sticky_answers, settings.sticky_share, 1, first, longest, settings.max_tries)


def stop_for(circuit: Circuit, holder: str, now: float, *, whole_source: bool) -> Stop | None:
    """What keeps `holder` from making a call; None if it may, as the probe if the circuit is open."""
    if not circuit.level or (circuit.probe == holder and not circuit.given_up):
        return None
    reason = f"{circuit.reason} ({'source' if whole_source else 'shop'} rested {circuit.level} times)"
    if circuit.given_up:
        return Stop(0, reason, whole_source, given_up=True)
    if circuit.until > now:
        return Stop((circuit.until - now) / 1000, reason, whole_source)
    return Stop(PROBE_WAIT, reason, whole_source) if circuit.wait(now) > 0 else None


def taken(circuit: Circuit, holder: str, now: float, lease: float) -> Circuit:
    """The circuit once `holder` makes a call that nothing stops; an open one waits `lease` ms for its answer."""
    if not circuit.level or circuit.probe == holder:
        return circuit
    return replace(circuit, probe=holder, probe_ends=round(now + lease))


def after_fault(
    circuit: Circuit, failed: int, goods: int, holder: str, now: float, random: float, rules: Rules
) -> Circuit:
    """The circuit after a failed call for the shop crawl `failed`, with `goods` good answers before it.

    Of an open circuit only the probe's answer counts. `random` is uniform in [0, 1).
    """
    if circuit.level:
        return _rested_again(circuit, now, random, rules) if circuit.probe == holder else circuit
    kept = REMEMBERED * rules.answers
    recent = (*circuit.recent, *(0,) * min(goods, kept), failed)[-kept:] if kept else ()
    circuit = replace(circuit, recent=recent)
    return _rested_again(circuit, now, random, rules) if is_sticky(recent, rules) else circuit


def is_sticky(recent: Sequence[int], rules: Rules) -> bool:
    """Whether these newest answers are reason enough to rest."""
    failed = [number for number in recent if number]
    enough = len(recent) >= rules.answers > 0 and len(set(failed)) >= rules.shops
    return enough and len(failed) >= rules.share * len(recent)


def after_good(circuit: Circuit, holder: str) -> Circuit:
    """The circuit after a good answer to its probe; to any other call it stays as it is."""
    return CLOSED if circuit.level and circuit.probe == holder else circuit


def let_go(circuit: Circuit, holder: str) -> Circuit:
    """The circuit after a probe that showed nothing: the next page is the probe."""
    return replace(circuit, probe="", probe_ends=0) if circuit.level and circuit.probe == holder else circuit


def obey(decision: Decision, stop: Stop | None, random: float) -> Decision:
    """What to do with a page after a failed call, now that its shop or source rests."""
    if stop is None or not isinstance(decision, WaitHere | PutBack):
        return decision
    return PutBack(after_stop(stop, random), burns_try=not stop.whole_source)


def after_stop(stop: Stop, random: float) -> float:
    """Seconds after which a page that was stopped is due again."""
    return 0.0 if stop.given_up else stop.seconds + random * REST_SPREAD


def _rested_again(circuit: Circuit, now: float, random: float, rules: Rules) -> Circuit:
    """Open, and up to a quarter longer than twice the last rest; given up if that has been tried often enough."""
    given_up = 0 < rules.probes <= circuit.level
    level = circuit.level + (not given_up)
    rest = min(rules.longest, rules.first * 2.0 ** min(level - 1, MAX_DOUBLINGS)) * (1 + random / 4)
    until = 0 if given_up else round(now + rest)
    return replace(circuit, level=level, until=until, probe="", probe_ends=0, given_up=given_up)
