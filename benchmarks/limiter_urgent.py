"""An urgent re-crawl of a few shops in the middle of a big crawl: how long it takes, and what the big crawl loses."""

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Sequence

from benchmarks.figures import Figure, report
from benchmarks.limiter_load import Sample, Watch, rate
from benchmarks.rig import Rig, rig
from models.crawls import ShopRequest, submit_crawl, submit_recrawl
from models.database import Clock, create_engine
from models.settings import Settings, async_url
from models.source import source_named
from tests.servers import wait_until
from tests.simulator.process import SimulatorProcess

NAME = "limiter_urgent"
SETTINGS = Settings(_env_file=None)  # type: ignore[call-arg]
WORKERS = 2
LIMIT, LATENCY = 20, 0.2
ITEMS = 200  # ten pages and the proof of the end
URGENT = [f"urgent-{number}" for number in range(5)]
MOST_TIMES, MOST_LOST = 3.0, 0.05
WITHIN = 120.0


def measure(bench: Rig, name: str, shops: int) -> dict[str, float]:
    """The urgent shops alone, then the big crawl with them in its middle; returns the figures by name."""
    sizes = {"shops": shops, "profile": "uniform", "items_min": ITEMS, "items_max": ITEMS}
    with SimulatorProcess(latency=LATENCY, extra=dict.fromkeys(URGENT, ITEMS), **sizes) as simulator:
        database = bench.fresh(name)
        environment = bench.environment(
            database, tmapi_base_url=simulator.url, concurrency=100, tmapi_concurrency_fixed=LIMIT
        )
        others = [key for key in simulator.control("GET", "shops") if key not in URGENT]
        with bench.fleet(environment, WORKERS):
            alone = _timed(bench, database, urgent=True)
            watch = Watch(simulator)
            start = watch.look()
            asyncio.run(submit(database, others, urgent=False))
            watch.until(lambda sample: sample.good > start.good + shops, "a crawl in full swing", within=WITHIN)
            before = watch.follow(10)
            first = watch.look()
            among = _timed(bench, database, urgent=True)
            last = watch.follow(1)[1]
            after = watch.follow(10)
    calm = statistics.mean(rate(*span) for span in (before, after))
    return {"alone": alone, "among others": among, "times": among / alone, "kept": _kept(first, last, calm)}


def _kept(first: Sample, last: Sample, calm: float) -> float:
    """Good answers a second around the re-crawl, its own included, against those without one."""
    return rate(first, last) / calm


def _timed(bench: Rig, database: str, *, urgent: bool) -> float:
    name = database.rpartition("/")[2]
    started = time.perf_counter()
    crawl_id = asyncio.run(submit(database, URGENT, urgent=urgent))
    query = f"SELECT count(*) FROM crawl WHERE id = {crawl_id} AND state = 'finished'"
    wait_until(lambda: bench.postgres.execute(query, database=name) == "1", within=WITHIN, what="the re-crawl's end")
    return time.perf_counter() - started


async def submit(database: str, keys: Sequence[str], *, urgent: bool) -> int:
    """Ask for a crawl, or an urgent re-crawl, of these shops; returns its number."""
    options = source_named("tmapi").options({}, SETTINGS)
    requests = [ShopRequest("tmapi", key, options) for key in keys]
    engine = create_engine(async_url(database))
    try:
        clock = Clock()
        await clock.synchronise(engine)
        async with engine.begin() as connection:
            if urgent:
                return (await submit_recrawl(connection, requests, now=clock.now(), settings=SETTINGS)).crawl_id
            return (await submit_crawl(connection, requests, now=clock.now(), settings=SETTINGS)).crawl_id
    finally:
        await engine.dispose()


def main() -> bool:
    """Run as the command line says; returns whether every limit was kept."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limiter_urgent", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--shops", type=int, default=2000, help="shops of the big crawl")
    options = parser.parse_args()
    with rig() as bench:
        runs = [measure(bench, f"run_{number}", options.shops) for number in range(options.repeats)]
    for run in runs:
        print({name: round(value, 3) for name, value in run.items()})
    middle = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    shown = [
        Figure("urgent re-crawl of 5 shops, alone", middle["alone"], "s"),
        Figure("the same during a big crawl", middle["among others"], "s"),
        Figure("times as long as alone", middle["times"], "", MOST_TIMES, at_least=False),
        Figure("all pages/s meanwhile, against without it", middle["kept"], "", 1 - MOST_LOST),
    ]
    return report(NAME, shown, {"runs": runs, "shops": options.shops})


if __name__ == "__main__":
    sys.exit(not main())
