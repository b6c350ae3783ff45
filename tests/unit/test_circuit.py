"""When a shop or a source opens its circuit, how long it rests, who may probe, and what a shop that is down costs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.circuits import Circuit
from models.settings import Settings
from worker.circuit import (
    CLOSED,
    PROBE_WAIT,
    REST_SPREAD,
    Rules,
    Stop,
    after_fault,
    after_good,
    after_stop,
    let_go,
    obey,
    rules_for,
    stop_for,
    taken,
)
from worker.retry import Dead, Decision, PutBack, WaitHere

SHOP = Rules(answers=8, share=0.6, shops=1, first=60_000, longest=3_600_000, probes=5)
SOURCE = Rules(answers=50, share=0.8, shops=10, first=60_000, longest=3_600_000, probes=0)
LEASE = 120_000
HELD_UP = Stop(60, "417: no", whole_source=False)


def answered(answers: str, rules: Rules = SHOP, shops: int = 1) -> Circuit:
    """The circuit after these answers, `x` a failed one, of so many shops in turn."""
    circuit, goods, failed = CLOSED, 0, 0
    for answer in answers:
        if answer == ".":
            goods += 1
            continue
        circuit = after_fault(circuit, 1 + failed % shops, goods, "page", 1_000, 0, rules)
        goods, failed = 0, failed + 1
    return circuit


def opened(level: int = 1, rules: Rules = SHOP) -> Circuit:
    """A circuit whose probes have failed `level - 1` times, at the end of its rest."""
    circuit = Circuit(recent=(1,) * 8, level=1, until=0)
    for _ in range(level - 1):
        circuit = failed_probe(circuit, rules)
    return circuit


def failed_probe(circuit: Circuit, rules: Rules = SHOP, random: float = 0) -> Circuit:
    now = circuit.until
    return after_fault(taken(circuit, "probe", now, LEASE), 1, 0, "probe", now, random, rules)


@pytest.mark.parametrize(
    ("answers", "level"),
    [
        ("xxxxxxx", 0),  # too few answers
        ("xxxxxxxx", 1),
        ("x...xxxx", 1),  # five of eight
        ("x....xxxx", 0),  # five of nine
        ("." * 1000 + "xxxxxxxxx", 0),  # of the newest sixteen
        ("." * 1000 + "xxxxxxxxxx", 1),
        ("xx........" * 50, 0),  # a fifth fails all the time
        ("", 0),
    ],
)
def test_a_shop_rests_once_most_of_its_newest_answers_failed(answers: str, level: int) -> None:
    assert answered(answers).level == level


@pytest.mark.parametrize(
    ("answers", "shops", "level"),
    [
        ("x" * 49, 10, 0),
        ("x" * 50, 10, 1),
        ("x" * 50, 9, 0),  # that may be these shops alone
        ("xxxx." * 10 + "x", 10, 1),
        ("xxx." * 100, 10, 0),
    ],
)
def test_a_source_rests_once_nearly_all_answers_for_many_shops_failed(answers: str, shops: int, level: int) -> None:
    assert answered(answers, SOURCE, shops).level == level


def test_a_circuit_without_answers_to_judge_by_never_opens_and_remembers_nothing() -> None:
    assert answered("x" * 100, Rules(0, 0.1, 1, 1, 1, 1)) == CLOSED


def test_rests_double_up_to_the_longest_with_up_to_a_quarter_more() -> None:
    rests, circuit = [], opened()
    for _ in range(80):
        after = failed_probe(circuit, SOURCE)
        rests.append((after.until - circuit.until) / 1000)
        circuit = after
    assert rests[:6] == [120, 240, 480, 960, 1920, 3600]
    assert set(rests[6:]) == {3600}
    assert failed_probe(opened(), random=0.999).until == pytest.approx(150_000, rel=0.01)


def test_only_one_page_probes_and_the_others_ask_again() -> None:
    circuit = opened()
    assert stop_for(circuit, "a", 0, whole_source=False) is None
    circuit = taken(circuit, "a", 0, LEASE)
    assert stop_for(circuit, "a", 1, whole_source=False) is None
    held_up = stop_for(circuit, "b", 1, whole_source=False)
    assert held_up is not None
    assert held_up.seconds == PROBE_WAIT
    assert taken(circuit, "a", 50_000, LEASE) == circuit, "asking again makes a probe no longer"
    assert stop_for(circuit, "b", LEASE + 1, whole_source=False) is None, "a probe that died holds nobody up"


def test_a_resting_shop_stops_everybody_until_its_rest_ends() -> None:
    circuit = failed_probe(opened())
    for holder in ("probe", "another"):
        held_up = stop_for(circuit, holder, 0, whole_source=False)
        assert held_up is not None
        assert held_up.seconds == 120


def test_a_good_probe_closes_and_answers_to_earlier_calls_change_nothing() -> None:
    circuit = taken(opened(3), "probe", 10**6, LEASE)
    assert after_good(circuit, "probe") == CLOSED
    assert after_good(circuit, "earlier") == circuit
    assert after_fault(circuit, 1, 5, "earlier", 10**6, 0, SHOP) == circuit
    assert let_go(circuit, "earlier") == circuit


def test_a_probe_without_an_answer_leaves_its_place_to_the_next() -> None:
    circuit = let_go(taken(opened(), "probe", 0, LEASE), "probe")
    assert circuit == opened()
    assert stop_for(circuit, "next", 0, whole_source=False) is None


def test_a_shop_is_given_up_after_as_many_failed_probes_as_a_page_has_tries_and_a_source_never() -> None:
    circuit = opened(5)
    assert (circuit.level, circuit.given_up) == (5, False)
    circuit = failed_probe(circuit)
    held_up = stop_for(circuit, "probe", 10**12, whole_source=False)
    assert held_up is not None
    assert held_up.given_up
    assert "shop rested 5 times" in held_up.reason
    assert not opened(50, SOURCE).given_up


@pytest.mark.parametrize(
    ("decision", "stop", "expected"),
    [
        (WaitHere(2), None, WaitHere(2)),
        (WaitHere(2), HELD_UP, PutBack(60 + REST_SPREAD / 2, burns_try=True)),
        (PutBack(9, burns_try=True), HELD_UP, PutBack(60 + REST_SPREAD / 2, burns_try=True)),
        (WaitHere(2), Stop(60, "", whole_source=True), PutBack(60 + REST_SPREAD / 2, burns_try=False)),
        (WaitHere(2), Stop(0, "", whole_source=False, given_up=True), PutBack(0, burns_try=True)),
        (Dead("tries used up"), HELD_UP, Dead("tries used up")),
    ],
)
def test_a_page_whose_shop_rests_waits_no_shorter_unless_it_is_dead(
    decision: Decision, stop: Stop | None, expected: Decision
) -> None:
    assert obey(decision, stop, 0.5) == expected


def test_pages_come_back_spread_out() -> None:
    assert [after_stop(HELD_UP, chance) for chance in (0, 0.5)] == [60, 60 + REST_SPREAD / 2]


def test_the_settings_make_the_rules() -> None:
    source, shop = rules_for(Settings(sticky_rest=2, sticky_rest_cap=8, max_tries=3, _env_file=None))  # type: ignore[call-arg]
    assert shop == Rules(8, 0.6, 1, 2_000, 8_000, 3)
    assert source == Rules(50, 0.8, 10, 2_000, 8_000, 0)


@given(pages=st.integers(1, 400), in_flight=st.integers(1, 60), tries=st.integers(1, 8), answers=st.integers(1, 12))
def test_a_shop_that_is_down_for_good_costs_a_bounded_number_of_calls(
    pages: int, in_flight: int, tries: int, answers: int
) -> None:
    """However many pages it has: those in flight while it is found out, and one for each rest."""
    rules = Rules(answers, 0.6, 1, 60_000, 3_600_000, tries)
    circuit, now, calls = CLOSED, 0.0, 0
    waiting = [(number, 0) for number in range(pages)]
    while waiting:
        out: list[tuple[int, int]] = []
        later: list[tuple[int, int]] = []
        for number, used in waiting:
            held_up = stop_for(circuit, str(number), now, whole_source=False)
            if held_up is None and len(out) < in_flight:
                circuit = taken(circuit, str(number), now, LEASE)
                out.append((number, used))
            elif held_up is None or not held_up.given_up:
                later.append((number, used))
        for number, used in out:
            calls += 1
            circuit = after_fault(circuit, 7, 0, str(number), now, 0, rules)
            if used + 1 < tries:
                later.append((number, used + 1))
        waiting = later
        now = max(now + 1, circuit.until)
    assert calls <= min(answers - 1 + in_flight + tries, pages * tries)
