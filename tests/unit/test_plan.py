"""What to fetch next of a shop: every way a listing can end, and any listing that hypothesis can think of."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from random import Random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from models.ledger import pack_keys
from producer.planning.plan import (
    LARGEST_STEP,
    PageFact,
    Progress,
    Review,
    absorb,
    conclude,
    end_of_data,
    full_page,
    repeats,
)
from producer.planning.verdict import Verdict, judge

ASKED = 20


@dataclass(frozen=True)
class Listing:
    """A paged listing as a server may present it: `size` rows on a full page, whatever was asked for."""

    rows: int
    size: int = ASKED
    total: int | None = None
    echo: int | None = None
    style: str = "empty"
    """What a page behind the end shows: nothing (`empty`), or the `last` or `first` page again."""
    holes: frozenset[int] = frozenset()
    """Numbers of pages on which the server leaves an item out."""

    @property
    def pages(self) -> int:
        """Pages that have rows."""
        return ceil(self.rows / self.size)

    def items(self, number: int) -> range:
        """The rows of a page."""
        if number > self.pages:
            number = {"empty": number, "last": max(1, self.pages), "first": 1}[self.style]
        start = (number - 1) * self.size
        return range(start, max(start, min(start + self.size, self.rows) - (number in self.holes)))

    def page(self, number: int) -> PageFact:
        """What a page says."""
        items = self.items(number)
        keys = pack_keys(map(str, items))
        return PageFact(number, "done", rows=len(items), total=self.total, page_size=self.echo, keys=keys, new_items=1)


@dataclass
class Run:
    """A shop crawl without a database: pages finish in an order of chance while at most `window` are out."""

    listing: Listing
    dead: frozenset[int] = frozenset()
    refused: frozenset[int] = frozenset()
    window: int = 10
    max_pages: int = 500
    asked: int = ASKED
    batch: int = 3
    seed: int = 0
    called: list[int] = field(default_factory=list)
    cancelled: int = 0

    def __post_init__(self) -> None:
        self.progress = Progress(planned=1, max_pages=self.max_pages, asked_size=self.asked)
        self.ready, self.sent = [1], set[int]()
        self.finished: dict[int, PageFact] = {}

    def until_settled(self) -> Verdict:
        """Finish page after page until the shop is settled, and judge it."""
        chance = Random(self.seed)
        for _ in range(20 * self.max_pages):
            while self.ready and len(self.sent) < self.window:
                self.sent.add(self.ready.pop(0))
            assert self.sent, "nothing is open, but the shop is not settled"
            chosen = chance.sample(sorted(self.sent), min(len(self.sent), chance.randint(1, self.batch)))
            if self.review([self.fetch(number) for number in chosen]).settle:
                assert not self.ready
                assert not self.sent
                return self.verdict()
        raise AssertionError("the crawl does not end")

    def fetch(self, number: int) -> PageFact:
        self.sent.remove(number)
        self.called.append(number)
        if number in self.dead:
            return PageFact(number, "dead", reason="417: no data")
        if number in self.refused:
            return PageFact(number, "refused", reason="422: unknown shop")
        return self.listing.page(number)

    def review(self, facts: Sequence[PageFact]) -> Review:
        self.finished |= {fact.number: fact for fact in facts}
        done = {number: fact for number, fact in self.finished.items() if fact.state == "done"}
        review = conclude(absorb(self.progress, facts, done))
        if review.cancel_after is not None:
            kept = [number for number in self.ready if number <= review.cancel_after]
            cancelled = len(self.ready) - len(kept)
            self.ready, self.cancelled = kept, self.cancelled + cancelled
            if cancelled:
                total = review.progress.pages_cancelled + cancelled
                review = conclude(replace(review.progress, pages_cancelled=total))
        self.progress = review.progress
        self.ready += review.add
        self.check_counters(review)
        return review

    def check_counters(self, review: Review) -> None:
        progress = self.progress
        assert progress.planned <= self.max_pages
        assert progress.open_pages == len(self.ready) + len(self.sent)
        assert not set(review.add) & {*self.finished, *self.sent}
        assert len(self.called) == len(set(self.called)), "a page was planned twice"
        assert progress.planned == progress.pages_done + progress.pages_dead + self.cancelled + progress.open_pages
        assert progress.rows == sum(fact.rows for fact in self.finished.values())
        assert progress.new_items == progress.pages_done

    @property
    def seen(self) -> set[int]:
        """The rows that were read."""
        return {row for number, fact in self.finished.items() if fact.rows for row in self.listing.items(number)}

    def verdict(self) -> Verdict:
        lost = [fact for _, fact in sorted(self.finished.items()) if fact.state in {"dead", "refused"}]
        return judge(self.progress, len(self.seen), lost)


@pytest.mark.parametrize(
    ("listing", "calls", "verdict", "why"),
    [
        pytest.param(Listing(7, total=7), 1, "complete", "short", id="a short first page that reaches the total"),
        pytest.param(Listing(45, total=45), 3, "complete", "short", id="a short last page"),
        pytest.param(Listing(20, total=20), 2, "complete", "page 2 is empty", id="one exactly full page"),
        pytest.param(Listing(60, total=60), 4, "complete", "page 4 is empty", id="exactly full pages"),
        pytest.param(Listing(60, total=60, style="last"), 4, "complete", "repeats page 3", id="the last page repeated"),
        pytest.param(Listing(60, total=60, style="first"), 4, "complete", "repeats page 1", id="the first page again"),
        pytest.param(Listing(20, total=20, style="last"), 2, "complete", "repeats page 1", id="one page for ever"),
        pytest.param(Listing(0, total=0), 1, "complete", "page 1 is empty", id="an empty shop"),
        pytest.param(Listing(0, total=50), 1, "partial", "0 of 50", id="an empty page 1 against the total"),
        pytest.param(Listing(0), 1, "partial", "without a total", id="an empty page 1 without a total"),
        pytest.param(Listing(45), 4, "complete", "gave no total", id="no total: steps of 1 and 2, to an empty page"),
        pytest.param(Listing(100, total=10), 6, "complete", "is empty", id="a total ten times too small"),
        pytest.param(Listing(100, total=99), 6, "complete", "is empty", id="a total one too small"),
        pytest.param(Listing(100, total=101), 6, "drifted", "100 of 101", id="a total one too large"),
        pytest.param(Listing(100, total=0), 6, "complete", "is empty", id="a total of none beside rows"),
        pytest.param(Listing(60, size=10, total=60), 7, "complete", "is empty", id="a page size silently capped"),
        pytest.param(Listing(65, size=10, total=65, echo=10), 7, "complete", "short", id="a page size capped and told"),
        pytest.param(
            Listing(65, size=10, total=65, echo=20), 7, "complete", "short", id="a page size capped, not told"
        ),
        pytest.param(Listing(65, size=10, total=7, echo=20), 7, "complete", "short", id="capped, and a small total"),
        pytest.param(Listing(100, total=100, holes=frozenset({3})), 6, "drifted", "99 of 100", id="a missing item"),
        pytest.param(Listing(45, total=45, holes=frozenset({3})), 3, "drifted", "short", id="missing at the end"),
        pytest.param(Listing(90, total=200), 6, "partial", "90 of 200", id="much less than the total"),
    ],
)
def test_every_way_a_listing_can_end(listing: Listing, calls: int, verdict: str, why: str) -> None:
    run = Run(listing, window=1)
    judged = run.until_settled()
    assert (len(run.called), judged.verdict) == (calls, verdict), judged
    assert why in judged.reason or why in (run.progress.end_reason or "")


def test_a_total_ten_times_too_large_costs_no_more_than_what_is_out_when_the_data_ends() -> None:
    run = Run(Listing(100, total=1000), window=10)
    assert run.until_settled().verdict == "partial"
    assert set(range(1, 7)) <= set(run.called)
    assert len(run.called) <= 6 + 10
    assert run.progress.planned == 50
    assert run.cancelled == 50 - len(run.called)


def test_a_monstrous_total_fills_neither_ledger_nor_queue() -> None:
    run = Run(Listing(10**6, total=10**15), max_pages=10**6, window=1)
    run.sent.add(run.ready.pop())
    review = run.review([run.fetch(1)])
    assert review.add == range(2, 1002)
    assert not review.settle


def test_an_item_missing_from_page_1_loses_none_of_the_others() -> None:
    run = Run(Listing(200, total=200, holes=frozenset({1})), window=1)
    assert run.until_settled().verdict == "drifted"
    assert len(run.seen) == 199


@pytest.mark.parametrize(
    ("dead", "verdict", "why"),
    [
        pytest.param({3}, "partial", "1 of 5 pages could not be had: page 3: 417: no data", id="in the middle"),
        pytest.param({2, 3, 4}, "partial", "3 of 5 pages could not be had: page 2", id="several"),
        pytest.param({5}, "partial", "page 5: 417", id="the last one"),
        pytest.param({1}, "failed", "no page could be had; page 1: 417: no data", id="page 1"),
        pytest.param({5, 6}, "partial", "2 of 6", id="the last one and the one behind the end"),
        pytest.param(set(range(2, 500)), "partial", "page 2: 417", id="all but page 1"),
    ],
)
def test_dead_pages_make_a_shop_partial_or_failed_and_never_end_its_other_pages(
    dead: set[int], verdict: str, why: str
) -> None:
    run = Run(Listing(90, total=90), frozenset(dead), window=1)
    judged = run.until_settled()
    assert judged.verdict == verdict
    assert why in judged.reason
    if 1 not in dead:
        assert set(range(1, 6)) <= set(run.called)
        assert len(run.called) <= 6


def test_a_page_that_dies_behind_the_end_is_not_missing() -> None:
    run = Run(Listing(100, total=120), frozenset({7}), window=10)
    run.ready, run.sent, run.progress = [], set(range(1, 8)), replace(run.progress, planned=7)
    for number in (1, 2, 3, 4, 5, 6):
        assert not run.review([run.fetch(number)]).settle
    assert run.review([run.fetch(7)]).settle
    assert run.progress.last_page == 5
    judged = run.verdict()
    assert judged.verdict == "partial"
    assert "100 of 120" in judged.reason


def test_a_refused_shop_fails_with_the_servers_words_and_its_other_pages_are_not_called() -> None:
    run = Run(Listing(400, total=400), refused=frozenset({4}), window=1)
    assert run.until_settled() == Verdict("failed", "422: unknown shop")
    assert run.called == [1, 2, 3, 4]
    assert run.cancelled == 16


def test_a_refusal_without_words_is_a_refusal_all_the_same() -> None:
    progress = absorb(Progress(planned=1, max_pages=9, asked_size=20), [PageFact(1, "refused")], {})
    assert judge(progress, 0, [PageFact(1, "refused")]).verdict == "failed"
    assert progress.refusal


def test_the_limit_of_pages_is_never_exceeded_and_never_called_complete() -> None:
    run = Run(Listing(1000, total=1000), max_pages=7)
    judged = run.until_settled()
    assert sorted(run.called) == [1, 2, 3, 4, 5, 6, 7]
    assert judged == Verdict("partial", "stopped at the limit of 7 pages before the data ended")


def test_the_end_is_the_earliest_one_proved_whatever_finishes_first() -> None:
    run = Run(Listing(60, total=200), window=10)
    run.ready, run.sent, run.progress = [], set(range(1, 11)), replace(run.progress, planned=10)
    for number in (9, 1, 4, 3, 6, 2, 5, 7, 10):
        assert not run.review([run.fetch(number)]).settle
    assert run.review([run.fetch(8)]).settle
    assert run.progress.last_page == 3


def test_a_page_without_rows_repeats_nothing() -> None:
    empty = PageFact(2, "done", keys=pack_keys([]))
    assert not repeats(empty, PageFact(1, "done", keys=pack_keys([])))
    assert not repeats(empty, None)


def test_a_shuffled_or_shortened_repetition_is_a_repetition() -> None:
    first = PageFact(1, "done", rows=3, keys=pack_keys("abc"))
    assert repeats(PageFact(2, "done", rows=3, keys=pack_keys("cab")), first)
    assert repeats(PageFact(2, "done", rows=1, keys=pack_keys("b")), first)
    assert not repeats(PageFact(2, "done", rows=2, keys=pack_keys("bx")), first)
    assert not repeats(PageFact(2, "dead", rows=3, keys=pack_keys("abc")), first)


def test_the_page_before_a_repetition_can_be_the_one_that_comes_last() -> None:
    page = Listing(60, total=200, style="last").page
    assert end_of_data(page(3), 20, {1: page(1), 4: page(4)}) == (3, "page 4 repeats page 3")


@pytest.mark.parametrize(
    ("rows", "total", "echo", "size"),
    [
        (0, 50, 20, None),
        (20, 50, 50, 20),
        (3, None, 20, 3),
        (3, 3, None, 20),
        (3, 3, 10, 10),
        (30, 30, 20, 30),
        (9, 2, 20, 9),
    ],
)
def test_a_full_page_has_what_page_1_returned_unless_page_1_is_all_there_is(
    rows: int, total: int | None, echo: int | None, size: int | None
) -> None:
    assert full_page(PageFact(1, "done", rows=rows, total=total, page_size=echo), ASKED) == size


@pytest.mark.parametrize(
    ("first", "last", "distinct", "verdict"),
    [(100, 100, 100, "complete"), (100, 100, 105, "complete"), (100, 100, 99, "drifted"), (100, 100, 98, "partial"),
     (100, 110, 99, "drifted"), (110, 100, 90, "drifted"), (1000, 1000, 990, "drifted"), (1000, 1000, 989, "partial"),
     (1, 1, 0, "partial"), (0, 0, 0, "complete"), (0, 3, 0, "partial"), (None, 5, 5, "complete")],
)  # fmt: skip
def test_only_a_gap_that_movement_explains_is_drift(first: int | None, last: int, distinct: int, verdict: str) -> None:
    progress = Progress(1, 9, 20, total_first=first, total_last=last, last_page=1, end_reason="", pages_done=1)
    assert judge(progress, distinct, []).verdict == verdict


def claims(rows: int) -> st.SearchStrategy[int | None]:
    """Totals that a server may claim for so many rows."""
    near = st.integers(-3, 3).map(lambda error: max(0, rows + error))
    return st.one_of(st.none(), st.just(rows), near, st.just(rows * 10), st.just(rows // 10), st.integers(0, 10**6))


@st.composite
def listings(draw: st.DrawFn) -> Listing:
    rows, size = draw(st.integers(0, 120)), draw(st.integers(1, ASKED))
    total, style = draw(claims(rows)), draw(st.sampled_from(["empty", "last", "first"]))
    return Listing(rows, size, total, draw(st.sampled_from([None, size, ASKED])), style)


@st.composite
def runs(draw: st.DrawFn, dead: Iterable[int] = ()) -> Run:
    window, batch = draw(st.integers(1, 12)), draw(st.integers(1, 5))
    return Run(draw(listings()), frozenset(dead), window=window, batch=batch, seed=draw(st.integers(0, 2**32)))


@settings(max_examples=300)
@given(runs())
def test_without_dead_pages_every_row_is_read_at_a_bounded_price(run: Run) -> None:
    listing = run.listing
    # A capped page 1 that agrees with the total and is less than asked for looks exactly like a whole small shop.
    looks_whole = listing.total == min(listing.rows, listing.size) < (listing.echo or ASKED)
    assume(not looks_whole or listing.rows <= listing.size)
    judged = run.until_settled()
    assert run.seen == set(range(listing.rows))
    assert judged.verdict == "complete" or (listing.total or 0) > listing.rows or listing.rows == 0

    first = listing.page(1)
    claimed = ceil((listing.total or 0) / first.rows) if first.rows else 0
    needed = max(1, listing.pages)
    # Two pages side by side are needed to see the last one repeated: chance may keep every second one out.
    on_their_way = min(max(0, claimed - needed), 2 * run.window + 1)
    assert len(run.called) <= needed + max(LARGEST_STEP, on_their_way)


@settings(max_examples=300)
@given(st.sets(st.integers(1, 40)).flatmap(runs), st.integers(1, 60))
def test_with_dead_pages_a_crawl_ends_and_is_never_called_complete_wrongly(run: Run, max_pages: int) -> None:
    run = replace(run, max_pages=max_pages, called=[])
    judged = run.until_settled()
    wanted = run.listing.items
    read = {number for number, fact in run.finished.items() if fact.state == "done"}
    assert run.seen == {row for number in read for row in wanted(number)}
    if judged.verdict == "complete":
        assert run.progress.last_page is not None
        assert set(range(1, run.progress.last_page + 1)) <= read
        assert len(run.seen) >= (run.listing.total or 0)
    if not read:
        assert judged.verdict == "failed"
