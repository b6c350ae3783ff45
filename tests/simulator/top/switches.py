"""Every behaviour of the platform that can be switched at run time; outside this folder their names begin with top_."""

from typing import Annotated, Literal

import msgspec

from tests.simulator.switches import Amount, Count, Share, check_faults
from tests.simulator.top.errors import error_of

GLOBAL_ONLY = frozenset(
    {"app_key", "app_secret", "apps", "timestamps", "tolerance", "replay"}
    | {"qps", "qps_ban", "keepalive_requests", "keepalive_announce", "request_id"}
)


class TopSwitches(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Behaviour of the platform; defaults are a well-behaved one."""

    app_key: str = "12345678"
    app_secret: str = "helloworld"
    apps: dict[str, str] = {}
    timestamps: Literal["virtual", "real", "off"] = "virtual"
    tolerance: Amount = 600.0
    replay: Count = 0
    fields: Literal["wide", "narrow"] = "wide"
    unknown_fields: Literal["ignore", "refuse"] = "ignore"
    invalid_code: Literal[15, 40, 41, 43, 50] = 41
    window: Annotated[int, msgspec.Meta(ge=1)] = 20_000
    end_exclusive: bool = False
    ties: Literal["stable", "random"] = "stable"
    empty: Literal["list", "object", "missing", "array"] = "list"
    single_object: bool = False
    raw_control: bool = False
    request_id: Share = 1.0
    edits: Amount = 0.0
    edit_price: Share = 1.0
    appear: Amount = 0.0
    vanish: Amount = 0.0
    faults: dict[str, Share] = {}
    latency: Amount = 0.0
    latency_tail: Annotated[float, msgspec.Meta(ge=1)] = 1.0
    slow_seconds: Amount = 1.0
    qps: Count = 0
    qps_ban: Amount = 1.0
    keepalive_requests: Count = 0
    keepalive_announce: bool = False

    def __post_init__(self) -> None:
        check_faults(self.faults, error_of)

    def secret(self, app_key: str) -> str | None:
        """Return the secret of an app, None if there is no such app."""
        return self.app_secret if app_key == self.app_key else self.apps.get(app_key)
