"""What the TMAPI adapter sends, and which shops, options and credentials it accepts."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import UsageError
from models.messages import PageTask
from models.settings import Settings
from models.source import Credential, Limits, source_named
from worker.sources.tmapi import TmapiSource

SOURCE = TmapiSource()
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def settings(**changes: object) -> Settings:
    values: dict[str, Any] = {"_env_file": None, **changes}
    return Settings(**values)


def task(shop: str = "jane727", page: int = 3, **options: object) -> PageTask:
    return PageTask("tmapi", shop, page, page_id=1, fence=1, shop_id=1, shop_crawl_id=1, crawl_id=1, options=options)


def test_is_registered_under_its_name() -> None:
    assert isinstance(source_named("tmapi"), TmapiSource)


def test_a_request_names_the_page_and_leaves_out_what_is_not_set() -> None:
    request = SOURCE.request(task(shop_cat_id="", price_start="1.5"), Credential("c", "tok"), settings(), NOW)
    assert (request.method, request.url, request.body) == ("GET", "https://api.tmapi.io/1688/shop/items", None)
    assert request.params == {
        "apiToken": "tok",
        "member_id": "jane727",
        "page": "3",
        "page_size": "20",
        "sort": "time_up",
        "price_start": "1.5",
    }
    assert "tok" not in repr(request)


def test_a_request_uses_the_shop_s_own_options() -> None:
    options = SOURCE.options({"sort": "sales", "page_size": "50", "shop_cat_id": "12", "price_end": "9"}, settings())
    params = SOURCE.request(task(**options), Credential("c", "t"), settings(), NOW).params
    assert params == {
        "apiToken": "t",
        "member_id": "jane727",
        "page": "3",
        "page_size": "50",
        "sort": "sales",
        "shop_cat_id": "12",
        "price_end": "9",
    }


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000", "http://127.0.0.1:8000/", " http://127.0.0.1:8000// "])
def test_a_base_url_may_end_with_a_slash(url: str) -> None:
    assert SOURCE.base_url(settings(tmapi_base_url=url)) == "http://127.0.0.1:8000"


@pytest.mark.parametrize(
    "url", ["", "api.tmapi.io", "ftp://x", "https://", "http://u:canary@x", "https://x/?apiToken=canary", "http://[x"]
)
def test_an_unusable_base_url_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(UsageError, match="SHOPCRAWL_TMAPI_BASE_URL") as caught:
        SOURCE.base_url(settings(tmapi_base_url=url))
    assert "canary" not in str(caught.value)


def test_credentials_are_named_by_a_fingerprint_and_counted_once() -> None:
    found = SOURCE.credentials(settings(tmapi_tokens="abc, def,abc"))
    assert [(c.name, c.secret) for c in found] == [("ba7816bf", "abc"), ("cb8379ac", "def")]
    assert SOURCE.credentials(settings()) == ()
    assert "SHOPCRAWL_TMAPI_TOKENS" in SOURCE.credential_help()


def test_limits_never_start_above_the_ceiling() -> None:
    assert SOURCE.limits(settings()) == Limits(0, 4, 1, 200)
    assert SOURCE.limits(settings(tmapi_concurrency_max=2, tmapi_rate=1.5)) == Limits(1.5, 2, 1, 2)
    assert SOURCE.limits(settings(tmapi_concurrency_min=8)) == Limits(0, 8, 8, 200)
    assert SOURCE.limits(settings(tmapi_concurrency_min=8, tmapi_concurrency_max=2)) == Limits(0, 2, 2, 2)
    assert SOURCE.limits(settings(tmapi_concurrency_fixed=40)) == Limits(0, 40, 40, 40)
    assert SOURCE.limits(settings(tmapi_rate=1.5, tmapi_rate_per_minute=60)).rate == 1
    assert SOURCE.limits(settings(tmapi_rate_per_minute=600, tmapi_calls_per_day=9)) == Limits(10, 4, 1, 200, 9)


@pytest.mark.parametrize("shop", ["jane727", "babyyy100", "b2b-22088aF", "义乌饰品", "a.b_c@d", "x" * 128])
def test_accepts_member_ids(shop: str) -> None:
    SOURCE.check_shop(shop)


@pytest.mark.parametrize(
    "shop",
    ["", " ", "a b", "a\nb", "a\0b", "a'b", 'a"b', "a/b", "a\\b", "a;b", "=1+1", "a&b", "a\u202eb", "a\ud800",
     "x" * 129, "x" * 10_000, "jane727\n", "ａ", "а"],
)  # fmt: skip
def test_refuses_anything_else_in_one_safe_short_line(shop: str) -> None:
    with pytest.raises(UsageError) as caught:
        SOURCE.check_shop(shop)
    text = str(caught.value)
    assert text.isprintable() and len(text) < 200
    text.encode()


@given(st.text())
def test_every_text_is_either_accepted_or_refused(shop: str) -> None:
    try:
        SOURCE.check_shop(shop)
    except UsageError as error:
        assert str(error).isprintable()
    else:
        assert 1 <= len(shop) <= 128 and shop.isprintable() and not set(shop) & set(" '\"/\\&=<>;,\n")


def test_options_have_defaults_that_suit_the_api() -> None:
    expected = {"sort": "time_up", "page_size": 20, "max_pages": 5_000}
    assert SOURCE.options({}, settings()) == expected
    assert SOURCE.options({"sort": "", "shop_cat_id": " "}, settings()) == expected
    assert SOURCE.options({}, settings(page_size=7, max_pages=3)) == {**expected, "page_size": 7, "max_pages": 3}


def test_options_keep_prices_as_text() -> None:
    options = SOURCE.options({"price_start": "9.90", "price_end": "10", "max_pages": "2"}, settings())
    assert (options["price_start"], options["price_end"], options["max_pages"]) == ("9.90", "10", 2)
    assert SOURCE.options({"price_start": "5", "price_end": "5.00"}, settings())["price_end"] == "5.00"


@pytest.mark.parametrize(
    ("given_options", "complaint"),
    [
        ({"colour": "red"}, "unknown option 'colour'"),
        ({"sort": "Sales"}, "sort 'Sales' is unknown; choose one of default, sales"),
        ({"page_size": "0"}, "page_size must be a whole number from 1 to 200, not '0'"),
        ({"page_size": "201"}, "from 1 to 200"),
        ({"page_size": "2.5"}, "not '2.5'"),
        ({"page_size": "²"}, "page_size"),
        ({"page_size": "9" * 5_000}, "page_size"),
        ({"max_pages": "-1"}, "max_pages must be a whole number from 1 to 5000"),
        ({"max_pages": "5001"}, "from 1 to 5000"),
        ({"shop_cat_id": "1&x=2"}, "shop_cat_id must be letters"),
        ({"price_start": "1e9"}, "price_start must be a price"),
        ({"price_end": "-1"}, "price_end must be a price"),
        ({"price_end": "1.234"}, "price_end must be a price"),
        ({"price_start": "10", "price_end": "9.99"}, "price_start 10 is above price_end 9.99"),
    ],
)
def test_bad_options_are_refused_by_name(given_options: dict[str, str], complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        SOURCE.options(given_options, settings())
    assert complaint in str(caught.value)
    assert len(str(caught.value)) < 200
