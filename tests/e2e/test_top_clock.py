"""Time stamps are right whatever the machine's time zone, and a clock that is too far off is named, not fought."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.fleet import until
from tests.e2e.sellers import SellerFleet
from tests.simulator.process import SimulatorProcess

pytestmark = pytest.mark.e2e

WINDOW, PAGE_SIZE = 500, 50
IN_FLIGHT = 8
SELLERS = {f"seller-{number}": 250 for number in range(10)} | {"split": 1_500}
ZONES = {"producer": "Asia/Kolkata", "worker-1": "UTC", "worker-2": "America/New_York"}


@pytest.fixture
def simulator() -> Iterator[SimulatorProcess]:
    """Sellers whose windows are cut by their times, on a platform that holds time stamps against its own clock."""
    switches = {"top_window": WINDOW, "top_latency": 0.05, "top_timestamps": "virtual"}
    with SimulatorProcess(shops=0, seed=12, top=SELLERS, switches=switches) as running:
        yield running


def fleet_before(folder: Path, simulator: SimulatorProcess, **settings: object) -> SellerFleet:
    limits = {"top_concurrency_start": IN_FLIGHT, "top_concurrency_max": IN_FLIGHT, "probe_interval": 3600}
    return SellerFleet(folder, simulator, top_window_rows=WINDOW, top_page_size=PAGE_SIZE, **limits, **settings)


@pytest.mark.slow
async def test_processes_in_any_time_zone_ask_for_the_same_windows(
    tmp_path: Path,
    simulator: SimulatorProcess,
    postgres_url: str,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with fleet_before(tmp_path, simulator, database_url=postgres_url, redis_url=redis_url) as fleet:
        for name, zone in ZONES.items():
            monkeypatch.setenv("TZ", zone)
            (fleet.producer if name == "producer" else fleet.worker)(name)
        monkeypatch.setenv("TZ", "America/Los_Angeles")
        crawl_id = fleet.submit()
        await fleet.until_finished(crawl_id)
        await fleet.assert_complete(crawl_id)
        assert simulator.top_calls()["outcomes"].keys() == {"200"}


@pytest.mark.slow
@pytest.mark.parametrize("minutes", [9, -9])
async def test_clock_nine_minutes_off_works(tmp_path: Path, simulator: SimulatorProcess, minutes: int) -> None:
    simulator.advance(60 * minutes)
    with fleet_before(tmp_path, simulator) as fleet:
        done = fleet.run("crawl", str(fleet.shops_file()), "--quiet", "--json")
        assert done.returncode == 0, done.stderr
        await fleet.assert_complete(1)
        assert simulator.top_calls()["outcomes"].keys() == {"200"}


async def test_clock_eleven_minutes_off_is_named_and_once_it_is_right_the_crawl_goes_on(
    tmp_path: Path, simulator: SimulatorProcess
) -> None:
    with fleet_before(tmp_path, simulator) as fleet:
        crawl = fleet.background("crawl", "crawl", str(fleet.shops_file()))
        await fleet.until_done(20)
        simulator.advance(11 * 60)

        async def told() -> bool:
            return "clock" in fleet.log("crawl")

        await until(told, what="word of the clock")
        said = fleet.run("status").stdout
        assert "this machine's clock is 11 minutes behind the platform's" in " ".join(said.split()), said
        refused = simulator.top_calls()["outcomes"]["31"]
        assert 1 <= refused <= IN_FLIGHT
        assert (await fleet.pages())["dead"] == 0
        simulator.advance(-11 * 60)
        assert crawl.poll() is None
        resumed = fleet.run("resume", "--json", "--quiet")
        assert resumed.returncode == 0, resumed.stderr
        assert json.loads(resumed.stdout)["state"] == "finished"
        assert crawl.wait(60) == 0
        await fleet.assert_complete(1)
        assert await fleet.tries() == 0
        assert simulator.top_calls()["outcomes"]["31"] <= IN_FLIGHT
