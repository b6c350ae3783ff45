"""What a process decides about permits on its own, between two calls to Redis."""

from typing import Any

import pytest

from models.source import Credential, Limits
from worker.limiter_call import LaneAnswer
from worker.permits import Lane


def lane(*, rate: float = 0, per_day: int = 0) -> tuple[Lane, list[bool]]:
    """A lane, and the list of what its releases reported (True: urgent)."""
    freed: list[bool] = []
    limits = Limits(rate=rate, start=4, floor=1, ceiling=8, per_day=per_day)
    return Lane(Credential("one", "canary"), limits, lambda: 1000.0, freed.append), freed


def share(quota: int, *, slots: int = 0, delay: float = 0, spacing: float = 0, **more: Any) -> LaneAnswer:
    return LaneAnswer(quota, 3, 8, 0, 1, "", slots, delay, spacing, **more)


def give(subject: Lane, answer: LaneAnswer, *, now: float = 0) -> None:
    subject.apply(subject.call(0, now), answer, deadline=now + 10, now=now)


def test_permits_end_with_the_share() -> None:
    subject, _ = lane()
    assert not subject.has_room(0)
    give(subject, share(2))
    subject.hand_out()
    assert subject.has_room(0)
    subject.hand_out()
    assert not subject.has_room(0)


def test_an_expired_lease_gives_nothing_and_reports_only_what_is_in_use() -> None:
    subject, _ = lane()
    give(subject, share(3))
    subject.hand_out()
    assert not subject.has_room(10)
    assert subject.call(0, 10).quota == 1


def test_a_refused_permit_is_retired_until_redis_answers_a_call_that_tells_of_it() -> None:
    subject, freed = lane()
    give(subject, share(2))
    first, second = subject.hand_out(), subject.hand_out()
    said = subject.call(0, 0)
    first.release(ok=False, throttled=True)
    assert freed == [True]
    subject.apply(said, share(2), deadline=10, now=0)
    assert not subject.has_room(0)
    said = subject.call(0, 0)
    assert said.throttles == [(4, 1000.0)]  # three elsewhere and itself
    subject.apply(said, share(2), deadline=10, now=0)
    assert subject.has_room(0)
    second.release(ok=True, throttled=False)
    assert (subject.ok, subject.throttles) == (1, [])


def test_what_happens_during_a_call_is_told_by_the_next_one() -> None:
    subject, _ = lane()
    give(subject, share(2))
    permit = subject.hand_out()
    said = subject.call(0, 0)
    permit.release(ok=True, throttled=False)
    subject.parked = subject.park_unsent = "no money"
    subject.apply(said, share(2), deadline=10, now=0)
    assert (subject.ok, subject.park_unsent, subject.parked) == (1, "no money", "no money")


@pytest.mark.parametrize(
    ("now", "served"),
    [(0.0, False), (0.05, True), (0.055, True), (0.0565, False), (0.07, True), (0.09, False)],
)
def test_a_rate_slot_is_used_in_time_or_lost(now: float, served: bool) -> None:
    subject, _ = lane(rate=50)
    give(subject, share(4, slots=2, delay=50, spacing=20, rate=50))
    assert subject.has_room(now) is served


def test_a_permit_shows_no_secret() -> None:
    subject, _ = lane()
    give(subject, share(1))
    assert "canary" not in repr(subject.hand_out().credential)


def test_a_limited_day_gives_as_many_permits_as_it_has_calls_left_and_none_after_its_end() -> None:
    subject, _ = lane(per_day=100)
    give(subject, share(8, calls=3, day=7, day_left=5000))
    subject.hand_out()
    assert subject.has_room(4.9)
    assert not subject.has_room(5)
    subject.hand_out()
    subject.hand_out()
    assert not subject.has_room(0)
    give(subject, share(8, calls=2, day=7, day_left=5000))
    said = subject.call(0, 0, idle=True)
    assert (said.calls, said.idle, subject.has_room(0)) == (2, True, False)


def test_calls_of_yesterday_are_worth_nothing_today() -> None:
    subject, _ = lane(per_day=100)
    give(subject, share(8, calls=3, day=7, day_left=5000))
    give(subject, share(8, calls=0, day=8, day_left=86_400_000))
    assert not subject.has_room(0)


def test_the_rate_in_force_is_the_one_that_redis_tells() -> None:
    subject, _ = lane(rate=50)
    give(subject, share(4, rate=0))
    assert subject.has_room(0)


def test_a_slow_rate_allows_for_a_slot_that_is_a_little_late() -> None:
    subject, _ = lane(rate=0.1)
    give(subject, share(4, slots=1, spacing=10_000, rate=0.1))
    assert subject.has_room(0.09)
    assert not subject.has_room(0.11)
