"""The changes feed: complete, in order, bounded in memory, and read from indexes."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from models import feed
from models.errors import UsageError
from models.feed import KINDS, Entry, Wanted, check_kinds, count_changes, read_changes
from models.settings import TRACKED_FIELDS
from tests.changes import keep, make_shops, moved, name_item
from tests.ledger import START, after, engine_for


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    async with engine_for(database_url) as engine:
        yield engine


async def read(engine: AsyncEngine, wanted: Wanted, newest: int | None = None) -> list[Entry]:
    return [entry async for batch in read_changes(engine, wanted, newest=newest) for entry in batch]


async def test_a_change_is_read_with_its_shop_its_values_and_the_items_title(engine: AsyncEngine) -> None:
    [shop_id] = await make_shops(engine, "jane")
    await name_item(engine, shop_id, "612", "Tea 茶 cup")
    await keep(
        engine,
        moved(shop_id, "612", 1.5, price=("12.500000", "11"), agent_price=(None, "0")),
        moved(shop_id, "613", 2.5, "gone"),
    )
    price, gone = await read(engine, Wanted(START))
    assert price == Entry(
        price.id, "price", "tmapi", "jane", "612", after(1.5),
        {"price": "12.5", "agent_price": None}, {"price": "11", "agent_price": "0"}, "Tea 茶 cup",
    )  # fmt: skip
    assert gone == Entry(gone.id, "gone", "tmapi", "jane", "613", after(2.5), None, None)


async def test_changes_come_in_the_order_of_their_times_however_they_were_stored(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "BATCH", 3)
    shops = await make_shops(engine, "a", "b")
    # Several at one moment, and ids against the order of time. No clock of ours tells a whole second.
    times = [5.1, 4.25, 4.000001, 3.999999, 3.5, 3.5, 3.5, 3.5, 2.5, 2.000001, 1.1]
    for number, at in enumerate(times):
        await keep(engine, moved(shops[number % 2], f"i{number}", at))
    found = await read(engine, Wanted(START))
    assert [entry.at for entry in found] == sorted(after(at) for at in times)
    assert [(entry.at, entry.id) for entry in found] == sorted((entry.at, entry.id) for entry in found)
    assert len({entry.id for entry in found}) == len(times)


@pytest.mark.parametrize("batch", [2, 1000])
async def test_since_shops_and_kinds_narrow_it_together(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(feed, "BATCH", batch)
    shops = await make_shops(engine, "a", "b", "c")
    kinds = ("price", "gone", "title", "new")
    made = [moved(shops[n % 3], f"i{n}", 1.05 + n / 10, kinds[n % 4]) for n in range(24)]
    await keep(engine, *made)

    def expected(wanted: Wanted) -> list[str]:
        fits = [
            each
            for each in made
            if each.at >= wanted.since
            and (not wanted.shops or each.shop_id in wanted.shops)
            and (not wanted.kinds or each.kind in wanted.kinds)
        ]
        return [each.item_id for each in fits]

    choices = [
        Wanted(START),
        Wanted(after(2)),
        Wanted(after(2.0000005), (shops[1],)),
        Wanted(START, (), ("gone",)),
        Wanted(after(1.3), (), ("gone", "new")),
        Wanted(START, (shops[0], shops[2]), ("price", "title")),
        Wanted(after(99)),
    ]
    for wanted in choices:
        assert [entry.item_id for entry in await read(engine, wanted)] == expected(wanted)
        assert await count_changes(engine, wanted, 1_000) == len(expected(wanted))
        for newest in (1, 5, 100):
            assert [entry.item_id for entry in await read(engine, wanted, newest)] == expected(wanted)[-newest:]
    assert expected(choices[0]) and expected(choices[2]) and not expected(choices[-1])


async def test_a_change_of_the_very_second_asked_for_is_not_lost(engine: AsyncEngine) -> None:
    [shop_id] = await make_shops(engine, "a")
    await keep(engine, moved(shop_id, "whole", 5), moved(shop_id, "half", 5.5), moved(shop_id, "before", 4.999998))
    assert {entry.item_id for entry in await read(engine, Wanted(after(5)))} == {"whole", "half"}


async def test_what_is_stored_while_a_slow_reader_reads_is_read_too(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "BATCH", 2)
    [shop_id] = await make_shops(engine, "a")
    await keep(engine, *(moved(shop_id, f"i{n}", 1.5 + n) for n in range(4)))
    found: list[str] = []
    async for batch in read_changes(engine, Wanted(START)):
        if not found:
            await keep(engine, moved(shop_id, "late", 9.5))  # no transaction of the reader's is in the way
        found += [entry.item_id for entry in batch]
    assert found == ["i0", "i1", "i2", "i3", "late"]


async def test_counting_ends_somewhere(engine: AsyncEngine) -> None:
    [shop_id] = await make_shops(engine, "a")
    await keep(engine, *(moved(shop_id, f"i{n}", 1.5 + n) for n in range(5)))
    assert await count_changes(engine, Wanted(START), 3) == 3


MANY = {"postgresql": 100_000, "sqlite": 5_000}  # SQLite plans the same for any number
FILL = {
    "postgresql": "SELECT n FROM generate_series(1, :many) AS n",
    "sqlite": "SELECT value AS n FROM (WITH RECURSIVE c(value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM c"
    " WHERE value < :many) SELECT value FROM c)",
}


async def fill(engine: AsyncEngine, shops: list[int]) -> None:
    """Many changes, one each second; one in a thousand is `gone`, and the second shop has one in a hundred."""
    at = {
        "postgresql": "CAST(:start AS timestamptz) + n * interval '1 second'",
        "sqlite": "strftime('%Y-%m-%dT%H:%M:%S.000001Z', :start, n || ' seconds')",
    }[engine.dialect.name]
    owner = f"CASE WHEN n % 100 = 0 THEN {shops[1]} ELSE {shops[0]} END"
    sql = (
        "INSERT INTO change (shop_id, item_id, kind, at, shop_crawl_id)"
        f" SELECT {owner}, CAST(n AS TEXT), CASE WHEN n % 1000 = 0 THEN 'gone' ELSE 'price' END, {at}, 1"
        f" FROM ({FILL[engine.dialect.name]}) AS numbers"
    )
    start = START if engine.dialect.name == "postgresql" else START.isoformat()
    async with engine.begin() as connection:
        await connection.execute(sa.text(sql), {"many": MANY[engine.dialect.name], "start": start})
        await connection.execute(sa.text("ANALYZE change"))


async def test_no_question_reads_the_whole_table(engine: AsyncEngine) -> None:
    shops = await make_shops(engine, "common", "rare")
    await fill(engine, shops)
    asked: list[tuple[str, object]] = []

    def listen(_connection: object, _cursor: object, statement: str, parameters: object, *_rest: object) -> None:
        if " change" in statement:
            asked.append((statement, parameters))

    sa.event.listen(engine.sync_engine, "before_cursor_execute", listen)
    late = START + timedelta(seconds=MANY[engine.dialect.name] - 500)
    for since in (START, late):
        for chosen in ((), (shops[0],), (shops[1],), tuple(shops)):
            for kinds in ((), ("gone",), ("gone", "price"), ("title",)):
                wanted = Wanted(since, chosen, kinds)
                batches = aiter(read_changes(engine, wanted))
                for _ in range(2):  # from the beginning, and from a place
                    await anext(batches, None)
                await read(engine, wanted, 50)
                await count_changes(engine, wanted, 10_000)
    sa.event.remove(engine.sync_engine, "before_cursor_execute", listen)
    assert len(asked) > 60
    explain = "EXPLAIN " if engine.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN "
    async with engine.connect() as connection:
        for statement, parameters in asked:
            plan = await connection.exec_driver_sql(explain + statement, parameters)  # type: ignore[arg-type]
            text = "\n".join(str(row[-1]) for row in plan)
            assert "Seq Scan on change" not in text and "SCAN change" not in text.replace("USING INDEX", ""), text


def test_every_tracked_field_is_of_a_known_kind() -> None:
    assert {"price", "new", "gone", "back", "title", "stock", "status", "unit", "category", "image"} <= set(KINDS)
    assert len(set(KINDS)) == len(KINDS)
    assert {"drop_ship_price", "category_name", "images"} <= set(TRACKED_FIELDS) - set(KINDS)
    assert check_kinds(["price,new", "gone", " price"]) == ("price", "new", "gone")


@pytest.mark.parametrize("kind", ["prices", "", "price,,new", "drop_ship_price"])
def test_an_unknown_kind_is_refused_with_the_known_ones(kind: str) -> None:
    with pytest.raises(UsageError, match=r"unknown kind .*; kinds: .*price"):
        check_kinds([kind])
