"""Every behaviour that can be switched at run time, globally or for one shop."""

from collections.abc import Callable, Iterable
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec

from tests.simulator.outcomes import Channel, ScriptError, parse_fault

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Amount = Annotated[float, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=0)]

GLOBAL_ONLY = frozenset(
    {"tokens", "token_refusal", "gate", "gates", "gate_channel", "balance", "balance_channel", "bill_failures", "gzip"}
    | {"journal", "keepalive_requests", "keepalive_announce", "hold_after_disconnect", "unknown_shop"}
)


S = TypeVar("S", bound=msgspec.Struct)


def check_faults(faults: dict[str, float], parse: Callable[[str], object]) -> None:
    """Refuse faults that do not exist or together happen more often than always; ScriptError."""
    for name in faults:
        parse(name)
    if sum(faults.values()) > 1 + 1e-9:
        raise ScriptError("the probabilities of faults add up to more than 1")


class Switches(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Behaviour of the API; defaults are a well-behaved vendor."""

    tokens: list[str] = []
    token_refusal: Literal["401", "403", "body"] = "401"
    page_size_max: Annotated[int, msgspec.Meta(ge=1)] = 20
    page_size_over: Literal["cap", "422", "serve"] = "cap"
    page_size_echo: Literal["real", "asked"] = "real"
    bad_page: Literal["422", "first"] = "422"
    unknown_shop: Literal["422", "empty"] = "422"
    unknown_sort: Literal["422", "default"] = "default"
    beyond_end: Literal["empty", "missing", "null", "last", "first", "422"] = "empty"
    total_count: Literal["text", "number", "display", "missing"] = "text"
    total_factor: Amount = 1.0
    total_drift: Count = 0
    variants: Share = 0.0
    hidden: Share = 0.0
    reorder: Share = 0.0
    appear: Amount = 0.0
    vanish: Amount = 0.0
    reprice: Amount = 0.0
    restore: Amount = 0.0
    latency: Amount = 0.0
    latency_tail: Annotated[float, msgspec.Meta(ge=1)] = 1.0
    slow_seconds: Amount = 1.0
    delay_499: Amount = 1.0
    gate: Count = 0
    gates: dict[str, Count] = {}
    gate_channel: Channel = "status"
    balance: Count | None = None
    balance_channel: Channel = "status"
    bill_failures: bool = False
    faults: dict[str, Share] = {}
    channel: Channel = "status"
    sticky_417: Share = 0.0
    retry_after: Amount = 0.0
    gzip: bool = False
    journal: bool = False
    keepalive_requests: Count = 0
    keepalive_announce: bool = False
    hold_after_disconnect: bool = False

    def __post_init__(self) -> None:
        check_faults(self.faults, parse_fault)


# Every fault here heals by asking again, so that a crawl over it can and must end complete.
DEFAULT_FAULTS = {
    "417": 0.02,
    "417:body": 0.01,
    "499": 0.004,
    "500": 0.01,
    "500:empty": 0.002,
    "502": 0.002,
    "503:body": 0.002,
    "empty": 0.001,
    "html200": 0.001,
    "truncated": 0.002,
    "reset": 0.002,
    "close": 0.001,
    "slow": 0.01,
    "ok_500": 0.001,
}
DEFAULT_VARIANTS = 0.05


class SwitchBoard(Generic[S]):
    """The switches in force: one global set and the shops' deviations from it."""

    def __init__(self, switches: S, global_only: Iterable[str] = GLOBAL_ONLY) -> None:
        self.everywhere = switches
        self._global_only = frozenset(global_only)
        self._deviations: dict[str, dict[str, Any]] = {}
        self._resolved: dict[str, S] = {}

    def of(self, shop: str) -> S:
        """Return the switches that hold for a shop."""
        return self._resolved.get(shop, self.everywhere) if self._resolved else self.everywhere

    def change(self, values: dict[str, Any], shop: str | None = None) -> None:
        """Set some switches globally or for one shop; ScriptError changes nothing."""
        if shop is None:
            everywhere = merged(self.everywhere, values)
            resolved = {key: merged(everywhere, own) for key, own in self._deviations.items()}
            self.everywhere, self._resolved = everywhere, resolved
            return
        if misplaced := self._global_only & values.keys():
            raise ScriptError(f"not switchable per shop: {', '.join(sorted(misplaced))}")
        own = self._deviations.get(shop, {}) | values
        self._resolved[shop] = merged(self.everywhere, own)
        self._deviations[shop] = own

    def clear(self, shop: str | None = None) -> None:
        """Forget one shop's deviations, or those of all shops; the global switches stay."""
        for key in [shop] if shop is not None else list(self._deviations):
            self._deviations.pop(key, None)
            self._resolved.pop(key, None)


def merged(base: S, values: dict[str, Any]) -> S:
    """Return the switches with some values changed; ScriptError if a name or value is wrong."""
    try:
        return msgspec.convert(msgspec.structs.asdict(base) | values, type(base))
    except msgspec.ValidationError as error:
        raise ScriptError(str(error)) from None


def build_switches(values: dict[str, Any]) -> Switches:
    """Return switches with some values other than the default; ScriptError if a name or value is wrong."""
    return merged(Switches(), values)
