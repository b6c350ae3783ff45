"""What the Taobao Open Platform's adapter sends, and which shops, options and credentials it accepts."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from urllib.parse import parse_qs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import UsageError
from models.messages import PageTask
from models.settings import Settings
from models.source import Credential, HttpRequest, Limits, WindowRules, source_named
from tests.simulator.top.sign import is_signed
from tests.top_pages import NOW, SHOP, SOURCE, task
from worker.sources.taobao import TaobaoSource

APP = Credential("c", "appsecretcanary")
SESSION = "6100sessioncanary"
WIDE = "num_iid,title,nick,cid,outer_id,props,price,num,approve_status"


def settings(**changes: object) -> Settings:
    values: dict[str, Any] = {"_env_file": None, "top_app_key": "12345678", **changes}
    return Settings(**values)


def sent(request: HttpRequest) -> dict[str, str]:
    """The form of a request, as a server reads it."""
    form = parse_qs((request.body or b"").decode("ascii"), strict_parsing=True, keep_blank_values=True)
    assert all(len(values) == 1 for values in form.values())
    return {name: values[0] for name, values in form.items()}


def call(
    asked: PageTask | None = None, now: datetime = NOW, session: str | None = SESSION, **changes: object
) -> HttpRequest:
    return SOURCE.request(asked or task(), APP, settings(**changes), now, session)


def test_is_registered_under_its_name() -> None:
    assert isinstance(source_named("top"), TaobaoSource)
    assert SOURCE.needs_session


def test_a_request_is_a_form_with_everything_in_its_body() -> None:
    options = SOURCE.options({"q": "@项链 &=+", "cid": "1512"}, settings())
    edges = {"start_modified": "2025-12-31T15:59:59+00:00", "end_modified": "2025-12-31T16:00:00Z"}
    request = call(task(page=3, **options, **edges))
    assert (request.method, request.url, request.params) == ("POST", "https://eco.taobao.com/router/rest", {})
    assert request.headers["Content-Type"] == "application/x-www-form-urlencoded;charset=utf-8"
    form = sent(request)
    assert len(form.pop("sign")) == 64
    assert form == {
        "method": "alibaba.tjb.items.inventory.get",
        "app_key": "12345678",
        "session": SESSION,
        "timestamp": "2026-01-01 12:00:00",
        "v": "2.0",
        "format": "json",
        "sign_method": "hmac-sha256",
        "simplify": "true",
        "fields": WIDE,
        "order_by": "modified:asc",
        "page_no": "3",
        "page_size": "200",
        "q": "@项链 &=+",
        "cid": "1512",
        "start_modified": "2025-12-31 23:59:59",
        "end_modified": "2026-01-01 00:00:00",
    }


def test_nothing_that_is_empty_is_sent() -> None:
    form = sent(call(task(q="", cid=None, start_modified=None), session=None, top_simplify=False))
    assert not {"q", "cid", "start_modified", "end_modified", "session", "simplify"} & form.keys()
    assert all(form.values())


@pytest.mark.parametrize("hours", [-11, 0, 8])
def test_the_time_stamp_is_china_s_whatever_the_zone_of_the_clock(hours: int) -> None:
    assert sent(call(now=NOW.astimezone(timezone(timedelta(hours=hours)))))["timestamp"] == "2026-01-01 12:00:00"


def test_each_try_is_signed_anew() -> None:
    first, again = sent(call()), sent(call(now=NOW + timedelta(seconds=1)))
    assert (first["timestamp"], again["timestamp"]) == ("2026-01-01 12:00:00", "2026-01-01 12:00:01")
    assert first["sign"] != again["sign"]
    assert call() == call()


@given(
    q=st.text(min_size=1).filter(lambda text: text.isprintable() and text.strip()),
    session=st.none() | st.from_regex(r"[0-9a-f]{16,60}", fullmatch=True),
    page=st.integers(1, 10**6),
    method=st.sampled_from(["md5", "hmac", "hmac-sha256"]),
    simplify=st.booleans(),
)
def test_any_call_is_signed_validly_and_shows_no_secret(
    q: str, session: str | None, page: int, method: str, simplify: bool
) -> None:
    asked = task(page=page, **SOURCE.options({"q": q[:200]}, settings()))
    request = call(asked, session=session, top_sign_method=method, top_simplify=simplify)
    form = sent(request)
    assert is_signed(form, APP.secret)
    assert form.get("session") == session and form["q"] == q[:200].strip()
    assert APP.secret.encode() not in (request.body or b"")
    shown = f"{request!r} {request.url} {request.headers} {request.params}"
    assert APP.secret not in shown and (session is None or session not in shown)


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000/router/rest", " http://127.0.0.1:8000/router/rest/ "])
def test_a_gateway_may_end_with_a_slash(url: str) -> None:
    assert SOURCE.base_url(settings(top_gateway_url=url)) == "http://127.0.0.1:8000/router/rest"


@pytest.mark.parametrize(
    "url", ["", "eco.taobao.com", "ftp://x", "https://", "http://u:canary@x", "https://x/?app_key=canary", "http://[x"]
)
def test_an_unusable_gateway_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(UsageError, match="SHOPCRAWL_TOP_GATEWAY_URL") as caught:
        SOURCE.base_url(settings(top_gateway_url=url))
    assert "canary" not in str(caught.value)


def test_the_app_is_named_by_a_fingerprint_of_its_key() -> None:
    found = SOURCE.credentials(settings(top_app_key="abc", top_app_secret="def"))
    assert [(c.name, c.secret) for c in found] == [("ba7816bf", "def")]
    for half in ({"top_app_secret": "def", "top_app_key": None}, {"top_app_secret": None}, {"top_app_secret": ""}):
        assert SOURCE.credentials(settings(**half)) == ()
    assert "SHOPCRAWL_TOP_APP_KEY" in SOURCE.credential_help()


def test_limits_never_start_above_the_ceiling() -> None:
    in_china = 8 * 3600
    assert SOURCE.limits(settings()) == Limits(0, 4, 1, 100, 0, in_china)
    assert SOURCE.limits(settings(top_concurrency_max=2, top_rate=1.5)) == Limits(1.5, 2, 1, 2, 0, in_china)
    fixed = settings(top_concurrency_fixed=7, top_concurrency_max=5, top_calls_per_day=900)
    assert SOURCE.limits(fixed) == Limits(0, 7, 7, 7, 900, in_china)


def test_listings_are_read_by_windows() -> None:
    minutes = timedelta(minutes=1)
    assert SOURCE.windows(settings()) == WindowRules(reach=20_000, margin=2 * minutes, overlap=10 * minutes)
    changed = settings(top_window_rows=100_000, top_window_margin=60, top_overlap=0)
    assert SOURCE.windows(changed) == WindowRules(reach=100_000, margin=minutes, overlap=timedelta(0))


@pytest.mark.parametrize(
    "shop", ["tbtest561", SHOP, "旗舰店:客服01", "a.b_c-d@e", "小·店", "おみせ", "가게", "x" * 128]
)
def test_accepts_nicks(shop: str) -> None:
    SOURCE.check_shop(shop)
    assert SOURCE.options({"nick": shop}, settings())["nick"] == shop


@pytest.mark.parametrize(
    "shop",
    ["", " ", "a b", "a\nb", "a\0b", "a'b", 'a"b', "a/b", "a\\b", "a;b", "a,b", "=1+1", "a&b", "a|b", "a\u202eb",
     "a\ud800", "x" * 129, "x" * 10_000, "tb\n", "ａ", "а"],
)  # fmt: skip
def test_refuses_anything_else_in_one_safe_short_line(shop: str) -> None:
    with pytest.raises(UsageError) as caught:
        SOURCE.check_shop(shop)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 200
    str(caught.value).encode()


def test_options_have_defaults_that_suit_the_api() -> None:
    expected = {"page_size": 200, "max_pages": 50_000, "order_by": "modified:asc", "fields": WIDE}
    assert SOURCE.options({}, settings()) == expected
    assert SOURCE.options({"q": " ", "since": "", "fields": ""}, settings()) == expected
    changed = {**expected, "page_size": 7, "max_pages": 3}
    assert SOURCE.options({}, settings(top_page_size=7, top_max_pages=3)) == changed
    assert SOURCE.options({"page_size": "7", "max_pages": "3"}, settings()) == changed


@pytest.mark.parametrize(
    ("given_fields", "stored"),
    [
        ("price", "num_iid,nick,price"),
        (" title , num_iid,, title", "num_iid,title,nick"),
        ("iid,num_iid", "num_iid,nick,iid"),
        (",", "num_iid,nick"),
    ],
)
def test_fields_always_hold_the_id_and_the_nick_in_one_order(given_fields: str, stored: str) -> None:
    assert SOURCE.options({"fields": given_fields}, settings())["fields"] == stored
    assert sent(call(task(fields=stored)))["fields"] == stored


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ("last", "last"),
        ("24h", "24h"),
        (" 7d ", "7d"),
        ("2026-01-31", "2026-01-30T16:00:00+00:00"),
        ("2026-01-31 08:00:00", "2026-01-31T00:00:00+00:00"),
        ("2026-01-31T08:00", "2026-01-31T00:00:00+00:00"),
        ("2026-01-31T08:00:00.9Z", "2026-01-31T08:00:00+00:00"),
        ("2026-01-31T08:00:00+02:00", "2026-01-31T06:00:00+00:00"),
    ],
)
def test_since_is_stored_as_given_or_as_utc(value: str, stored: str) -> None:
    assert SOURCE.options({"since": value}, settings())["since"] == stored


@pytest.mark.parametrize(
    ("given_options", "complaint"),
    [
        ({"sort": "x"}, "unknown option 'sort' for top; known: page_size, max_pages, max_calls, q, cid"),
        ({"start_modified": "2026-01-01"}, "unknown option"),
        ({"page_size": "0"}, "page_size must be a whole number from 1 to 200, not '0'"),
        ({"page_size": "201"}, "from 1 to 200"),
        ({"max_pages": "50001"}, "from 1 to 50000"),
        ({"cid": "1a"}, "cid must be a category's number"),
        ({"cid": "²"}, "cid must be"),
        ({"cid": "1" * 19}, "cid must be"),
        ({"order_by": "modified"}, "order_by must be column:asc or column:desc"),
        ({"order_by": "price:asc"}, "list_time, delist_time, num, modified, sold_quantity"),
        ({"order_by": "num:ASC"}, "not 'num:ASC'"),
        ({"fields": "num_iid,sku"}, "fields has 'sku'; choose from num_iid, title"),
        ({"q": "a\tb"}, "q must be at most 200 printable characters"),
        ({"q": "x" * 201}, "q must be"),
        ({"q": "\ud800"}, "q must be"),
        ({"nick": "a b"}, "nick: shop 'a b' has characters no nick has"),
        ({"since": "Last"}, "since must be `last`, a duration such as 24h"),
        ({"since": "7 d"}, "since must be"),
        ({"since": "2026-13-01"}, "since must be"),
        ({"since": "20260131"}, "since must be"),
        ({"since": "0001-01-01"}, "since must be"),
        ({"since": "9999-12-31T23:00:00-08:00"}, "since must be"),
        ({"since": "2026-01-01" + " " * 9_000 + "x"}, "since must be"),
    ],
)
def test_bad_options_are_refused_by_name(given_options: dict[str, str], complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        SOURCE.options(given_options, settings())
    assert complaint in str(caught.value)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 300


@given(given_options=st.dictionaries(st.sampled_from(["q", "cid", "order_by", "fields", "since", "nick"]), st.text()))
def test_accepted_options_make_a_call_and_stay_as_they_are(given_options: dict[str, str]) -> None:
    try:
        options = SOURCE.options(given_options, settings())
    except UsageError as error:
        assert str(error).isprintable()
    else:
        assert is_signed(sent(call(task(**options))), APP.secret)
        assert SOURCE.options({name: str(value) for name, value in options.items()}, settings()) == options


def test_narrowed_options_keep_the_fields_that_are_documented_as_selectable() -> None:
    wide = SOURCE.options({"q": "x", "page_size": "9"}, settings())
    narrow = SOURCE.narrowed(wide)
    assert narrow == {**wide, "fields": "num_iid,title,nick,cid"}
    assert narrow is not None and SOURCE.narrowed(narrow) is None
    assert SOURCE.narrowed({"fields": "num_iid,nick,price"}) == {"fields": "num_iid,nick"}
    assert SOURCE.narrowed({}) == {"fields": "num_iid,title,nick,cid"}
    assert wide["fields"] == WIDE


def test_a_moment_without_offset_in_a_task_is_utc() -> None:
    form = sent(call(task(end_modified="2026-01-01T00:00:00")))
    assert form["end_modified"] == "2026-01-01 08:00:00"
    assert sent(call(task(end_modified=datetime(2026, 1, 1, tzinfo=UTC).isoformat()))) == form
