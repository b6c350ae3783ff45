"""Which outcome a call gets: scripted rules first, then the switchboard's probabilities."""

from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Annotated, Generic, TypeVar

import msgspec

from tests.simulator.outcomes import SHAPES, Channel, parse_fault
from tests.simulator.switches import Amount, Count, Share, Switches

_CHANNELS: tuple[Channel, ...] = ("status", "body", "empty", "html")


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """One scripted outcome and the calls it applies to; the first matching rule wins, shop rules before global ones."""

    outcome: str
    id: int = 0
    shop: str | None = None
    pages: tuple[int, int | None] | int | None = None
    token: str | None = None
    channel: Channel | None = None
    times: Annotated[int, msgspec.Meta(ge=1)] | None = None
    each: Annotated[int, msgspec.Meta(ge=1)] | None = None
    probability: Share = 1.0
    seconds: Amount | None = None
    retry_after: Amount | None = None
    status: Annotated[int, msgspec.Meta(ge=200, le=599)] = 500
    rows: Count = 7
    fraction: Share = 0.5
    plain: bool = False
    megabytes: Annotated[int, msgspec.Meta(ge=1, le=512)] = 64
    depth: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 100_000

    def covers(self, page: int, token: str) -> bool:
        """Say whether page and token are among those the rule is for."""
        if self.token is not None and self.token != token:
            return False
        if self.pages is None:
            return True
        if isinstance(self.pages, int):
            return page == self.pages
        first, last = self.pages
        return page >= first and (last is None or page <= last)


R = TypeVar("R", bound=Rule)


class Outcome(msgspec.Struct, frozen=True):
    """What a call gets: an error code or a shape, by which channel, with the rule's figures."""

    name: str
    channel: Channel = "status"
    rule: Rule = Rule(outcome="ok")

    @property
    def effective(self) -> str:
        """The code a careful client reads, or the name of the damage."""
        return SHAPES.get(self.name, self.name)


OK = Outcome("ok")


def resolve_channel(name: str, wanted: Channel | None, default: Channel, draw: float) -> Channel:
    """Pick the channel of an error: 502 and 504 are HTML pages unless told otherwise, `mixed` follows the draw."""
    channel = wanted or ("html" if name in {"502", "504"} else default)
    return _CHANNELS[int(draw * len(_CHANNELS))] if channel == "mixed" else channel


def by_probability(switches: Switches, draw: float, channel_draw: float) -> Outcome:
    """Map one uniform draw onto the switchboard's fault probabilities."""
    for text, probability in switches.faults.items():
        if draw < probability:
            name, wanted = parse_fault(text)
            return Outcome(name, resolve_channel(name, wanted, switches.channel, channel_draw))
        draw -= probability
    return OK


class Script(Generic[R]):
    """The rules in force, looked up by shop; `check` raises ScriptError for an outcome that does not exist."""

    def __init__(self, check: Callable[[str], object] = parse_fault) -> None:
        self._check = check
        self._by_shop: dict[str | None, list[R]] = {}
        self._left: dict[int, int] = {}
        self._seen: dict[int, Counter[tuple[str, int]]] = {}
        self._last_id = 0

    def add(self, rule: R) -> int:
        """Put a rule in force and return its number; ScriptError if its outcome does not exist."""
        self._check(rule.outcome)
        self._last_id += 1
        rule = msgspec.structs.replace(rule, id=self._last_id)
        self._by_shop.setdefault(rule.shop, []).append(rule)
        if rule.times is not None:
            self._left[rule.id] = rule.times
        if rule.each is not None:
            self._seen[rule.id] = Counter()
        return rule.id

    def clear(self, shop: str | None = None) -> None:
        """Withdraw one shop's rules, or all rules."""
        for key in [shop] if shop is not None else list(self._by_shop):
            for rule in self._by_shop.pop(key, []):
                self._left.pop(rule.id, None)
                self._seen.pop(rule.id, None)

    def rules(self) -> list[R]:
        """Return all rules in force."""
        return [rule for rules in self._by_shop.values() for rule in rules]

    def match(self, shop: str, page: int, token: str, draw: float) -> R | None:
        """Return the rule for a call and use it up; `draw` seeds the chances of rules with a probability below 1."""
        if not self._by_shop:
            return None
        chance = Random(draw)
        for rule in self._by_shop.get(shop, []) + self._by_shop.get(None, []):
            if not rule.covers(page, token) or not self._has_uses(rule, shop, page):
                continue
            if rule.probability < 1 and chance.random() >= rule.probability:
                continue
            self._use(rule, shop, page)
            return rule
        return None

    def _has_uses(self, rule: R, shop: str, page: int) -> bool:
        return rule.each is None or self._seen[rule.id][shop, page] < rule.each

    def _use(self, rule: R, shop: str, page: int) -> None:
        if rule.each is not None:
            self._seen[rule.id][shop, page] += 1
        if rule.times is None:
            return
        self._left[rule.id] -= 1
        if self._left[rule.id] == 0:
            self._by_shop[rule.shop].remove(rule)
            self._left.pop(rule.id)
            self._seen.pop(rule.id, None)
