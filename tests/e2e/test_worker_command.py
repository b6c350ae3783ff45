"""`python -m worker` and `celery -A worker.app worker` are the same worker."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.fleet import Fleet
from tests.servers import wait_until
from tests.simulator.process import SimulatorProcess

pytestmark = pytest.mark.e2e
SLOTS = 6
COMMANDS = {"own": ["-m", "worker"], "celery": ["-m", "celery", "-A", "worker.app", "worker"]}


@pytest.fixture
def fleet(tmp_path: Path, sqlite_template: Path, redis_url: str) -> Iterator[Fleet]:
    """A producer with a crawl of slow pages, and no worker yet."""
    database = shutil.copy(sqlite_template, tmp_path / "shopcrawl.db")
    options = {"shops": 30, "items_min": 60, "items_max": 100, "latency": 0.3, "profile": "uniform"}
    with (
        SimulatorProcess(seed=4, **options) as simulator,
        Fleet(
            tmp_path, simulator, database_url=f"sqlite:///{database}", redis_url=redis_url, concurrency=SLOTS
        ) as running,
    ):
        running.submit()
        running.producer()
        yield running


def start(fleet: Fleet, command: str) -> subprocess.Popen[bytes]:
    return fleet.start("worker", sys.executable, *COMMANDS[command], "--hostname=worker@%h")


@pytest.mark.parametrize("command", COMMANDS)
async def test_sigterm_lets_pages_in_flight_end_and_exits_with_0(fleet: Fleet, command: str) -> None:
    start(fleet, command)
    await fleet.until_done(2 * SLOTS)
    assert fleet.stop("worker") == 0
    assert (await fleet.pages())["done"] == fleet.simulator.calls()["total"]
    assert "Warm shutdown" in fleet.log("worker")


@pytest.mark.slow
async def test_own_command_starts_anew_at_sighup_with_the_same_words(fleet: Fleet) -> None:
    worker = psutil.Process(start(fleet, "own").pid)
    await fleet.until_done(1)
    words = worker.cmdline()
    worker.send_signal(signal.SIGHUP)
    wait_until(lambda: fleet.log("worker").count("worker ready") == 2, within=30, what="the second start")
    assert worker.cmdline() == words
    await fleet.until_done((await fleet.pages())["done"] + SLOTS)
    assert fleet.stop("worker") == 0
