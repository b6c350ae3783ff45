"""The speed of work is told from the times of its calls, and pauses do not count."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.speed import LONGEST_GAP, possible, speed

START = datetime(2026, 5, 1, tzinfo=UTC)


def calls(*seconds: float, good: bool = True) -> list[tuple[datetime, bool]]:
    return [(START + timedelta(seconds=each), good) for each in seconds]


def steady(count: int, per_second: float, start: float = 0) -> list[tuple[datetime, bool]]:
    return calls(*(start + number / per_second for number in range(count)))


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        ([], None),
        (steady(1, 1), None),
        (steady(20, 1), None),  # one page fewer than are needed between them
        (steady(21, 1), 1),
        (steady(1000, 50), 50),
        (steady(500, 10) + steady(500, 10, start=3600), 10),  # an hour's pause
        (steady(500, 10) + steady(500, 10, start=9 * 3600) + calls(-86_400), 10),
        (calls(*[5.0] * 100), None),  # all at once: no time has passed
        (steady(100, 10) + calls(*(n / 10 + 0.05 for n in range(100)), good=False), 10),  # refusals take their time too
    ],
)
def test_pages_per_second_of_working_time(made: list[tuple[datetime, bool]], expected: float | None) -> None:
    found = speed(made)
    assert (found and found.per_second) == (expected and pytest.approx(expected, rel=0.01))


def test_the_newest_call_and_their_number_are_told() -> None:
    found = speed(steady(100, 10)[::-1])
    assert found is not None
    assert (found.calls, found.newest) == (100, START + timedelta(seconds=9.9))


@given(st.lists(st.floats(0, 1e5), max_size=60), st.integers(30, 90), st.floats(0.2, 100))
def test_the_order_of_calls_and_a_pause_change_nothing(before: list[float], count: int, per_second: float) -> None:
    made = steady(count, per_second)
    alone = speed(made)
    pause = made[-1][0] + LONGEST_GAP + timedelta(seconds=1)
    assert speed(made[::-1]) == alone
    with_pause = speed([*made, (pause, True)])
    assert (with_pause and with_pause.per_second) == (alone and alone.per_second)
    found = speed([*made, *calls(*before)])
    assert found is None or found.per_second > 0


@pytest.mark.parametrize(
    ("per_second", "in_flight", "limit", "expected"),
    [
        (100, 20, 40, 200),
        (100, 40, 40, 100),
        (100, 41, 40, 100),  # a limit that has just been cut
        (100, 0, 40, None),
        (100, 20, 0, None),
        (0, 20, 40, 0),
    ],
)
def test_what_a_limit_allows_follows_from_what_is_in_flight(
    per_second: float, in_flight: float, limit: float, expected: float | None
) -> None:
    assert possible(per_second, in_flight, limit) == expected
