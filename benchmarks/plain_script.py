"""The yardstick: a tuned aiohttp and asyncpg script that fetches and stores the same pages, with nothing in between.

It has no queue, no ledger, no limiter, no retries and no archive: what it had not stored when it dies is lost.
"""

import argparse
import asyncio
import json
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import aiohttp
import asyncpg
import msgspec
import uvloop

PAGE_SIZE = 20
# column: (type on the wire, type in the table); arrays of text are the quickest that asyncpg encodes.
COLUMNS = {
    "shop_id": "bigint", "item_id": "text", "title": "text", "image": "text", "images": "json", "video_id": "text",
    "category_id": "text", "category_path": "json", "category_name": "text", "price": "numeric",
    "drop_ship_price": "numeric", "wholesale_price": "numeric", "origin_price": "numeric", "agent_price": "numeric",
    "quantity_begin": "bigint", "stock": "bigint", "gmv_30d": "numeric", "gmv_90d": "numeric", "sold_30d": "bigint",
    "sold_90d": "bigint", "orders_30d": "bigint", "rank_score": "numeric", "new_product": "boolean", "type": "text",
    "unit": "text", "status": "text", "outer_id": "text", "props": "json", "created_time": "timestamptz",
    "extra": "json", "content_hash": "bigint", "first_seen": "timestamptz", "last_seen": "timestamptz",
    "changed_at": "timestamptz", "shop_crawl_id": "bigint",
}  # fmt: skip
WIRE = {"json": "text", "numeric": "text"}
KEPT = {"shop_id", "item_id", "first_seen"}

decode = msgspec.json.Decoder().decode
encode = msgspec.json.Encoder().encode


def upsert() -> str:
    """One statement that stores a page: its columns travel as arrays."""
    names = ", ".join(COLUMNS)
    values = ", ".join(f"u.{name}::{kind}" if kind in WIRE else f"u.{name}" for name, kind in COLUMNS.items())
    arrays = ", ".join(f"${n}::{WIRE.get(kind, kind)}[]" for n, kind in enumerate(COLUMNS.values(), 1))
    updates = ", ".join(f"{name} = excluded.{name}" for name in COLUMNS if name not in KEPT)
    return (
        f"INSERT INTO item ({names}) SELECT {values} FROM unnest({arrays}) AS u({names})"
        f" ON CONFLICT (shop_id, item_id) DO UPDATE SET {updates}"
    )


def _json(value: Any) -> str | None:
    return None if value is None else encode(value).decode()


def _number(value: Any) -> int | None:
    return None if value is None else int(value)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _time(value: Any) -> datetime | None:
    return None if value is None else datetime.fromisoformat(value).astimezone(UTC)


def row(shop_id: int, raw: dict[str, Any], now: datetime) -> tuple[Any, ...]:
    """One item in the order of COLUMNS."""
    prices, sales, get = raw.get("price_info") or {}, raw.get("sale_info") or {}, raw.get
    return (
        shop_id, str(raw["item_id"]), get("title"), get("img"), _json(get("main_imgs")), get("video_id"), None,
        _json(get("category_path")), get("category_name"), _text(get("price")),
        _text(prices.get("drop_ship_price")), _text(prices.get("wholesale_price")),
        _text(prices.get("origin_price")), _text(prices.get("agent_price")), _number(get("quantity_begin")), None,
        _text(sales.get("gmv_30days")), _text(sales.get("gmv_90days")), _number(sales.get("sale_quantity_30days")),
        _number(sales.get("sale_quantity_90days")), _number(sales.get("orders_count_30days")),
        _text(get("primary_rank_score")), get("new_product"), get("type"), get("unit"), get("status"), None, None,
        _time(get("created_time")), None, 0, now, now, now, 0,
    )  # fmt: skip


class Script:
    """Fetches page 1 of each shop, then the other pages that its total speaks of."""

    def __init__(self, url: str, shops: dict[str, int]) -> None:
        self.url, self.shops = url, shops
        self.todo: deque[tuple[str, int]] = deque((key, 1) for key in shops)
        self.open = self.pages = 0
        self.statement = upsert()

    async def run(self, database: str, concurrency: int, connections: int) -> None:
        """Fetch and store everything, print what it took, and keep the connections until standard input ends."""
        pool = await asyncpg.create_pool(database, min_size=connections, max_size=connections)
        connector = aiohttp.TCPConnector(limit=0)
        session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        async with pool, session:
            print("ready", flush=True)
            sys.stdin.readline()
            started, cpu = time.perf_counter(), time.process_time()
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(self._work(session, pool))
            seconds, used = time.perf_counter() - started, time.process_time() - cpu
            print(json.dumps({"pages": self.pages, "seconds": seconds, "cpu": used}), flush=True)
            sys.stdin.readline()  # the server's processes must live on until their CPU time has been read

    async def _work(self, session: aiohttp.ClientSession, pool: asyncpg.Pool) -> None:
        while self.todo or self.open:
            if not self.todo:  # page 1 of a shop that is still on its way may bring more
                await asyncio.sleep(0.002)
                continue
            shop, number = self.todo.popleft()
            self.open += 1
            try:
                await self._page(session, pool, shop, number)
            finally:
                self.open -= 1

    async def _page(self, session: aiohttp.ClientSession, pool: asyncpg.Pool, shop: str, number: int) -> None:
        query: dict[str, str | int] = {
            "apiToken": "t",
            "member_id": shop,
            "page": number,
            "page_size": PAGE_SIZE,
            "sort": "time_up",
        }
        async with session.get(self.url, params=query) as answer:
            data = decode(await answer.read())["data"]
        if number == 1:
            self.todo.extend((shop, n) for n in range(2, -(-int(data["total_count"]) // PAGE_SIZE) + 1))
        now = datetime.now(UTC)
        rows = [row(self.shops[shop], raw, now) for raw in data["items"]]
        if rows:
            async with pool.acquire() as connection:
                await connection.execute(self.statement, *zip(*rows, strict=True))
        self.pages += 1


def shop_ids(names: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Ids as the table would give them; the benchmark adds the shops before the clock starts."""
    return ((name, number) for number, name in enumerate(names, 1))


async def main(options: argparse.Namespace) -> None:
    """Read the shops from standard input, then crawl when told to go."""
    names = json.loads(sys.stdin.readline())
    mine = dict(list(shop_ids(names))[options.part :: options.parts])
    await Script(options.url + "/1688/shop/items", mine).run(options.database, options.concurrency, options.connections)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--database", required=True)
    parser.add_argument("--concurrency", type=int, default=50)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--part", type=int, default=0)
    parser.add_argument("--parts", type=int, default=1)
    uvloop.run(main(parser.parse_args()))
