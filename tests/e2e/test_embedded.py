"""One command hosts a whole crawl: however it ends, its children end with it, and the next command carries on."""

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.fleet import TOKEN, Fleet
from tests.servers import wait_until
from tests.simulator.process import SimulatorProcess

pytestmark = pytest.mark.e2e

SLOTS = 20
INTERRUPTED = 130
GONE_WITHIN = 20.0


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """An embedded crawl of about 300 pages on SQLite."""
    options = {"profile": "uniform", "shops": 40, "items_min": 60, "items_max": 200, "latency": 0.2}
    with (
        SimulatorProcess(seed=3, token=TOKEN, **options) as simulator,
        Fleet(tmp_path, simulator, concurrency=SLOTS, tmapi_concurrency_start=SLOTS) as running,
    ):
        yield running


async def start(fleet: Fleet, pages: int) -> tuple[subprocess.Popen[bytes], list[psutil.Process]]:
    """An embedded crawl that has stored so many pages, and every process that it has started."""
    crawl = fleet.background("crawl", "crawl", str(fleet.shops_file()), "--quiet")
    await fleet.until_done(pages)
    children = psutil.Process(crawl.pid).children(recursive=True)
    commands = " ".join(word for child in children for word in child.cmdline())
    assert "redis-server" in commands
    assert "-m worker" in commands
    return crawl, children


def wait_until_gone(children: list[psutil.Process]) -> None:
    wait_until(lambda: not any(child.is_running() for child in children), within=GONE_WITHIN, what="the children's end")


@pytest.mark.slow
async def test_interrupted_crawl_is_continued_by_the_same_command(fleet: Fleet) -> None:
    for end, pages in ((signal.SIGINT, 50), (signal.SIGTERM, 150)):
        crawl, children = await start(fleet, pages)
        crawl.send_signal(end)
        assert crawl.wait(60) == INTERRUPTED
        assert "nothing is lost" in fleet.log("crawl")
        assert not any(child.is_running() for child in children)
        assert not await fleet.is_finished(1)
    again = fleet.run("crawl", str(fleet.shops_file()), "--quiet", "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["crawl"] == 1
    await fleet.assert_complete(1)
    assert fleet.repeated == 0


async def test_killed_crawl_takes_its_children_along_and_resume_completes_it(fleet: Fleet) -> None:
    crawl, children = await start(fleet, 50)
    crawl.kill()
    wait_until_gone(children)
    assert not await fleet.is_finished(1)
    again = fleet.run("resume", "--quiet")
    assert again.returncode == 0, again.stderr
    await fleet.assert_complete(1)
    print(f"{fleet.repeated} repeats of {SLOTS}")
    assert fleet.repeated <= SLOTS
