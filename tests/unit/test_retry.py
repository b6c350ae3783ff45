"""The reaction to every kind of failure, as a table and as properties."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import (
    BannedError,
    CredentialParkedError,
    FetchError,
    PageRefusedError,
    ShopRefusedError,
    ShopUnauthorisedError,
    SourceStoppedError,
    ThrottledError,
    TransientError,
)
from models.settings import Settings
from worker.retry import (
    THROTTLES_IN_A_ROW,
    Dead,
    Decision,
    FailShop,
    Hold,
    ObeyBan,
    ParkCredential,
    PutBack,
    StopSource,
    WaitHere,
    after_ban,
    decide,
)


def settings(**changes: float) -> Settings:
    values: dict[str, Any] = {"_env_file": None, "max_tries": 5, "retry_base": 0.5, "retry_cap": 60, "inline_wait": 5}
    return Settings(**{**values, **changes})


SETTINGS = settings()


def transient(pause: float | None = None) -> FetchError:
    return TransientError("417", "no data", retry_after=pause)


def throttled(pause: float | None = None) -> FetchError:
    return ThrottledError("503", "too many", retry_after=pause)


def banned(seconds: float = 31_062) -> FetchError:
    return BannedError("7", "enough", seconds=seconds)


TABLE: list[tuple[str, FetchError, int, int, float, Decision]] = [
    ("first fault, short jitter", transient(), 1, 0, 0.5, WaitHere(0.25)),
    ("back-off doubles", transient(), 4, 0, 0.5, WaitHere(2.0)),
    ("the last try is the end", transient(), 5, 0, 0.5, Dead("417: no data (after 5 tries)")),
    ("past the last try as well", transient(), 9, 0, 0.5, Dead("417: no data (after 9 tries)")),
    ("the server's pause is honoured", transient(3.0), 1, 0, 0.0, WaitHere(3.0)),
    ("a long pause goes to the ledger", transient(90.0), 1, 0, 0.0, PutBack(90.0, burns_try=True)),
    ("a pause does not revive a dead page", transient(90.0), 5, 0, 0.0, Dead("417: no data (after 5 tries)")),
    ("first throttle", throttled(), 0, 1, 0.0, WaitHere(0.25)),
    ("throttles grow", throttled(), 0, 4, 1.0, WaitHere(4.0)),
    ("throttles stay inside the task", throttled(), 0, 9, 1.0, WaitHere(5.0)),
    ("ten throttles in a row give up the slot", throttled(), 0, 10, 1.0, PutBack(60.0, burns_try=False)),
    ("throttles never kill", throttled(), 99, 99, 0.0, PutBack(30.0, burns_try=False)),
    ("a long pause gives up the slot at once", throttled(30.0), 0, 1, 0.0, PutBack(30.0, burns_try=False)),
    ("no money", CredentialParkedError("439", "balance"), 9, 9, 0.5, ParkCredential("439: balance")),
    ("a short ban", banned(2), 9, 1, 0.5, ObeyBan("7: enough")),
    ("a long ban", banned(), 9, 9, 0.5, ObeyBan("7: enough")),
    ("banned ten times in a row", banned(2), 9, 10, 0.0, PutBack(30.0, burns_try=False)),
    ("wrong address", SourceStoppedError("404", "no Route"), 9, 9, 0.5, StopSource("404: no Route")),
    ("bad shop", ShopRefusedError("422", "bad member"), 1, 0, 0.5, FailShop("422: bad member")),
    ("no session", ShopUnauthorisedError("27", "expired"), 9, 9, 0.5, Hold("27: expired")),
    ("bad page", PageRefusedError("41", "page"), 1, 0, 0.5, Dead("41: page")),
    ("an unnamed failure is a fault", FetchError("x", "y"), 1, 0, 1.0, WaitHere(0.5)),
]


@pytest.mark.parametrize(("error", "tries", "throttles", "random", "expected"), [row[1:] for row in TABLE],
                         ids=[row[0] for row in TABLE])  # fmt: skip
def test_reaction(error: FetchError, tries: int, throttles: int, random: float, expected: Decision) -> None:
    assert decide(error, tries=tries, throttles=throttles, settings=SETTINGS, random=random) == expected


def test_without_inline_waiting_every_pause_goes_to_the_ledger() -> None:
    patient = settings(inline_wait=0)
    fault = decide(transient(), tries=1, throttles=0, settings=patient, random=0.9)
    throttle = decide(throttled(), tries=0, throttles=1, settings=patient, random=0.0)
    assert fault == PutBack(pytest.approx(0.45), burns_try=True)  # type: ignore[arg-type]
    assert throttle == PutBack(0.25, burns_try=False)


counts = st.integers(0, 10**6)
jitter = st.floats(0, 1, exclude_max=True)
pauses = st.none() | st.floats(0, 86_400)


@given(tries=counts, random=jitter, pause=pauses, base=st.floats(0.01, 100), cap=st.floats(0.01, 1000))
def test_faults_are_bounded_in_number_and_in_time(
    tries: int, random: float, pause: float | None, base: float, cap: float
) -> None:
    chosen = settings(retry_base=base, retry_cap=cap)
    decision = decide(transient(pause), tries=tries, throttles=0, settings=chosen, random=random)
    assert isinstance(decision, Dead) == (tries >= chosen.max_tries)
    if isinstance(decision, (WaitHere, PutBack)):
        assert (pause or 0) <= decision.delay <= max(cap, pause or 0)
        assert isinstance(decision, WaitHere) == (decision.delay <= chosen.inline_wait)


@given(tries=counts, throttles=counts, random=jitter, pause=pauses, inline=st.floats(0, 60))
def test_throttles_never_burn_a_try_and_never_spin(
    tries: int, throttles: int, random: float, pause: float | None, inline: float
) -> None:
    chosen = settings(inline_wait=inline)
    decision = decide(throttled(pause), tries=tries, throttles=throttles, settings=chosen, random=random)
    assert isinstance(decision, (WaitHere, PutBack))
    assert (pause or 0) <= decision.delay <= max(chosen.retry_cap, pause or 0)
    assert decision.delay >= min(inline or 60, chosen.retry_base) / 2
    if isinstance(decision, WaitHere):
        assert decision.delay <= inline
        assert throttles < THROTTLES_IN_A_ROW
    else:
        assert not decision.burns_try


@given(random=jitter, seconds=st.floats(0, 100_000))
def test_pages_come_back_after_a_ban_and_not_all_at_once(random: float, seconds: float) -> None:
    assert seconds <= after_ban(seconds, random) <= seconds + 2


@given(tries=st.integers(1, 3), random=jitter, make=st.sampled_from([transient, throttled]))
def test_pauses_grow_with_each_failure_in_a_row(tries: int, random: float, make: Any) -> None:
    first = decide(make(), tries=tries, throttles=tries, settings=SETTINGS, random=random)
    later = decide(make(), tries=tries + 1, throttles=tries + 1, settings=SETTINGS, random=random)
    assert isinstance(first, (WaitHere, PutBack)) and isinstance(later, (WaitHere, PutBack))
    assert first.delay <= later.delay
