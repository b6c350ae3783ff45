"""The simulator put together: one market, its APIs and the control endpoint behind one HTTP server."""

import json
from collections.abc import Callable, Sequence
from time import time
from typing import Any

from tests.simulator.catalogue import Profile, build_shops
from tests.simulator.control import PREFIX, Control
from tests.simulator.faults import error_reply, login_page
from tests.simulator.market import Market
from tests.simulator.server import Handler, HttpServer, Instant, Pending, Request
from tests.simulator.switches import build_switches
from tests.simulator.tmapi import PATH, Tmapi

DEFAULT_CACHE_MB = 64  # about 3,000 full pages


class Simulator:
    """A vendor's API on loopback: `async with Simulator(shops=10) as sim: ... sim.url`.

    Besides the shops' profile it takes every switch by keyword (see switches.Switches). `script`, `truth`
    and `calls` do what /_sim/ does.
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
        cache_mb: int = DEFAULT_CACHE_MB,
        warm: bool = False,
        clock: Callable[[], float] = time,
        host: str = "127.0.0.1",
        port: int = 0,
        **switches: Any,
    ) -> None:
        catalogue = build_shops(seed, shops, profile, items_min=items_min, items_max=items_max, extra=extra)
        self.market = Market(seed, catalogue, build_switches(switches), clock)
        self.control = Control(self.market)
        tmapi = Tmapi(self.market, cache_mb * 1_000_000)
        if warm:
            tmapi.warm()
        self._handlers: dict[str, Handler] = {PATH: tmapi.handle}
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

    def calls(self, shop: str | None = None) -> dict[str, Any]:
        """Return the ledger's figures, in total or for one shop."""
        return self.control.calls(shop)

    def _route(self, request: Request) -> Pending:
        handler = self._handlers.get(request.path)
        if handler is not None and request.method == "GET":
            return handler(request)
        if request.path.startswith(PREFIX):
            return self.control.handle(request)
        if request.path == "/login":
            return Instant(login_page())
        return Instant(error_reply(404, "status"))
