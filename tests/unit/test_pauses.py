"""When nothing is sent to a source, and what is said about it."""

from datetime import UTC, datetime, timedelta

import pytest

from models.credentials import Parked
from models.fleet import WHOLE_SOURCE, Ban
from producer.pauses import clock_words, pause

NOW = datetime(2026, 5, 1, 7, 22, 18, tzinfo=UTC)
DAY = 31_062


def parked(name: str) -> Parked:
    return Parked("top", name, f"439: {name} has no money", NOW, NOW, 60)


def ban(scope: str, seconds: float) -> Ban:
    return Ban(scope, NOW + timedelta(seconds=seconds), seconds, f"7: {scope} banned")


@pytest.mark.parametrize(
    ("rests", "bans", "words"),
    [
        ([], [], None),
        ([parked("a")], [], None),
        ([], [ban("a", DAY)], None),
        ([], [ban(WHOLE_SOURCE, 5)], None),
        ([], [ban("a", DAY), ban("b", 4)], None),
        ([parked("a"), parked("b")], [], "439: a has no money; 439: b has no money. Then run `shopcrawl resume`"),
        ([parked("a"), parked("b")], [ban(WHOLE_SOURCE, DAY)], "439: a has no money; 439: b has no money. Then run"),
        ([], [ban(WHOLE_SOURCE, DAY)], "until 16:00 UTC: 7: * banned. It goes on by itself"),
        ([], [ban("a", DAY), ban("b", 71)], "until 07:24 UTC: 7: b banned"),
        ([parked("a")], [ban("b", DAY)], "until 16:00 UTC: 7: b banned"),
        ([parked("a")], [ban("a", DAY)], None),
    ],
)
def test_a_source_waits_when_none_of_its_credentials_may_be_used_soon(
    rests: list[Parked], bans: list[Ban], words: str | None
) -> None:
    found = pause(["a", "b"], rests, bans, patience=5)
    assert (found is None) == (words is None)
    assert str(found).startswith(str(words))


@pytest.mark.parametrize(("second", "words"), [(0, "16:00 UTC"), (0.3, "16:01 UTC"), (59, "16:01 UTC")])
def test_the_end_of_a_ban_is_never_told_too_early(second: float, words: str) -> None:
    assert clock_words(datetime(2026, 5, 1, 16, tzinfo=UTC) + timedelta(seconds=second)) == words
