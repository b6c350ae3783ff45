"""The limit found by a whole fleet: workers, producer, queue and store, an API with a gate that nobody was told."""

import asyncio
import statistics
import sys
from collections.abc import Sequence

from benchmarks import limiter_gate
from benchmarks.figures import Figure
from benchmarks.limiter_load import Watch
from benchmarks.limiter_urgent import submit
from benchmarks.rig import Rig, rig
from tests.simulator.process import SimulatorProcess

NAME = "limiter_fleet"
# More than a minute's work at the highest rate, in pages of two items: what is measured is the limiter, not the store.
SHOPS = {"shops": 400, "profile": "uniform", "items_min": 200, "items_max": 200, "warm": True}


def run_once(bench: Rig, name: str, channel: str) -> dict[str, float]:
    """One run through the three gates; returns its figures by name."""
    switches = {"gate_channel": channel, "page_size_max": 2}
    with SimulatorProcess(
        **SHOPS, gate=limiter_gate.GATES[0], latency=limiter_gate.LATENCY, switches=switches
    ) as simulator:
        database = bench.fresh(name)
        environment = bench.environment(
            database,
            tmapi_base_url=simulator.url,
            concurrency=limiter_gate.ALLOWED // limiter_gate.PROCESSES,
            tmapi_concurrency_max=limiter_gate.ALLOWED,
        )
        with bench.fleet(environment, limiter_gate.PROCESSES):
            asyncio.run(submit(database, simulator.control("GET", "shops"), urgent=False))
            return limiter_gate.through_gates(Watch(simulator))


def figures(runs: Sequence[dict[str, float]], channel: str) -> list[Figure]:
    """Medians of the runs; only the first gate has limits, for at the last one two cores are the narrowest place."""
    middle = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    where, limits = f"503 by {channel}: ", limiter_gate.LIMITS
    return [
        Figure(f"{where}goodput of ideal, gate 50", middle["goodput"], "", limits["goodput"]),
        Figure(f"{where}refused of calls, after 10 s", middle["refused"], "", limits["refused"], at_least=False),
        Figure(f"{where}gate to 20, new plateau after", middle["down"], "s", limits["down"], at_least=False),
        Figure(f"{where}gate to 20, goodput of ideal", middle["down goodput"], ""),
        Figure(f"{where}gate to 100, new plateau after", middle["up"], "s"),
        Figure(f"{where}gate to 100, goodput of ideal", middle["up goodput"], ""),
    ]


def main() -> bool:
    """Run as the command line says; returns whether every limit was kept."""
    options = limiter_gate.command_line(NAME, __doc__)
    with rig() as bench:
        return limiter_gate.measure(
            NAME, options, lambda channel, n: run_once(bench, f"{channel}_{n}", channel), figures
        )


if __name__ == "__main__":
    sys.exit(not main())
