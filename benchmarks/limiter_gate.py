"""The limit found by itself: an API refuses calls beyond a gate that nobody was told, and moves it while they run."""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.figures import Figure, report
from benchmarks.limiter_load import Watch, callers, rate

NAME = "limiter_gate"
LATENCY = 0.2
GATES = (50, 20, 100)
PROCESSES = 4
ALLOWED = 200
WARM_UP = 10.0
PLATEAU = 0.9  # of the ideal, with few refusals: the new plateau counts as reached
MOST_REFUSED = 0.02
MEASURED = {50: 20.0, 20: 10.0, 100: 25.0}
Run = dict[str, float]
LIMITS = {"goodput": 0.95, "refused": 0.005, "down": 5.0, "up": 15.0}


def run_once(folder: Path, channel: str, seed: int) -> dict[str, float]:
    """One run through the three gates; returns its figures by name."""
    simulated = {"seed": seed, "gate": GATES[0], "latency": LATENCY, "switches": {"gate_channel": channel}}
    with callers(folder, simulated, tmapi_concurrency_max=ALLOWED) as started:
        processes = [started.start(f"caller-{n}", at_once=ALLOWED // PROCESSES) for n in range(PROCESSES)]
        found = through_gates(Watch(started.simulator))
        done = [process.done() for process in processes]
    found["round trips"] = sum(each.round_trips for each in done) / sum(each.pages for each in done)
    return found


def through_gates(watch: Watch) -> dict[str, float]:
    """What the API counts while its gate is moved; returns figures by name."""
    found: dict[str, float] = {}
    start = watch.until(lambda sample: sample.good > 0, "a first page")
    watch.follow(WARM_UP)
    first, last = watch.follow(MEASURED[50])
    found["goodput"] = rate(first, last) / (GATES[0] / LATENCY)
    found["refused"] = (last.refused - first.refused) / (last.total - first.total)
    found["refused at start"] = (first.refused - start.refused) / (first.total - start.total)
    for gate, key in zip(GATES[1:], ("down", "up"), strict=True):
        watch.simulator.script({"set": {"gate": gate}})
        first, last = watch.follow(MEASURED[gate])
        found[f"{key} refused"] = last.refused - first.refused
        found[key] = watch.settled_after(first.at, PLATEAU * gate / LATENCY, MOST_REFUSED)
        tail = [sample for sample in watch.samples if sample.at >= last.at - 5]
        found[f"{key} goodput"] = rate(tail[0], tail[-1]) / (gate / LATENCY)
    return found


def figures(runs: Sequence[dict[str, float]], channel: str) -> list[Figure]:
    """Medians of the runs against the limits."""
    middle = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    where = f"503 by {channel}: "
    return [
        Figure(f"{where}goodput of ideal, gate 50", middle["goodput"], "", LIMITS["goodput"]),
        Figure(f"{where}refused of calls, after 10 s", middle["refused"], "", LIMITS["refused"], at_least=False),
        Figure(f"{where}refused of calls, first 10 s", middle["refused at start"], ""),
        Figure(f"{where}gate to 20, new plateau after", middle["down"], "s", LIMITS["down"], at_least=False),
        Figure(f"{where}gate to 20, goodput of ideal", middle["down goodput"], ""),
        Figure(f"{where}gate to 20, refused", middle["down refused"], "calls"),
        Figure(f"{where}gate to 100, new plateau after", middle["up"], "s", LIMITS["up"], at_least=False),
        Figure(f"{where}gate to 100, goodput of ideal", middle["up goodput"], ""),
        Figure(f"{where}gate to 100, refused", middle["up refused"], "calls"),
        Figure(f"{where}Redis calls of the limiter", middle["round trips"], "per page", 0.2, at_least=False),
    ]


def command_line(name: str, description: str | None) -> argparse.Namespace:
    """How often to run, and by which channels the API refuses."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--channels", nargs="+", choices=("status", "body"), default=["status", "body"])
    return parser.parse_args()


def measure(
    name: str,
    options: argparse.Namespace,
    once: Callable[[str, int], Run],
    figures: Callable[[Sequence[Run], str], list[Figure]],
) -> bool:
    """Run by each channel as often as wanted, print and keep the figures; returns whether every limit was kept."""
    shown: list[Figure] = []
    details: dict[str, object] = {}
    for channel in options.channels:
        runs = [once(channel, number) for number in range(options.repeats)]
        details[channel] = runs
        shown += figures(runs, channel)
        for run in runs:
            print(channel, {key: round(value, 4) for key, value in run.items()}, flush=True)
    return report(name, shown, details)


def main() -> bool:
    """Run as the command line says; returns whether every limit was kept."""
    options = command_line(NAME, __doc__)
    with tempfile.TemporaryDirectory(prefix="shopcrawl-bench-") as folder:
        return measure(NAME, options, lambda channel, n: run_once(Path(folder) / f"{channel}-{n}", channel, n), figures)


if __name__ == "__main__":
    sys.exit(not main())
