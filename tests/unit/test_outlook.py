"""Speed, time left and money as a person reads them, and nothing where nothing is known."""

import io
from decimal import Decimal

import pytest
from rich.console import Console

from models.fleet import LimitState
from models.status import BudgetLeft, CrawlStatus, Items, Pages, Verdicts
from producer.console import print_status, print_summary
from producer.console.money import cost_line, speed_line
from producer.console.progress import Fleet, Pace, View, block
from producer.console.watch import smoothed
from producer.outlook import Outlook, outlook, permits

RUNNING = CrawlStatus(7, "running", 9, Verdicts(4), Pages(600, 40, 360, 0), Items(10, 10, 10), {"200": 360}, 60.0)
PAID = {"spent": Decimal("12.34"), "budget": BudgetLeft(1000, 60, Decimal(20), Decimal("7.66")), "unknown_calls": 5}
LIMIT = LimitState("tmapi", "9f8e", 40, 40, 38, 0, 2, None)


def running(**changes: object) -> CrawlStatus:
    return CrawlStatus(**({name: getattr(RUNNING, name) for name in RUNNING.__struct_fields__} | changes))


@pytest.mark.parametrize(
    ("status", "per_second", "expected"),
    [
        (RUNNING, 19, Outlook(19, 20, 640 / 19)),
        (RUNNING, 0.01, Outlook(0.01, 0.01 * 40 / 38, None)),
        (running(pages=Pages(done=360)), 19, Outlook(19, 20, None)),
        (running(state="waiting"), 19, Outlook(19, 20, None)),
        (running(state="finished"), 19, Outlook(19, 20, None)),
    ],
)
def test_the_time_left_follows_from_the_pages_known(status: CrawlStatus, per_second: float, expected: Outlook) -> None:
    found = outlook(status, per_second, 38, 40)
    assert found.per_second == expected.per_second
    assert found.possible == pytest.approx(expected.possible)
    assert found.seconds_left == pytest.approx(expected.seconds_left)


def test_only_credentials_that_are_called_with_count() -> None:
    idle = LimitState("top", "app", 100, 0, 0, 0, 0, None)
    parked = LimitState("tmapi", "1a2b", 10, 0, 1, 0, 1, "439: empty")
    above = LimitState("top", "other", 5, 0, 7, 0, 1, None)  # its limit has just been cut
    assert permits([]) == (0, 0)
    assert permits([LIMIT, idle, parked, above]) == (45, 47)


def test_permits_in_use_are_smoothed_from_the_first_reading_on() -> None:
    assert smoothed((0.0, 0.0), (38, 40)) == (38, 40)
    assert smoothed((38.0, 40.0), (28, 40)) == (37, 40)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"spent": Decimal("12.34")}, "12.34 CNY spent"),
        ({"unknown_calls": 5}, "5 calls never heard of again"),
        ({"budget": BudgetLeft(max_calls=10, calls_left=0)}, "0 of 10 calls left"),
        (
            PAID,
            "12.34 CNY spent · 60 of 1,000 calls left · 7.66 of 20 CNY left · 5 calls never heard of again",
        ),
    ],
)
def test_costs_are_told_where_there_are_any(changes: dict[str, object], words: str) -> None:
    assert cost_line(running(**changes), "CNY").plain == words


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Outlook(190, 200, 9), "190 of about 200 pages/s that the limit allows (95.0 %)"),
        (Outlook(190, None, 9), ""),
        (Outlook(0, 0, None), ""),
    ],
)
def test_speed_is_compared_with_what_the_limit_allows(found: Outlook, words: str) -> None:
    assert speed_line(found).plain == words


def shown(status: CrawlStatus, ahead: Outlook | None) -> str:
    text = io.StringIO()
    print_status(Console(file=text, width=100), status, database="x.db", currency="CNY", ahead=ahead)
    return text.getvalue()


def test_status_shows_money_budget_speed_and_time_left() -> None:
    told = shown(running(**PAID), Outlook(190, 200, 340))
    for words in ("12.34 CNY spent", "60 of 1,000 calls left", "190 of about 200 pages/s", "about 5:40 left"):
        assert words in told
    assert "190 pages/s · about 5:40 left" in shown(RUNNING, Outlook(190, None, 340))
    assert " cost " not in shown(RUNNING, None) and " now " not in shown(RUNNING, None)


def test_the_live_view_and_the_summary_show_them_too() -> None:
    text = io.StringIO()
    console = Console(file=text, width=100)
    view = View(running(**PAID), Pace(19, 360, 1, 1), Fleet(2, (LIMIT,)), currency="CNY", permits=(38, 40))
    console.print(block(view, 98))
    assert "12.34 CNY spent" in text.getvalue()
    assert "19.0 of about 20.0 pages/s that the limit allows (95.0 %)" in text.getvalue()
    print_summary(console, running(spent=Decimal("99.5")), [], database="x.db", currency="CNY")
    assert "99.5 CNY spent" in text.getvalue()
