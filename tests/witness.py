"""Brings together what a simulator's journal tells and what the store made of it."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from models.compression import zstd
from models.database import create_engine
from models.settings import async_url
from models.tables import change, item, item_seen, item_version, page, page_body, shop, shop_crawl
from tests.simulator.process import SimulatorProcess
from tests.truth import Account, Answer, Event, Key, Move, Story

History = dict[Key, list[tuple[datetime, str]]]
"""Prices of items, each with the time from which it held."""


@dataclass(frozen=True)
class Witness:
    """What happened, and what the store says happened."""

    story: Story
    events: Sequence[Event]
    history: History
    gone: set[Key]
    """Items that count as gone now."""
    lost: Sequence[int]
    """Numbers of answers that were delivered and are not archived once, or the other way round."""

    @property
    def accounts(self) -> dict[str, Account]:
        """The store's events held against the truth, by kind."""
        return self.story.judge(self.events)

    @property
    def wrong_histories(self) -> set[Key]:
        """Items of which the store tells other prices, or from other times, than were observed."""
        true = self.story.prices()
        return {key for key in true.keys() | self.history.keys() if true.get(key) != self.history.get(key)}

    @property
    def wrong_states(self) -> set[Key]:
        """Items that count as gone though their last event says otherwise, or the other way round."""
        last = {(event.shop, event.item): event.kind for event in self.events if event.kind in {"gone", "back"}}
        return {key for key in last.keys() | self.gone if (last.get(key) == "gone") != (key in self.gone)}

    @property
    def overlooked(self) -> Counter[tuple[str, int]]:
        """Items that complete crawls did not see though they were there all the time, by shop and crawl."""
        return self.story.overlooked()

    @property
    def prompt(self) -> Account:
        """Gone items again, as if each had to be found gone by the very first crawl that could."""
        gone = [event for event in self.events if event.kind == "gone"]
        return replace(self.story, slack=0).judge_gone(gone)

    @property
    def unlucky(self) -> list[Event]:
        """Items found gone that had come back unseen."""
        return self.story.unlucky([event for event in self.events if event.kind == "gone"])


async def witness(database_url: str, simulator: SimulatorProcess, *, gone_after: int = 2) -> Witness:
    """Read the journal of a simulator, and the store of everything that crawled it."""
    journal = simulator.journal()
    goods = [(row["shop"], row["item_id"]) for row in simulator.control("GET", "truth?items=0")]
    engine = create_engine(async_url(database_url))
    try:
        async with engine.connect() as connection:
            archived = [row async for row in _archived(connection)]
            story = Story(
                goods,
                list(_answers(journal, archived)),
                [Move(row["number"], row["shop"], row["move"], row["item_id"]) for row in journal if "move" in row],
                await _verdicts(connection),
                gone_after,
            )
            events, history = await _events(connection), await _history(connection)
            gone = await _gone(connection)
    finally:
        await engine.dispose()
    delivered = Counter(row["number"] for row in journal if row.get("delivered"))
    had = Counter(number for number, _, _ in archived)
    return Witness(story, events, history, gone, sorted(((delivered - had) + (had - delivered)).elements()))


async def _archived(connection: AsyncConnection) -> Any:
    """(number in the journal, crawl, when it was had) of every answer that was understood."""
    query = (
        sa.select(page_body.c.body, shop_crawl.c.crawl_id, page.c.finished_at)
        .join(page, page.c.id == page_body.c.page_id)
        .join(shop_crawl, shop_crawl.c.id == page.c.shop_crawl_id)
        .where(page.c.state == "done")
    )
    for row in await connection.execute(query):
        yield int(json.loads(zstd.decompress(row.body))["request_id"]), row.crawl_id, row.finished_at


def _answers(journal: Sequence[Mapping[str, Any]], archived: Sequence[tuple[int, int, datetime]]) -> Iterator[Answer]:
    shown = {row["number"]: row for row in journal if row.get("delivered")}
    for number, crawl, at in archived:
        if number in shown:
            entry = shown[number]
            rows = [(item_id, price) for item_id, price in entry["items"]]
            before = (entry["page"] - 1) * entry["size"]
            ends = (entry["sort"] == "time_up", before == 0, before + len(rows) == entry["total"])
            yield Answer(number, entry["shop"], crawl, at, rows, *ends)


async def _verdicts(connection: AsyncConnection) -> dict[tuple[str, int], str]:
    query = sa.select(shop.c.key, shop_crawl.c.crawl_id, shop_crawl.c.verdict)
    rows = await connection.execute(query.join(shop, shop.c.id == shop_crawl.c.shop_id))
    return {(row.key, row.crawl_id): row.verdict for row in rows}


async def _events(connection: AsyncConnection) -> list[Event]:
    query = (
        sa.select(shop.c.key, shop_crawl.c.crawl_id, change)
        .join(shop, shop.c.id == change.c.shop_id)
        .join(shop_crawl, shop_crawl.c.id == change.c.shop_crawl_id)
        .order_by(change.c.at, change.c.id)
    )
    return [_event(row) for row in await connection.execute(query)]


def _event(row: sa.Row[Any]) -> Event:
    at = None if row.kind == "gone" else row.at
    before, after = ((values or {}).get("price") for values in (row.before, row.after))
    prices = (_money(before), _money(after)) if row.kind == "price" else (None, None)
    return Event(row.kind, row.key, row.item_id, row.crawl_id, at, *prices)


async def _history(connection: AsyncConnection) -> History:
    """The prices of every item, in order of time; versions that differ in something else are no new price."""
    past = sa.select(shop.c.key, item_version.c.item_id, item_version.c.valid_from.label("at"), item_version.c.price)
    past = past.join(shop, shop.c.id == item_version.c.shop_id)
    now = sa.select(shop.c.key, item.c.item_id, item.c.changed_at.label("at"), item.c.price)
    now = now.join(shop, shop.c.id == item.c.shop_id)
    rows = [*await connection.execute(past), *await connection.execute(now)]
    history: History = {}
    for row in sorted(rows, key=lambda row: row.at):
        prices = history.setdefault((row.key, row.item_id), [])
        price = _money(row.price) or ""
        if not prices or prices[-1][1] != price:
            prices.append((row.at, price))
    return history


async def _gone(connection: AsyncConnection) -> set[Key]:
    query = sa.select(shop.c.key, item_seen.c.item_id).join(shop, shop.c.id == item_seen.c.shop_id)
    rows = await connection.execute(query.where(item_seen.c.gone_at.is_not(None)))
    return {(row.key, row.item_id) for row in rows}


def _money(value: Any) -> str | None:
    return None if value is None else f"{Decimal(str(value)):.2f}"
