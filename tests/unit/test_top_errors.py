"""Each error of the Taobao Open Platform leads to its reaction, in every form it may come in."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from models.errors import (
    BannedError,
    CredentialParkedError,
    FetchError,
    FieldsRefusedError,
    PageRefusedError,
    ShopRefusedError,
    ShopUnauthorisedError,
    SourceStoppedError,
    ThrottledError,
    TransientError,
    WindowTooLargeError,
)
from models.source import HttpResponse
from tests.top_pages import DATE, NOW, SOURCE, TASK, failure, page, refused, task, xml

NARROW = task(fields="num_iid,title,nick,cid")

# code, sub_code, reaction when only the fields that the vendor's page allows are asked for
CASES: list[tuple[Any, str | None, type[FetchError]]] = [
    *((code, None, BannedError) for code in (4, 5, 6, 7, 8)),
    (7, "accesscontrol.limited-by-dynamic-access-count", BannedError),
    (15, "accesscontrol.limited-by-app-api-access-count", BannedError),
    (15, "isp.call-limited", BannedError),
    (50, "isv.access-limited-by-app", BannedError),
    (7, "isp.remote-service-error", BannedError),
    (15, "isp.remote-service-error", TransientError),
    (15, "isp.top-remote-connection-timeout-tmall", TransientError),
    (50, "ISP.Unknown-Error", TransientError),
    (27, "isp.remote-service-error", TransientError),
    (15, "isp.invalid-parameters", PageRefusedError),
    (26, None, ShopUnauthorisedError),
    (27, None, ShopUnauthorisedError),
    ("27", None, ShopUnauthorisedError),
    (27, "isv.invalid-parameter", ShopUnauthorisedError),
    (15, "session-expired", ShopUnauthorisedError),
    (27, "invalid-sessionkey", ShopUnauthorisedError),
    (15, "session-not-exist", ShopUnauthorisedError),
    (15, "sessionkey-not-generated-by-server", ShopUnauthorisedError),
    (15, "isv.session-expired", ShopUnauthorisedError),
    *((code, None, CredentialParkedError) for code in (11, 12, 13)),
    (11, "isv.permission-ip-whitelist-limit", CredentialParkedError),
    (15, "isv.permission-api-package-limit", CredentialParkedError),
    *((code, None, CredentialParkedError) for code in (21, 22, 23, 24, 25, 28, 29, 30, 31, 32, 33, 34)),
    (25, "isv.invalid-signature", CredentialParkedError),
    (15, "isv.timestamp-limit-error", CredentialParkedError),
    (15, "isv.request-replay-error", TransientError),
    (15, "isv.invalid-parameter:gain-number-too-large", WindowTooLargeError),
    (41, "isv.invalid-parameter:gain-number-too-large", WindowTooLargeError),
    (50, "isv.invalid-parameter-tmall:gain-number-too-large", WindowTooLargeError),
    (15, "isv.shop-not-exist", ShopRefusedError),
    (40, "isv.shop-not-exist:tmall", ShopRefusedError),
    (50, "isv.user-not-exist", ShopRefusedError),
    (50, "ISV.Shop-Not-Exist", ShopRefusedError),
    (40, None, PageRefusedError),
    (41, None, PageRefusedError),
    (43, None, PageRefusedError),
    (50, "isv.invalid-parameter", PageRefusedError),
    (50, "isv.invalid-parameter:fields", PageRefusedError),
    (41, "isv.missing-parameter:page_no", PageRefusedError),
    (50, "isv.trade-not-exist", PageRefusedError),
    (10, None, TransientError),
    (15, None, TransientError),
    (50, None, TransientError),
    (42, None, TransientError),
    (9, None, TransientError),
    (999, "something-new", TransientError),
    (15, "isvx", TransientError),
    (None, None, TransientError),
    ("many", None, TransientError),
    (2.5, None, TransientError),
    ([1], None, TransientError),
    (10**30, None, TransientError),
]


@pytest.mark.parametrize(("code", "sub_code", "kind"), CASES)
@pytest.mark.parametrize("status", [200, 500])
def test_an_error_leads_to_its_reaction_in_either_format(
    code: Any, sub_code: str | None, kind: type[FetchError], status: int
) -> None:
    answer = refused(code, sub_code)
    error = failure(answer, status, NARROW)
    assert type(error) is kind
    number = int(code) if str(code).isdigit() and int(code) < 10**9 else "error"
    assert error.code == (f"{number}/{sub_code}" if sub_code else f"{number}")
    assert error.message
    if not isinstance(code, list) and code is not None:
        other = failure(xml(answer), status, NARROW)
        assert (type(other), other.code, other.message) == (kind, error.code, error.message)


@pytest.mark.parametrize(
    ("sub_code", "seconds", "whole_source"),
    [
        ("accesscontrol.limited-by-api-access-count", 60, True),
        ("accesscontrol.limited-by-app-access-count", 12 * 3600 + 1, False),
        ("accesscontrol.limited-by-app-api-access-count", 60, False),
        ("accesscontrol.limited-by-dynamic-access-count", 60, False),
        (None, 60, False),
    ],
)
def test_a_ban_lasts_as_long_as_it_says_or_as_its_kind_does(
    sub_code: str | None, seconds: float, whole_source: bool
) -> None:
    silent = failure(refused(7, sub_code))
    assert isinstance(silent, BannedError)
    assert (silent.seconds, silent.retry_after, silent.whole_source) == (seconds, seconds, whole_source)
    for said in (
        refused(7, sub_code, "This ban will last for 71 more seconds"),
        refused(7, sub_code, msg="THIS BAN WILL LAST FOR 71 MORE SECONDS"),
        refused(7, sub_code, "限流" * 300 + " This ban will last for 71 more seconds"),
        refused(7, sub_code, "您的应用被限流, This ban will last for 71  more second", "for 3 more seconds"),
    ):
        error = failure(said)
        assert isinstance(error, BannedError)
        assert (error.seconds, error.whole_source) == (72, whole_source)


@pytest.mark.parametrize(("sent", "seconds"), [("0", 1), ("1", 2), ("31062", 31_063), ("9" * 12, 86_400)])
def test_a_ban_is_a_second_longer_than_said_and_a_day_at_most(sent: str, seconds: float) -> None:
    error = failure(refused(7, None, f"This ban will last for {sent} more seconds"))
    assert isinstance(error, BannedError)
    assert error.seconds == seconds


@pytest.mark.parametrize(
    ("now", "seconds"),
    [
        (datetime(2026, 1, 1, 15, 59, 59, tzinfo=UTC), 2),
        (datetime(2026, 1, 1, 16, 0, 0, tzinfo=UTC), 86_400),
        (datetime(2026, 1, 1, 0, 0, 0, tzinfo=UTC), 16 * 3600 + 1),
    ],
)
def test_a_day_s_quota_counts_anew_at_midnight_in_china(now: datetime, seconds: float) -> None:
    body = b'{"error_response":{"code":7,"sub_code":"accesscontrol.limited-by-app-access-count"}}'
    with pytest.raises(BannedError) as caught:
        SOURCE.decode(HttpResponse(200, {}, body), TASK, now)
    assert caught.value.seconds == seconds


@pytest.mark.parametrize(
    ("code", "sub_code", "msg", "kind"),
    [
        (50, "isv.invalid-parameter", "Remote service error", FieldsRefusedError),
        (50, "isv.invalid-parameter:fields", "said", FieldsRefusedError),
        (15, "isv.parameters-error", "said", FieldsRefusedError),
        (40, None, "Missing required arguments:fields", FieldsRefusedError),
        (41, None, "Invalid arguments", FieldsRefusedError),
        (41, None, "Invalid arguments:fields,page_no", FieldsRefusedError),
        (43, None, "Parameter Error", FieldsRefusedError),
        (41, "isv.invalid-parameter", "Invalid arguments:page_no", PageRefusedError),
        (41, "isv.invalid-parameter:q", "said", PageRefusedError),
        (41, None, "Invalid arguments:start_modified", PageRefusedError),
        (50, "isv.item-is-delete", "said", PageRefusedError),
        (50, "isv.invalid-parameter:gain-number-too-large", "said", WindowTooLargeError),
    ],
)
def test_wide_fields_are_suspected_unless_another_parameter_is_named(
    code: int, sub_code: str | None, msg: str, kind: type[FetchError]
) -> None:
    assert type(failure(refused(code, sub_code, msg=msg))) is kind
    assert type(failure(refused(code, sub_code, msg=msg), asked=task(fields="num_iid,price"))) is kind
    narrow = failure(refused(code, sub_code, msg=msg), asked=NARROW)
    assert not isinstance(narrow, FieldsRefusedError) and isinstance(narrow, PageRefusedError)


@pytest.mark.parametrize(
    ("lead", "words"),
    [
        (timedelta(minutes=11), "11 minutes ahead of the platform's: set it (NTP)"),
        (timedelta(minutes=-480), "480 minutes behind the platform's: set it (NTP)"),
        (timedelta(seconds=61), "1 minute ahead of the platform's: set it (NTP)"),
        (timedelta(0), "within 10 minutes (NTP)"),
    ],
)
def test_a_refused_time_stamp_names_the_clock(lead: timedelta, words: str) -> None:
    body = b'{"error_response":{"code":31,"msg":"Invalid timestamp"}}'
    with pytest.raises(CredentialParkedError) as caught:
        SOURCE.decode(HttpResponse(200, {"Date": DATE}, body), TASK, NOW + lead)
    assert words in caught.value.message and "clock" in caught.value.message


@pytest.mark.parametrize("date", ["", "yesterday", "Thu, 01 Jan 2026 04:00:00 -0000", "Thu, 99 Jan 2026 04:00:00 GMT"])
def test_without_a_usable_date_the_clock_is_still_named(date: str) -> None:
    error = failure(refused(31, msg="Invalid timestamp"), Date=date)
    assert "Invalid timestamp; check this machine's clock" in error.message


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (301, TransientError, "redirect"),
        (401, CredentialParkedError, "401"),
        (403, CredentialParkedError, "403"),
        (404, SourceStoppedError, "404"),
        (429, ThrottledError, "429"),
        (500, TransientError, "500"),
        (502, TransientError, "502"),
        (503, ThrottledError, "503"),
    ],
)
@pytest.mark.parametrize("body", [b"", b"<html>Bad Gateway</html>", b"{", b"[]", page()])
def test_without_an_error_in_the_body_the_status_counts(
    status: int, kind: type[FetchError], code: str, body: Any
) -> None:
    error = failure(body, status)
    assert (type(error), error.code) == (kind, code)


def test_an_error_without_its_envelope_is_one_too() -> None:
    error = failure({"code": 27, "msg": "Invalid session", "sub_code": "session-expired"})
    assert (type(error), error.code) == (ShopUnauthorisedError, "27/session-expired")
    assert failure({"error_response": "busy"}).code == "error"
    assert failure({"error_response": None}).code == "error"


def test_a_message_is_one_short_clean_line_without_keys() -> None:
    session = "6100e23abc4def56789012345678"
    said = f"bad\nsession=abcdefgh1234 {session}\x00\x1b[31m ?apiToken=canary&x " + "长" * 9_000
    error = failure(refused(27, f"session-expired:{session}", said, "Invalid session"))
    assert error.message.startswith("Invalid session: bad session=*** ***?[31m ?apiToken=***&x 长")
    assert error.message.isprintable() and len(error.message) <= 200
    assert error.code == "27/session-expired:"


def test_a_code_is_short_and_safe_whatever_is_sent() -> None:
    assert failure(refused(15, "isp." + "x," * 5_000)).code == "15/isp." + "x" * 53
    assert failure(refused(15, {"a": 1})).code == "15"  # type: ignore[arg-type]


def test_words_of_the_platform_are_kept_and_not_repeated() -> None:
    assert failure(refused(50, "isv.item-gone", "商品不存在", "Remote service error")).message == (
        "Remote service error: 商品不存在"
    )
    assert failure(refused(10, None, "said", "said")).message == "said"
    assert failure({"error_response": {"code": 26, "msg": {"deep": []}, "sub_msg": 7}}).message == (
        "the shop's session is missing or refused"
    )
