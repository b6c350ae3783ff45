"""The control endpoint under /_sim/: script, truth and figures, outside every count."""

import json
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from random import Random
from typing import Any

import msgspec

from tests.simulator.catalogue import Shop
from tests.simulator.clock import VirtualClock, moment_of
from tests.simulator.market import Change, Market
from tests.simulator.outcomes import ScriptError, convert
from tests.simulator.script import Rule
from tests.simulator.server import Instant, Reply, Request
from tests.simulator.top.control import TopControl

PREFIX = "/_sim/"
_LINES_PER_CHUNK = 200  # about 0.25 MB and a few milliseconds of work between two turns of the loop
NDJSON = b"application/x-ndjson"


class Move(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """How the virtual clock is moved: set first, then advanced by seconds."""

    set: datetime | None = None
    advance: float = 0.0


class Control:
    """Answers the control requests on a market and on the platform."""

    def __init__(self, market: Market, top: TopControl, clock: VirtualClock) -> None:
        self._market = market
        self._top = top
        self._clock = clock
        self._routes: dict[tuple[str, str], Callable[[Request], Any]] = {
            ("GET", "shops"): lambda request: self.shops() if "sizes" in request.query else list(market.shops),
            ("GET", "truth"): lambda request: self.truth(
                request.query.get("shop"), with_items=request.query.get("items") != "0"
            ),
            ("GET", "journal"): lambda _: market.story(),
            ("GET", "calls"): lambda request: self.calls(request.query.get("shop")),
            ("GET", "script"): lambda _: self.state(),
            ("POST", "script"): lambda request: {"rules": self.script(msgspec.json.decode(request.body))},
            ("POST", "topup"): self._top_up_request,
            ("POST", "reset"): lambda _: self.reset(),
            ("GET", "clock"): lambda _: clock.report(),
            ("POST", "clock"): lambda request: self.move_clock(convert(msgspec.json.decode(request.body), Move)),
        } | top.routes

    def handle(self, request: Request) -> Instant:
        """Answer a control request: 400 with the reason if it cannot be done, 404 for an unknown path."""
        try:
            return Instant(self._route(request))
        except (ScriptError, msgspec.DecodeError) as error:
            return Instant(_json({"error": str(error)}, 400))

    def _route(self, request: Request) -> Reply:
        route = self._routes.get((request.method, request.path.removeprefix(PREFIX)))
        if route is None:
            return _json({"error": "unknown control request"}, 404)
        answer = route(request)
        if isinstance(answer, Iterator):
            return Reply(200, _chunks(answer), NDJSON)
        return _json(answer)

    def _top_up_request(self, request: Request) -> dict[str, Any]:
        values = msgspec.json.decode(request.body, type=dict[str, Any])
        return self.top_up(values.get("calls", 0), values.get("token"))

    def shops(self) -> dict[str, int]:
        """Return the items on sale by shop key."""
        return {key: len(shop.alive) for key, shop in self._market.shops.items()}

    def truth(self, shop: str | None = None, *, with_items: bool = True) -> Iterator[bytes]:
        """Return one JSON line per item ever on sale, of one shop or of all; ScriptError for an unknown shop."""
        shops = [self._shop(shop)] if shop is not None else self._market.shops.values()
        return (line for each in shops for line in self._market.truth(each, with_items=with_items))

    def calls(self, shop: str | None = None) -> dict[str, Any]:
        """Return the ledger's figures, in total or for one shop."""
        if shop is not None:
            return self._market.ledger.shop_report(self._shop(shop).key)
        return self._market.ledger.report() | {"cpu_s": round(time.process_time(), 3)}

    def state(self) -> dict[str, Any]:
        """Return the global switches and the rules in force."""
        return {
            "switches": msgspec.to_builtins(self._market.board.everywhere),
            "rules": msgspec.to_builtins(self._market.script.rules()),
        }

    def reset(self) -> dict[str, Any]:
        """Set every counter to zero; goods, script, switches and money stay."""
        self._market.ledger.reset()
        self._top.reset()
        return {}

    def top_up(self, calls: int, token: str | None = None) -> dict[str, Any]:
        """Let one token, or all known ones, pay for more calls; return what each can still pay."""
        if not isinstance(calls, int) or calls < 0:
            raise ScriptError("calls must be a number of calls")
        ledger = self._market.ledger
        accounts = {token: ledger.account(token)} if token is not None else ledger.accounts
        for account in accounts.values():
            account.topped_up += calls
            account.broke = False
        balance = self._market.board.everywhere.balance
        return {"left": {name: account.left(balance) for name, account in accounts.items()}}

    def move_clock(self, move: Move) -> dict[str, Any]:
        """Move the virtual clock and return what it shows; a time without a zone is GMT+8."""
        if move.set is not None:
            self._clock.set(moment_of(move.set))
        self._clock.advance(move.advance)
        return self._clock.report()

    def script(self, directives: Any) -> list[int]:
        """Carry out one directive or a list of them in order; return the numbers of the rules added.

        A directive is a rule (has `outcome`), `set`, `change` or `clear`, the last three with an optional `shop`;
        what stands under `top` is for the platform, and so is a `set` whose names begin with top_.
        ScriptError names the first that cannot be done; those before it hold.
        """
        steps = directives if isinstance(directives, list) else [directives]
        return [number for step in steps if (number := self._step(step)) is not None]

    def _step(self, step: Any) -> int | None:
        if not isinstance(step, dict):
            raise ScriptError("a directive is a JSON object")
        if step.keys() == {"top"}:
            return self._top.step(step["top"])
        if isinstance(step.get("set"), dict) and any(name.startswith("top_") for name in step["set"]):
            return self._top.step(step)
        if step.get("shop") is not None:
            self._shop(step["shop"])
        if "outcome" in step:
            return self._market.script.add(convert(step, Rule))
        shop, rest = step.get("shop"), step.keys() - {"shop"}
        if rest == {"set"} and isinstance(step["set"], dict):
            self._market.board.change(step["set"], shop)
        elif rest == {"change"} and shop is not None:
            self._change(self._shop(shop), convert(step["change"], Change))
        elif rest == {"clear"}:
            self._market.script.clear(shop)
            self._market.board.clear(shop)
        else:
            raise ScriptError(f"no directive in {sorted(step)}: give outcome, set, change (with shop) or clear")
        return None

    def _change(self, shop: Shop, change: Change) -> None:
        call = self._market.ledger.number
        random = Random(f"{self._market.seed}|{shop.key}|{shop.revision}")
        self._market.change(shop, change, call, random)

    def _shop(self, key: Any) -> Shop:
        shop = self._market.shops.get(key) if isinstance(key, str) else None
        if shop is None:
            raise ScriptError(f"unknown shop {key!r}")
        return shop


def _chunks(lines: Iterator[bytes]) -> Iterator[bytes]:
    chunk: list[bytes] = []
    for line in lines:
        chunk.append(line)
        if len(chunk) == _LINES_PER_CHUNK:
            yield b"".join(chunk)
            chunk.clear()
    if chunk:
        yield b"".join(chunk)


def _json(value: object, status: int = 200) -> Reply:
    return Reply(status, json.dumps(value, ensure_ascii=False).encode())
