"""Times as people write them."""

from datetime import UTC, datetime, timedelta

import pytest

from models.durations import EPOCH, parse_moment
from models.errors import UsageError

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("24h", NOW - timedelta(hours=24)),
        (" 7d ", NOW - timedelta(days=7)),
        ("999999w", EPOCH),
        ("2026-01-31", datetime(2026, 1, 31, tzinfo=UTC)),
        ("2026-01-31 08:30", datetime(2026, 1, 31, 8, 30, tzinfo=UTC)),
        ("2026-01-31T08:30:00.25Z", datetime(2026, 1, 31, 8, 30, 0, 250_000, tzinfo=UTC)),
        ("2026-01-31T08:30:00+08:00", datetime(2026, 1, 31, 0, 30, tzinfo=UTC)),
    ],
)
def test_a_time_is_read_as_utc_and_a_duration_as_so_long_ago(text: str, moment: datetime) -> None:
    assert parse_moment(text, NOW) == moment


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01", "24", "5y", "９h", "0001-01-01T00:00:00+14:00"])
def test_what_is_no_time_is_told_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match="write it as"):
        parse_moment(text, NOW)
