"""What a process knows of bans, and whom it tells not to wait."""

import pytest

from models.source import Credential, Limits
from worker.bans import LONGEST_BAN, AllBanned, Bans, refusal
from worker.permits import AllParked, Lane

LIMITS = Limits(rate=0, start=4, floor=1, ceiling=8)
DAY, SHORT = "7: enough for today", "7: slow down"


def lane(name: str, parked: str = "") -> Lane:
    made = Lane(Credential(name, "canary"), LIMITS, lambda: 0.0, lambda _: None)
    made.parked = parked
    return made


def banned(**seconds: float) -> Bans:
    """Bans by scope, `all` for every credential, learnt at time 100."""
    bans = Bans()
    for scope, left in seconds.items():
        bans.learn("*" if scope == "all" else scope, left, DAY, 100)
    return bans


def test_a_longer_ban_is_never_shortened_and_a_shorter_one_is_not_told() -> None:
    bans = banned(one=60)
    assert not bans.learn("one", 5, SHORT, 100)
    assert bans.over("one") == (160, DAY)
    assert bans.call(100) == [("one", 60_000, DAY)]
    assert bans.over("two") is None


def test_the_longest_ban_over_a_credential_counts() -> None:
    bans = banned(one=60, all=90)
    assert bans.over("one") == bans.over("two") == (190, DAY)
    assert bans.next_end() == 160


@pytest.mark.parametrize(("said", "kept"), [(-1, 0), (0, 0), (31_062, 31_062), (10**18, LONGEST_BAN)])
def test_no_misprint_silences_a_source_for_ever(said: float, kept: float) -> None:
    assert banned(one=said).over("one") == (100 + kept, DAY)


def test_a_ban_stays_in_force_until_redis_says_that_it_is_over() -> None:
    bans = banned(one=5)
    bans.call(100)
    bans.apply([("one", 4990.0, DAY)], 100, forgotten=False)
    assert not bans.untold
    assert bans.over("one") == (104.99, DAY)
    bans.call(106)
    assert bans.over("one")
    bans.apply([], 106, forgotten=False)
    assert bans.over("one") is None


def test_what_is_learnt_during_a_call_is_told_by_the_next_one() -> None:
    bans = banned(one=5)
    bans.call(100)
    bans.learn("one", 60, DAY, 100)
    bans.learn("*", 7, SHORT, 100)
    bans.apply([("one", 5000.0, DAY)], 100, forgotten=False)
    assert bans.over("one") == (160, DAY)
    assert sorted(bans.call(100)) == [("*", 7000, SHORT), ("one", 60_000, DAY)]


@pytest.mark.parametrize(("forgotten", "kept"), [(True, True), (False, False)])
def test_a_ban_is_told_again_to_an_emptied_redis_but_not_to_an_operator_who_lifted_it(
    forgotten: bool, kept: bool
) -> None:
    bans = banned(one=60, all=5)
    bans.call(100)
    bans.apply([("one", 60_000.0, DAY), ("*", 5000.0, DAY)], 100, forgotten=False)
    bans.call(110)
    bans.apply([], 110, forgotten=forgotten)
    assert bans.untold is kept
    assert bans.call(110) == ([("one", 50_000, DAY)] if kept else [])
    assert (bans.over("two"), bool(bans.over("one"))) == (None, kept)


@pytest.mark.parametrize(
    ("bans", "parked", "only", "seconds"),
    [
        ({}, "", None, None),
        ({"all": 4}, "", None, None),
        ({"all": 60}, "", None, 60),
        ({"one": 60}, "", None, None),
        ({"one": 60, "two": 40}, "", None, 40),
        ({"one": 60, "all": 40}, "", None, 40),
        ({"one": 60, "two": 4}, "", None, None),
        ({"one": 60}, "439: no money", None, 60),
        ({"two": 60}, "439: no money", None, None),
        ({"two": 60}, "439: no money", "two", 60),
        ({"one": 60}, "439: no money", "two", None),
    ],
)
def test_only_a_long_ban_of_all_that_may_be_used_is_not_waited_for(
    bans: dict[str, float], parked: str, only: str | None, seconds: float | None
) -> None:
    lanes = [lane("one"), lane("two", parked)]
    usable = [each for each in lanes if only in {each.name, None}]
    error = refusal(usable, banned(**bans), only, patience=5, now=100)
    assert (error.seconds if isinstance(error, AllBanned) else error) == seconds


def test_parks_are_told_before_bans_and_reasons_name_every_credential() -> None:
    both = [lane("one", "439: no money"), lane("two", "401: unknown")]
    error = refusal(both, banned(all=60), None, patience=5, now=100)
    assert isinstance(error, AllParked) and error.reasons == {"one": "439: no money", "two": "401: unknown"}
    mixed = refusal([both[0], lane("three")], banned(all=60), None, patience=5, now=100)
    assert isinstance(mixed, AllBanned) and mixed.reasons == {"one": "439: no money", "three": DAY}
    assert refusal([], banned(all=60), None, patience=5, now=100) is None
