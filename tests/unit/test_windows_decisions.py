"""Windows of time, decision by decision: where to begin, what an answer leads to, and the verdict."""

from dataclasses import replace
from datetime import datetime, timedelta
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.source import WindowRules
from models.windows import ROOT, first_slice, window_start
from producer.dispatch import from_this_end
from producer.planning.plan import Progress
from producer.planning.windows import (
    CHECK,
    COUNTING,
    DONE,
    ENDED,
    PAGING,
    PART,
    SECOND,
    SHORT,
    SPLIT,
    Answer,
    Reading,
    Slice,
    advance,
    ends_meet,
    has_moved,
    judge_windows,
    next_slice,
    verify,
)  # fmt: skip
from tests.windows_server import at

RULES = WindowRules(reach=100, margin=timedelta(minutes=2), overlap=timedelta(minutes=10))
READING = Reading(RULES, size=5, reach=100)
NOW = datetime.fromisoformat("2026-03-01T12:00:00+00:00")


def part(**fields: Any) -> Slice:
    """Slice 1: a whole round of the seconds 0 to 999, in its first call."""
    return replace(Slice(1, 1, ROOT, at(999), at(0)), **fields)


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(196, 10**6), st.integers(0, 10**6))
def test_the_halves_of_a_window_cover_it(start: int, seconds: int, rows: int, left_rows: int) -> None:
    whole = part(start_at=at(start), end_at=at(start + seconds))
    step = advance(whole, Answer(1, rows), READING)
    if seconds == 0:
        assert (step.slice.state, step.slice.cursor, step.slice.behind, step.opened) == (PAGING, 20, 20, ())
        return
    assert (step.slice.state, step.slice.remaining, step.slice.total_first) == (SPLIT, 0, rows)
    (left,) = step.opened
    assert left.start_at == at(start) <= left.end_at < whole.end_at
    right = advance(replace(left, number=2), Answer(1, min(rows, left_rows)), READING).opened
    if left_rows >= rows:
        assert all(each.end_at <= left.end_at for each in right), "what is known to be empty costs no call"
        return
    later = [each for each in right if each.start_at and each.start_at >= left.end_at]
    border = left.end_at if left.start_at != left.end_at else left.end_at + SECOND
    assert later[0].start_at == border
    assert (later[0].rest_end or later[0].end_at) == whole.end_at
    assert sum(each.expected or 0 for each in later) in {0, rows - left_rows}


def test_a_window_without_a_beginning_keeps_all_that_is_older() -> None:
    whole = part(start_at=None, end_at=NOW)
    while whole.state != PAGING:
        step = advance(whole, Answer(1, 10**6), READING)
        assert step.slice.start_at is None
        whole = replace(step.opened[0], number=2) if step.opened else step.slice
    assert whole.end_at == RULES.earliest
    ended = replace(whole, state=ENDED, total_last=10**6)
    assert verify(ended, {}, {}, READING).by_category, "no time is left to halve"


@pytest.mark.parametrize(
    ("before", "answer", "state", "cursor"),
    [
        (part(), Answer(1, 0), ENDED, 0),
        (part(), Answer(1, 5), ENDED, 0),
        (part(), Answer(1, 12), PAGING, 3),
        (part(), Answer(1, 100), PAGING, 20),
        (part(), Answer(1, 175), PAGING, 20),
        (part(), Answer(1, 176), SPLIT, 0),
        (part(cursor=3, expected=14), Answer(3, 14), PAGING, 2),
        (part(cursor=3, expected=14), Answer(3, 7), PAGING, 2),
        (part(cursor=3, expected=14), Answer(3, 4), PAGING, 1),
        (part(cursor=3, expected=14), Answer(3, 0), ENDED, 0),
        (part(cursor=3, expected=14), Answer(3, 25), PAGING, 5),
        (part(state=PAGING, cursor=4, total_first=20), Answer(4, 20), PAGING, 3),
        (part(state=PAGING, cursor=4, total_first=20), Answer(4, 8), PAGING, 2),
        (part(state=PAGING, cursor=1, total_first=20), Answer(1, 20), ENDED, 0),
        (part(state=PAGING, cursor=2, kept_page=1, kept_total=20), Answer(2, 20), ENDED, 0),
        (part(state=PAGING, cursor=2, kept_page=1, kept_total=20), Answer(2, 19), PAGING, 1),
        (part(state=PAGING, cursor=1, behind=4), Answer(1, 110), PAGING, -4),
        (part(state=PAGING, cursor=-4, behind=4), Answer(-4, 110), PAGING, -3),
        (part(state=PAGING, cursor=-4, behind=4), Answer(-4, 9), PAGING, -2),
        (part(state=PAGING, cursor=-1, behind=4), Answer(-1, 110), ENDED, 0),
        (part(state=PAGING, cursor=4, total_last=20), Answer(4, lost=True, reason="x"), PAGING, 3),
        (part(), Answer(1, lost=True, reason="x"), SHORT, 0),
        (part(state=PAGING, cursor=20, behind=7), Answer(20, too_far=True), COUNTING, 1),
        (part(state=PAGING, cursor=26, total_first=140), Answer(26, 140), COUNTING, 1),
        (part(state=PAGING, cursor=1, behind=21, total_first=140), Answer(1, 140), COUNTING, 1),
        (part(kind=CHECK), Answer(1, 7), DONE, 0),
        (part(kind=CHECK), Answer(1, lost=True, reason="x"), SHORT, 0),
    ],
)
def test_what_follows_from_an_answer(before: Slice, answer: Answer, state: str, cursor: int) -> None:
    after = advance(before, answer, READING).slice
    assert (after.state, after.cursor, after.calls) == (state, cursor, before.calls + 1)
    assert (after.lost, after.reason) == ((1, f"page {abs(answer.page)}: x") if answer.lost else (0, None))


def places(*keys: int) -> dict[int, int]:
    return {key: place for place, key in enumerate(keys)}


@pytest.mark.parametrize(
    ("before", "forward", "backward", "state"),
    [
        (part(total_first=3, total_last=3), places(1, 2, 3), {}, DONE),
        (part(total_first=4, total_last=3), places(1, 2, 3), {}, DONE),
        (part(total_first=0, total_last=0), {}, {}, DONE),
        (part(total_first=4, total_last=4), places(1, 2, 3), {}, COUNTING),
        (part(total_first=4, total_last=4, turn=2), places(1, 2, 3), {}, COUNTING),
        (part(total_first=4, total_last=4, turn=3), places(1, 2, 3), {}, SHORT),
        (part(total_first=3, total_last=3, lost=1), places(1, 2, 3), {}, SHORT),
        (part(total_first=6, total_last=5, behind=2), places(1, 2, 3, 4), places(5, 4, 3, 2), DONE),
        (part(total_first=5, total_last=4, behind=2), places(1, 2, 3), places(4, 2, 3), SPLIT),
        (part(total_first=5, total_last=5, behind=2), places(1, 2, 3), places(5, 3, 2), SPLIT),
        (part(total_first=5, total_last=5, behind=2, end_at=at(0)), places(1, 2, 3), places(5, 3, 2), SPLIT),
        (part(total_first=5, total_last=5, behind=2, end_at=at(0), cid="7"), places(1, 2), places(5, 2), SHORT),
    ],
)
def test_what_follows_from_what_a_slice_showed(
    before: Slice, forward: dict[int, int], backward: dict[int, int], state: str
) -> None:
    step = verify(replace(before, state=ENDED), forward, backward, READING)
    assert step.slice.state == state
    assert step.by_category == (state == SPLIT and before.start_at == before.end_at)
    assert bool(step.opened) == (state == SPLIT and not step.by_category)


@given(st.lists(st.integers(1, 4), min_size=2, max_size=8), st.randoms(), st.data())
def test_ends_that_are_found_to_meet_leave_nothing_between_them(
    sizes: list[int], random: Random, data: st.DataObject
) -> None:
    rows = [(second, tie) for second, size in enumerate(sizes) for tie in range(size)]
    other = sorted(rows, key=lambda row: (-row[0], row[1]))
    key = {row: number for number, row in enumerate(rows)}
    one, two = (data.draw(st.integers(0, len(rows))) for _ in range(2))
    forward, backward = places(*(key[row] for row in rows[:one])), places(*(key[row] for row in other[:two]))
    assert ends_meet(forward, backward, 0) <= (len(forward | backward) == len(rows))
    reversed_ = places(*(key[row] for row in rows[::-1][:two]))
    assert ends_meet(forward, reversed_, 0) == (one + two >= len(rows) + 2)
    assert not ends_meet(forward, reversed_, len(rows))


DONE_ROOT = part(state=DONE, total_first=9, total_last=9)
MOVED_ROOT = part(state=DONE, total_first=9, total_last=8)
SPLIT_ROOT = part(state=SPLIT, total_first=9, total_last=9)
CHECKED = part(number=2, kind=CHECK, state=DONE, total_first=9, total_last=9)
MOVED_CHECK = part(number=2, kind=CHECK, state=DONE, total_first=8, total_last=8)
LOST_CHECK = part(number=2, kind=CHECK, state=SHORT, lost=1)
MOVED_PART = part(number=2, kind=PART, state=DONE, total_first=5, total_last=4)


@pytest.mark.parametrize(
    ("slices", "kind", "round_"),
    [
        ([DONE_ROOT], None, 0),
        ([MOVED_ROOT], ROOT, 2),
        ([SPLIT_ROOT], CHECK, 1),
        ([SPLIT_ROOT, CHECKED], None, 0),
        ([CHECKED, SPLIT_ROOT], None, 0),
        ([SPLIT_ROOT, MOVED_CHECK], ROOT, 2),
        ([SPLIT_ROOT, LOST_CHECK], None, 0),
        ([SPLIT_ROOT, MOVED_PART], ROOT, 2),
        ([MOVED_ROOT, replace(DONE_ROOT, round=2)], None, 0),
        ([MOVED_ROOT, replace(MOVED_ROOT, round=7)], ROOT, 8),
        ([MOVED_ROOT, replace(MOVED_ROOT, round=8)], None, 0),
    ],
)
def test_what_is_opened_when_all_slices_have_ended(slices: list[Slice], kind: str | None, round_: int) -> None:
    following = next_slice(slices, NOW.replace(microsecond=7), RULES)
    if kind is None:
        assert following is None
    else:
        assert following is not None
        span = (at(999), NOW) if kind == ROOT else (at(0), at(999))
        assert (following.kind, following.round, following.start_at, following.end_at) == (kind, round_, *span)
        assert (following.number, following.state, following.cursor) == (0, COUNTING, 1)
    assert has_moved(slices) == (kind == ROOT or slices[-1].round == 8)


def test_a_round_never_ends_before_it_begins() -> None:
    following = next_slice([part(state=DONE, total_first=9, total_last=8, end_at=NOW)], NOW - SECOND, RULES)
    assert following is not None
    assert following.start_at == following.end_at == NOW


def progress(**fields: Any) -> Progress:
    given: dict[str, Any] = {"planned": 9, "max_pages": 100, "asked_size": 5, "pages_done": 9, **fields}
    return Progress(**given)


ROUND_2 = replace(DONE_ROOT, number=3, round=2)


@pytest.mark.parametrize(
    ("now", "slices", "distinct", "verdict", "words"),
    [
        (progress(), [DONE_ROOT], 9, "complete", "9 items in 1 window"),
        (progress(), [SPLIT_ROOT, CHECKED, MOVED_PART, MOVED_PART, ROUND_2], 9, "complete", "9 items in 3 windows"),
        (progress(refusal="422: no"), [DONE_ROOT], 9, "failed", "422: no"),
        (progress(pages_done=0, pages_dead=1), [LOST_CHECK], 0, "failed", "no page could be had"),
        (progress(max_pages=9), [part(state=PAGING)], 9, "partial", "stopped at the limit of 9 pages"),
        (progress(max_pages=9, pages_done=8, pages_dead=1), [part()], 9, "partial", "stopped at the limit of 9"),
        (progress(max_pages=9), [DONE_ROOT], 9, "complete", ""),
        (progress(pages_dead=1), [SPLIT_ROOT, LOST_CHECK], 9, "partial", "1 of 10 pages could not be had"),
        (progress(), [DONE_ROOT], 8, "drifted", "8 items in 1 window, 1 more were announced and never shown"),
        (progress(), [DONE_ROOT], 7, "partial", "2 more were announced"),
        (progress(), [part(state=SHORT, total_first=500, total_last=500, missing=5)], 495, "partial", "5 more"),
        (progress(), [part(state=SHORT, total_first=500, total_last=500, missing=4)], 496, "drifted", "4 more"),
        (progress(), [replace(MOVED_ROOT, state=SHORT, missing=1), ROUND_2], 15, "drifted", "1 more"),
        (progress(), [MOVED_ROOT, replace(MOVED_ROOT, round=8)], 9, "drifted", "still being edited after 8 rounds"),
        (progress(), [MOVED_ROOT], 9, "drifted", "still being edited after 1 rounds"),
    ],
)
def test_the_verdict_on_windows(now: Progress, slices: list[Slice], distinct: int, verdict: str, words: str) -> None:
    judged = judge_windows(now, slices, distinct)
    assert judged.verdict == verdict
    assert words in judged.reason


def test_a_second_read_by_category_misses_what_no_category_has() -> None:
    second = part(number=2, kind=PART, start_at=at(999), state=SPLIT, total_first=90, total_last=90, missing=30)
    known = [
        replace(second, number=n, cid=str(n), state=DONE, total_first=count, missing=0)
        for n, count in ((3, 50), (4, 38))
    ]
    everything = [SPLIT_ROOT, second, *known, *(replace(each, number=each.number + 4) for each in known), ROUND_2]
    assert "88 items in 5 windows, 2 more were announced" in judge_windows(progress(), everything, 88).reason
    assert "60 items in 1 window, 30 more" in judge_windows(progress(), [SPLIT_ROOT, second, ROUND_2], 60).reason
    full = [replace(known[0], total_first=52), *everything]
    assert (
        judge_windows(progress(), [full[0], *(s for s in everything if s.number not in {3, 7})], 90).verdict
        == "complete"
    )


MARK = NOW - timedelta(days=3)


@pytest.mark.parametrize(
    ("since", "watermark", "start"),
    [
        (None, None, None),
        (None, MARK, None),
        ("last", None, None),
        ("last", MARK, MARK - RULES.overlap),
        ("24h", MARK, NOW - timedelta(days=1)),
        ("2026-02-01T00:00:00+00:00", None, datetime.fromisoformat("2026-02-01T00:00:00+00:00")),
        ("2026-02-01T08:00:00.5+08:00", None, datetime.fromisoformat("2026-02-01T00:00:00+00:00")),
        ("1999-01-01T00:00:00+00:00", None, None),
        ("999999w", None, None),
    ],
)
def test_where_a_crawl_begins(since: str | None, watermark: datetime | None, start: datetime | None) -> None:
    assert window_start(since, watermark, RULES, NOW) == start
    first = first_slice({"since": since}, watermark, RULES, NOW.replace(microsecond=9))
    assert (first["start_at"], first["end_at"]) == (start, NOW - RULES.margin)
    assert (first["number"], first["round"], first["kind"], first["state"], first["cursor"]) == (
        1,
        1,
        ROOT,
        COUNTING,
        1,
    )


@pytest.mark.parametrize("since", ["5s", "2026-03-01T11:59:00+00:00", "2027-01-01T00:00:00+00:00"])
def test_a_crawl_never_begins_after_its_end(since: str) -> None:
    first = first_slice({"since": since}, None, RULES, NOW)
    assert first["start_at"] == first["end_at"] == NOW - RULES.margin


@pytest.mark.parametrize(
    ("order", "number", "turned"),
    [
        ("modified:asc", 3, "modified:asc"),
        ("modified:asc", -3, "modified:desc"),
        ("num:desc", -1, "num:asc"),
        ("time_up", -1, "time_up"),
    ],
)
def test_a_page_from_the_other_end_turns_the_order_round(order: str, number: int, turned: str) -> None:
    options = {"order_by": order, "q": "x"}
    assert from_this_end(options, number) == {"order_by": turned, "q": "x"}
    assert options["order_by"] == order
    assert from_this_end({"q": "x"}, number) == {"q": "x"}
