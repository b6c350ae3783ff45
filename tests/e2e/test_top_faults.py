"""Whatever fails and heals costs a repeat; what a platform refuses for good costs that seller alone."""

from pathlib import Path
from typing import Any

import pytest

from tests.e2e.fleet import COLUMNS, TOKEN, true_values
from tests.e2e.sellers import SellerFleet
from tests.simulator.process import SimulatorProcess

pytestmark = pytest.mark.e2e

PAGE_SIZE = 50
SETTINGS: dict[str, Any] = {"top_page_size": PAGE_SIZE, "top_window_rows": 500, "retry_base": 0.02, "max_tries": 12}
HEALING = {
    **dict.fromkeys(("isp", "code:10", "502", "503", "reset", "close", "truncated", "html200", "empty"), 0.03),
    "wrong_type": 0.1,
}
SELLERS: dict[str, Any] = {"mine": 0, "yours": 130, "many": {"items": 2_500, "profile": "clustered", "burst_rows": 300}}
SWITCHES: dict[str, Any] = {"top_window": 500, "top_faults": HEALING, "top_keepalive_requests": 7}
XML_ERROR = {"top": {"outcome": "isp", "xml": True, "probability": 0.1, "times": 20}}
BURST = {"top": {"outcome": "isp:top-remote-connection-timeout", "each": 3, "times": 45}}
LIES = [{"top": {"outcome": name, "shop": "yours", "pages": 2, "times": 1}} for name in ("short", "empty_page")]


@pytest.mark.slow
async def test_two_sources_side_by_side_are_complete_whatever_heals(tmp_path: Path) -> None:
    common = {"faults": "default", "token": TOKEN, "extra": {"mine": 130}}
    with (
        SimulatorProcess(shops=12, seed=6, items_max=200, top=SELLERS, switches=SWITCHES, **common) as simulator,
        SellerFleet(tmp_path, simulator, **SETTINGS) as fleet,
    ):
        simulator.script(XML_ERROR, BURST, *LIES)
        file = fleet.shops_file()
        shops = simulator.control("GET", "shops")
        file.write_text(file.read_text() + "".join(f"{key},tmapi,\n" for key in shops))
        done = fleet.run("crawl", str(file), "--quiet", "--json")
        assert done.returncode == 0, done.stderr
        assert await fleet.verdicts(1) == {"complete": len(shops) + len(SELLERS)}
        listed = {(row["shop"], row["item_id"]): true_values(row["item"]) for row in simulator.truth()}
        await fleet.assert_stored(listed | fleet.truth())
        outcomes = simulator.top_calls()["outcomes"]
        assert await fleet.tries() > 25
        assert len(outcomes) > 8 and "15/isp.remote-service-error" in outcomes, outcomes
        counted, arrived = await fleet.calls(), simulator.calls()["total"] + simulator.top_calls()["total"]
        # What is sent on a connection that is just being closed may have arrived or not.
        assert arrived <= counted.total() <= arrived + counted["reset"]


@pytest.mark.slow
async def test_seller_that_the_platform_refuses_fails_with_its_words_and_no_other_does(tmp_path: Path) -> None:
    sellers = {"gone": 45, "odd": 45, "sound": 45}
    with SimulatorProcess(shops=0, seed=6, top=sellers) as simulator, SellerFleet(tmp_path, simulator) as fleet:
        simulator.script(
            {"top": {"outcome": "isv:seller-not-exist", "shop": "gone", "sub_msg": "卖家不存在"}},
            {"top": {"outcome": "isv:item-pool-closed", "shop": "odd", "sub_msg": "仓库已关闭", "xml": True}},
        )
        done = fleet.run("crawl", str(fleet.shops_file()), "--quiet", "--json")
        assert done.returncode == 3, done.stderr
        found = await fleet.shops(1)
        assert {key: row.verdict for key, row in found.items()} == {
            "gone": "failed",
            "odd": "failed",
            "sound": "complete",
        }
        assert "卖家不存在" in found["gone"].reason and "仓库已关闭" in found["odd"].reason
        assert simulator.top_calls("gone")["total"] == simulator.top_calls("odd")["total"] == 1
        await fleet.assert_stored(fleet.truth(["sound"]))


@pytest.mark.slow
async def test_fewer_fields_are_asked_for_where_the_wide_list_is_refused_and_take_nothing_away(tmp_path: Path) -> None:
    sellers = {"first": 300} | {f"other-{number}": 130 for number in range(12)}
    with (
        SimulatorProcess(shops=0, seed=6, top=sellers, switches={"top_fields": "narrow"}) as simulator,
        SellerFleet(tmp_path, simulator, top_page_size=PAGE_SIZE) as fleet,
    ):
        crawl = ("crawl", str(fleet.shops_file()), "--quiet", "--json")
        done = fleet.run(*crawl)
        assert done.returncode == 0, done.stderr
        whole = fleet.truth()
        empty = dict.fromkeys(COLUMNS)
        narrow = ("title", "category_id")
        await fleet.assert_stored({key: empty | {name: row[name] for name in narrow} for key, row in whole.items()})
        assert 1 <= refused(simulator) <= len(sellers), "the pages that were under way together, and no later one"

        simulator.script({"set": {"top_fields": "wide"}})
        assert fleet.run(*crawl).returncode == 0
        await fleet.assert_stored(whole)

        simulator.script({"set": {"top_fields": "narrow"}})
        assert fleet.run(*crawl).returncode == 0
        await fleet.assert_stored(whole)
        assert refused(simulator) <= 2 * len(sellers)
        assert await fleet.verdicts(3) == {"complete": len(sellers)}


def refused(simulator: SimulatorProcess) -> int:
    """Calls that asked for too many fields."""
    return sum(count for code, count in simulator.top_calls()["outcomes"].items() if code != "200")
