"""Which fate a simulated call meets, and how it is counted."""

import pytest

from tests.simulator.chance import latency_of
from tests.simulator.ledger import ATTEMPT, CALL, DELIVERY, Ledger, PageTally, SlidingSecond
from tests.simulator.listing import BadQueryError
from tests.simulator.outcomes import CODES, SHAPES, ScriptError, parse_fault
from tests.simulator.pages import PageCache, total_text
from tests.simulator.script import OK, Rule, Script, by_probability, resolve_channel
from tests.simulator.server import parse_query as parse_query_text
from tests.simulator.switches import SwitchBoard, Switches
from tests.simulator.tmapi import parse_query


@pytest.mark.parametrize(
    ("values", "refused"),
    [
        ({}, "member_id"),
        ({"member_id": "a", "page": "0"}, "page"),
        ({"member_id": "a", "page": "abc"}, "page"),
        ({"member_id": "a", "page": "-1"}, "page"),
        ({"member_id": "a", "page": "٣"}, "page"),
        ({"member_id": "a", "page_size": "0"}, "page_size"),
        ({"member_id": "a", "page_size": "abc"}, "page_size"),
        ({"member_id": "a", "price_start": "cheap"}, "price_start"),
        ({"member_id": "a", "price_end": "NaN"}, "price_end"),
    ],
)
def test_bad_parameters_are_named(values: dict[str, str], refused: str) -> None:
    with pytest.raises(BadQueryError, match=f"^{refused}$"):
        parse_query(values, Switches())


def test_page_size_is_capped_served_or_refused_as_switched() -> None:
    values = {"member_id": "a", "page_size": "50"}
    assert parse_query(values, Switches()).size == 20
    assert parse_query(values, Switches()).asked_size == 50
    assert parse_query(values, Switches(page_size_over="serve")).size == 50
    with pytest.raises(BadQueryError):
        parse_query(values, Switches(page_size_over="422"))


def test_unknown_sorts_fall_back_or_are_refused_as_switched() -> None:
    values = {"member_id": "a", "sort": "newest"}
    assert parse_query(values, Switches()).selection.sort == "default"
    with pytest.raises(BadQueryError):
        parse_query(values, Switches(unknown_sort="422"))


def test_query_text_is_decoded_and_keeps_empty_values() -> None:
    assert parse_query_text("a=1&b=&c=%E9%A1%B9+x&&d") == {"a": "1", "b": "", "c": "项 x", "d": ""}


def test_latency_has_the_asked_median_and_tail() -> None:
    assert latency_of(0.2, 5, 0.5) == pytest.approx(0.2)
    assert latency_of(0.2, 5, 0.99) == pytest.approx(1.0)
    assert latency_of(0.2, 1, 0.99) == 0.2
    assert latency_of(0, 5, 0.99) == 0


@pytest.mark.parametrize(
    ("count", "style", "text"),
    [
        (2465, "text", '"2465"'),
        (2465, "number", "2465"),
        (15_300, "display", '"1.5万+"'),
        (3_512, "display", '"3500+"'),
        (42, "display", '"42"'),
    ],
)
def test_totals_are_written_in_the_switched_style(count: int, style: str, text: str) -> None:
    assert total_text(count, style) == text


def test_fault_probabilities_share_one_draw() -> None:
    switches = Switches(faults={"417": 0.1, "500:body": 0.1})
    assert by_probability(switches, 0.05, 0).name == "417"
    assert (by_probability(switches, 0.15, 0).name, by_probability(switches, 0.15, 0).channel) == ("500", "body")
    assert by_probability(switches, 0.25, 0) == OK


def test_mixed_channels_follow_the_draw_and_gateway_errors_are_pages() -> None:
    draws = [0.0, 0.3, 0.6, 0.9]
    assert [resolve_channel("417", "mixed", "status", draw) for draw in draws] == ["status", "body", "empty", "html"]
    assert resolve_channel("502", None, "status", 0) == "html"
    assert resolve_channel("502", "body", "status", 0) == "body"


def test_every_outcome_parses_and_no_other() -> None:
    assert all(parse_fault(name) == (name, None) for name in CODES | SHAPES.keys())
    with pytest.raises(ScriptError):
        parse_fault("418")


def test_rules_apply_to_their_shop_pages_and_token_only() -> None:
    script = Script[Rule]()
    script.add(Rule(outcome="417", shop="a", pages=(3, None), token="t"))
    assert script.match("a", 3, "t", 0.0) is not None
    assert script.match("a", 2, "t", 0.0) is None
    assert script.match("b", 3, "t", 0.0) is None
    assert script.match("a", 3, "u", 0.0) is None


def test_a_rule_is_used_up_after_its_times_and_a_shop_rule_comes_first() -> None:
    script = Script[Rule]()
    script.add(Rule(outcome="500"))
    script.add(Rule(outcome="417", shop="a", times=2))
    names = [rule.outcome for rule in (script.match("a", 1, "t", 0.0) for _ in range(3)) if rule]
    assert names == ["417", "417", "500"]
    assert [rule.outcome for rule in script.rules()] == ["500"]


def test_each_counts_per_page() -> None:
    script = Script[Rule]()
    script.add(Rule(outcome="417", each=1))
    outcomes = [script.match("a", page, "t", 0.0) is not None for page in (1, 1, 2, 2, 1)]
    assert outcomes == [True, False, True, False, False]


def test_a_rules_probability_is_kept_over_many_draws() -> None:
    script = Script[Rule]()
    script.add(Rule(outcome="417", probability=0.25))
    hits = sum(script.match("a", 1, "t", draw / 1000) is not None for draw in range(1000))
    assert 200 < hits < 300


def test_shop_switches_deviate_from_the_global_ones_and_follow_their_changes() -> None:
    board = SwitchBoard(Switches())
    board.change({"latency": 2}, "a")
    board.change({"page_size_max": 10})
    assert (board.of("a").latency, board.of("a").page_size_max) == (2, 10)
    assert (board.of("b").latency, board.of("b").page_size_max) == (0, 10)
    with pytest.raises(ScriptError, match="gate"):
        board.change({"gate": 3}, "a")
    board.clear("a")
    assert board.of("a").latency == 0


def test_the_sliding_second_finds_the_busiest_one() -> None:
    rate = SlidingSecond()
    for at in (0.0, 0.5, 0.9, 0.99, 1.2, 1.95, 5.0):
        rate.add(at)
    assert rate.most == 4


def test_page_tallies_are_compact_and_ignore_absurd_pages() -> None:
    tally = PageTally()
    assert [tally.add(3, CALL), tally.add(3, CALL), tally.add(3, DELIVERY), tally.add(3, ATTEMPT)] == [1, 2, 1, 1]
    assert tally.add(10**9, CALL) == 0
    assert tally.report() == {"3": {"calls": 2, "delivered": 1}}


def test_unheard_of_tokens_do_not_grow_the_ledger_for_ever() -> None:
    ledger = Ledger()
    for number in range(1500):
        ledger.arrive(f"token-{number}")
    assert len(ledger.report()["tokens"]) <= 1001
    assert ledger.report()["total"] == 1500


def test_the_page_cache_drops_the_least_recently_used() -> None:
    cache = PageCache(20)
    cache.put((1,), b"x" * 10)
    cache.put((2,), b"x" * 10)
    cache.get((1,))
    cache.put((3,), b"x" * 10)
    assert [cache.get((key,)) is not None for key in (1, 2, 3)] == [True, False, True]
