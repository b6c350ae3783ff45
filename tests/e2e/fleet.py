"""A fleet of real processes around one ledger, and the comparison of its store with the simulator's truth."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from models.items import FIGURES
from models.settings import async_url
from models.tables import call, crawl, item, item_seen, page, shop, shop_crawl
from tests.servers import spawn
from tests.simulator.process import SimulatorProcess

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "canary-token-of-the-fleet"
POLL = 0.2
CRAWL_WITHIN = 100.0

Values = dict[str, Any]
Key = tuple[str, str]
"""(shop, item id)"""


class Fleet:
    """Starts `shopcrawl` and Celery workers on one database, and asks that database how they are doing.

    Without `redis_url` the commands run in embedded mode, without `database_url` on SQLite in the data folder. Whatever
    is still running at the end, or when the test process dies, is killed.
    """

    def __init__(
        self,
        folder: Path,
        simulator: SimulatorProcess,
        *,
        database_url: str | None = None,
        redis_url: str | None = None,
        **settings: object,
    ) -> None:
        self.folder = folder
        self.data_dir = folder / "data"
        self.simulator = simulator
        self.database_url = database_url or f"sqlite:///{self.data_dir / 'shopcrawl.db'}"
        given = {"database_url": database_url or "", "redis_url": redis_url or "", "data_dir": self.data_dir}
        fixed = {"tmapi_base_url": simulator.url, "tmapi_tokens": TOKEN, "allow_root": "true", "retry_base": 0.05}
        self._settings = {f"SHOPCRAWL_{name.upper()}": str(value) for name, value in (fixed | given | settings).items()}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()
        if error is not None:
            for log in sorted(self.folder.rglob("*.log")):
                print(f"--- {log.name}\n{log.read_text(errors='replace')[-2500:]}", file=sys.stderr)

    # Processes

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        """Start a process that writes to a log of its name."""
        settings = [f"{key}={value}" for key, value in self._settings.items()]
        with (self.folder / f"{name}.log").open("ab") as log:
            process = spawn(["env", *settings, *command], cwd=ROOT, log=log.fileno(), death_signal=signal.SIGKILL)
        self._processes[name] = process
        return process

    def worker(self, name: str = "worker-1") -> subprocess.Popen[bytes]:
        """Start a plain Celery worker."""
        celery = [sys.executable, "-m", "celery", "-A", "worker.app", "worker"]
        return self.start(name, *celery, f"--hostname={name}@%h", "--without-mingle", "--without-gossip")

    def background(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a `shopcrawl` command and do not wait for it."""
        return self.start(name, *shopcrawl(*arguments))

    def producer(self, name: str = "producer") -> subprocess.Popen[bytes]:
        """Start a producer."""
        return self.background(name, "producer")

    def kill(self, name: str) -> None:
        """Kill -9 a process of that name."""
        self._processes[name].kill()
        self._processes[name].wait()

    def stop(self, name: str) -> int:
        """Ask a process to end (SIGTERM) and return its exit code."""
        self._processes[name].terminate()
        return self._processes[name].wait(60)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a `shopcrawl` command to its end."""
        environment = {**os.environ, **self._settings}
        return subprocess.run(
            shopcrawl(*arguments), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False
        )

    def submit(self) -> int:
        """Ask for a crawl of every shop the simulator knows, without following it; returns its number."""
        done = self.run("crawl", str(self.shops_file()), "--no-follow", "--json")
        assert done.returncode == 0, done.stderr
        return int(json.loads(done.stdout)["crawl_id"])

    def shops_file(self) -> Path:
        """The file that names every shop."""
        path = self.folder / "shops.csv"
        path.write_text("\n".join(["shop", *self.simulator.control("GET", "shops")]) + "\n")
        return path

    def log(self, name: str) -> str:
        """What a process has written so far."""
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    # The ledger and the store

    async def read(self, query: sa.Select[Any]) -> list[sa.Row[Any]]:
        """Rows of a query, over a connection of its own: it outlives no restart of the database."""
        engine = create_async_engine(async_url(self.database_url), poolclass=NullPool)
        try:
            async with engine.connect() as connection:
                return list(await connection.execute(query))
        finally:
            await engine.dispose()

    async def pages(self, crawl_id: int | None = None) -> Counter[str]:
        """Pages by state, of one crawl or of all."""
        query = sa.select(page.c.state, sa.func.count()).group_by(page.c.state)
        if crawl_id is not None:
            query = query.join(shop_crawl, shop_crawl.c.id == page.c.shop_crawl_id)
            query = query.where(shop_crawl.c.crawl_id == crawl_id)
        return Counter(dict(map(tuple, await self.read(query))))

    async def is_finished(self, crawl_id: int) -> bool:
        """Whether a crawl has ended by itself."""
        rows = await self.read(sa.select(crawl.c.state).where(crawl.c.id == crawl_id))
        return [row.state for row in rows] == ["finished"]

    async def until_done(self, pages: int) -> None:
        """Wait until so many pages are stored."""

        async def enough() -> bool:
            try:
                return (await self.pages())["done"] >= pages
            except sa.exc.OperationalError:  # an embedded crawl has yet to create its database
                return False

        await until(enough, what=f"{pages} stored pages")

    async def until_finished(self, crawl_id: int) -> None:
        """Wait until a crawl has ended by itself."""
        await until(lambda: self.is_finished(crawl_id), what=f"the end of crawl {crawl_id}")

    async def verdicts(self, crawl_id: int) -> Counter[str]:
        """Shops of a crawl by verdict."""
        query = sa.select(shop_crawl.c.verdict, sa.func.count()).where(shop_crawl.c.crawl_id == crawl_id)
        return Counter(dict(map(tuple, await self.read(query.group_by(shop_crawl.c.verdict)))))

    async def calls(self) -> Counter[str]:
        """Calls that the ledger has counted, by outcome."""
        made = sa.func.sum(call.c.calls).label("made")
        rows = await self.read(sa.select(call.c.outcome, made).group_by(call.c.outcome))
        return Counter({row.outcome: int(row.made) for row in rows})

    async def stored(self) -> dict[Key, Values]:
        """Every stored item with every column that the vendor's row speaks of."""
        figures = [item_seen.c[name] for name in FIGURES]
        seen = (item_seen.c.shop_id == item.c.shop_id) & (item_seen.c.item_id == item.c.item_id)
        query = sa.select(shop.c.key, item, *figures).join(shop, shop.c.id == item.c.shop_id)
        rows = await self.read(query.join(item_seen, seen))
        return {(row.key, row.item_id): {name: row._mapping[name] for name in COLUMNS} for row in rows}

    async def assert_complete(self, crawl_id: int) -> None:
        """The crawl gave every shop the verdict complete, and the store equals the truth: keys and all values."""
        assert await self.verdicts(crawl_id) == {"complete": len(self.simulator.control("GET", "shops"))}
        truth = {(row["shop"], row["item_id"]): true_values(row["item"]) for row in self.simulator.truth()}
        stored = await self.stored()
        assert stored.keys() == truth.keys()
        assert {key: values for key, values in stored.items() if values != truth[key]} == {}
        assert (await self.pages(crawl_id)).keys() <= {"done", "cancelled"}

    @property
    def repeated(self) -> int:
        """Whole pages that the simulator delivered more than once."""
        return int(self.simulator.calls()["repeated"])


def shopcrawl(*arguments: str) -> list[str]:
    """The command line of the console script."""
    return [str(Path(sys.executable).with_name("shopcrawl")), *arguments]


async def until(
    condition: Callable[[], Awaitable[bool]], *, within: float = CRAWL_WITHIN, what: str = "condition"
) -> None:
    """Poll `condition` until it holds. Raises TimeoutError after `within` seconds."""
    try:
        async with asyncio.timeout(within):
            while not await condition():  # noqa: ASYNC110 - other processes set no event here
                await asyncio.sleep(POLL)
    except TimeoutError:
        raise TimeoutError(f"{what} not reached within {within:g} s") from None


def _text(value: Any) -> str | None:
    return value or None


def _money(value: Any) -> Decimal | None:
    return Decimal(value) if value else None


def _number(value: Any) -> int | None:
    return int(value) if value else None


def _time(value: Any) -> datetime | None:
    return datetime.strptime(value, "%Y-%m-%dT%H:%M:%S%z").astimezone(UTC) if value else None


def true_values(raw: Mapping[str, Any]) -> Values:
    """What a row of the vendor means, column by column: an empty text or null says nothing, an empty list is one."""
    prices, sales = raw.get("price_info") or {}, raw.get("sale_info") or {}
    return {
        "title": _text(raw.get("title")),
        "image": _text(raw.get("img")),
        "images": raw.get("main_imgs"),
        "video_id": _text(raw.get("video_id")),
        "category_path": raw.get("category_path"),
        "category_name": _text(raw.get("category_name")),
        "price": _money(raw.get("price")),
        "drop_ship_price": _money(prices.get("drop_ship_price")),
        "wholesale_price": _money(prices.get("wholesale_price")),
        "origin_price": _money(prices.get("origin_price")),
        "agent_price": _money(prices.get("agent_price")),
        "quantity_begin": _number(raw.get("quantity_begin")),
        "gmv_30d": _money(sales.get("gmv_30days")),
        "gmv_90d": _money(sales.get("gmv_90days")),
        "sold_30d": _number(sales.get("sale_quantity_30days")),
        "sold_90d": _number(sales.get("sale_quantity_90days")),
        "orders_30d": _number(sales.get("orders_count_30days")),
        "rank_score": _money(raw.get("primary_rank_score")),
        "new_product": raw.get("new_product"),
        "type": _text(raw.get("type")),
        "unit": _text(raw.get("unit")),
        "created_time": _time(raw.get("created_time")),
        "status": _text(raw.get("status")),
        **dict.fromkeys(("category_id", "stock", "outer_id", "props", "extra")),
    }


COLUMNS = tuple(true_values({}))
