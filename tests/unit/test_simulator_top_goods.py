"""The simulated platform's goods: their order under edits, their ids, and when they were modified."""

from array import array
from collections import Counter
from random import Random

import pytest

from tests.simulator.clock import china_text
from tests.simulator.outcomes import ScriptError
from tests.simulator.top.blocks import SortedBlocks
from tests.simulator.top.goods import FIELDS, Goods, SellerSpec, modified_times
from tests.simulator.top.warehouse import Selection, Warehouse
from tests.simulator.top.world import read_spec

EVER = 2**32
COLUMNS = ("modified", "list_time", "delist_time", "num", "sold_quantity")


def warehouse(items: int, seed: int = 1, **spec: object) -> Warehouse:
    return Warehouse(Goods(seed, 0, "nick", read_spec("nick", {"items": items} | spec)))


def naive(shop: Warehouse, wanted: Selection) -> list[int]:
    """The whole selection by the plainest means."""
    goods = shop.goods
    rows = [
        row
        for row in range(len(goods))
        if row not in goods.gone
        and wanted.since <= goods.modified[row] < wanted.until
        and wanted.cid in {None, goods.cid(row)}
        and wanted.text in goods.title(row)
    ]
    rows.sort(key=lambda row: (goods.column(row, wanted.column), row), reverse=wanted.descending)
    return rows


@pytest.mark.parametrize("size", [0, 1, 1023, 1024, 5000])
def test_sorted_blocks_agree_with_a_sorted_list_under_edits(size: int) -> None:
    random = Random(size)
    members = sorted(random.sample(range(100_000), size))
    blocks = SortedBlocks(array("q", members))
    for _ in range(3000):
        key = random.randrange(-10, 100_010) if random.random() < 0.7 or not members else random.choice(members)
        if key in blocks:
            blocks.remove(key)
            members.remove(key)
        else:
            blocks.add(key)
            members = sorted([*members, key])
        assert len(blocks) == len(members)
    for _ in range(200):
        key, start, stop = random.randrange(100_000), random.randrange(6000), random.randrange(6000)
        assert blocks.rank(key) == sum(member < key for member in members)
        assert list(blocks.cut(start, stop)) == members[start:stop]


def test_sorted_blocks_take_growth_at_one_end_and_removal_of_everything() -> None:
    blocks = SortedBlocks(array("q"))
    for key in range(10_000):
        blocks.add(key)
    assert list(blocks.cut(4990, 5010)) == list(range(4990, 5010))
    for key in range(10_000):
        blocks.remove(key)
    assert (len(blocks), list(blocks.cut(0, 10)), blocks.rank(5)) == (0, [], 0)
    with pytest.raises(KeyError):
        blocks.remove(5)


@pytest.mark.parametrize("seed", range(6))
def test_selections_follow_edits_exactly_as_a_plain_list_would(seed: int) -> None:
    random = Random(seed)
    shop = warehouse(300, seed, profile=("uniform", "clustered", "one_second")[seed % 3], cids=3)
    now = max(shop.goods.modified, default=0)
    for _ in range(150):
        now += random.randrange(3)
        since, until = sorted((random.choice(shop.goods.modified), random.choice(shop.goods.modified)))
        bounds = random.choice([(0, EVER), (since, until + 1), (since, since + 1)])
        cid = random.choice([None, shop.goods.cid(0)])
        wanted = Selection(
            random.choice(COLUMNS), random.random() < 0.5, *bounds, cid, random.choice(["", "项链", "不存在"])
        )
        expected = naive(shop, wanted)
        start, size = random.randrange(40), random.randrange(1, 200)
        assert shop.page(wanted, start, size) == (len(expected), expected[start : start + size])
        for row in shop.pick(random.randrange(4), random):
            shop.edit(row, now, reprice=random.random() < 0.5)
        if random.random() < 0.3:
            shop.appear(now)
        for row in shop.pick(random.randrange(2), random):
            shop.vanish(row)
        if shop.goods.gone and random.random() < 0.3:
            shop.restore(min(shop.goods.gone), now)


def test_drawn_ties_keep_the_order_of_times_and_every_row_of_a_page_is_of_the_selection() -> None:
    shop = warehouse(200, profile="one_second", one_second=150, cids=2)
    wanted = Selection("modified", False)
    rows = [tuple(shop.page(wanted, 20, 100, Random(n))[1]) for n in range(5)]
    assert len(set(rows)) == 5
    times = [shop.goods.modified[row] for row in shop.page(wanted, 20, 100)[1]]
    for page in rows:
        assert [shop.goods.modified[row] for row in page] == times
        assert len(set(page)) == 100
    backwards = shop.page(wanted._replace(descending=True), 0, 200, Random(1))[1]
    assert sorted(backwards) == list(range(200))


def test_rows_picked_at_random_are_distinct_and_never_more_than_there_are() -> None:
    shop = warehouse(10)
    shop.vanish(3)
    assert sorted(shop.pick(50, Random(1))) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert 3 not in {row for seed in range(50) for row in shop.pick(3, Random(seed))}


def test_ids_are_unique_over_sellers_and_lead_back_to_their_rows() -> None:
    goods = [Goods(1, number, f"s{number}", SellerSpec(items=2000, big_ids=number == 2)) for number in range(3)]
    ids = [each.num_iid(row) for each in goods for row in range(2000)]
    assert len(set(ids)) == 6000
    assert [each.row_of(each.num_iid(row)) for each in goods for row in range(2000)] == [*range(2000)] * 3
    assert sum(num_iid > 2**53 for num_iid in ids) == 1000
    with pytest.raises(KeyError):
        goods[0].row_of(goods[1].num_iid(0))


def test_rows_are_equal_for_equal_seeds_and_change_price_only_when_repriced() -> None:
    one, two, other = (Goods(seed, 0, "n", SellerSpec(items=100)) for seed in (1, 1, 2))
    assert [one.row(row) for row in range(100)] == [two.row(row) for row in range(100)]
    assert one.row(5) != other.row(5)
    before = one.row(5)
    one.repriced[5] += 1
    assert {name for name in FIELDS if before.get(name) != one.row(5).get(name)} == {"price"}


def test_titles_hold_quotes_markup_and_emoji_and_raw_control_characters_when_asked() -> None:
    goods = Goods(1, 0, "n", SellerSpec(items=500))
    plain = "".join(goods.title(row) for row in range(500))
    assert all(sign in plain for sign in '"&<😀项')
    assert not set("\t\n") & set(plain)
    assert set("\t\n") <= set("".join(goods.title(row, raw=True) for row in range(500)))
    assert "outer_id" in goods.row(0) or "outer_id" in goods.row(1)
    assert any("outer_id" not in goods.row(row) for row in range(100))


def test_modified_times_follow_their_profile() -> None:
    uniform = modified_times(SellerSpec(items=50_000), Random(1))
    assert list(uniform) == sorted(uniform)
    assert max(Counter(at // 60 for at in uniform).values()) < 10
    clustered = modified_times(SellerSpec(items=100_000, profile="clustered", burst_rows=9_000), Random(1))
    minutes = Counter(at // 60 for at in clustered).most_common(5)
    assert [count >= 9_000 for _, count in minutes] == [True, True, True, True, False]
    second = modified_times(SellerSpec(items=1000, profile="one_second", one_second=600), Random(1))
    assert Counter(second).most_common(1)[0][1] == 600
    assert len(modified_times(SellerSpec(items=1000, profile="one_second"), Random(1))) == 1000
    assert "2019" <= china_text(uniform[0]) < china_text(uniform[-1]) < "2025"


@pytest.mark.parametrize("spec", [-1, "many", {"items": 1, "size": 2}, {"items": 1, "profile": "odd"}, {}])
def test_specifications_that_make_no_sense_name_the_seller(spec: object) -> None:
    with pytest.raises(ScriptError, match="'n'"):
        read_spec("n", spec)
