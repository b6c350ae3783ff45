"""A budget of calls while workers are killed: what the API counted, and what the ledger says became of each call."""

import argparse
import asyncio
import os
import random
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence

import sqlalchemy as sa

from benchmarks.figures import Figure, report
from benchmarks.limiter_load import Watch
from benchmarks.limiter_urgent import SETTINGS
from benchmarks.rig import PRODUCER, ROOT, Rig, end, rig, worker_command
from models.crawls import Budget, ShopRequest, submit_crawl
from models.database import Clock, create_engine
from models.settings import async_url
from models.source import source_named
from models.tables import call, crawl, page
from tests.servers import wait_until
from tests.simulator.process import SimulatorProcess

NAME = "budget"
WORKERS, ALLOWED = 4, 500
KILLS = 6
FAULTS = {"417": 0.1, "500": 0.05, "empty": 0.02}
LATENCY = 0.5
WITHIN = 120.0


class Workers:
    """Worker processes of which any may be killed and started anew."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._words = [f"{key}={value}" for key, value in environment.items()]
        self.children = [self._start(number) for number in range(WORKERS)]

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        command = ["/usr/bin/env", "-i", *self._words, *worker_command(number)]
        return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)

    def kill(self, number: int) -> None:
        """Kill one with everything it has in flight, and start another in its place."""
        os.kill(self.children[number].pid, signal.SIGKILL)
        self.children[number].wait()
        self.children[number] = self._start(number)

    def stop(self) -> None:
        """End them all."""
        for child in self.children:
            end(child)


def measure(bench: Rig, name: str, calls: int, seed: int) -> dict[str, float]:
    """One crawl with a budget that is smaller than what it needs; returns its figures by name."""
    sizes = {"shops": 200, "profile": "uniform", "items_min": 100, "items_max": 300}
    with SimulatorProcess(**sizes, latency=LATENCY, seed=seed, switches={"faults": FAULTS}) as simulator:
        database = bench.fresh(name)
        limits = {"tmapi_concurrency_start": ALLOWED, "tmapi_concurrency_max": ALLOWED}
        environment = bench.environment(
            database, tmapi_base_url=simulator.url, concurrency=ALLOWED // WORKERS, **limits
        )
        workers = Workers(environment)
        try:
            bench.await_workers(WORKERS)
            with bench.process("producer", PRODUCER, environment):
                crawl_id = asyncio.run(_submit(database, simulator.control("GET", "shops"), calls))
                _kill_at_random(workers, Watch(simulator), calls, random.Random(seed))
                _until_waiting(bench, database, crawl_id)
                return asyncio.run(_account(database, crawl_id)) | {"made": simulator.calls()["total"]}
        finally:
            workers.stop()


def _kill_at_random(workers: Workers, watch: Watch, calls: int, chance: random.Random) -> None:
    for share in sorted(chance.uniform(0.02, 0.9) for _ in range(KILLS)):
        watch.until(lambda sample, least=share * calls: sample.total >= least, "calls before a kill", within=WITHIN)  # type: ignore[misc]
        workers.kill(chance.randrange(WORKERS))


def _until_waiting(bench: Rig, database: str, crawl_id: int) -> None:
    name = database.rpartition("/")[2]
    query = f"SELECT state FROM crawl WHERE id = {crawl_id}"
    wait_until(
        lambda: bench.postgres.execute(query, database=name) == "waiting",
        within=WITHIN,
        what="the budget to be used up",
    )


async def _submit(database: str, keys: Sequence[str], calls: int) -> int:
    options = source_named("tmapi").options({}, SETTINGS)
    engine = create_engine(async_url(database))
    try:
        clock = Clock()
        await clock.synchronise(engine)
        async with engine.begin() as connection:
            shops = [ShopRequest("tmapi", key, options) for key in keys]
            submission = await submit_crawl(
                connection, shops, now=clock.now(), settings=SETTINGS, budget=Budget(max_calls=calls)
            )
        return submission.crawl_id
    finally:
        await engine.dispose()


async def _account(database: str, crawl_id: int) -> dict[str, float]:
    engine = create_engine(async_url(database))
    try:
        async with engine.connect() as connection:
            reserved = await connection.scalar(sa.select(crawl.c.reserved).where(crawl.c.id == crawl_id))
            settled = await connection.scalar(sa.select(sa.func.sum(call.c.calls)).where(call.c.crawl_id == crawl_id))
            out = await connection.scalar(sa.select(sa.func.count()).where(page.c.state == "sent"))
        known = {"reserved": int(reserved or 0), "settled": int(settled or 0), "out": int(out or 0)}
        return {**known, "unknown": known["reserved"] - known["settled"]}
    finally:
        await engine.dispose()


def main() -> bool:
    """Run as the command line says; returns whether every limit was kept."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.budget", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--calls", type=int, default=1000, help="the budget")
    options = parser.parse_args()
    with rig() as bench:
        runs = [measure(bench, f"run_{number}", options.calls, seed=number) for number in range(options.repeats)]
    for run in runs:
        print(run)
    shown = [
        Figure(
            "calls that the API counted, most of all runs",
            max(run["made"] for run in runs),
            "calls",
            options.calls,
            at_least=False,
        ),
        Figure("reserved and neither settled nor unknown", max(run["out"] for run in runs), "calls", 0, at_least=False),
        Figure(
            "made, settled nowhere and not unknown",
            max(run["made"] - run["reserved"] for run in runs),
            "calls",
            0,
            at_least=False,
        ),
        Figure("settled, median", statistics.median(run["settled"] for run in runs), "calls"),
        Figure("unknown after kills, median", statistics.median(run["unknown"] for run in runs), "calls"),
    ]
    return report(NAME, shown, {"runs": runs, "budget": options.calls})


if __name__ == "__main__":
    sys.exit(not main())
