"""A fleet whose shops are the platform's sellers, and what their rows mean column by column."""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from models.tables import crawl, page, shop, shop_crawl
from tests.e2e.fleet import COLUMNS, Fleet, Key, Values, until
from tests.simulator.process import SimulatorProcess

APP = {"top_app_key": "12345678", "top_app_secret": "helloworld"}
MARGIN = 1
"""Seconds that a round of windows ends before now: an edit is read again soon."""


class SellerFleet(Fleet):
    """A fleet that crawls every seller of the simulated platform."""

    def __init__(self, folder: Path, simulator: SimulatorProcess, **settings: Any) -> None:
        platform: dict[str, Any] = {"top_gateway_url": f"{simulator.url}/router/rest", "top_window_margin": MARGIN}
        super().__init__(folder, simulator, **APP | platform | settings)

    def shops_file(self) -> Path:
        """The file that names every seller with its session."""
        return self.sessions_file(self.simulator.top_sessions())

    def sessions_file(self, sessions: Mapping[str, str]) -> Path:
        """A file of sellers with these sessions."""
        path = self.folder / "sellers.csv"
        rows = [f"{nick},top,{session}" for nick, session in sessions.items()]
        path.write_text("\n".join(["shop,source,session", *rows]) + "\n")
        return path

    async def state(self, crawl_id: int) -> str:
        """The crawl's state."""
        (row,) = await self.read(sa.select(crawl.c.state).where(crawl.c.id == crawl_id))
        return str(row.state)

    async def until_waiting(self, crawl_id: int) -> None:
        """Wait until a crawl waits for sessions and for nothing else."""

        async def waits() -> bool:
            return await self.state(crawl_id) == "waiting"

        await until(waits, what=f"crawl {crawl_id} to wait for sessions")

    async def shops(self, crawl_id: int) -> dict[str, sa.Row[Any]]:
        """State, verdict and reason of each shop of a crawl, by its key."""
        query = sa.select(shop.c.key, shop_crawl.c.state, shop_crawl.c.verdict, shop_crawl.c.reason)
        rows = await self.read(
            query.join(shop, shop.c.id == shop_crawl.c.shop_id).where(shop_crawl.c.crawl_id == crawl_id)
        )
        return {row.key: row for row in rows}

    async def tries(self) -> int:
        """Failed answers that pages were charged with."""
        (row,) = await self.read(sa.select(sa.func.coalesce(sa.func.sum(page.c.tries), 0).label("tries")))
        return int(row.tries)

    def truth(self, nicks: Iterable[str] | None = None) -> dict[Key, Values]:
        """Every row that these sellers, or all, have now."""
        return {
            (nick, str(row["num_iid"])): true_row(row["item"])
            for nick in (self.simulator.top_sessions() if nicks is None else nicks)
            for row in self.simulator.top_truth(nick)
        }

    async def assert_complete(self, crawl_id: int) -> None:
        """Every seller is complete, and the store equals the truth: keys and all values."""
        assert await self.verdicts(crawl_id) == {"complete": len(self.simulator.top_sessions())}
        await self.assert_stored(self.truth())
        assert (await self.pages(crawl_id)).keys() <= {"done", "cancelled"}

    async def assert_stored(self, truth: Mapping[Key, Values]) -> None:
        """The store holds exactly these items, with these values."""
        stored = await self.stored()
        assert stored.keys() == truth.keys()
        assert {key: values for key, values in stored.items() if values != truth[key]} == {}

    @property
    def repeated(self) -> int:
        """Whole pages that the platform delivered more than once."""
        return int(self.simulator.top_calls()["repeated"])


def true_row(raw: Mapping[str, Any]) -> Values:
    """What a row of the platform means, column by column; the platform knows nothing of the other ones."""
    return dict.fromkeys(COLUMNS) | {
        "title": raw["title"],
        "category_id": str(raw["cid"]),
        "price": Decimal(raw["price"]),
        "stock": raw["num"],
        "status": raw["approve_status"],
        "outer_id": raw.get("outer_id"),
        "props": [pair.split(":") for pair in raw["props"].split(";")],
    }
