"""Times of schedules: what was missed is due once, and clock changes neither skip nor repeat a day's crawl."""

from datetime import UTC, datetime, timedelta
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import UsageError
from producer.schedules.times import cron_times, next_cron, next_interval

NOW = datetime(2026, 3, 1, 12, 0, 30, tzinfo=UTC)


def times(expression: str, zone: str, now: datetime, count: int) -> list[str]:
    return [f"{moment:%m-%d %H:%M}" for moment in islice(cron_times(expression, zone, now), count)]


@given(st.timedeltas(min_value=timedelta(days=-2), max_value=timedelta(days=400)), st.integers(60, 10**6))
def test_the_next_time_of_an_interval_is_later_than_now_by_at_most_one_interval(late: timedelta, every: int) -> None:
    last, step = NOW - late, timedelta(seconds=every)
    found = next_interval(last, step, NOW)
    assert found > NOW
    assert (found - last) % step == timedelta(0)
    assert found <= max(NOW, last) + step


def test_many_missed_intervals_are_followed_by_one_time() -> None:
    assert next_interval(NOW - timedelta(hours=25), timedelta(hours=6), NOW) == NOW + timedelta(hours=5)


def test_cron_is_read_in_its_time_zone() -> None:
    assert times("0 3 * * *", "Asia/Shanghai", NOW, 2) == ["03-01 19:00", "03-02 19:00"]
    assert times("30 */6 * * 1-5", "UTC", NOW, 3) == ["03-02 00:30", "03-02 06:30", "03-02 12:30"]


def test_an_hour_that_the_clock_skips_is_made_up_right_after_it() -> None:
    before = datetime(2026, 3, 28, 12, tzinfo=UTC)  # Berlin goes from 2:00 to 3:00 on the 29th
    assert times("30 2 * * *", "Europe/Berlin", before, 3) == ["03-29 01:00", "03-30 00:30", "03-31 00:30"]


def test_an_hour_that_comes_twice_counts_once() -> None:
    before = datetime(2026, 10, 24, 12, tzinfo=UTC)  # Berlin goes from 3:00 to 2:00 on the 25th
    first = next_cron("30 2 * * *", "Europe/Berlin", before)
    assert f"{first:%m-%d %H:%M}" == "10-25 00:30"
    assert times("30 2 * * *", "Europe/Berlin", first, 2) == ["10-26 01:30", "10-27 01:30"]
    second_run = datetime(2026, 10, 25, 1, 10, tzinfo=UTC)  # 2:10 for the second time
    assert times("30 2 * * *", "Europe/Berlin", second_run, 1) == ["10-26 01:30"]


@given(st.datetimes(datetime(2026, 1, 1), datetime(2027, 12, 31)))
def test_a_time_that_has_come_is_followed_by_a_later_one(moment: datetime) -> None:
    now = moment.replace(tzinfo=UTC)
    for expression in ("15 1,2,3 * * *", "*/20 * * * *", "0 0 29 2 *"):
        for zone in ("Europe/Berlin", "America/New_York", "Asia/Shanghai"):
            first = next_cron(expression, zone, now)
            assert now < first < next_cron(expression, zone, first)


def test_no_time_falls_on_a_whole_second() -> None:
    assert next_cron("* * * * *", "UTC", NOW).microsecond == 1


@pytest.mark.parametrize(
    ("expression", "zone", "complaint"),
    [
        ("0 3 * *", "UTC", "five fields"),
        ("0 0 3 * * *", "UTC", "five fields"),
        ("61 3 * * *", "UTC", "bad minute"),
        ("0 3 30 2 *", "UTC", "bad day-of-month"),
        ("0 3 * * *", "Mars/Base", "unknown time zone"),
        ("0 3 * * *", "../etc", "unknown time zone"),
    ],
)
def test_what_is_no_cron_expression_is_refused(expression: str, zone: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        next_cron(expression, zone, NOW)
