"""The simulator put together: one market, its APIs and the control endpoint behind one HTTP server."""

import json
from collections.abc import Callable, Mapping, Sequence
from time import time
from typing import Any

from tests.simulator.catalogue import Profile, build_shops
from tests.simulator.clock import VirtualClock
from tests.simulator.control import PREFIX, Control, Move
from tests.simulator.faults import error_reply, login_page
from tests.simulator.market import Market
from tests.simulator.server import Handler, HttpServer, Instant, Pending, Request
from tests.simulator.switches import build_switches
from tests.simulator.tmapi import PATH, Tmapi
from tests.simulator.top.control import TopControl
from tests.simulator.top.gateway import PATH as TOP_PATH
from tests.simulator.top.gateway import Gateway
from tests.simulator.top.world import World

DEFAULT_CACHE_MB = 64  # about 3,000 full pages


class Simulator:
    """A vendor's API on loopback: `async with Simulator(shops=10) as sim: ... sim.url`.

    Besides the shops' profile it takes every switch by keyword (see switches.Switches; top_NAME for those of
    top.switches.TopSwitches), and in `top` the platform's sellers: items, or a specification, by nick. `script`,
    `truth`, `calls` and those with `top_` do what /_sim/ does.
    """

    def __init__(
        self,
        *,
        shops: int = 10,
        seed: int = 1,
        profile: Profile = "skewed",
        items_min: int | None = None,
        items_max: int | None = None,
        extra: Sequence[tuple[str, int]] = (),
        top: Mapping[str, Any] | None = None,
        cache_mb: int = DEFAULT_CACHE_MB,
        warm: bool = False,
        clock: Callable[[], float] = time,
        host: str = "127.0.0.1",
        port: int = 0,
        **switches: Any,
    ) -> None:
        catalogue = build_shops(seed, shops, profile, items_min=items_min, items_max=items_max, extra=extra)
        of_top = {name.removeprefix("top_"): switches.pop(name) for name in list(switches) if name.startswith("top_")}
        self.market = Market(seed, catalogue, build_switches(switches), clock)
        virtual = VirtualClock(clock)
        self.world = World(seed, top or {}, of_top, virtual)
        self._top = TopControl(self.world)
        self.control = Control(self.market, self._top, virtual)
        tmapi = Tmapi(self.market, cache_mb * 1_000_000)
        if warm:
            tmapi.warm()
        self._tmapi: Handler = tmapi.handle
        self._gateway: Handler = Gateway(self.world).handle
        self._server = HttpServer(self._route)
        self._host, self.port = host, port

    @property
    def url(self) -> str:
        """The base address to give to a client."""
        return f"http://{self._host}:{self.port}"

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return self._server.connections

    async def __aenter__(self) -> "Simulator":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen; OSError if the address is taken."""
        self.port = await self._server.start(self._host, self.port)

    async def stop(self) -> None:
        """Stop listening and drop every connection."""
        await self._server.stop()

    def script(self, *directives: dict[str, Any]) -> list[int]:
        """Carry out directives and return the numbers of the rules added."""
        return self.control.script(list(directives))

    def truth(self, shop: str | None = None) -> list[dict[str, Any]]:
        """Return every item ever on sale, of one shop or of all."""
        return [json.loads(line) for line in self.control.truth(shop)]

    def journal(self) -> list[dict[str, Any]]:
        """Return what every answer showed and how the goods moved, in order; needs the switch `journal`."""
        return [json.loads(line) for line in self.market.story()]

    def calls(self, shop: str | None = None) -> dict[str, Any]:
        """Return the ledger's figures, in total or for one shop."""
        return self.control.calls(shop)

    def top_sessions(self) -> dict[str, str]:
        """Return the platform's sellers and their sessions for the first app."""
        return {nick: shop["session"] for nick, shop in self._top.shops().items()}

    def top_truth(self, shop: str) -> list[dict[str, Any]]:
        """Return every row a seller ever had."""
        return [json.loads(line) for line in self._top.truth(shop)]

    def top_ids(self, shop: str) -> dict[str, list[int]]:
        """Return the num_iids that were there `throughout`, and all there `ever` were."""
        return self._top.ids(shop)

    def top_calls(self, shop: str | None = None) -> dict[str, Any]:
        """Return the figures of the platform's ledger, in total or for one seller."""
        return self._top.calls(shop)

    def advance(self, seconds: float) -> dict[str, Any]:
        """Move the virtual clock and return what it shows."""
        return self.control.move_clock(Move(advance=seconds))

    def _route(self, request: Request) -> Pending:
        if request.path == PATH and request.method == "GET":
            return self._tmapi(request)
        if request.path == TOP_PATH:
            return self._gateway(request)
        if request.path.startswith(PREFIX):
            return self.control.handle(request)
        if request.path == "/login":
            return Instant(login_page())
        return Instant(error_reply(404, "status"))
