"""A seller whose session ends, or shows another's goods, stops alone; with a new session the rest of it is fetched."""

import json
from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.sellers import SellerFleet
from tests.simulator.process import SimulatorProcess

pytestmark = pytest.mark.e2e

SOUND = [f"sound-{number}" for number in range(108)]
EXPIRING = [f"expiring-{number}" for number in range(11)]
SPLIT = "split"  # many windows of it are read at once
ROWS, PAGE_SIZE, WINDOW = 50, 20, 200
IN_FLIGHT = 20
WORKERS = ("worker-1", "worker-2")
ENDED = "27/session-expired"
SETTINGS: dict[str, Any] = {
    "top_page_size": PAGE_SIZE,
    "top_window_rows": WINDOW,
    "top_concurrency_start": IN_FLIGHT,
    "top_concurrency_max": IN_FLIGHT,
}


@pytest.fixture
def simulator() -> Iterator[SimulatorProcess]:
    """A hundred and twenty sellers; a tenth of the sessions end after the first page or later."""
    sellers = {**dict.fromkeys([*SOUND, *EXPIRING], ROWS), SPLIT: 1_000}
    switches = {"top_window": WINDOW, "top_latency": 0.05}
    with SimulatorProcess(shops=0, seed=8, top=sellers, switches=switches) as running:
        running.script({"top": {"expire": EXPIRING, "after": 1}}, {"top": {"expire": [SPLIT], "after": 25}})
        yield running


async def test_sellers_whose_sessions_end_wait_alone_and_with_new_ones_lack_nothing(
    tmp_path: Path, simulator: SimulatorProcess, postgres_url: str, redis_url: str
) -> None:
    servers = {"database_url": postgres_url, "redis_url": redis_url}
    with SellerFleet(tmp_path, simulator, **servers, **SETTINGS) as fleet:
        fleet.producer()
        for name in WORKERS:
            fleet.worker(name)
        done = fleet.run("crawl", str(fleet.shops_file()), "--json")
        assert done.returncode == 3, done.stderr
        status = json.loads(done.stdout)
        assert (status["state"], status["needs_authorisation"]) == ("waiting", len(EXPIRING) + 1)
        shops = await fleet.shops(1)
        assert {key for key, entry in shops.items() if entry.verdict == "complete"} == set(SOUND)
        held = {key: entry.reason for key, entry in shops.items() if entry.state == "held"}
        assert held.keys() == {*EXPIRING, SPLIT}
        assert all("needs authorisation" in reason and "session-expired" in reason for reason in held.values()), held
        before = simulator.top_calls()
        assert all(simulator.top_calls(nick)["outcomes"][ENDED] == 1 for nick in EXPIRING)
        assert before["outcomes"][ENDED] <= len(EXPIRING) + IN_FLIGHT
        assert {before["shops"][nick] for nick in SOUND} == {ceil(ROWS / PAGE_SIZE)}
        assert (await fleet.pages(1)).keys() == {"done", "held"}

        simulator.script({"top": {"renew": [*held]}})
        renewed = {nick: session for nick, session in simulator.top_sessions().items() if nick in held}
        imported = fleet.run("session", "import", str(fleet.sessions_file(renewed)))
        assert imported.returncode == 0, imported.stderr
        resumed = fleet.run("resume", "--json", "--quiet")
        assert resumed.returncode == 0, resumed.stderr
        assert json.loads(resumed.stdout)["state"] == "finished"
        await fleet.assert_complete(1)
        after = simulator.top_calls()
        assert {after["shops"][nick] for nick in SOUND} == {ceil(ROWS / PAGE_SIZE)}
        assert fleet.repeated <= 1, "what was stored is not fetched again, but for the second count of the one split"
        # A worker other than the one that was refused may still have the old session in its memory, and tries it once.
        assert after["outcomes"][ENDED] - before["outcomes"][ENDED] <= len(held) * (len(WORKERS) - 1) + IN_FLIGHT
        assert await fleet.tries() == 0
        assert await fleet.calls() == after["outcomes"]


async def test_session_that_shows_another_sellers_goods_fails_its_seller_and_stores_nothing(tmp_path: Path) -> None:
    sellers = {"mine": 450, "theirs": 450, "other": 45}
    with SimulatorProcess(shops=0, seed=8, top=sellers) as simulator, SellerFleet(tmp_path, simulator) as fleet:
        simulator.script({"top": {"mixup": {"mine": "theirs"}}})
        done = fleet.run("crawl", str(fleet.shops_file()), "--json", "--quiet")
        assert done.returncode == 3, done.stderr
        shops = await fleet.shops(1)
        assert {key: entry.verdict for key, entry in shops.items()} == {
            "mine": "failed",
            "theirs": "complete",
            "other": "complete",
        }
        assert "session shows the items of seller 'theirs', not 'mine'" in shops["mine"].reason
        assert simulator.top_calls("mine")["total"] == 1
        await fleet.assert_stored(fleet.truth(["theirs", "other"]))
