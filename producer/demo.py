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
from models.vault import Vault
from producer import run
from producer.sessions import keep_sessions
from producer.shops import shop_request

SHOPS = 1_000
SELLERS = {"大仓库": 60_000, **{f"seller-{number:02}": 37 * number**2 for number in range(1, 12)}}
SEED = 7
GATE = 48
LATENCY = 0.05
TOKEN = "demo-token"  # noqa: S105 (the simulator's, not a secret)
APP_KEY, APP_SECRET = "12345678", "demo-secret"
# Answers take their time, and a few calls fail as the platform's own services do.
PLATFORM = {"top_latency": 0.03, "top_latency_tail": 10, "top_faults": {"isp": 0.01, "code:10": 0.005}}
COMPARED = ("title", "price", "quantity_begin", "unit", "status", "stock", "category_id", "outer_id")

Key = tuple[str, str, str]
"""(source, shop, item id)"""


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
    """Hold stored values against true ones by source, shop and item id; both sides in the order of `COMPARED`."""
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
        f"simulating {SHOPS:,} 1688 shops: 417, 499, 500 at random, 503 above {GATE} calls in flight, slow answers;\n"
        f"and {len(SELLERS)} Taobao sellers, one of {max(SELLERS.values()):,} items, whose platform fails now and then"
    )
    options = {"shops": SHOPS, "seed": SEED, "gate": GATE, "latency": LATENCY, "latency_tail": 20, "token": TOKEN}
    platform = {"top": SELLERS, "switches": PLATFORM | {"top_app_key": APP_KEY, "top_app_secret": APP_SECRET}}
    with SimulatorProcess(faults="default", warm=True, **options, **platform) as simulator:
        demo = _demo_settings(folder, simulator.url)
        keys = {"tmapi": simulator.control("GET", "shops"), "top": list(SELLERS)}
        status = run.run_until_signalled(_crawl(demo, keys, simulator.top_sessions(), console))
        run.run_until_signalled(run.show_summary(demo, console, status, setup=setup, command=_program()))
        truth = {("tmapi", row["shop"], row["item_id"]): _true_values(row["item"]) for row in simulator.truth()}
        for seller in SELLERS:
            rows = simulator.top_truth(seller)
            truth |= {("top", seller, str(row["num_iid"])): _true_seller_values(row["item"]) for row in rows}
        calls = [simulator.calls(), simulator.top_calls()]
    result = run.run_until_signalled(_compare_store(demo, truth))
    _report(console, result, calls, status)
    return exit_code(status) if result.is_exact else 1


def _program() -> str:
    """How a reader of the demo can call shopcrawl: by its path where it is not on PATH."""
    program = Path(sys.argv[0])
    if shutil.which("shopcrawl") is not None or program.name != "shopcrawl":
        return "shopcrawl"
    return str(program.relative_to(Path.cwd()) if program.is_relative_to(Path.cwd()) else program)


def _demo_settings(folder: Path, url: str) -> Settings:
    addresses = {"tmapi_base_url": url, "top_gateway_url": f"{url}/router/rest", "top_app_key": APP_KEY}
    settings = load_settings(data_dir=folder, retry_base=0.1, top_window_margin=1, **addresses)
    secrets = {"tmapi_tokens": (SecretStr(TOKEN),), "top_app_secret": SecretStr(APP_SECRET), "secret_key": ()}
    return settings.model_copy(update={**secrets, "database_url": None, "redis_url": None, "workers": 1})


async def _crawl(
    settings: Settings, keys: Mapping[str, Sequence[str]], seller_sessions: Mapping[str, str], console: Console
) -> CrawlStatus:
    requests = [shop_request(key, source, {}, settings) for source in keys for key in keys[source]]
    vault = Vault(settings)

    async def submit(connection: AsyncConnection, clock: Clock) -> Submission:
        submission = await submit_crawl(connection, requests, now=clock.now(), settings=settings)
        texts = {("top", seller): text for seller, text in seller_sessions.items()}
        await keep_sessions(connection, vault, texts, clock)
        return submission

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
        *(None, None, None),
    ]


def _true_seller_values(raw: Mapping[str, Any]) -> list[Any]:
    """The compared values as the platform's row means them."""
    price, category = raw.get("price"), raw.get("cid")
    return [
        raw.get("title") or None,
        Decimal(price) if price else None,
        *(None, None),
        raw.get("approve_status") or None,
        raw.get("num"),
        None if category is None else str(category),
        raw.get("outer_id") or None,
    ]


async def _compare_store(settings: Settings, truth: Mapping[Key, Sequence[Any]]) -> Comparison:
    columns = [shop.c.source, shop.c.key, item.c.item_id, *(item.c[name] for name in COMPARED)]
    async with run.database(settings) as (engine, _clock), engine.connect() as connection:
        rows = await connection.execute(sa.select(*columns).join(shop, shop.c.id == item.c.shop_id))
        return compare(truth, {(row[0], row[1], row[2]): list(row[3:]) for row in rows})


def _report(console: Console, result: Comparison, calls: Sequence[Mapping[str, Any]], status: CrawlStatus) -> None:
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
        f"  calls: the simulator counted {sum(each['total'] for each in calls):,}, the ledger {counted:,}; "
        f"most in flight {calls[0]['max_in_flight']}, refused over the gate {calls[0]['over_gate']}",
        highlight=False,
    )
