"""Windows of time: whatever a seller does while it is read, nothing is lost silently, and hardly a call is wasted."""

from array import array
from dataclasses import dataclass, field, replace
from math import ceil
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producer.planning.windows import CHECK, SHARED, SHORT, SPLIT, newest_end
from tests.simulator.top.blocks import SortedBlocks
from tests.windows_server import SAME, SHUFFLED, STABLE, Crawl, Seller, second_of, stirred

RATES = [0.05, 0.3, 1.0, 3.0]
"""Rows that are edited, removed or added between two calls, on average."""


@dataclass(frozen=True)
class Setting:
    """A seller and how it is crawled, drawn by hypothesis."""

    seed: int
    size: int
    pages: int
    """Pages that the server shows; `too_far` more are believed in at first."""
    too_far: int
    rows: int
    span: int
    """Seconds over which the rows' times are spread."""
    bulk: int
    """Rows more, within five seconds."""
    width: int

    def seller(self, **options: Any) -> Seller:
        random = Random(self.seed)
        seller = Seller(self.size, self.size * self.pages, random, **options)
        seller.stock(1000 + random.randrange(self.span) for _ in range(self.rows))
        seller.stock(1000 + random.randrange(5) for _ in range(self.bulk))
        return seller

    def crawl(self, seller: Seller, **options: Any) -> Crawl:
        return Crawl(seller, self.size * (self.pages + self.too_far), self.width, **options)


def settings_of(**fixed: Any) -> st.SearchStrategy[Setting]:
    drawn: dict[str, Any] = {
        "seed": st.integers(0, 2**32),
        "size": st.sampled_from([1, 2, 3, 5]),
        "pages": st.sampled_from([1, 2, 5, 7, 12, 20]),
        "too_far": st.sampled_from([0, 0, 1, 3]),
        "rows": st.sampled_from([0, 1, 5, 30, 120, 300]),
        "span": st.sampled_from([3, 60, 3600, 10**7]),
        "bulk": st.sampled_from([0, 0, 10, 40, 80]),
        "width": st.sampled_from([1, 8, 50]),
    }
    return st.builds(Setting, **(drawn | {name: st.just(value) for name, value in fixed.items()}))


def assert_cheap(crawl: Crawl) -> None:
    """A window that is read costs its pages, perhaps a count and a short page, and what both ends share."""
    for part in crawl.slices.values():
        if part.kind == CHECK or (part.state == SPLIT and part.calls == 1):
            assert part.calls == 1
        elif part.turn == 1:
            pages = crawl.reading.pages(part.total_first or 0)
            assert part.calls <= 1 + pages + (SHARED if part.behind else 0), part


@settings(max_examples=150)
@given(settings_of(), st.sampled_from([STABLE, SAME]))
def test_rows_that_stay_as_they_are_all_show_or_the_verdict_says_how_many_do_not(each: Setting, ties: str) -> None:
    seller = each.seller(ties=ties)
    crawl = each.crawl(seller)
    verdict = crawl.run()
    hidden = len(seller.rows) - len(crawl.shown)
    if hidden:
        assert verdict.verdict in {"drifted", "partial"}
        assert f", {hidden} more were announced and never shown (too many rows in one second" in verdict.reason
    else:
        assert verdict.verdict == "complete"
    if each.too_far == 0:
        assert crawl.refused == 0
        assert_cheap(crawl)


@given(settings_of(span=10**7, bulk=0, too_far=0))
def test_rows_that_stay_and_lie_apart_cost_their_pages_and_little_for_each_window(each: Setting) -> None:
    seller = each.seller()
    crawl = each.crawl(seller)
    assert crawl.run().verdict == "complete"
    assert crawl.shown == set(seller.rows)
    assert crawl.calls <= ceil(len(seller.rows) / each.size) + (2 + SHARED) * len(crawl.slices)


@given(settings_of(), st.data())
def test_a_seller_within_reach_costs_exactly_its_pages(each: Setting, data: st.DataObject) -> None:
    seller = replace(each, rows=0, bulk=0, pages=each.pages + each.too_far, too_far=0).seller()
    seller.stock(range(1000, 1000 + data.draw(st.integers(0, seller.limit))))
    crawl = each.crawl(seller)
    assert crawl.run().verdict == "complete"
    assert crawl.shown == set(seller.rows)
    assert crawl.calls == max(1, ceil(len(seller.rows) / each.size))


@given(settings_of(), st.sampled_from([{"ties": SHUFFLED}, {"inclusive": False}]))
def test_a_server_that_shuffles_seconds_or_leaves_out_the_last_one_is_never_called_complete_for_less(
    each: Setting, oddity: dict[str, Any]
) -> None:
    seller = each.seller(**oddity)
    crawl = each.crawl(seller)
    assert (crawl.run().verdict == "complete") <= (crawl.shown == set(seller.rows))


@settings(max_examples=100)
@given(settings_of(), st.sampled_from([STABLE, SAME]), st.sampled_from(RATES))
def test_what_is_there_throughout_is_seen_though_rows_move_at_every_call(each: Setting, ties: str, rate: float) -> None:
    seller = each.seller(ties=ties)
    there = set(seller.rows)
    crawl = each.crawl(seller, stir=stirred(seller, rate))
    verdict = crawl.run()
    assert verdict.verdict != "complete" or there - seller.gone <= crawl.shown


@settings(max_examples=100)
@given(settings_of(), st.sampled_from([STABLE, SAME]), st.sampled_from(RATES))
def test_what_was_modified_before_the_watermark_is_seen_though_rows_move_at_any_time(
    each: Setting, ties: str, rate: float
) -> None:
    seller = each.seller(ties=ties)
    stir = stirred(seller, rate)
    crawl = each.crawl(seller, stir=stir, wait=stir)
    verdict = crawl.run()
    assert second_of(newest_end(list(crawl.slices.values()))) == crawl.last_end
    before = {key for key, row in seller.rows.items() if row.second <= crawl.last_end}
    assert verdict.verdict != "complete" or before <= crawl.shown


@given(settings_of(), st.sampled_from(RATES))
def test_any_oddity_together_with_any_motion_comes_to_an_end(each: Setting, rate: float) -> None:
    seller = each.seller(ties=SHUFFLED, inclusive=each.seed % 2 == 0)
    stir = stirred(seller, rate)
    verdict = each.crawl(seller, stir=stir, wait=stir, loss=0.05).run()
    assert verdict.verdict in {"complete", "drifted", "partial", "failed"}


@given(settings_of(), st.sampled_from([0.02, 0.3, 1.0]), st.sampled_from([0.0, 1.0]))
def test_lost_pages_make_a_seller_partial_or_failed(each: Setting, loss: float, rate: float) -> None:
    seller = each.seller()
    crawl = each.crawl(seller, stir=stirred(seller, rate), loss=loss)
    verdict = crawl.run()
    had = crawl.calls - crawl.lost - crawl.refused
    if crawl.lost:
        assert verdict.verdict == ("partial" if had else "failed")
        assert "no answer" in verdict.reason


@given(settings_of(rows=300, span=3600), st.integers(1, 15))
def test_a_server_that_shows_less_than_is_believed_is_believed_no_longer_once_it_refuses(
    each: Setting, far: int
) -> None:
    each = replace(each, too_far=far)
    seller = each.seller()
    crawl = each.crawl(seller)
    crawl.run()
    assert crawl.refused <= far * crawl.most_open  # what was out already when it was learned
    assert crawl.reading.reach >= seller.limit


@pytest.mark.parametrize("categories", [3, 4])
@pytest.mark.parametrize("known", [True, False])
def test_a_second_with_more_rows_than_both_ends_reach_is_read_by_category(categories: int, known: bool) -> None:
    seller = Seller(5, 50, Random(1), now=1000)
    for number in range(240):
        seller.add(500, str(number % categories) if known or number else "hidden")
    crawl = Crawl(seller, 50)
    verdict = crawl.run()
    if known:
        assert verdict.verdict == "complete"
        assert len(crawl.shown) == 240
    else:
        assert len(crawl.shown) >= 239
    assert {part.cid for part in crawl.slices.values()} >= {"0", "1", "2"}


def test_rows_of_an_unknown_category_are_reported_though_other_rows_moved() -> None:
    seller = Seller(1, 20, Random(3), ties=SAME, now=1000)
    for number in range(100):
        seller.add(500, "hidden" if number == 99 else str(number % 6))
    seller.rows[100] = seller.rows[100]._replace(tie=2.0)  # the last from either end
    seller.add(700)
    moves = iter([101])

    def edit_once() -> None:
        for row in moves:
            seller.now += 1
            seller.edit(row)

    crawl = Crawl(seller, 20, stir=edit_once)
    verdict = crawl.run()
    assert max(part.round for part in crawl.slices.values()) > 1
    assert crawl.shown == set(seller.rows) - {100}
    assert verdict.verdict == "drifted"
    assert "1 more were announced and never shown (too many rows in one second)" in verdict.reason


def test_a_category_with_too_many_rows_in_one_second_is_reported() -> None:
    seller = Seller(5, 50, Random(1), now=1000)
    for number in range(200):
        seller.add(500, str(number // 150))
    crawl = Crawl(seller, 50)
    verdict = crawl.run()
    assert (verdict.verdict, len(crawl.shown)) == ("partial", 150)
    assert "50 more were announced and never shown (too many rows in one second" in verdict.reason
    assert [part.reason for part in crawl.slices.values() if part.cid and part.state == SHORT] == [
        "too many rows in one second of category 0"
    ]


@dataclass
class BigSeller(Seller):
    """A seller of up to a million rows, edited twice (`edits`) at each call."""

    edits: int = 0
    index: SortedBlocks = field(default_factory=lambda: SortedBlocks(array("q")))
    times: "array[int]" = field(default_factory=lambda: array("q"))

    def fill(self, times: list[int]) -> None:
        self.times = array("q", times)
        self.index = SortedBlocks(array("q", sorted(second << 20 | row for row, second in enumerate(times))))
        self.now = max(times) + 1000

    def listing(self, start: int | None, end: int, page: int, cid: str | None) -> tuple[list[int], int]:
        assert cid is None
        low = 0 if start is None else self.index.rank(start << 20)
        high = self.index.rank(end + 1 << 20)
        first = (abs(page) - 1) * self.size
        last = min(high - low, first + self.size)
        cut = self.index.cut(low + first, low + last) if page > 0 else self.index.cut(high - last, high - first)
        ids = [key & 0xFFFFF for key in cut]
        return ids if page > 0 else ids[::-1], high - low

    def edit_some(self) -> None:
        self.now += self.random.random() < 0.2
        for row in {self.random.randrange(len(self.times)) for _ in range(self.edits)}:
            self.index.remove(self.times[row] << 20 | row)
            self.times[row] = self.now
            self.index.add(self.now << 20 | row)


@pytest.mark.parametrize(("bursts", "edits"), [(1, 0), (10, 2), (33, 0), (33, 2)])
def test_a_million_rows_in_bursts_cost_at_most_a_tenth_more_than_their_pages(bursts: int, edits: int) -> None:
    rows, years = 1_000_000, 3 * 365 * 86_400
    random = Random(bursts)
    minutes = [random.randrange(years) for _ in range(bursts)]
    times = [minute + random.randrange(60) for minute in minutes for _ in range(30_000)]
    seller = BigSeller(200, 20_000, random, edits=edits)
    seller.fill(times + [random.randrange(years) for _ in range(rows - len(times))])
    crawl = Crawl(seller, 20_000, stir=seller.edit_some)
    assert crawl.run().verdict == "complete"
    assert len(crawl.shown) == rows
    assert crawl.calls <= 1.10 * ceil(rows / 200)
    assert len(crawl.slices) < 200
