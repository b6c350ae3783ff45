"""The drift report and the commands around the archive, on archives of a market whose API changes."""

import asyncio
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner, Result

from models.compression import zstd
from models.errors import UsageError
from models.messages import PageTask
from models.tables import item, item_seen, page_body
from producer.cli import app
from tests.ledger import engine_for
from tests.market import START, Crawler, Market

CANARY = "canary-token-0123456789"
Change = Callable[[dict[str, Any]], None]


def api_of_today(row: dict[str, Any]) -> None:
    """Renamed one field, changed another's type, and sends one more."""
    row["selling_price"] = row.pop("price")
    row["quantity_begin"] = int(row["quantity_begin"])
    row["seller"] = {"name": "x", "token": CANARY}


async def crawl_twice(url: str, change: Change) -> None:
    """One crawl, and a second one a day later from an API whose rows are changed."""
    market = Market(shops=2, size=12)

    def answer(task: PageTask) -> bytes:
        found = json.loads(market.answer(task))
        for row in found["data"]["items"]:
            change(row)
        return json.dumps(found).encode()

    async with engine_for(url) as engine:
        first = Crawler(engine, market)
        await first.crawl()
        second = Crawler(engine, market, answer)
        second.now = first.now
        await second.crawl()


@pytest.fixture
def shopcrawl(database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Callable[..., Result]:
    """Run a command on the database."""
    monkeypatch.setenv("SHOPCRAWL_DATABASE_URL", database_url)
    monkeypatch.setenv("SHOPCRAWL_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("SHOPCRAWL_TMAPI_TOKENS", CANARY)

    def run(*words: str) -> Result:
        return CliRunner().invoke(app, words)

    return run


def test_drift_names_what_is_new_gone_and_of_another_type(database_url: str, shopcrawl: Callable[..., Result]) -> None:
    asyncio.run(crawl_twice(database_url, api_of_today))
    told = shopcrawl("drift", "--json")
    (found,) = json.loads(told.stdout)
    assert {(each["kind"], each["field"]) for each in found["differences"]} == {
        ("new", "data.items[].selling_price"),
        ("new", "data.items[].seller"),
        ("gone", "data.items[].price"),
        ("type", "data.items[].quantity_begin"),
    }
    by_field = {each["field"].rpartition(".")[2]: each for each in found["differences"]}
    assert by_field["quantity_begin"]["sample"] == "2"
    assert by_field["selling_price"]["after"].keys() == {"text"}
    assert CANARY not in told.stdout
    table = shopcrawl("drift", "--quiet").stdout
    lines = [line.split() for line in table.splitlines() if "data.items" in line]
    assert [line[0] for line in lines] == ["gone", "type", "new", "new"]
    assert "text 25 before, as " in table
    assert CANARY not in table


def test_drift_compares_the_periods_it_is_told(database_url: str, shopcrawl: Callable[..., Result]) -> None:
    asyncio.run(crawl_twice(database_url, api_of_today))
    since = (START + timedelta(hours=12)).isoformat()
    newest = json.loads(shopcrawl("drift", "--json").stdout)
    assert json.loads(shopcrawl("drift", "--json", "--since", since).stdout) == newest
    assert json.loads(shopcrawl("drift", "--json", "--crawl", "2", "--against", "1").stdout) == newest
    (same,) = json.loads(shopcrawl("drift", "--json", "--crawl", "1", "--against", "1").stdout)
    assert same["differences"] == []
    assert json.loads(shopcrawl("drift", "--json", "--crawl", "1").stdout) == []
    assert "no field is new or gone" in shopcrawl("drift", "--crawl", "1", "--against", "1").stdout
    assert "nothing to compare" in shopcrawl("drift", "--crawl", "1").stdout


def test_a_replay_command_says_what_it_did_and_fails_for_what_it_cannot_read(
    database_url: str, shopcrawl: Callable[..., Result]
) -> None:
    asyncio.run(crawl_twice(database_url, lambda _row: None))
    again = shopcrawl("replay", "--crawl", "1", "--json")
    assert (again.exit_code, json.loads(again.stdout)["differences"]) == (0, 0)
    asyncio.run(damage(database_url))
    part = json.loads(shopcrawl("replay", "--since", "2026-03-02", "--shop", "shop-1", "--dry-run", "--json").stdout)
    assert (part["dry_run"], part["failed"], part["new"] > 0) == (True, 0, True)
    broken = shopcrawl("replay", "--all")
    assert broken.exit_code == 3
    assert "1 pages that were stored do not decode today" in broken.stdout
    assert "tmapi shop-0 page 1 of crawl 1: truncated" in broken.stdout
    assert "items read, no call made" in broken.stdout


async def damage(url: str) -> None:
    """Break the first answer, and lose all items."""
    async with engine_for(url) as engine, engine.begin() as connection:
        broken = {"body": zstd.compress(b'{"code": 200, "data'), "same_as": None}
        await connection.execute(sa.update(page_body).where(page_body.c.page_id == 1).values(broken))
        await connection.execute(sa.update(page_body).where(page_body.c.same_as == 1).values(same_as=2))
        for table in (item, item_seen):
            await connection.execute(sa.delete(table))


@pytest.mark.parametrize(
    "words",
    [
        ("replay",),
        ("replay", "--all", "--crawl", "1"),
        ("replay", "--crawl", "99"),
        ("replay", "--all", "--shop", "nobody"),
        ("drift", "--since", "1d", "--crawl", "1"),
        ("drift",),
    ],
)
def test_a_command_that_makes_no_sense_is_refused(words: tuple[str, ...], shopcrawl: Callable[..., Result]) -> None:
    assert isinstance(shopcrawl(*words).exception, UsageError)
