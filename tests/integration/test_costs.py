"""What calls have cost, against a plain count of the same ledger, on both databases."""

import csv
import io
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from decimal import Decimal
from random import Random

import msgspec
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from models.billing import FREE
from models.costs import KEYS, CostRow, Costs, Scope, costs, snapshot
from models.crawls import ShopRequest, submit_crawl
from models.errors import UsageError
from models.ledger import Calls, PageResult, store_results
from models.messages import PageTask
from models.source import source_named
from models.tables import call, crawl, daily_use, page
from producer.costs import as_csv, as_json
from producer.dispatch import Dispatcher
from tests.ledger import SETTINGS, START, after, engine_for

PRICED = SETTINGS.model_copy(update={"tmapi_prices": "0.012345,417=0.1,503=0", "top_prices": "2"})
DAY = 86_400
WINDOWS = {"max_pages": 100, "page_size": 200}


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """An engine on an empty database."""
    async with engine_for(database_url) as engine:
        yield engine


async def start(engine: AsyncEngine, *shops: str, at: float = 0) -> int:
    """Start a crawl of shops named `source/key`."""
    requests = [ShopRequest(source, key, WINDOWS) for source, key in (shop.split("/") for shop in shops)]
    async with engine.begin() as connection:
        return (await submit_crawl(connection, requests, now=after(at), settings=PRICED)).crawl_id


async def send(engine: AsyncEngine, at: float, room: int = 100) -> list[PageTask]:
    async with engine.begin() as connection:
        return await Dispatcher(PRICED).take_due(connection, sources=["tmapi", "top"], room=room, now=after(at))


def result(task: PageTask, at: float, *calls: tuple[str, str, int], state: str = "ready") -> PageResult:
    """Calls of a page, each as (credential, outcome, how many)."""
    prices = source_named(task.source).prices(PRICED)
    made = [Calls(credential, outcome, count, prices.of(outcome) * count) for credential, outcome, count in calls]
    return PageResult(task=task, state=state, at=after(at), tries=0, due_at=after(at), calls=made, price=prices.highest)


async def store(engine: AsyncEngine, *results: PageResult) -> None:
    async with engine.begin() as connection:
        await store_results(connection, results)


async def lose(engine: AsyncEngine, tasks: Sequence[PageTask]) -> None:
    """Let pages be sent again as the producer does when their worker died."""
    async with engine.begin() as connection:
        ids = [task.page_id for task in tasks]
        await connection.execute(sa.update(page).where(page.c.id.in_(ids)).values(state="ready"))


async def read(engine: AsyncEngine, by: str, scope: Scope = Scope()) -> Costs:  # noqa: B008 (it is frozen)
    async with snapshot(engine) as connection:
        return await costs(connection, by, scope)


def row(found: Costs, *key: str) -> CostRow:
    return next(each for each in found.rows if each.key == key)


async def filled(engine: AsyncEngine, seed: int) -> tuple[list[tuple[int, PageTask, PageResult]], dict[int, int]]:
    """Random work over three days: (crawl, task, result) of every result stored, and lost sendings by crawl."""
    random = Random(seed)
    crawls = [
        await start(engine, "tmapi/a", "tmapi/b"),
        await start(engine, "top/卖家", "top/d", at=1),
        await start(engine, "tmapi/a", "tmapi/=x", at=2),
    ]
    stored, lost = [], dict.fromkeys(crawls, 0)
    for turn in range(1, 9):
        at = turn * DAY / 3 + random.random() * 100
        tasks = await send(engine, at, room=random.randint(1, 6))
        dead = [task for task in tasks if random.random() < 0.3]
        await lose(engine, dead)
        for task in dead:
            lost[task.crawl_id] += 1
        for task in tasks:
            if task not in dead:
                made = [
                    (f"key-{random.randint(1, 2)}", outcome, 1) for outcome in ("503", "417") if random.random() < 0.5
                ]
                ending = [("key-1", "200", 1)] if random.random() < 0.7 else []
                stored.append((task.crawl_id, task, result(task, at + 5, *made, *ending)))
        await store(engine, *(each for _, _, each in stored if each.at == after(at + 5)))
    return stored, lost


@pytest.mark.parametrize("seed", range(4))
async def test_every_sum_equals_a_plain_count_of_the_results(engine: AsyncEngine, seed: int) -> None:
    stored, lost = await filled(engine, seed)
    out = await send(engine, 4 * DAY)
    plain: dict[str, dict[tuple[str, ...], tuple[int, Decimal]]] = {by: defaultdict(lambda: (0, FREE)) for by in KEYS}
    for number, task, each in stored:
        for made in each.calls:
            keys = {
                "day": (f"{each.at:%Y-%m-%d}",),
                "shop": (task.source, task.shop),
                "crawl": (str(number),),
                "credential": (made.credential,),
                "outcome": (made.outcome,),
                "source": (task.source,),
            }
            for by, key in keys.items():
                calls, cost = plain[by][key]
                plain[by][key] = calls + made.count, cost + made.cost
    for by in KEYS:
        found = await read(engine, by)
        told = {each.key: (each.calls, each.cost) for each in found.rows if each.calls}
        assert told == plain[by], by
        assert found.total.calls == sum(calls for calls, _ in plain[by].values())
        assert found.total.cost == sum((cost for _, cost in plain[by].values()), FREE)
        assert (found.total.in_flight, found.total.unknown) == (len(out), sum(lost.values()))
        shares = [each.share for each in found.rows if each.share is not None]
        assert abs(sum(shares, FREE) - 1) < Decimal("0.0001")
    by_crawl = await read(engine, "crawl")
    assert {each.key: each.unknown for each in by_crawl.rows} == {(str(n),): count for n, count in lost.items()}
    by_source = await read(engine, "source")
    assert row(by_source, "top").unknown == lost[2]
    assert row(by_source, "tmapi").unknown == lost[1] + lost[3]
    assert row(by_source, "top").in_flight == sum(task.source == "top" for task in out)


async def test_money_of_lost_and_running_calls_is_set_aside_at_the_highest_price(engine: AsyncEngine) -> None:
    await start(engine, "tmapi/a", "tmapi/b", "tmapi/c")
    one, two, three = await send(engine, 1)
    await store(engine, result(one, 2, ("key-1", "503", 1), ("key-1", "200", 1), state="done"))
    found = await read(engine, "crawl")
    assert row(found, "1") == CostRow(("1",), 2, Decimal("0.012345"), Decimal(1), 2, 0, Decimal("0.2"))
    await lose(engine, [two, three])
    told = row(await read(engine, "crawl"), "1")
    assert (told.in_flight, told.unknown, told.set_aside) == (0, 2, Decimal("0.2"))
    # An answer that was thought lost: counted, though its page has been sent anew.
    again = await send(engine, 3)
    await store(engine, result(two, 4, ("key-1", "417", 1), state="done"))
    told = row(await read(engine, "crawl"), "1")
    assert (told.calls, told.in_flight, told.unknown) == (3, len(again), 1)


async def test_a_crawl_of_which_nothing_but_losses_is_known_is_listed(engine: AsyncEngine) -> None:
    await start(engine, "tmapi/a")
    await lose(engine, await send(engine, 1))
    found = await read(engine, "crawl")
    assert [(each.key, each.calls, each.unknown, each.share) for each in found.rows] == [(("1",), 0, 1, None)]
    assert (await read(engine, "day")).rows == []


async def test_an_empty_ledger_has_cost_nothing(engine: AsyncEngine) -> None:
    for by in KEYS:
        found = await read(engine, by)
        assert (found.rows, found.total) == ([], CostRow(("total",), 0, FREE, None, 0, 0, FREE))


async def test_what_the_ledger_cannot_tell_is_not_guessed(engine: AsyncEngine) -> None:
    await start(engine, "tmapi/a", "top/b")
    tmapi, top = sorted(await send(engine, 1), key=lambda task: task.source)
    await lose(engine, [top])
    await store(engine, result(tmapi, 2, ("key-1", "200", 1), state="done"))
    for by in ("day", "credential", "outcome"):
        found = await read(engine, by)
        assert [(each.in_flight, each.unknown, each.set_aside) for each in found.rows] == [(None, None, None)]
        assert (found.total.in_flight, found.total.unknown) == (0, 1)
    assert row(await read(engine, "shop"), "tmapi", "a").unknown is None
    # The crawl's reservations are of two sources, and of before the time asked for.
    mixed = await read(engine, "crawl", Scope(source="tmapi"))
    assert (row(mixed, "1").calls, row(mixed, "1").unknown, mixed.total.unknown) == (1, None, None)
    late = await read(engine, "crawl", Scope(since=after(1.5)))
    assert (late.total.calls, late.total.unknown) == (1, None)
    assert row(await read(engine, "source"), "top").unknown == 1
    assert row(await read(engine, "source", Scope(since=after(-1))), "tmapi").unknown is None


@pytest.mark.parametrize(
    ("scope", "calls", "unknown"),
    [
        (Scope(), 3, 1),
        (Scope(since=after(DAY - 60)), 2, 1),
        (Scope(since=after(DAY + 1.5)), 1, None),
        (Scope(since=after(9 * DAY)), 0, 0),
        (Scope(crawl=1), 1, 0),
        (Scope(crawl=2), 2, 1),
        (Scope(source="tmapi"), 1, 0),
        (Scope(source="top", crawl=2), 2, 1),
        (Scope(source="top", crawl=1), 0, 0),
    ],
)
async def test_only_what_is_in_scope_is_counted(
    engine: AsyncEngine, scope: Scope, calls: int, unknown: int | None
) -> None:
    await start(engine, "tmapi/a")
    (first,) = await send(engine, 1)
    await store(engine, result(first, 1, ("key-1", "200", 1), state="done"))
    await start(engine, "top/b", "top/c", "top/d", at=DAY)
    one, two, three = await send(engine, DAY + 1)
    await store(engine, result(one, DAY + 1.25, ("app", "200", 1), state="done"))
    await store(engine, result(two, DAY + 2, ("app", "200", 1), state="done"))
    await lose(engine, [three])
    for by in KEYS:
        total = (await read(engine, by, scope)).total
        assert (total.calls, total.unknown) == (calls, unknown), by


async def test_days_are_utc_and_come_in_their_order(engine: AsyncEngine) -> None:
    await start(engine, *(f"tmapi/{number}" for number in range(4)))
    for task, at in zip(await send(engine, 1), (0.5, DAY / 2 - 1, DAY / 2 + 1, 3 * DAY), strict=True):
        await store(engine, result(task, at, ("key-1", "200", 1), state="done"))
    assert START.hour == 12
    found = [(each.key[0], each.calls) for each in (await read(engine, "day")).rows]
    assert found == [("2026-03-01", 2), ("2026-03-02", 1), ("2026-03-04", 1)]


async def test_crawls_come_by_number_and_other_keys_by_what_they_cost(engine: AsyncEngine) -> None:
    for number in range(11):
        await start(engine, f"tmapi/{number}")
    for task in await send(engine, 1):
        await store(
            engine, result(task, 2, ("key-1", "200", 1), ("key-2", "417", 1), ("key-3", "503", 9), state="done")
        )
    assert [each.key[0] for each in (await read(engine, "crawl")).rows] == [str(n) for n in range(1, 12)]
    assert [each.key[0] for each in (await read(engine, "credential")).rows] == ["key-2", "key-1", "key-3"]


async def test_thousands_of_small_amounts_add_up_exactly(engine: AsyncEngine) -> None:
    await start(engine, "tmapi/a")
    async with engine.begin() as connection:
        common = {"crawl_id": 1, "shop_crawl_id": 1, "credential": "k", "outcome": "200", "calls": 1, "at": after(1)}
        values = [{**common, "page_id": n, "cost": Decimal("0.000001") * (n % 7)} for n in range(7_000)]
        await connection.execute(sa.insert(call), values)
        await connection.execute(sa.insert(call), [{**common, "page_id": 1, "cost": Decimal("99999999999999.999999")}])
    for by in KEYS:
        assert (await read(engine, by)).total.cost == Decimal("100000000000000.020999")


async def test_an_unknown_crawl_or_key_is_a_usage_error(engine: AsyncEngine) -> None:
    with pytest.raises(UsageError, match="no crawl 7"):
        await read(engine, "day", Scope(crawl=7))
    with pytest.raises(UsageError, match="day, shop, crawl"):
        await read(engine, "moon")


async def test_figures_of_one_moment_add_up_while_work_goes_on(engine: AsyncEngine) -> None:
    await start(engine, "tmapi/a")
    (task,) = await send(engine, 1)
    async with snapshot(engine) as connection:
        before = await costs(connection, "crawl", Scope())
        await store(engine, result(task, 2, ("key-1", "200", 1), state="done"))
        assert await costs(connection, "crawl", Scope()) == before
    assert (row(await read(engine, "crawl"), "1").calls, row(before, "1").in_flight) == (1, 1)


async def test_reservations_of_days_and_of_crawls_are_the_same_calls(engine: AsyncEngine) -> None:
    await filled(engine, 9)
    async with engine.connect() as connection:
        by_crawl = await connection.scalar(sa.select(sa.func.sum(crawl.c.reserved)))
        by_day = await connection.scalar(sa.select(sa.func.sum(daily_use.c.reserved)))
    assert by_crawl == by_day


async def test_json_has_exact_money_as_text_and_null_for_what_is_not_known(engine: AsyncEngine) -> None:
    await start(engine, "tmapi/a", "tmapi/b")
    one, _ = await send(engine, 1)
    await store(engine, result(one, 2, ("key-1", "200", 1), ("key-1", "417", 1), state="done"))
    told = json.loads(as_json(await read(engine, "outcome"), "CNY"))
    assert told == {
        "by": "outcome",
        "currency": "CNY",
        "rows": [
            {"outcome": "417", "calls": 1, "cost": "0.1", "share": "0.890115"}
            | dict.fromkeys(("in_flight", "unknown", "set_aside")),
            {"outcome": "200", "calls": 1, "cost": "0.012345", "share": "0.109885"}
            | dict.fromkeys(("in_flight", "unknown", "set_aside")),
        ],
        "total": {"calls": 2, "cost": "0.112345", "share": "1", "in_flight": 1, "unknown": 0, "set_aside": "0.1"},
    }
    assert msgspec.json.decode(as_json(await read(engine, "shop"), "CNY"))["rows"][0]["shop"] == "a"


async def test_csv_runs_no_formula_and_ends_with_the_total(engine: AsyncEngine) -> None:
    await start(engine, "tmapi/=cmd()", 'tmapi/a,"b"')
    for task in await send(engine, 1):
        await store(engine, result(task, 2, ("key-1", "200", 1), state="done"))
    header, *rows, total = csv.reader(io.StringIO(as_csv(await read(engine, "shop"), "=CNY"), newline=""))
    assert header == ["source", "shop", "calls", "cost", "share", "in_flight", "unknown", "set_aside", "currency"]
    assert sorted(row[1] for row in rows) == ["'=cmd()", 'a,"b"']
    assert rows[0][2:] == ["1", "0.012345", "0.5", "0", "", "", "'=CNY"]
    assert total == ["total", "", "2", "0.02469", "1", "0", "0", "0", "'=CNY"]
