"""A finished embedded crawl for tests to look at, with a refused shop and one that has a hole."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.fleet import TOKEN, Fleet, shopcrawl
from tests.e2e.here import Done, run_here
from tests.simulator.process import SimulatorProcess

REFUSED, HOLED, SOUND = "refused01", "holed01", "sound01"


@dataclass(frozen=True)
class Crawled:
    """A finished embedded crawl: what the command said, where it is, and what it ran against."""

    said: subprocess.CompletedProcess[str]
    fleet: Fleet
    simulator: SimulatorProcess

    def here(self, *arguments: str, folder: Path | None = None, **env: object) -> Done:
        """Run a command on this data folder, or on a copy of it."""
        data_dir = folder or self.fleet.data_dir
        given = {"data_dir": data_dir, "tmapi_tokens": TOKEN, "tmapi_base_url": self.simulator.url, "retry_base": 0.05}
        return run_here(data_dir, *arguments, env=given | env)


@contextmanager
def finished_crawl(folder: Path) -> Iterator[Crawled]:
    """A crawl in which one shop was refused and another has a page that cannot be had; it healed since."""
    extra = {REFUSED: 30, HOLED: 50, SOUND: 45}
    with SimulatorProcess(shops=12, seed=2, items_max=60, extra=extra, token=TOKEN) as simulator:
        simulator.script({"outcome": "422", "shop": REFUSED}, {"outcome": "500", "shop": HOLED, "pages": [2, 2]})
        with Fleet(folder, simulator) as fleet:
            said = fleet.run("crawl", str(fleet.shops_file()), "--json")
            simulator.script({"clear": True})
            yield Crawled(said, fleet, simulator)


def run_alone(data_dir: Path, api: str, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run the console script with only the settings that a first user gives."""
    env = {"SHOPCRAWL_DATA_DIR": str(data_dir), "SHOPCRAWL_TMAPI_BASE_URL": api, "SHOPCRAWL_TMAPI_TOKENS": TOKEN}
    env["PATH"] = "/usr/bin:/bin"
    return subprocess.run(
        shopcrawl(*arguments), env=env, input=stdin, capture_output=True, text=True, timeout=120, check=False
    )
