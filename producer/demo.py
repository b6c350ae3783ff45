"""The demo: crawl simulated shops with faults injected, then check the store against the simulator's own truth."""

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydantic import SecretStr
from rich.console import Console
from sqlalchemy.ext.asyncio import AsyncConnection

from models.crawls import Submission, submit_crawl
from models.database import Clock
from models.errors import UsageError
from models.settings import Settings, load_settings
from models.status import CrawlStatus, exit_code
from models.tables import item, shop
from producer import run
from producer.shops import shop_request

SHOPS = 1_000
SEED = 7
GATE = 48
LATENCY = 0.05
TOKEN = "demo-token"  # noqa: S105 (the simulator's, not a secret)
COMPARED = ("title", "price", "quantity_begin", "unit", "status")

Key = tuple[str, str]
"""(shop, item id)"""


@dataclass(frozen=True)
class Comparison:
    """How the store stands against the truth."""

    items: int
    missing: int
    invented: int
    different: int

    @property
    def is_exact(self) -> bool:
        """Whether every item is there, none is invented and every compared value is right."""
        return not (self.missing or self.invented or self.different)


def compare(truth: Mapping[Key, Sequence[Any]], stored: Mapping[Key, Sequence[Any]]) -> Comparison:
    """Hold stored values against true ones by (shop, item id); both sides in the order of `COMPARED`."""
    shared = truth.keys() & stored.keys()
    different = sum(list(truth[key]) != list(stored[key]) for key in shared)
    return Comparison(len(stored), len(truth.keys() - stored.keys()), len(stored.keys() - truth.keys()), different)


def run_demo(console: Console) -> int:
    """Run the whole demo in a folder of its own below the data folder; returns the exit code."""
    try:
        from tests.simulator.process import SimulatorProcess  # noqa: PLC0415 (only a checkout has it)
    except ImportError:
        raise UsageError(
            "the demo needs a checkout of shopcrawl with its development dependencies: `make demo`"
        ) from None
    settings = load_settings()
    folder = settings.data_dir / "demo"
    setup = f"export SHOPCRAWL_DATA_DIR={folder}"
    shutil.rmtree(folder, ignore_errors=True)
    console.print(
        f"simulating {SHOPS:,} shops: 417, 499 and 500 at random, 503 above {GATE} calls in flight, slow answers"
    )
    options = {"shops": SHOPS, "seed": SEED, "gate": GATE, "latency": LATENCY, "latency_tail": 20, "token": TOKEN}
    with SimulatorProcess(faults="default", warm=True, **options) as simulator:
        demo = load_settings(data_dir=folder, tmapi_base_url=simulator.url, retry_base=0.1).model_copy(
            update={"tmapi_tokens": (SecretStr(TOKEN),), "database_url": None, "redis_url": None, "workers": 1}
        )
        status = run.run_until_signalled(_crawl(demo, simulator.control("GET", "shops"), console))
        run.run_until_signalled(run.show_summary(demo, console, status, setup=setup, command=_program()))
        truth = {(row["shop"], row["item_id"]): _true_values(row["item"]) for row in simulator.truth()}
        calls = simulator.calls()
    result = run.run_until_signalled(_compare_store(demo, truth))
    _report(console, result, calls, status)
    return exit_code(status) if result.is_exact else 1


def _program() -> str:
    """How a reader of the demo can call shopcrawl: by its path where it is not on PATH."""
    program = Path(sys.argv[0])
    if shutil.which("shopcrawl") is not None or program.name != "shopcrawl":
        return "shopcrawl"
    return str(program.relative_to(Path.cwd()) if program.is_relative_to(Path.cwd()) else program)


async def _crawl(settings: Settings, keys: Sequence[str], console: Console) -> CrawlStatus:
    requests = [shop_request(key, "tmapi", {}, settings) for key in keys]

    async def submit(connection: AsyncConnection, clock: Clock) -> Submission:
        return await submit_crawl(connection, requests, now=clock.now(), settings=settings)

    status = await run.crawl(settings, submit, console, follow=True, quiet=False)
    assert isinstance(status, CrawlStatus)  # noqa: S101 (we follow it)
    return status


def _true_values(raw: Mapping[str, Any]) -> list[Any]:
    """The compared values as the vendor's row means them."""
    price, quantity = raw.get("price"), raw.get("quantity_begin")
    return [
        raw.get("title") or None,
        Decimal(price) if price else None,
        int(quantity) if quantity else None,
        raw.get("unit") or None,
        raw.get("status") or None,
    ]


async def _compare_store(settings: Settings, truth: Mapping[Key, Sequence[Any]]) -> Comparison:
    columns = [shop.c.key, item.c.item_id, *(item.c[name] for name in COMPARED)]
    async with run.database(settings) as (engine, _clock), engine.connect() as connection:
        rows = await connection.execute(sa.select(*columns).join(shop, shop.c.id == item.c.shop_id))
        return compare(truth, {(row[0], row[1]): list(row[2:]) for row in rows})


def _report(console: Console, result: Comparison, calls: Mapping[str, Any], status: CrawlStatus) -> None:
    if result.is_exact:
        console.print(
            f"[green]✔[/] the store equals the simulator's truth: all {result.items:,} items, "
            "none missing, none invented",
            highlight=False,
        )
    else:
        console.print(
            f"[red]✘[/] the store differs from the truth: {result.missing} missing, {result.invented} invented, "
            f"{result.different} with other values",
            highlight=False,
        )
    counted = sum(status.calls.values())
    console.print(
        f"  calls: the simulator counted {calls['total']:,}, the ledger {counted:,}; "
        f"most in flight {calls['max_in_flight']}, refused over the gate {calls['over_gate']}",
        highlight=False,
    )
