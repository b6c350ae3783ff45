"""What the limiter promises besides a gate: a rate, several tokens, a killed process, an emptied Redis, its price."""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import redis

from benchmarks.figures import Figure, report
from benchmarks.limiter_load import Watch, callers, rate
from models import fleet

NAME = "limiter_bounds"
PROCESSES = 4
RATE, RATE_SECONDS = 100, 60.0
GATES = {"token-a": 10, "token-b": 20, "token-c": 40}
DYING, LATENCY = "token-b", 0.2
MOST = 40
OVERHEAD_PAGES, IN_HAND, TURNS = 8_000, 200, 6

Run = Mapping[str, float]


def keep_a_rate(folder: Path, seconds: float) -> Run:
    """Four processes share a rate; the simulator counts every sliding second."""
    with callers(folder, {"latency": 0.05}, tmapi_rate=RATE, tmapi_concurrency_fixed=50) as started:
        for number in range(PROCESSES):
            started.start(f"caller-{number}", at_once=25)
        watch = Watch(started.simulator)
        watch.until(lambda sample: sample.good > 2 * RATE, "a rate in full swing")
        first, last = watch.follow(seconds)
        most = started.simulator.calls()["max_per_second"]
    return {"rate used": rate(first, last) / RATE, "most in a second": most}


def outlive_a_kill(folder: Path, seconds: float) -> Run:
    """One of four processes is killed with its permits; how long until the others use them all."""
    with callers(folder, {"latency": LATENCY}, tmapi_concurrency_fixed=MOST) as started:
        processes = [started.start(f"caller-{number}", at_once=MOST) for number in range(PROCESSES)]
        watch = Watch(started.simulator)
        watch.until(lambda sample: sample.good > MOST / LATENCY, "a fleet in full swing")
        watch.follow(1)
        before = rate(*watch.follow(seconds / 3))
        killed = time.perf_counter()
        processes[0].child.kill()
        watch.follow(15)
        later = [sample for sample in watch.samples if sample.at > killed + 2]
        back = Watch(watch.simulator, later).settled_after(killed, 0.95 * before, span=1.0)
    return {"capacity back": back + 1.0, "goodput before the kill": before * LATENCY / MOST}


def outlive_a_flush(folder: Path, seconds: float) -> Run:
    """Redis is emptied under load; the API counts how many calls were ever in flight, and the limit comes back."""
    with callers(folder, {"latency": LATENCY}, tmapi_concurrency_max=MOST) as started:
        for number in range(PROCESSES):
            started.start(f"caller-{number}", at_once=MOST)
        watch = Watch(started.simulator)
        with started.redis.client() as client:
            watch.until(lambda _: _limit(client) == MOST, "the highest limit")
            watch.follow(2)
            started.simulator.control("POST", "reset")
            client.flushall()
            watch.follow(seconds / 3)
            after = _limit(client)
        most = started.simulator.calls()["max_in_flight"]
        goodput = rate(*watch.follow(3)) * LATENCY / MOST
    return {"overshoot after a flush": most - MOST, "limit after a flush": after, "goodput after a flush": goodput}


def _limit(client: redis.Redis) -> float:
    keys = client.keys(fleet.limit_key("tmapi", "*"))
    return float(client.hget(keys[0], "in_force") or 0) if keys else 0.0


def use_every_token(folder: Path, seconds: float) -> Run:
    """Three tokens with gates that nobody was told; one dies by 439 midway."""
    simulated = {"latency": LATENCY, "token": list(GATES), "switches": {"gates": GATES}}
    with callers(folder, simulated, tmapi_tokens=",".join(GATES), tmapi_concurrency_max=100) as started:
        for number in range(PROCESSES):
            started.start(f"caller-{number}", at_once=40)
        watch = Watch(started.simulator)
        watch.until(lambda sample: sample.good > 0, "a first page")
        watch.follow(10)
        all_three = rate(*watch.follow(seconds / 2))
        started.simulator.script({"outcome": "439", "token": DYING})
        watch.follow(2)
        two = rate(*watch.follow(seconds / 2))
        refused = started.simulator.calls()["outcomes"].get("439", 0)
    alive = sum(gate for token, gate in GATES.items() if token != DYING)
    return {
        "three tokens": all_three * LATENCY / sum(GATES.values()),
        "two tokens": two * LATENCY / alive,
        "refused by the dying token": refused,
    }


def cost_little(folder: Path, _seconds: float) -> Run:
    """One process with and without the limiter against an API that answers at once, in turn.

    It has as many pages in hand as a worker by default: a page waits 10 ms for the check that it is no duplicate.
    """
    with callers(folder, {}, tmapi_concurrency_fixed=IN_HAND) as started:
        seconds = {True: 0.0, False: 0.0}
        for limited in (False, True) * TURNS:
            orders = {"at_once": IN_HAND, "pages": OVERHEAD_PAGES, "limited": limited}
            seconds[limited] += started.start(f"caller-{limited}", **orders).finish().seconds
    pages = TURNS * OVERHEAD_PAGES
    rates = {"pages/s with it": pages / seconds[True], "pages/s without it": pages / seconds[False]}
    return {"limiter's price": 1 - seconds[False] / seconds[True], **rates}


PARTS: dict[str, Callable[[Path, float], Run]] = {
    "rate": keep_a_rate,
    "kill": outlive_a_kill,
    "flush": outlive_a_flush,
    "tokens": use_every_token,
    "price": cost_little,
}
LIMITS: dict[str, tuple[str, float, bool]] = {
    "rate used": ("", 0.98, True),
    "most in a second": ("calls", RATE, False),
    "capacity back": ("s", 10.0, False),
    "overshoot after a flush": ("calls", MOST / PROCESSES, False),
    "limit after a flush": ("calls", MOST, True),
    "three tokens": ("of ideal", 0.93, True),
    "two tokens": ("of ideal", 0.93, True),
    "refused by the dying token": ("calls", GATES[DYING], False),
    "limiter's price": ("", 0.1, False),
}


def figures(runs: Sequence[Run]) -> list[Figure]:
    """Medians of the runs against their limits."""
    middle = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    return [Figure(name, value, *LIMITS.get(name, ("", None))) for name, value in middle.items()]


def main() -> bool:
    """Run as the command line says; returns whether every limit was kept."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limiter_bounds", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=RATE_SECONDS, help="how long the rate is measured")
    options = parser.parse_args()
    shown: list[Figure] = []
    details: dict[str, object] = {}
    with tempfile.TemporaryDirectory(prefix="shopcrawl-bench-") as folder:
        for part in options.parts:
            runs = [PARTS[part](Path(folder) / f"{part}-{n}", options.seconds) for n in range(options.repeats)]
            details[part] = runs
            shown += figures(runs)
            for run in runs:
                print(part, {name: round(value, 4) for name, value in run.items()}, flush=True)
    return report(NAME, shown, details)


if __name__ == "__main__":
    sys.exit(not main())
