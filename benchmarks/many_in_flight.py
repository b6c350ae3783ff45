"""One worker process with a thousand slow calls in flight: pages per second and the memory it takes."""

import argparse
import asyncio
import statistics
import sys

import psutil

from benchmarks.crawls import crawl_all
from benchmarks.figures import Figure, report
from benchmarks.rig import Rig, cpu_by_role, peak_megabytes, rig
from tests.simulator.process import SimulatorProcess

NAME = "many_in_flight"
LATENCY = 0.5
IN_FLIGHT = 1000
ITEMS_PER_SHOP = 110  # six pages, the last one short: no page is asked for in vain
LEAST_RATE = 500.0
MOST_MEGABYTES = 150.0


def crawl_once(bench: Rig, simulator: SimulatorProcess, name: str, concurrency: int) -> dict[str, float]:
    """Crawl every shop with one worker; returns the figures of this run by name."""
    database = bench.fresh(name)
    simulator.control("POST", "reset")
    environment = bench.environment(
        database,
        tmapi_base_url=simulator.url,
        concurrency=concurrency,
        tmapi_concurrency_start=concurrency,
        tmapi_concurrency_max=concurrency,
    )
    with bench.fleet(environment, 1) as roles:
        everyone = {**roles, **bench.servers(), "simulator": [psutil.Process(simulator.pid)]}
        before = cpu_by_role(everyone)
        crawled = asyncio.run(crawl_all(database, simulator))
        after = cpu_by_role(everyone)
        memory = {role: peak_megabytes(processes[0]) for role, processes in roles.items()}
    return {
        "steady": crawled.steady,
        "overall": crawled.rate,
        "worker MB": memory["worker"],
        "producer MB": memory["producer"],
        "in flight": simulator.calls()["max_in_flight"],
        **{f"{role} CPU": (after[role] - before[role]) * 1000 / crawled.pages for role in everyone},
    }


def measure(options: argparse.Namespace) -> bool:
    """Crawl a few times, take medians, print and keep the figures; returns whether the limits were kept."""
    simulator = SimulatorProcess(
        shops=options.shops, profile="uniform", items_min=ITEMS_PER_SHOP, items_max=ITEMS_PER_SHOP,
        latency=options.latency, warm=True, cache_mb=options.shops // 7,  # all pages fit
    )  # fmt: skip
    with simulator, rig() as bench:
        runs = [crawl_once(bench, simulator, f"run_{n}", options.concurrency) for n in range(options.repeats)]
    middle = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    return report(NAME, figures(middle), {"shops": options.shops, "latency": options.latency})


def figures(middle: dict[str, float]) -> list[Figure]:
    """The figures and their limits; the steady rate leaves out the first and the last tenth of the pages."""
    return [
        Figure("pages/s of one worker process, steady", middle["steady"], "pages/s", LEAST_RATE),
        Figure("worker's largest memory (RSS)", middle["worker MB"], "MB", MOST_MEGABYTES, at_least=False),
        Figure("most calls in flight, seen by the API", middle["in flight"], "calls"),
        Figure("pages/s from submission to the last verdict", middle["overall"], "pages/s"),
        *(Figure(f"CPU of {name[:-4]}", middle[name], "ms/page") for name in middle if name.endswith(" CPU")),
        Figure("producer's largest memory (RSS)", middle["producer MB"], "MB"),
    ]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.many_in_flight", description=__doc__)
    options.add_argument("--shops", type=int, default=1500, help="six pages each")
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--concurrency", type=int, default=IN_FLIGHT)
    options.add_argument("--latency", type=float, default=LATENCY, help="seconds that the API takes")
    return options


def main() -> bool:
    """Run as the command line says."""
    return measure(parser().parse_args())


if __name__ == "__main__":
    sys.exit(not main())
