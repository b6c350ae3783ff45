"""The second pass: reads what may help, in its order, and never more than its allowance."""

from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.planning.absence import Gap
from producer.planning.plan import PageFact
from producer.planning.second import BAND, SEAM, TAIL, Need, Part, advance, allowance, open_step, promised, quantiles

PRICES = [(Decimal(price), 10) for price in (1, 2, 5, 9)]


def need(unseen: int = 0, gaps: tuple[Gap, ...] = (), totals: tuple[int, ...] = (60, 60, 60)) -> Need:
    return Need(3, 20, unseen, gaps, dict(enumerate(totals, start=1)))


@pytest.mark.parametrize(
    ("pages", "share", "calls", "most"),
    [(3, 0.2, 5, 5), (100, 0.2, 5, 20), (100, 0.2, 0, 20), (3, 0, 5, 0), (10**6, 0.2, 5, 1000), (10**6, 1, 2000, 2000)],
)
def test_the_allowance_is_a_share_of_the_pages_and_enough_for_a_small_shop(
    pages: int, share: float, calls: int, most: int
) -> None:
    assert allowance(pages, share, calls) == most


@pytest.mark.parametrize(
    ("begun", "wanted", "step", "kinds"),
    [
        pytest.param(0, need(), 3, [], id="nothing is missing"),
        pytest.param(0, need(unseen=4), 1, [TAIL], id="the tail first"),
        pytest.param(1, need(unseen=4), 3, [BAND, BAND], id="a still listing: no pages moved"),
        pytest.param(1, need(4, totals=(60, 58, 58)), 2, [SEAM], id="the total fell between two pages"),
        pytest.param(1, need(4, totals=(60, 62, 62)), 3, [BAND, BAND], id="it grew: nothing moved up"),
        pytest.param(0, need(gaps=(Gap(1, 2, 1),)), 2, [SEAM], id="a known item on a border: not the tail"),
        pytest.param(0, need(gaps=(Gap(1, 3, 1),)), 2, [SEAM, SEAM], id="two borders"),
        pytest.param(0, need(gaps=(Gap(3, None, 1),)), 1, [TAIL], id="a known item at the end"),
        pytest.param(1, need(gaps=(Gap(3, None, 1),)), 3, [], id="known items are not looked for by price"),
        pytest.param(0, need(gaps=(Gap(None, 2, 1),)), 3, [], id="nobody knows where"),
        pytest.param(2, need(unseen=4), 3, [BAND, BAND], id="prices last"),
        pytest.param(3, need(unseen=4), 3, [], id="all steps were taken"),
    ],
)
def test_each_step_reads_what_may_help(begun: int, wanted: Need, step: int, kinds: list[str]) -> None:
    number, parts = open_step(begun, wanted, 5, PRICES)
    assert (number, [part.kind for part in parts]) == (step, kinds)


def test_without_calls_left_or_prices_known_nothing_is_opened() -> None:
    assert open_step(0, need(unseen=4), 0, PRICES) == (3, [])
    assert open_step(2, need(unseen=4), 5, []) == (3, [])
    assert open_step(2, need(unseen=4), 5, PRICES[:1]) == (3, [])
    assert open_step(2, need(unseen=4), 5, [(Decimal(1), 1), (Decimal(2), 99)]) == (3, []), "one band is the listing"


def test_the_borders_that_hide_most_are_looked_across_from_the_last_to_the_first() -> None:
    wanted = Need(9, 20, gaps=[Gap(1, 2, 1), Gap(3, 4, 5), Gap(6, 7, 2), Gap(6, 7, 1)])
    _, parts = open_step(0, wanted, 2, [])
    spans = [range((part.cursor - 1) * (part.page_size or 0), part.cursor * (part.page_size or 0)) for part in parts]
    assert [120 in spans[0], 60 in spans[1]] == [True, True]


def test_pages_that_showed_too_few_rows_are_read_once_more() -> None:
    wanted = Need(5, 20, unseen=20, rows={1: 20, 2: 20, 3: 7, 4: 13, 5: 3})
    step, parts = open_step(1, wanted, 5, PRICES)
    assert (step, [(part.kind, part.cursor, part.page_size) for part in parts]) == (
        2,
        [(SEAM, 4, None), (SEAM, 3, None)],
    )
    assert [part.cursor for part in open_step(1, wanted, 1, PRICES)[1]] == [3], "the one that lacks most"


def test_bands_touch_each_other_and_are_open_at_both_ends() -> None:
    _, parts = open_step(2, need(unseen=4), 8, [(Decimal("0.005"), 3), *PRICES])
    assert (parts[0].price_start, parts[-1].price_end) == (None, None)
    for one, other in pairwise(parts):
        assert Decimal(one.price_end or "") >= Decimal(other.price_start or "") >= 0
    assert 2 <= len(parts) <= 4


@given(
    st.dictionaries(st.integers(1, 10**6), st.integers(1, 50), min_size=2, max_size=40),
    st.integers(2, 50),
)
def test_quantiles_cut_rising_prices_into_at_most_so_many_parts(counts: dict[int, int], parts: int) -> None:
    prices = [(Decimal(cents) / 100, counts[cents]) for cents in sorted(counts)]
    cuts = quantiles(prices, parts)
    assert len(cuts) < parts
    assert cuts == sorted(set(cuts))
    assert all(prices[0][0] <= cut < prices[-1][0] for cut in cuts)


def fact(rows: int = 20, total: int | None = 60, state: str = "done") -> PageFact:
    return PageFact(1, state, rows, total, reason="417: no data")


@pytest.mark.parametrize(
    ("part", "answer", "left", "cursor"),
    [
        pytest.param(Part(1, SEAM, cursor=3, page_size=19), fact(19), 5, None, id="a border is one page"),
        pytest.param(Part(1, TAIL, cursor=3), fact(20, 60), 5, None, id="the tail has not grown"),
        pytest.param(Part(1, TAIL, cursor=3), fact(20, 61), 5, 4, id="it has grown"),
        pytest.param(Part(1, TAIL, cursor=3), fact(20, None), 5, 4, id="nobody says where it ends"),
        pytest.param(Part(1, TAIL, cursor=3), fact(7, 67), 5, None, id="a short page"),
        pytest.param(Part(1, TAIL, cursor=3), fact(20, 61), 0, None, id="the allowance is used up"),
        pytest.param(Part(1, TAIL, cursor=3), fact(state="dead"), 5, None, id="it was not had"),
        pytest.param(Part(1, TAIL, cursor=3), fact(state="refused"), 5, None, id="it was refused"),
        pytest.param(Part(1, BAND, price_end="2.00"), fact(20, 24), 5, 2, id="a band promises more"),
        pytest.param(Part(1, BAND, price_end="9.00"), fact(20, 40), 5, None, id="a band of known items, two pages"),
        pytest.param(Part(1, BAND, price_start="2.00", price_end="5.00"), fact(20, 19), 5, None, id="fewer than known"),
    ],
)
def test_a_part_is_read_on_only_while_it_promises_something(
    part: Part, answer: PageFact, left: int, cursor: int | None
) -> None:
    after = advance(part, answer, part.page_size or 20, PRICES, left)
    assert after.calls == 1
    assert after.is_open == (cursor is not None)
    assert after.cursor == (cursor or part.cursor)
    assert after.lost == (answer.state != "done")


def test_a_band_promises_what_it_counts_and_nobody_has_seen() -> None:
    assert promised(Part(1, BAND, total_last=25, price_start="2.00", price_end="5.00"), PRICES) == 5
    assert promised(Part(1, BAND, total_last=25, price_start="5.00"), PRICES) == 5
    assert promised(Part(1, BAND, total_last=9, price_end="1.00"), PRICES) == 0
