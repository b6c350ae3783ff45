"""Operators steer a running fleet: one credential is tried again alone, limits are set, shown and remembered."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.fleet import TOKEN, Fleet, until
from tests.simulator.process import SimulatorProcess

pytestmark = pytest.mark.e2e

OTHER = "canary-second-token"
BALANCE = 40


def simulated(**options: Any) -> SimulatorProcess:
    """About 20 pages of each shop."""
    sizes = {"profile": "uniform", "shops": 10, "items_min": 200, "items_max": 600, "latency": 0.1}
    return SimulatorProcess(seed=9, **sizes | options)


def limits(fleet: Fleet) -> dict[str, dict[str, Any]]:
    """What `shopcrawl limits` says of TMAPI's credentials."""
    shown = fleet.run("limits", "--json")
    assert shown.returncode == 0, shown.stderr
    return {line["credential"]: line for line in json.loads(shown.stdout) if line["source"] == "tmapi"}


@pytest.mark.slow
async def test_one_credential_is_tried_again_with_one_page_and_the_others_stay_parked(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"probe_interval": 3600, "tmapi_concurrency_max": 5, "tmapi_tokens": f"{TOKEN},{OTHER}"}
    both = {"token": [TOKEN, OTHER], "balance": BALANCE}
    with simulated(**both) as simulator, Fleet(tmp_path, simulator, **settings) as fleet:
        crawl = fleet.background("crawl", "crawl", str(fleet.shops_file()))

        async def all_parked() -> bool:
            return "tmapi waits" in fleet.log("crawl")

        await until(all_parked, what="word that the crawl waits")
        unclear = fleet.run("resume", "--credential", "tmapi")
        assert unclear.returncode == 2
        assert "parked: " in unclear.stderr
        parked = {name: line["parked"] for name, line in limits(fleet).items()}
        paid, broke = (hashlib.sha256(token.encode()).hexdigest()[:8] for token in (TOKEN, OTHER))
        assert parked.keys() == {paid, broke}
        assert all("439" in reason for reason in parked.values())
        refused = refusals(simulator)
        simulator.control("POST", "topup", {"calls": 100_000, "token": TOKEN})
        vain = fleet.background("vain", "resume", "--credential", broke, "--quiet")

        async def tried() -> bool:
            return refusals(simulator) > refused

        await until(tried, what="one more refusal")
        assert (await fleet.pages())["done"] == 2 * BALANCE
        asked = fleet.background("asked", "resume", "--credential", paid, "--quiet")
        assert crawl.wait(100) == asked.wait(30) == vain.wait(30) == 0
        assert refusals(simulator) == refused + 1
        await fleet.assert_complete(1)
        assert {name for name, line in limits(fleet).items() if line["parked"]} == {broke}


def refusals(simulator: SimulatorProcess) -> int:
    return int(simulator.calls()["outcomes"]["439"])


@pytest.mark.slow
async def test_limits_are_set_while_a_crawl_runs_and_hold_after_a_restart(tmp_path: Path) -> None:
    with (
        simulated(token=TOKEN, latency=0.3) as simulator,
        Fleet(tmp_path, simulator, tmapi_concurrency_fixed=4) as fleet,
    ):
        crawl = fleet.background("crawl", "crawl", str(fleet.shops_file()))
        await fleet.until_done(5)
        done = fleet.run("limits", "set", "tmapi", "--concurrency", "2")
        assert (done.returncode, done.stdout) == (0, "tmapi (all credentials): concurrency=2\n")

        async def obeyed() -> bool:
            (line,) = limits(fleet).values()
            return bool(line["limit"] == 2 and line["in_flight"] <= 2 and line["processes"] == 1)

        await until(obeyed, what="the new limit")
        simulator.control("POST", "reset")
        before = (await fleet.pages())["done"]
        await fleet.until_done(before + 10)
        assert simulator.calls()["max_in_flight"] <= 2
        assert fleet.stop("crawl") != 0
        assert crawl.poll() is not None
        (line,) = limits(fleet).values()
        assert (line["limit"], line["fixed"], line["order"]) == (2, True, {"concurrency": 2})
        assert fleet.run("limits", "set", "tmapi", "--auto").returncode == 0
        again = fleet.run("resume", "--quiet")
        assert again.returncode == 0, again.stderr
        await fleet.assert_complete(1)
        (line,) = limits(fleet).values()
        assert (line["floor"], line["order"]) == (4, {})


def test_nonsense_is_refused(tmp_path: Path) -> None:
    with simulated(token=TOKEN, shops=1) as simulator, Fleet(tmp_path, simulator) as fleet:
        for words, complaint in (
            (["tmapi"], "say what to set"),
            (["tmapi", "--auto", "--rate", "3"], "say what to set"),
            (["tmapi", "--concurrency", "3", "--floor", "2"], "--concurrency leaves nothing"),
            (["nowhere", "--rate", "3"], "unknown source"),
            (["tmapi", "--credential", "nobody", "--rate", "3"], "unknown credential 'nobody' of tmapi; known: "),
        ):
            done = fleet.run("limits", "set", *words)
            assert done.returncode == 2
            assert complaint in done.stderr
