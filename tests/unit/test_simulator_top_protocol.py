"""What the simulated platform makes of parameters, sessions and call limits."""

from typing import Any

import msgspec
import pytest

from tests.simulator.clock import VirtualClock, china_midnight, china_text, from_china, iso_utc
from tests.simulator.outcomes import ScriptError
from tests.simulator.switches import merged
from tests.simulator.top.answers import Style, page_body, style_of
from tests.simulator.top.bans import BanOrder, Bans
from tests.simulator.top.errors import TopError, error_of
from tests.simulator.top.protocol import authenticate, parse_query
from tests.simulator.top.sessions import Grant, Sessions
from tests.simulator.top.sign import is_signed, signature
from tests.simulator.top.switches import TopSwitches
from tests.top_vectors import CHINESE, KNOWN, PUBLISHED

NOW = from_china("2016-01-01 12:00:00")


@pytest.mark.parametrize(("params", "secret", "method", "sign"), KNOWN)
def test_known_signatures_pass_and_any_change_fails(
    params: dict[str, str], secret: str, method: str, sign: str
) -> None:
    params = params | {"sign_method": method}
    assert is_signed(params | {"sign": sign}, secret)
    assert not is_signed(params | {"sign": sign, "fields": "num_iid"}, secret)
    assert not is_signed(params | {"sign": sign.lower()}, secret)
    assert not is_signed(params | {"sign": sign}, secret + "x")


def test_an_unknown_sign_method_fits_no_signature() -> None:
    assert signature(PUBLISHED, "helloworld", "sha1") is None
    assert not is_signed(PUBLISHED | {"sign_method": "sha1", "sign": ""}, "helloworld")


@pytest.fixture
def sessions() -> Sessions:
    sessions = Sessions(1, {"a": "test"})
    for app in ("12345678", "second"):
        for nick in ("a", "b"):
            sessions.token(app, nick, first_app=app == "12345678")
    return sessions


def signed(**changes: str | None) -> dict[str, str]:
    values: dict[str, str | None] = {**CHINESE, "sign_method": "md5", **changes}
    params = {name: value for name, value in values.items() if value is not None}
    return {"sign": str(signature(params, "helloworld", params.get("sign_method") or "md5"))} | params


def refusal(sessions: Sessions, params: dict[str, str], switches: TopSwitches | None = None) -> tuple[int, str]:
    with pytest.raises(TopError) as caught:
        authenticate(params, switches or TopSwitches(), sessions, NOW)
    return caught.value.code, caught.value.sub_code


def test_a_call_in_order_is_granted_its_sellers_goods(sessions: Sessions) -> None:
    assert authenticate(signed(), TopSwitches(), sessions, NOW) == Grant("12345678", "a", "a")
    assert authenticate(signed(sign_method=None), TopSwitches(), sessions, NOW).owner == "a"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"method": None}, 21),
        ({"method": "taobao.item.get"}, 22),
        ({"format": "yaml"}, 23),
        ({"sign": ""}, 24),
        ({"sign": "0" * 32}, 25),
        ({"sign_method": "sha1"}, 25),
        ({"session": None}, 26),
        ({"session": "wrong"}, 27),
        ({"app_key": None}, 28),
        ({"app_key": "99"}, 29),
        ({"timestamp": None}, 30),
        ({"timestamp": "2016-01-01"}, 31),
        ({"timestamp": "2016-1-1 12:00:00"}, 31),
        ({"timestamp": "2016-01-01 04:00:00"}, 31),  # UTC instead of GMT+8
        ({"timestamp": "2016-01-01 11:49:59"}, 31),
        ({"timestamp": "2016-01-01 12:10:01"}, 31),
        ({"v": None}, 32),
        ({"v": "two"}, 33),
        ({"v": "1.0"}, 34),
    ],
)
def test_wrong_system_parameters_have_their_codes(
    sessions: Sessions, changes: dict[str, str | None], code: int
) -> None:
    assert refusal(sessions, signed(**changes))[0] == code


def test_of_several_wrong_parameters_the_lowest_code_is_named(sessions: Sessions) -> None:
    wrong = [("v", 32), ("timestamp", 30), ("app_key", 28), ("session", 26), ("sign", 24), ("method", 21)]
    params = signed()
    for name, code in wrong:
        del params[name]
        if name != "sign" and "sign" in params:
            params = {"sign": str(signature(params, "helloworld", "md5"))} | {
                key: value for key, value in params.items() if key != "sign"
            }
        assert refusal(sessions, params)[0] == code


@pytest.mark.parametrize("stamp", ["2016-01-01 11:50:00", "2016-01-01 12:10:00", "2016-01-01 12:09:00"])
def test_timestamps_may_be_ten_minutes_off(sessions: Sessions, stamp: str) -> None:
    assert authenticate(signed(timestamp=stamp), TopSwitches(), sessions, NOW).owner == "a"


def test_sessions_name_the_reason_they_are_refused(sessions: Sessions) -> None:
    other = merged(TopSwitches(), {"apps": {"second": "helloworld"}})
    assert refusal(sessions, signed(app_key="second"), other) == (27, "sessionkey-not-generated-by-server")
    assert refusal(sessions, signed(session="x")) == (27, "invalid-sessionkey")
    sessions.expire("a", 0, "session-not-exist")
    assert refusal(sessions, signed()) == (27, "session-not-exist")
    sessions.renew("a")
    token = sessions.token("12345678", "a")
    assert authenticate(signed(session=token), TopSwitches(), sessions, NOW).owner == "a"
    assert refusal(sessions, signed()) == (27, "session-not-exist")


def test_sessions_can_end_after_some_calls_and_show_anothers_goods(sessions: Sessions) -> None:
    sessions.expire("a", 2, "session-expired")
    sessions.use("a")
    sessions.use("b")
    sessions.use("a")
    with pytest.raises(TopError):
        sessions.use("a")
    assert refusal(sessions, signed()) == (27, "session-expired")
    token = sessions.token("12345678", "b")
    sessions.mix_up("b", "a")
    assert sessions.resolve(token, "12345678") == Grant("12345678", "b", "a")
    assert sessions.owner(token) == "b"
    assert sessions.owner("nobody's") is None


@pytest.mark.parametrize(
    ("params", "code", "sub_code"),
    [
        ({}, 40, "isv.missing-parameter:fields"),
        ({"fields": " , "}, 40, "isv.missing-parameter:fields"),
        ({"fields": "num_iid", "page_no": "0"}, 41, "isv.invalid-parameter:page_no"),
        ({"fields": "num_iid", "page_no": "x"}, 41, "isv.invalid-parameter:page_no"),
        ({"fields": "num_iid", "page_size": "201"}, 41, "isv.invalid-parameter:page_size"),
        ({"fields": "num_iid", "page_size": "-1"}, 41, "isv.invalid-parameter:page_size"),
        ({"fields": "num_iid", "cid": "shoes"}, 41, "isv.invalid-parameter:cid"),
        ({"fields": "num_iid", "order_by": "price:asc"}, 41, "isv.invalid-parameter:order_by"),
        ({"fields": "num_iid", "order_by": "modified"}, 41, "isv.invalid-parameter:order_by"),
        ({"fields": "num_iid", "start_modified": "2020-01-01"}, 41, "isv.invalid-parameter:start_modified"),
        ({"fields": "num_iid", "end_modified": "now"}, 41, "isv.invalid-parameter:end_modified"),
        (
            {"fields": "num_iid", "page_no": "101", "page_size": "200"},
            41,
            "isv.invalid-parameter:gain-number-too-large",
        ),
    ],
)
def test_wrong_arguments_are_named(params: dict[str, str], code: int, sub_code: str) -> None:
    with pytest.raises(TopError) as caught:
        parse_query(params, TopSwitches())
    assert (caught.value.code, caught.value.sub_code) == (code, sub_code)


def test_the_window_limit_and_the_code_of_wrong_arguments_are_switchable() -> None:
    at_limit = {"fields": "num_iid", "page_no": "100", "page_size": "200"}
    assert parse_query(at_limit, TopSwitches()).page == 100
    assert parse_query(at_limit | {"page_no": "500"}, TopSwitches(window=100_000)).page == 500
    with pytest.raises(TopError) as caught:
        parse_query(at_limit, TopSwitches(window=1000, invalid_code=50))
    assert caught.value.name == "50/isv.invalid-parameter:gain-number-too-large"


def test_fields_may_be_refused_or_ignored() -> None:
    wide = {"fields": "num_iid, price,num_iid,modified"}
    assert parse_query(wide, TopSwitches()).fields == ("num_iid", "price")
    for switches in (TopSwitches(unknown_fields="refuse"), TopSwitches(fields="narrow")):
        with pytest.raises(TopError, match=r"isv\.invalid-parameter:fields"):
            parse_query(wide, switches)
    assert parse_query({"fields": "cid,nick"}, TopSwitches(fields="narrow")).fields == ("cid", "nick")


def test_windows_include_both_ends_unless_switched() -> None:
    params = {"fields": "cid", "start_modified": "2016-01-01 12:00:00", "end_modified": "2016-01-01 12:00:00"}
    selection = parse_query(params, TopSwitches()).selection
    assert (selection.since, selection.until) == (NOW, NOW + 1)
    selection = parse_query(params, TopSwitches(end_exclusive=True)).selection
    assert (selection.since, selection.until) == (NOW, NOW)


@pytest.mark.parametrize(
    ("outcome", "code", "name"),
    [
        ("isp", None, "15/isp.top-remote-connection-timeout"),
        ("isp:remote-service-error", 50, "50/isp.remote-service-error"),
        ("isv:shop-not-exist", None, "50/isv.shop-not-exist"),
        ("isv:permission-ip-whitelist-limit", None, "11/isv.permission-ip-whitelist-limit"),
        ("sub:never.heard:of", None, "15/never.heard:of"),
        ("code:10", None, "10"),
    ],
)
def test_scripted_errors_have_their_codes(outcome: str, code: int | None, name: str) -> None:
    error = error_of(outcome, code)
    assert error is not None
    assert error.name == name


def test_outcomes_that_do_not_exist_are_refused() -> None:
    assert error_of("reset") is error_of("502") is None
    for outcome in ("nonsense", "isv", "sub:", "code:x"):
        with pytest.raises(ScriptError, match="unknown outcome"):
            error_of(outcome)
    with pytest.raises(ScriptError, match="unknown outcome"):
        merged(TopSwitches(), {"faults": {"nonsense": 0.1}})
    with pytest.raises(ScriptError, match="more than 1"):
        merged(TopSwitches(), {"faults": {"isp": 0.7, "reset": 0.7}})


def said(bans: Bans, app: str, now: float) -> str | None:
    ban = bans.arrive(app, now)
    return ban.refuse(now).sub_msg if ban else None


def test_bans_count_down_to_their_end_and_know_their_app() -> None:
    bans = Bans()
    bans.order(BanOrder(scope="app_api", seconds=71, app="one"), 1000.0)
    assert said(bans, "one", 1000.0) == "This ban will last for 71 more seconds"
    assert said(bans, "one", 1070.5) == "This ban will last for 1 more seconds"
    assert said(bans, "two", 1000.0) is None
    assert said(bans, "one", 1071.0) is None
    bans.order(BanOrder(scope="api", seconds=2, app="one", sentence=False), 2000.0)
    assert "ban" not in str(said(bans, "two", 2000.0))


def test_daily_bans_last_to_midnight_of_gmt8() -> None:
    bans = Bans()
    now = from_china("2024-11-11 15:22:18")
    bans.order(BanOrder(scope="app_daily", seconds="midnight"), now)
    assert said(bans, "one", now) == "This ban will last for 31062 more seconds"
    assert said(bans, "one", now + 31062) is None


def test_bans_begin_after_some_calls_repeat_and_grow_when_not_heeded() -> None:
    bans = Bans()
    bans.order(BanOrder(seconds=10, after=2, times=2, prolong=5), 0.0)
    assert [said(bans, "x", 1.0) for _ in range(2)] == [None, None]
    assert said(bans, "x", 2.0) == "This ban will last for 15 more seconds"
    assert said(bans, "x", 3.0) == "This ban will last for 19 more seconds"
    assert [said(bans, "x", 30.0) for _ in range(2)] == [None, None]
    assert said(bans, "x", 31.0) == "This ban will last for 15 more seconds"
    assert said(bans, "x", 100.0) is None
    assert [ban.calls for ban in bans.all] == [2, 1]


def test_closure_hours_have_a_beginning_and_an_end() -> None:
    bans = Bans()
    order: dict[str, Any] = {"scope": "closed", "since": "2024-11-11T00:00:00", "until": "2024-11-11T02:00:00+08:00"}
    bans.order(msgspec.convert(order, BanOrder), from_china("2024-11-10 20:00:00"))
    assert said(bans, "x", from_china("2024-11-10 23:59:59")) is None
    assert said(bans, "x", from_china("2024-11-11 00:00:00")) == "This ban will last for 7200 more seconds"
    assert said(bans, "x", from_china("2024-11-11 02:00:00")) is None


def test_calls_after_a_ban_was_learned_are_told_from_those_in_flight() -> None:
    bans = Bans()
    bans.order(BanOrder(seconds=10), 0.0)
    ban = bans.arrive("x", 1.0)
    assert ban is not None
    ban.refuse(1.0)
    ban.refuse(1.0)
    ban.learned(7)
    ban.learned(3)
    ban.refuse(1.0)
    assert (ban.calls, ban.in_flight, ban.after_learned) == (3, 7, 1)
    bans.lift()
    assert bans.arrive("x", 1.0) is None


ROWS: list[dict[str, Any]] = [{"num_iid": 2**60 + 1, "title": '<"A&B">'}]


@pytest.mark.parametrize(
    ("style", "switches", "rows", "body"),
    [
        (
            Style(False, True),
            {},
            ROWS,
            '{"total_results":1,"items":[{"num_iid":1152921504606846977,"title":"<\\"A&B\\">"}]}',
        ),
        (Style(False, True), {"single_object": True}, [{"cid": 1}], '{"total_results":1,"items":{"cid":1}}'),
        (Style(False, False), {"single_object": True}, [{"cid": 1}], '"items":{"item":{"cid":1}}'),
        (Style(False, False), {}, [], '"items":{"item":[]}'),
        (Style(False, False), {"empty": "object"}, [], '"items":{}'),
        (Style(False, False), {"empty": "array"}, [], '"items":[]'),
        (Style(False, False), {"empty": "missing"}, [], '{"total_results":1}'),
        (Style(False, True), {}, [], '{"total_results":1,"items":[]}'),
        (Style(False, True), {"empty": "object"}, [], '"items":{}'),
        (
            Style(True, False),
            {},
            ROWS,
            '<item><num_iid>1152921504606846977</num_iid><title>&lt;"A&amp;B"&gt;</title></item>',
        ),
        (Style(True, False), {}, [], "<total_results>1</total_results><items/>"),
        (Style(False, True), {"raw_control": True}, [{"title": "a\tb\n"}], '{"title":"a\tb\n"}'),
        (Style(False, True), {}, [{"title": "a\tb\n"}], '{"title":"a\\tb\\n"}'),
    ],
)
def test_pages_are_written_in_the_callers_style(
    style: Style, switches: dict[str, Any], rows: list[dict[str, Any]], body: str
) -> None:
    written = page_body(rows, 1, "", style, merged(TopSwitches(), switches)).decode()
    assert body in written
    assert ("alibaba_tjb_items_inventory_get_response" in written) is not style.simplify


def test_simplify_is_for_json_only() -> None:
    assert style_of({}) == Style(True, False)
    assert style_of({"format": "xml", "simplify": "true"}) == Style(True, False)
    assert style_of({"format": "json", "simplify": "true"}) == Style(False, True)


def test_the_clock_moves_and_knows_gmt8() -> None:
    clock = VirtualClock(lambda: 1_000_000.0)
    clock.advance(31062)
    assert clock.now() == 1_031_062
    clock.set(NOW)
    assert clock.report()["gmt8"] == "2016-01-01 12:00:00"
    assert iso_utc(NOW) == "2016-01-01T04:00:00+00:00"
    assert china_text(china_midnight(NOW)) == "2016-01-02 00:00:00"
    assert china_midnight(china_midnight(NOW)) == china_midnight(NOW) + 86_400
