"""Verdicts: every way a shop can fail to show what it has gets its own, with the reason and the figures."""

from typing import Any

import pytest

from models.ledger import pack_keys
from producer.planning.plan import PageFact, Progress, absorb, conclude
from producer.planning.verdict import Verdict, guarded, has_shrunk, judge

DEAD = [PageFact(number, "dead", reason="417: no data") for number in (3, 4, 5)]


def read(**figures: Any) -> Progress:
    """A shop of five full pages, read to its end, unless figures say otherwise."""
    usual: dict[str, Any] = {
        "planned": 6, "max_pages": 500, "asked_size": 20, "page_size": 20, "total_first": 100, "total_last": 100,
        "last_page": 5, "end_reason": "page 6 is empty", "pages_done": 6, "rows": 100,
    }  # fmt: skip
    return Progress(**usual | figures)


@pytest.mark.parametrize(
    ("progress", "distinct", "lost", "verdict", "why"),
    [
        pytest.param(
            read(total_first=500, total_last=500, last_page=6, end_reason="page 7 is empty"), 120, [],
            "partial", "120 of 500 items, page 7 is empty", id="truncation at page 7",
        ),
        pytest.param(
            read(last_page=None, pages_done=2, pages_dead=3), 40, DEAD,
            "partial", "3 of 5 pages could not be had: page 3: 417: no data", id="417 from page 3 on",
        ),
        pytest.param(
            read(end_reason="page 6 repeats page 5"), 100, [],
            "complete", "100 items, page 6 repeats page 5", id="repeated last page",
        ),
        pytest.param(
            read(last_page=3, end_reason="page 4 repeats page 3"), 60, [],
            "partial", "60 of 100 items, page 4 repeats page 3", id="last page repeated too early",
        ),
        pytest.param(
            read(total_first=1000, total_last=1000), 100, [],
            "partial", "100 of 1000 items, page 6 is empty", id="total ten times too large: nobody can know",
        ),
        pytest.param(
            read(total_first=10, total_last=10), 100, [],
            "complete", "100 items, more than the API's total of 10, page 6 is empty", id="total ten times too small",
        ),
        pytest.param(
            read(total_first=0, total_last=0, last_page=0, end_reason="page 1 is empty", pages_done=1), 0, [],
            "complete", "0 items, page 1 is empty", id="an empty shop",
        ),
        pytest.param(
            read(last_page=None, pages_done=0, pages_dead=1), 0, [PageFact(1, "dead", reason="html: no JSON")],
            "failed", "no page could be had; page 1: html: no JSON", id="HTML with 200",
        ),
        pytest.param(
            read(last_page=None, pages_done=0, pages_dead=1), 0, [PageFact(1, "dead", reason="shape: `data` is text")],
            "failed", "page 1: shape: `data` is text", id="string data",
        ),
        pytest.param(
            read(asked_size=100, end_reason="page 5 is the short last one"), 100, [],
            "complete", "100 items", id="page size capped at 20",
        ),
        pytest.param(
            read(first_distinct=88, second_pass=3), 93, [],
            "partial", "93 of 100 items, page 6 is empty; a second pass of 5 calls found 5 more", id="reordering",
        ),
        pytest.param(
            read(first_distinct=92, second_pass=3, end_reason="page 5 is the short last one"), 92, [],
            "partial", "the short last one; a second pass of 5 calls found nothing more", id="last page short",
        ),
        pytest.param(
            read(first_distinct=97, second_pass=2, total_first=104), 100, [],
            "drifted", "the total went from 104 to 100; a second pass of 5 calls found 3 more", id="gap closed",
        ),
        pytest.param(
            read(first_distinct=100, second_pass=2), 101, [],
            "complete", "101 items, page 6 is empty; a second pass of 5 calls found 1 more", id="complete before it",
        ),
        pytest.param(read(first_distinct=95, second_pass=3), 99, [], "drifted", "99 of 100", id="within tolerance"),
    ],
)  # fmt: skip
def test_every_failure_has_its_verdict_and_reason(
    progress: Progress, distinct: int, lost: list[PageFact], verdict: str, why: str
) -> None:
    judged = judge(progress, distinct, lost, 5)
    assert judged.verdict == verdict
    assert why in judged.reason


@pytest.mark.parametrize(
    ("distinct", "known", "suspect", "verdict"),
    [
        (50, None, None, "complete"),
        (100, 100, None, "complete"),
        (70, 100, None, "complete"),
        (69, 100, None, "suspect"),
        (0, 100, None, "suspect"),
        (50, 100, 50, "complete"),
        (51, 100, 50, "complete"),
        (52, 100, 50, "suspect"),
        (40, 100, 50, "suspect"),
        (80, 100, 50, "complete"),
        (0, 100, 0, "complete"),
        (200, 100, None, "complete"),
    ],
)
def test_a_shop_that_shrinks_too_much_is_suspect_until_a_second_look_agrees(
    distinct: int, known: int | None, suspect: int | None, verdict: str
) -> None:
    judged = guarded(Verdict("complete", "page 6 is empty"), distinct, known, suspect, 0.3)
    assert judged.verdict == verdict
    assert "page 6 is empty" in judged.reason
    if verdict == "suspect":
        assert f"only {distinct} of the {known} items" in judged.reason


@pytest.mark.parametrize("verdict", ["partial", "failed"])
def test_what_is_incomplete_anyway_is_not_called_suspect(verdict: str) -> None:
    assert guarded(Verdict(verdict, "why"), 1, 100, None, 0.3) == Verdict(verdict, "why")


def test_a_guard_of_one_lets_a_shop_lose_everything() -> None:
    assert not has_shrunk(0, 100, 1)


def newest(*pages: tuple[int, int], dead: int | None = None, total: int | None = 200) -> tuple[Progress, list[int]]:
    """A crawl of mode `new`: rows and new items of each page, in order; returns the pages it called."""
    progress, called, known = Progress(1, 50, 20, mode="new"), [1], {}
    while True:
        number = called[-1]
        rows, new = pages[number - 1]
        keys = pack_keys(f"{number}-{row}" for row in range(rows))
        fact = PageFact(number, "done", rows, total, new_items=new, keys=keys)
        if number == dead:
            fact = PageFact(number, "dead", reason="417: no data")
        known[number] = fact
        review = conclude(absorb(progress, [fact], {n: f for n, f in known.items() if f.state == "done"}))
        progress = review.progress
        if review.settle:
            return progress, called
        called += review.add


@pytest.mark.parametrize(
    ("pages", "called", "why"),
    [
        pytest.param([(20, 0)], 1, "0 new items in 1 pages, page 1 shows nothing new", id="nothing new"),
        pytest.param([(20, 3), (20, 0)], 2, "3 new items in 2 pages, page 2 shows nothing new", id="some new"),
        pytest.param([(20, 20), (20, 20), (20, 1), (20, 0)], 4, "41 new items in 4 pages", id="many new"),
        pytest.param([(20, 20), (0, 0)], 2, "20 new items in 1 pages, page 2 is empty", id="all new, to the end"),
    ],
)
def test_newest_items_are_read_until_a_whole_page_is_known(pages: list[tuple[int, int]], called: int, why: str) -> None:
    progress, pages_called = newest(*pages)
    assert pages_called == list(range(1, called + 1))
    judged = judge(progress, sum(rows for rows, _ in pages), [])
    assert judged.verdict == "complete"
    assert why in judged.reason


def test_a_lost_page_ends_the_reading_of_newest_items_partial() -> None:
    progress, called = newest((20, 20), (20, 20), dead=2)
    assert called == [1, 2]
    assert judge(progress, 20, [PageFact(2, "dead", reason="417: no data")]).verdict == "partial"


def test_no_answer_at_all_is_not_taken_for_nothing_new() -> None:
    progress, _ = newest((0, 0))
    assert judge(progress, 0, []).verdict == "partial"
