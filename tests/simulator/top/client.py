"""A plain client of the simulated platform, for its own tests and measurements."""

import hashlib
import json
from datetime import datetime, timedelta, timezone
from typing import Any

import aiohttp

from tests.simulator.app import Simulator

METHOD = "alibaba.tjb.items.inventory.get"
WRAPPER = "alibaba_tjb_items_inventory_get_response"
WIDE = "num_iid,title,nick,cid,outer_id,props,price,num,approve_status,iid"
_GMT8 = timezone(timedelta(hours=8))


def sign(params: dict[str, str], secret: str = "helloworld") -> str:
    """Return the md5 signature, computed apart from what the gateway checks with."""
    joined = "".join(name + params[name] for name in sorted(params))
    return hashlib.md5((secret + joined + secret).encode()).hexdigest().upper()


def signed(session: str | None, moment: float, **changes: object) -> dict[str, str]:
    """Return signed parameters for `moment`, seconds since the epoch; None leaves one out."""
    values: dict[str, object] = {
        "method": METHOD,
        "app_key": "12345678",
        "session": session,
        "timestamp": datetime.fromtimestamp(moment, _GMT8).strftime("%Y-%m-%d %H:%M:%S"),
        "format": "json",
        "v": "2.0",
        "sign_method": "md5",
        "simplify": "true",
        "fields": WIDE,
        "order_by": "modified:asc",
    }
    params = {name: str(value) for name, value in (values | changes).items() if value is not None}
    return {"sign": sign(params)} | params


class Client:
    """Asks one simulator in the same event loop."""

    def __init__(self, simulator: Simulator, http: aiohttp.ClientSession) -> None:
        self.simulator = simulator
        self.http = http

    def params(self, shop: str, **changes: object) -> dict[str, str]:
        """Return signed parameters with the seller's session; None leaves one out."""
        session = changes.pop("session", self.simulator.top_sessions().get(shop))
        return signed(session if session is None else str(session), self.simulator.world.clock.now(), **changes)

    async def raw(self, data: dict[str, str]) -> tuple[int, str, str]:
        """Return HTTP status, content type and text."""
        async with self.http.post(f"{self.simulator.url}/router/rest", data=data, allow_redirects=False) as answer:
            return answer.status, answer.content_type, await answer.text()

    async def get(self, shop: str = "a", **changes: object) -> Any:
        """Return the decoded body of an answer, which always has HTTP status 200."""
        status, _, text = await self.raw(self.params(shop, **changes))
        assert status == 200
        return json.loads(text, strict=False)

    async def error(self, shop: str = "a", **changes: object) -> tuple[int, str]:
        """Return code and sub code of a refusal."""
        body = (await self.get(shop, **changes))["error_response"]
        return body["code"], body.get("sub_code", "")

    async def crawl(self, shop: str, *, size: int = 200, backwards: bool = False, **changes: object) -> list[Any]:
        """Return the rows of all pages in the order they came."""
        total = (await self.get(shop, page_size=1, **changes))["total_results"]
        pages = list(range(1, -(-total // size) + 1))
        rows: list[Any] = []
        for page in reversed(pages) if backwards else pages:
            rows += (await self.get(shop, page_no=page, page_size=size, **changes))["items"]
        return rows

    async def control(self, method: str, path: str, body: Any = None) -> Any:
        """Call the control endpoint; lines of NDJSON as a list."""
        async with self.http.request(method, f"{self.simulator.url}/_sim/{path}", json=body) as answer:
            text = await answer.text()
            if answer.content_type == "application/x-ndjson":
                return [json.loads(line) for line in text.splitlines()]
            return json.loads(text)
