"""A vendor that refuses whoever calls too much at once, or who has not paid, costs time and hardly a call."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.fleet import TOKEN, Fleet, until
from tests.simulator.process import SimulatorProcess

pytestmark = pytest.mark.e2e

GATE = 20
ALLOWED = 200
MOST_REFUSED = 0.05
IN_FLIGHT = 10


def simulated(**options: Any) -> SimulatorProcess:
    """About 20 pages of each shop."""
    sizes = {"profile": "uniform", "shops": 15, "items_min": 200, "items_max": 600}
    return SimulatorProcess(seed=9, token=TOKEN, **sizes | options)


@pytest.fixture(params=["status", pytest.param("body", marks=pytest.mark.slow)])
def gated(request: pytest.FixtureRequest) -> Iterator[SimulatorProcess]:
    """A vendor that answers 503, in either channel, to more than 20 calls at once."""
    with simulated(shops=50, gate=GATE, latency=0.1, switches={"gate_channel": request.param}) as running:
        yield running


async def test_gate_of_20_is_found_by_a_fleet_allowed_200(tmp_path: Path, gated: SimulatorProcess) -> None:
    with Fleet(tmp_path, gated, concurrency=ALLOWED, tmapi_concurrency_max=ALLOWED) as fleet:
        done = fleet.run("crawl", str(fleet.shops_file()), "--quiet")
        assert done.returncode == 0, done.stderr
        await fleet.assert_complete(1)
        outcomes = gated.calls()["outcomes"]
        refused = outcomes.get("503", 0) / outcomes["200"]
        print(f"503 per good page: {refused:.4f} ({outcomes})")
        assert 0 < refused <= MOST_REFUSED
        assert (await fleet.calls()) == outcomes


@pytest.fixture(params=["balance", pytest.param("token", marks=pytest.mark.slow)])
def refusing(request: pytest.FixtureRequest) -> Iterator[SimulatorProcess]:
    """A vendor that stops after 100 calls: for want of money, or because it knows the token no more."""
    with simulated(latency=0.1, balance=100 if request.param == "balance" else None) as running:
        yield running


async def refuse(fleet: Fleet, simulator: SimulatorProcess) -> str:
    """Have the vendor stop in the middle of the crawl; returns the effective code it answers from then on."""
    await fleet.until_done(80)
    if simulator.control("GET", "script")["switches"]["balance"] is not None:
        return "439"
    simulator.script({"set": {"tokens": ["another"]}})
    return "401"


def pay(simulator: SimulatorProcess) -> None:
    """Let the token be used again."""
    simulator.script({"set": {"tokens": [TOKEN], "balance": None}})


def refused_calls(simulator: SimulatorProcess, code: str) -> int:
    return int(simulator.calls()["outcomes"].get(code, 0))


async def test_refused_credential_stops_the_calls_and_resume_continues(
    tmp_path: Path, refusing: SimulatorProcess
) -> None:
    limits: dict[str, Any] = {"tmapi_concurrency_start": IN_FLIGHT, "tmapi_concurrency_max": IN_FLIGHT}
    with Fleet(tmp_path, refusing, probe_interval=3600, **limits) as fleet:
        crawl = fleet.background("crawl", "crawl", str(fleet.shops_file()))
        code = await refuse(fleet, refusing)
        await until(told(fleet, "wait"), what="word that the crawl waits")
        assert code in fleet.run("status").stdout
        pages = await fleet.pages()
        assert pages["dead"] == pages["refused"] == 0
        assert 1 <= refused_calls(refusing, code) <= IN_FLIGHT
        pay(refusing)
        assert crawl.poll() is None
        resumed = fleet.run("resume", "--json", "--quiet")
        assert resumed.returncode == 0, resumed.stderr
        assert json.loads(resumed.stdout)["state"] == "finished"
        assert crawl.wait(60) == 0
        await fleet.assert_complete(1)
        assert refused_calls(refusing, code) <= IN_FLIGHT
        assert fleet.repeated == 0


@pytest.mark.slow
async def test_slow_probe_finds_out_by_itself_that_the_account_is_topped_up(tmp_path: Path) -> None:
    with (
        simulated(latency=0.1, balance=100) as simulator,
        Fleet(tmp_path, simulator, probe_interval=0.5, tmapi_concurrency_max=IN_FLIGHT) as fleet,
    ):
        crawl = fleet.background("crawl", "crawl", str(fleet.shops_file()))
        await until(told(fleet, "wait"), what="word that the crawl waits")
        pay(simulator)
        assert crawl.wait(100) == 0
        await fleet.assert_complete(1)
        assert fleet.repeated == 0


def told(fleet: Fleet, word: str) -> Any:
    """A condition: the crawl in the background has said so."""

    async def said() -> bool:
        return word in fleet.log("crawl")

    return said
