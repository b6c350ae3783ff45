"""`python -m tests.simulator.load URL`: ask the simulator as fast as one process can, and print what it managed."""

import argparse
import asyncio
import itertools
import json
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import httptools
import uvloop

from tests.simulator.top.client import signed


class _Client(asyncio.Protocol):
    """One keep-alive connection that asks again as soon as it has been answered."""

    def __init__(self, requests: Iterator[bytes], done: asyncio.Future[None]) -> None:
        self.answers = self.body_bytes = 0
        self._requests = requests
        self._done = done
        self._parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class does not derive from asyncio's
        self._ask()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._done.set_result(None)

    def on_body(self, body: bytes) -> None:
        self.body_bytes += len(body)

    def on_message_complete(self) -> None:
        self.answers += 1
        self._ask()

    def _ask(self) -> None:
        request = next(self._requests, None)
        if request is None:
            self._transport.close()
        else:
            self._transport.write(request)


def _identity(client: _Client) -> _Client:
    return client


async def measure(url: str, targets: list[str], calls: int, connections: int) -> dict[str, float]:
    """Send `calls` requests over `connections` connections, targets in turn; return rates and sizes."""
    loop = asyncio.get_running_loop()
    address = urllib.parse.urlsplit(url)
    encoded = [f"GET {target} HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n".encode() for target in targets]
    requests = itertools.islice(itertools.cycle(encoded), calls)
    clients, waits = [], []
    started = time.perf_counter()
    for _ in range(connections):
        done: asyncio.Future[None] = loop.create_future()
        client = _Client(requests, done)
        await loop.create_connection(partial(_identity, client), str(address.hostname), address.port or 80)
        clients.append(client)
        waits.append(done)
    await asyncio.gather(*waits)
    elapsed = time.perf_counter() - started
    answers = sum(client.answers for client in clients)
    size = sum(client.body_bytes for client in clients)
    return {"answers": answers, "elapsed_s": elapsed, "per_second": answers / elapsed, "body_bytes": size / answers}


def _control(url: str, path: str) -> Any:
    with urllib.request.urlopen(f"{url}/_sim/{path}") as answer:
        return json.loads(answer.read())


def _tmapi_targets(url: str, token: str) -> list[str]:
    sizes = _control(url, "shops?sizes").items()
    pages = [(urllib.parse.quote(shop), page) for shop, size in sizes for page in range(1, size // 20 + 1)]
    query = f"apiToken={token}&page_size=20&sort=time_up"
    return [f"/1688/shop/items?{query}&member_id={shop}&page={page}" for shop, page in pages]


def _top_targets(url: str, nick: str) -> list[str]:
    seller, now = _control(url, "top/shops")[nick], _control(url, "clock")["now"]
    pages = range(1, min(seller["items"] // 200, 100) + 1)
    calls = [signed(seller["session"], now, page_no=page, page_size=200) for page in pages]
    return [f"/router/rest?{urllib.parse.urlencode(params)}" for params in calls]


def main() -> None:
    """Measure once cold and once warm: the same full pages twice."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulator.load", description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--calls", type=int, default=2500)
    parser.add_argument("--connections", type=int, default=50)
    parser.add_argument("--token", default="load")
    parser.add_argument("--top", metavar="NICK", help="pages of 200 of that seller instead of TMAPI's")
    options = parser.parse_args()
    top = options.top is not None
    targets = _top_targets(options.url, options.top) if top else _tmapi_targets(options.url, options.token)
    for name in ("cold", "warm"):
        before = _control(options.url, "calls")["cpu_s"]
        figures = uvloop.run(measure(options.url, targets[: options.calls], options.calls, options.connections))
        cpu = _control(options.url, "calls")["cpu_s"] - before
        print(
            f"{name}: {figures['per_second']:,.0f} requests/s, {figures['answers'] / cpu:,.0f} per CPU second, "
            f"{figures['body_bytes']:,.0f} bytes a body"
        )


if __name__ == "__main__":
    main()
