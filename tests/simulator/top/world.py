"""The platform's world: sellers and their warehouses, sessions, limits, switches and script."""

from collections import Counter
from collections.abc import Mapping
from random import Random
from typing import Annotated, Any

import msgspec

from tests.simulator.clock import VirtualClock
from tests.simulator.outcomes import ScriptError
from tests.simulator.script import Rule, Script
from tests.simulator.switches import Count, SwitchBoard, merged
from tests.simulator.top.bans import Bans
from tests.simulator.top.errors import TopError, error_of
from tests.simulator.top.goods import Goods, SellerSpec
from tests.simulator.top.ledger import TopLedger
from tests.simulator.top.sessions import Sessions
from tests.simulator.top.switches import GLOBAL_ONLY, TopSwitches
from tests.simulator.top.warehouse import Warehouse


class TopRule(Rule, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """A scripted outcome: `code` and `sub_msg` of one's own, `bare` without sub code, `xml` whatever was asked."""

    code: Annotated[int, msgspec.Meta(ge=1)] | None = None
    sub_msg: str = ""
    bare: bool = False
    xml: bool = False

    def error(self, draw: float) -> TopError | None:
        """Return the error the rule stands for, if it is one."""
        error = error_of(self.outcome, self.code, draw)
        if error is None:
            return None
        return TopError(error.code, "" if self.bare else error.sub_code, self.sub_msg or error.sub_msg)


class TopChange(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What to do to a seller's goods now: counts, or num_iids for `edit` and `vanish`."""

    edit: Count | list[int] = 0
    appear: Count = 0
    vanish: Count | list[int] = 0
    restore: Count = 0
    reprice: bool = True


def read_spec(nick: str, value: Any) -> SellerSpec:
    """Return a seller's specification from a number of items or its members; ScriptError names the seller."""
    members = {"items": value} if isinstance(value, int) else value
    try:
        return msgspec.convert(members, SellerSpec)
    except msgspec.ValidationError as error:
        raise ScriptError(f"seller {nick!r}: {error}") from None


class World:
    """Everything behind the gateway; one instance per simulator."""

    def __init__(self, seed: int, sellers: Mapping[str, Any], switches: dict[str, Any], clock: VirtualClock) -> None:
        self.seed = seed
        self.clock = clock
        specs = {nick: read_spec(nick, value) for nick, value in sellers.items()}
        self.board: SwitchBoard[TopSwitches] = SwitchBoard(merged(TopSwitches(), switches), GLOBAL_ONLY)
        self.script: Script[TopRule] = Script(error_of)
        self.bans = Bans()
        self.ledger = TopLedger(clock.real)
        self.sellers = {
            nick: Warehouse(Goods(seed, number, nick, spec)) for number, (nick, spec) in enumerate(specs.items())
        }
        self.sessions = Sessions(seed, {nick: spec.session for nick, spec in specs.items() if spec.session})
        self.pages: Counter[str] = Counter()  # delivered of each seller's goods; never reset, edits depend on it
        for nick in self.sellers:
            self.tokens(nick)

    def tokens(self, nick: str) -> dict[str, str]:
        """Return a seller's sessions by app, issued if need be."""
        switches, token = self.board.everywhere, self.sessions.token
        first = {switches.app_key: token(switches.app_key, nick)}
        return first | {app: token(app, nick, first_app=False) for app in switches.apps if app != switches.app_key}

    def churn(self, nick: str, switches: TopSwitches, page: int) -> None:
        """Let goods be edited, come and go after the `page`-th page of a seller, at the switches' rates per page."""
        rates = (switches.edits, switches.appear, switches.vanish)
        if not any(rates):
            return
        random = Random(f"churn|{self.seed}|{nick}|{page}")
        edit, appear, vanish = (int(rate + random.random()) for rate in rates)
        change = TopChange(edit=edit, appear=appear, vanish=vanish)
        self.change(nick, change, random, price_share=switches.edit_price)

    def change(self, nick: str, change: TopChange, random: Random, *, price_share: float = 1.0) -> None:
        """Change a seller's goods, at random where only a count is given; ScriptError for an unknown num_iid."""
        warehouse, now = self.sellers[nick], int(self.clock.now())
        for row in _rows(warehouse, change.edit, random):
            warehouse.edit(row, now, reprice=change.reprice and random.random() < price_share)
        for row in _rows(warehouse, change.vanish, random):
            warehouse.vanish(row)
        for row in warehouse.pick_gone(change.restore, random):
            warehouse.restore(row, now)
        for _ in range(change.appear):
            warehouse.appear(now)


def _rows(warehouse: Warehouse, wanted: int | list[int], random: Random) -> list[int]:
    if isinstance(wanted, int):
        return warehouse.pick(wanted, random)
    try:
        rows = [warehouse.goods.row_of(num_iid) for num_iid in wanted]
    except KeyError as error:
        raise ScriptError(f"unknown num_iid {error}") from None
    if gone := [num_iid for num_iid, row in zip(wanted, rows, strict=True) if row in warehouse.goods.gone]:
        raise ScriptError(f"not in the warehouse: {gone}")
    return rows
