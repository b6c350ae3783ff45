"""What the store says happened in moving shops is what any reader could have observed: no more, no less."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.fleet import TOKEN, Fleet
from tests.rounds import crawl_round, requests_for, set_in_motion
from tests.servers import RedisServer
from tests.simulator.process import SimulatorProcess
from tests.witness import witness

pytestmark = pytest.mark.e2e
CRAWLS = 4
SHARE = 0.02
SIZES = [0, 1, 20, 37, 40, 60, 75, 90, 110, 120, 150, 180]
QUIET = "quiet"
BETWEEN = {2: {"vanish": 5}, 4: {"restore": 5}}
"""What happens in the shop that does not move otherwise, before which crawl: gone in the third, back in the fourth."""


@pytest.fixture
def simulator() -> Iterator[SimulatorProcess]:
    """Shops of which some items appear, vanish, come back or are repriced after each page, and a quiet one."""
    extra = {f"shop-{size}": size for size in SIZES} | {QUIET: 30}
    with SimulatorProcess(shops=0, extra=extra, seed=7, token=TOKEN, switches={"journal": True}) as running:
        set_in_motion(running, SHARE)
        running.script({"clear": True, "shop": QUIET})
        yield running


async def test_what_is_told_of_moving_shops_is_what_could_be_observed(
    tmp_path: Path, simulator: SimulatorProcess, postgres_url: str, redis_server: RedisServer, redis_url: str
) -> None:
    with Fleet(tmp_path, simulator, database_url=postgres_url, redis_url=redis_url) as fleet:
        fleet.producer()
        fleet.worker()
        requests = requests_for(simulator)
        for number in range(1, CRAWLS + 1):
            if number in BETWEEN:
                simulator.script({"change": BETWEEN[number], "shop": QUIET})
            assert await crawl_round(postgres_url, requests) == number
            print(f"crawl {number}: {dict(await fleet.verdicts(number))}, {simulator.calls()['total']} calls so far")
        seen = await witness(postgres_url, simulator)
    assert seen.lost == []
    for kind, account in seen.accounts.items():
        print(f"{kind}: {account.found} events, {account.expected} expected")
        assert account.is_right, (kind, account)
        assert (account.found > 0) == (kind != "other")
    assert (seen.wrong_histories, seen.wrong_states) == (set(), set())
