"""The platform's part of the control endpoint: shops, truth, figures and directives."""

from collections.abc import Callable, Iterator
from random import Random
from typing import Annotated, Any

import msgspec

from tests.simulator.clock import iso_utc
from tests.simulator.outcomes import ScriptError, convert
from tests.simulator.server import Request
from tests.simulator.switches import Count
from tests.simulator.top.bans import BanOrder
from tests.simulator.top.warehouse import Warehouse
from tests.simulator.top.world import TopChange, TopRule, World


class Expiry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which sellers' sessions end, after how many more calls, with which sub code."""

    expire: list[str]
    after: Count = 0
    sub_code: Annotated[str, msgspec.Meta(min_length=1)] = "session-expired"


class TopControl:
    """Tells and steers what happens behind the gateway."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.routes: dict[tuple[str, str], Callable[[Request], Any]] = {
            ("GET", "top/shops"): lambda _: self.shops(),
            ("GET", "top/truth"): self._truth_request,
            ("GET", "top/calls"): lambda request: self.calls(request.query.get("shop")),
            ("GET", "top/script"): lambda _: self.state(),
        }
        self._directives: dict[str, Callable[[dict[str, Any]], int | None]] = {
            "outcome": self._add_rule,
            "set": self._set,
            "change": self._change,
            "clear": self._clear,
            "ban": self._ban,
            "lift": lambda _: self._world.bans.lift(),
            "expire": self._expire,
            "renew": self._renew,
            "mixup": self._mix_up,
        }

    def _truth_request(self, request: Request) -> Any:
        shop = request.query.get("shop", "")
        return self.ids(shop) if request.query.get("ids") == "1" else self.truth(shop)

    # -- what is and was -------------------------------------------------------------------------------------------

    def shops(self) -> dict[str, dict[str, Any]]:
        """Return by nick the session for the first app, the sessions of all apps and the items now there."""
        app_key = self._world.board.everywhere.app_key
        return {
            nick: {"session": tokens[app_key], "sessions": tokens, "items": len(warehouse)}
            for nick, warehouse in self._world.sellers.items()
            for tokens in [self._world.tokens(nick)]
        }

    def truth(self, shop: str) -> Iterator[bytes]:
        """Return one JSON line per row the seller ever had; ScriptError for an unknown seller."""
        goods = self._seller(shop).goods
        raw = self._world.board.of(shop).raw_control
        return (
            msgspec.json.encode(
                {
                    "num_iid": goods.num_iid(row),
                    "modified": iso_utc(goods.modified[row]),
                    "always_present": row < goods.first_size and row not in goods.was_away,
                    "present": row not in goods.gone,
                    "edited": goods.edits[row],
                    "item": goods.row(row, raw=raw),
                }
            )
            + b"\n"
            for row in range(len(goods))
        )

    def ids(self, shop: str) -> dict[str, list[int]]:
        """Return the num_iids that were there throughout, and all there ever were."""
        goods = self._seller(shop).goods
        ever = [goods.num_iid(row) for row in range(len(goods))]
        kept = ever[: goods.first_size]
        if goods.was_away:
            kept = [num_iid for row, num_iid in enumerate(kept) if row not in goods.was_away]
        return {"throughout": kept, "ever": ever}

    def calls(self, shop: str | None = None) -> dict[str, Any]:
        """Return the ledger's figures, in total or for one seller."""
        ledger, bans = self._world.ledger, self._world.bans.all
        if shop is not None:
            self._seller(shop)
            return ledger.shop(shop).report()
        return ledger.report() | {
            "during_ban_in_flight": sum(ban.in_flight or 0 for ban in bans),
            "after_ban_learned": sum(ban.after_learned for ban in bans),
            "bans": [ban.report() for ban in bans],
        }

    def state(self) -> dict[str, Any]:
        """Return the global switches and the rules in force."""
        return {
            "switches": msgspec.to_builtins(self._world.board.everywhere),
            "rules": msgspec.to_builtins(self._world.script.rules()),
        }

    def reset(self) -> None:
        """Set every counter to zero; goods, sessions, bans in force, script and switches stay."""
        self._world.ledger.reset()
        self._world.bans.forget()

    # -- directives ------------------------------------------------------------------------------------------------

    def step(self, directive: Any) -> int | None:
        """Carry out what stands under `top` in a directive; return the number of a rule added."""
        if not isinstance(directive, dict):
            raise ScriptError("top is followed by a JSON object")
        if directive.get("shop") is not None:
            self._seller(directive["shop"])
        for name, carry_out in self._directives.items():
            if name in directive:
                return carry_out(directive)
        raise ScriptError(f"no directive in {sorted(directive)}: give one of {', '.join(self._directives)}")

    def _add_rule(self, step: dict[str, Any]) -> int:
        return self._world.script.add(convert(step, TopRule))

    def _set(self, step: dict[str, Any]) -> None:
        _only(step, "set", "shop")
        values = {name.removeprefix("top_"): value for name, value in convert(step["set"], dict[str, Any]).items()}
        self._world.board.change(values, step.get("shop"))
        for nick in self._world.sellers:
            self._world.tokens(nick)

    def _change(self, step: dict[str, Any]) -> None:
        _only(step, "change", "shop")
        nick = step.get("shop")
        goods = self._seller(nick).goods
        seed = f"change|{self._world.seed}|{nick}|{len(goods)}|{goods.edits.total()}|{len(goods.was_away)}"
        self._world.change(str(nick), convert(step["change"], TopChange), Random(seed))

    def _clear(self, step: dict[str, Any]) -> None:
        _only(step, "clear", "shop")
        self._world.script.clear(step.get("shop"))
        self._world.board.clear(step.get("shop"))

    def _ban(self, step: dict[str, Any]) -> None:
        _only(step, "ban")
        self._world.bans.order(convert(step["ban"], BanOrder), self._world.clock.now())

    def _expire(self, step: dict[str, Any]) -> None:
        order = convert(step, Expiry)
        for nick in self._nicks(order.expire):
            self._world.sessions.expire(nick, order.after, order.sub_code)

    def _renew(self, step: dict[str, Any]) -> None:
        _only(step, "renew")
        for nick in self._nicks(convert(step["renew"], list[str])):
            self._world.sessions.renew(nick)
            self._world.tokens(nick)

    def _mix_up(self, step: dict[str, Any]) -> None:
        _only(step, "mixup")
        pairs = convert(step["mixup"], dict[str, str])
        self._nicks([*pairs, *pairs.values()])
        for nick, goods in pairs.items():
            self._world.sessions.mix_up(nick, goods)

    def _nicks(self, nicks: list[str]) -> list[str]:
        for nick in nicks:
            self._seller(nick)
        return nicks

    def _seller(self, nick: Any) -> Warehouse:
        warehouse = self._world.sellers.get(nick) if isinstance(nick, str) else None
        if warehouse is None:
            raise ScriptError(f"unknown seller {nick!r}")
        return warehouse


def _only(step: dict[str, Any], *names: str) -> None:
    if strange := step.keys() - set(names):
        raise ScriptError(f"{sorted(strange)} do not go with {names[0]!r}")
