"""When a schedule is due: fixed intervals, and cron expressions in a time zone."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from models.errors import UsageError

CRON_FIELDS = 5


def next_interval(last: datetime, every: timedelta, now: datetime) -> datetime:
    """The first time after `now` that is a whole number of intervals after `last`: what was missed is not repeated."""
    return last + every * max(1, (now - last) // every + 1)


def cron_times(expression: str, timezone: str, now: datetime) -> Iterator[datetime]:
    """The times after `now` at which a cron expression is due in a time zone, in UTC, possibly none.

    An hour that a clock change skips is made up right after it; one that comes twice counts once. Raises UsageError.
    """
    zone = zone_named(timezone)
    if len(expression.split()) != CRON_FIELDS:
        raise UsageError(f"cron expression {expression[:60]!r}: it needs five fields: minute hour day month weekday")
    try:
        times = CronSim(expression, now.astimezone(zone))
    except CronSimError as error:
        raise UsageError(f"cron expression {expression[:60]!r}: {str(error).lower()}") from None
    # Not on a whole second: its shorter text would sort wrongly on SQLite. In the second run of an hour that comes
    # twice the library names times of the first one.
    return (
        moment
        for moment in (found.astimezone(now.tzinfo) + timedelta(microseconds=1) for found in times)
        if moment > now
    )


def next_cron(expression: str, timezone: str, now: datetime) -> datetime:
    """The first time after `now` at which a cron expression is due. Raises UsageError, also if there is none."""
    found = next(cron_times(expression, timezone, now), None)
    if found is None:
        raise UsageError(f"cron expression {expression[:60]!r}: there is no such day")
    return found


def zone_named(name: str) -> ZoneInfo:
    """A time zone by its name. Raises UsageError."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise UsageError(f"unknown time zone {name[:40]!r}; write it as Asia/Shanghai or UTC") from None
