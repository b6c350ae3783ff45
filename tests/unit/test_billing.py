"""Prices are read exactly, and budgets are never granted past their caps, whatever is asked for in whatever order."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.billing import Account, Prices, Wish, grant, parse_prices
from models.errors import UsageError

MONEY = st.decimals(min_value=0, max_value=5, places=2)


@pytest.mark.parametrize(
    ("text", "default", "by_outcome"),
    [
        ("0", "0", {}),
        ("", "0", {}),
        ("0.01", "0.01", {}),
        ("0.01,417=0", "0.01", {"417": "0"}),
        (" 417 = 0 , 0.02 ", "0.02", {"417": "0"}),
        ("*=0.5,15/isp.timeout=0.1", "0.5", {"15/isp.timeout": "0.1"}),
        ("200=0.01", "0", {"200": "0.01"}),
    ],
)
def test_prices_are_read(text: str, default: str, by_outcome: dict[str, str]) -> None:
    prices = parse_prices(text)
    assert prices == Prices(Decimal(default), {code: Decimal(price) for code, price in by_outcome.items()})


@pytest.mark.parametrize("text", ["a", "-1", "1e400", "NaN", "417=", "0.0000001", "1000000", "Infinity"])
def test_other_prices_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no price"):
        parse_prices(text)


def test_an_outcome_without_a_price_of_its_own_costs_what_any_call_does() -> None:
    prices = parse_prices("0.01,417=0,503=0.05")
    assert [prices.of(code) for code in ("200", "417", "unheard-of")] == [Decimal("0.01"), Decimal(0), Decimal("0.01")]
    assert prices.highest == Decimal("0.05")


@given(
    caps=st.lists(st.tuples(st.none() | st.integers(0, 6), st.none() | MONEY), min_size=1, max_size=3),
    wishes=st.lists(st.tuples(st.sets(st.integers(0, 2), min_size=1), MONEY), max_size=20),
)
def test_no_account_is_ever_charged_beyond_its_caps(
    caps: list[tuple[int | None, Decimal | None]], wishes: list[tuple[set[int], Decimal]]
) -> None:
    accounts = {str(n): Account(str(n), max_calls=calls, max_spend=spend) for n, (calls, spend) in enumerate(caps)}
    asked = [Wish([str(n) for n in sorted(names) if str(n) in accounts], price) for names, price in wishes]
    refused, after = grant(asked, accounts)
    for key, account in after.items():
        granted = [wish for wish, why in zip(asked, refused, strict=True) if why is None and key in wish.accounts]
        assert account.calls == len(granted)
        assert account.spend == sum(wish.price for wish in granted)
        assert account.max_calls is None or account.calls <= account.max_calls
        assert account.max_spend is None or account.spend <= account.max_spend
    for wish, why in zip(asked, refused, strict=True):
        assert why is None or why in wish.accounts


def test_a_refused_wish_charges_nothing_and_a_later_one_may_still_be_granted() -> None:
    accounts = {"shop": Account("the shop", max_calls=1), "crawl": Account("crawl 1", max_calls=5)}
    both, crawl = Wish(("shop", "crawl"), Decimal(1)), Wish(("crawl",), Decimal(1))
    refused, after = grant([both, both, crawl], accounts)
    assert refused == [None, "shop", None]
    assert (after["shop"].calls, after["crawl"].calls) == (1, 2)


@pytest.mark.parametrize(
    ("account", "words"),
    [
        (Account("crawl 7", 10, Decimal(0), 10), "crawl 7: 10 calls are used up"),
        (Account("tmapi for today", 1, Decimal("9.99"), None, Decimal(10)), "tmapi for today: 10 is used up"),
    ],
)
def test_a_reached_cap_is_told_in_words(account: Account, words: str) -> None:
    assert account.words == words
