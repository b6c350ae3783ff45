"""Processes that call a simulated API through the limiter, and what the API counted, for the limiter's benchmarks."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.limiter_caller import Done, Orders
from benchmarks.rig import ROOT, EverySecondRedis, end
from tests.servers import RedisServer
from tests.simulator.process import SimulatorProcess

SAMPLE_SECONDS = 0.1
SLOWEST_START = 30.0
SHOPS = 40
ITEMS = 200  # a hundred pages of two: what is measured is the limiter, not how fast rows are read


@dataclass(frozen=True)
class Sample:
    """What the API had counted at a moment (seconds of a steady clock): good answers, refusals, all calls."""

    at: float
    good: int
    refused: int
    total: int


@dataclass
class Watch:
    """Samples of a simulator, taken while time passes."""

    simulator: SimulatorProcess
    samples: list[Sample] = field(default_factory=list)

    def look(self) -> Sample:
        """Take a sample."""
        calls = self.simulator.calls()
        counted = calls["outcomes"]
        sample = Sample(time.perf_counter(), counted.get("200", 0), counted.get("503", 0), calls["total"])
        self.samples.append(sample)
        return sample

    def follow(self, seconds: float) -> tuple[Sample, Sample]:
        """Sample for so long; returns the first and the last."""
        first = last = self.look()
        while last.at < first.at + seconds:
            time.sleep(SAMPLE_SECONDS)
            last = self.look()
        return first, last

    def until(self, condition: Callable[[Sample], bool], what: str, within: float = SLOWEST_START) -> Sample:
        """Sample until it holds. Raises TimeoutError."""
        deadline = time.perf_counter() + within
        while not condition(sample := self.look()):
            if sample.at > deadline:
                raise TimeoutError(what)
            time.sleep(SAMPLE_SECONDS / 4)
        return sample

    def settled_after(self, start: float, plateau: float, most_refused: float = 1.0, span: float = 2.0) -> float:
        """Seconds from `start` to `span` seconds with so many good answers a second and few refusals, inf if none."""
        later = [sample for sample in self.samples if sample.at >= start]
        for index, last in enumerate(later):
            first = next((each for each in later[:index] if last.at - span <= each.at), None)
            if first is None or last.at - first.at < 0.9 * span or rate(first, last) < plateau:
                continue
            if last.refused - first.refused <= most_refused * (last.total - first.total):
                return first.at - start
        return float("inf")


def rate(first: Sample, last: Sample) -> float:
    """Good answers per second between two samples."""
    return (last.good - first.good) / (last.at - first.at)


@dataclass
class Caller:
    """A running process of `benchmarks.limiter_caller`."""

    child: subprocess.Popen[bytes]

    def done(self) -> Done:
        """Ask it to end unless it has, and return what it did."""
        if self.child.poll() is None:
            self.child.terminate()
        assert self.child.stdout is not None
        return msgspec.json.decode(self.child.stdout.readline(), type=Done)

    def finish(self) -> Done:
        """Wait until its pages are done, and return what it did."""
        assert self.child.stdout is not None
        return msgspec.json.decode(self.child.stdout.readline(), type=Done)


@dataclass
class Callers:
    """Starts processes against one simulator and one Redis."""

    simulator: SimulatorProcess
    redis: RedisServer
    settings: Mapping[str, object]
    stack: ExitStack
    shops: Sequence[str]

    def start(self, name: str, **orders: Any) -> Caller:
        """Start one; ended at the end of the benchmark at the latest."""
        given = {"redis_url": self.redis.url, "tmapi_base_url": self.simulator.url, "tmapi_tokens": "benchmark-token"}
        words = [f"SHOPCRAWL_{key.upper()}={value}" for key, value in {**given, **self.settings}.items()]
        child = subprocess.Popen(
            ["/usr/bin/env", "-i", *words, sys.executable, "-m", "benchmarks.limiter_caller"],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.stack.callback(end, child)
        assert child.stdin is not None
        wanted = Orders(name, list(self.shops), **{"at_once": 50, **orders})
        child.stdin.write(msgspec.json.encode(wanted) + b"\n")
        child.stdin.flush()
        return Caller(child)


@contextmanager
def callers(folder: Path, simulated: Mapping[str, Any], **settings: object) -> Iterator[Callers]:
    """A simulator with these options and an empty Redis around the body, which starts callers with these settings."""
    shops = {"shops": SHOPS, "profile": "uniform", "items_min": ITEMS, "items_max": ITEMS, "warm": True}
    folder.mkdir()
    with (
        SimulatorProcess(**{**shops, **simulated}) as simulator,
        EverySecondRedis(folder, aof=True) as redis,
        ExitStack() as stack,
    ):
        yield Callers(simulator, redis, settings, stack, simulator.control("GET", "shops"))
