"""How TMAPI's answers are classified: both error channels, and successes that are no page."""

from typing import Any

import pytest

from models.errors import (
    CredentialParkedError,
    FetchError,
    ShopRefusedError,
    SourceStoppedError,
    ThrottledError,
    TransientError,
)
from models.source import FetchedPage
from tests.tmapi_pages import ITEM, PAGE, WHOLE, decode, failure

CLASSES = {
    417: TransientError,
    422: ShopRefusedError,
    439: CredentialParkedError,
    499: TransientError,
    500: TransientError,
    503: ThrottledError,
    401: CredentialParkedError,
    402: CredentialParkedError,
    403: CredentialParkedError,
    429: ThrottledError,
    502: TransientError,
    504: TransientError,
    520: TransientError,
}


@pytest.mark.parametrize("code", CLASSES)
def test_a_number_means_the_same_in_every_channel(code: int) -> None:
    channels = [
        failure({"code": code, "msg": "said"}),
        failure({"code": str(code), "msg": "said"}),
        failure({"code": float(code), "msg": "said", "data": None}),
        failure({"code": code, "msg": "said"}, code),
        failure({"message": "said"}, code),
    ]
    assert [(type(e), e.code, e.message) for e in channels] == [(CLASSES[code], str(code), "said")] * 5
    bare = [failure(b"", code), failure(b"<html>Bad Gateway</html>", code), failure(b"{", code), failure([], code)]
    assert {(type(e), e.code) for e in bare} == {(CLASSES[code], str(code))}
    assert all(e.message for e in bare)


@pytest.mark.parametrize(
    ("answer", "status", "kind", "code"),
    [
        (PAGE, 500, TransientError, "500"),
        (PAGE, 503, ThrottledError, "503"),
        ({**PAGE, "code": 500}, 200, TransientError, "500"),
        ({"code": 417, "msg": ""}, 503, TransientError, "417"),
        ({"code": 439, "msg": ""}, 500, CredentialParkedError, "439"),
        ({"code": 1001, "message": "bad key"}, 401, CredentialParkedError, "401"),
        ({"code": 0, "msg": ""}, 200, TransientError, "0"),
        ({"code": 1001, "msg": ""}, 200, TransientError, "1001"),
        ({"code": -1, "msg": ""}, 200, TransientError, "-1"),
        ({"code": 404, "msg": "no such shop"}, 200, TransientError, "404"),
        ({"code": 404, "msg": "no Route matched"}, 404, SourceStoppedError, "404"),
        (b"no Route matched with those values", 404, SourceStoppedError, "404"),
        (b"", 407, SourceStoppedError, "407"),
        ({"code": True, "msg": ""}, 400, TransientError, "400"),
    ],
)
def test_contradictions_and_unknown_numbers_follow_one_rule(
    answer: Any, status: int, kind: type[FetchError], code: str
) -> None:
    error = failure(answer, status)
    assert (type(error), error.code) == (kind, code)


def test_a_code_given_as_text_is_a_success() -> None:
    assert decode({**PAGE, "code": "200"}) == decode(PAGE)


def test_a_missing_code_beside_items_is_accepted_and_noted() -> None:
    for answer in ({"data": PAGE["data"]}, {**PAGE, "code": None}, {**PAGE, "code": "ok"}, {**PAGE, "code": True}):
        assert decode(answer).anomalies == ("no-code",)
        assert decode(answer).items == [ITEM]
    assert failure({"data": {}}).code == "no-code"
    assert failure({"message": "no Route matched"}).code == "no-data"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308, 304])
def test_a_redirect_is_passing_and_shows_no_query(status: int) -> None:
    error = failure(b"<html>", status, Location="https://login.example/in?back=apiToken%3Dcanary")
    assert (type(error), error.code) == (TransientError, "redirect")
    assert "https://login.example/in;" in error.message and "canary" not in error.message


@pytest.mark.parametrize(
    ("headers", "pause"),
    [
        ({"Retry_After": "7"}, 7),
        ({"retry_after": " 7 "}, 7),
        ({"Retry_After": "0"}, 0),
        ({"Retry_After": "9" * 400}, 86_400),
        ({"Retry_After": "Wed, 21 Oct 2026 07:28:30 GMT", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 30),
        ({"Retry_After": "Wed, 21 Oct 2026 07:28:00 GMT", "Date": "Wed, 21 Oct 2026 07:28:30 GMT"}, 0),
        ({"Retry_After": "Wed, 21 Oct 2026 07:28:30 GMT", "Date": "Wed, 21 Oct 2026 07:28:00"}, None),
        ({"Retry_After": "Wed, 21 Oct 2026 07:28:30 GMT"}, None),
        ({"Retry_After": "-5"}, None),
        ({"Retry_After": "soon", "Date": "later"}, None),
        ({"Retry_After": "²"}, None),
        ({}, None),
    ],
)
@pytest.mark.parametrize("status", [503, 429, 417])
def test_the_pause_is_measured_by_the_servers_clock(status: int, headers: dict[str, str], pause: float | None) -> None:
    assert failure({"msg": ""}, status, **headers).retry_after == pause


def test_a_server_message_is_one_short_clean_line_without_token() -> None:
    error = failure({"code": 422, "msg": "bad\nmember\x00\x1b[31m ?apiToken=canary&x " + "长" * 9_000})
    assert isinstance(error, ShopRefusedError)
    assert error.message.startswith("bad member?[31m ?apiToken=***&x 长")
    assert error.message.isprintable() and len(error.message) <= 200
    assert failure({"code": 422, "msg": {"page": [1]}}).message == "{'page': [1]}"
    assert failure({"code": 422, "msg": None}).message


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"", "empty"),
        (b" \r\n", "empty"),
        (b" " * 1000, "empty"),
        (b"<!doctype html><html>", "html"),
        (b"\xef\xbb\xbf\n<html>", "html"),
        (WHOLE[:-1], "truncated"),
        (WHOLE[:500], "truncated"),
        (b"upstream request timeout", "malformed"),
        (WHOLE + b"}", "malformed"),
        (WHOLE.replace(b"200", b"NaN", 1), "malformed"),
        (WHOLE.replace(b"200", b"-Infinity", 1), "malformed"),
        ("项".encode("gbk"), "malformed"),
        (b'{"code":"\xff"}', "malformed"),
        (b"[" * 200_000, "nested"),
        (b'{"code":200,"data":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001, "nested"),
        (b"[]", "no-data"),
        (b"null", "no-data"),
        (b'"maintenance"', "no-data"),
        (b'{"code":200}', "no-data"),
        (b'{"code":200,"data":null}', "no-data"),
        (b'{"code":200,"data":"busy"}', "data-type"),
        (b'{"code":200,"data":""}', "data-type"),
        (b'{"code":200,"data":[]}', "data-type"),
        (b'{"code":200,"data":{"items":"none"}}', "items-type"),
        (b'{"code":200,"data":{"items":{}}}', "items-type"),
        (b'{"code":200,"data":{"items":[' + b"{}," * 1_000 + b"{}]}}", "oversize"),
    ],
)
def test_a_success_that_is_no_page_is_passing_and_never_an_empty_page(body: bytes, word: str) -> None:
    error = failure(body)
    assert (type(error), error.code) == (TransientError, word)


@pytest.mark.parametrize(
    ("data", "anomalies"),
    [({"items": []}, ()), ({"items": None}, ("items-null",)), ({}, ("items-missing",))],
)
def test_an_empty_page_is_valid(data: dict[str, Any], anomalies: tuple[str, ...]) -> None:
    assert decode({"code": 200, "data": {**data, "total_count": "0"}}) == FetchedPage([], 0, None, anomalies)


def test_a_wrong_content_type_and_a_byte_order_mark_do_not_matter() -> None:
    assert decode(b"\xef\xbb\xbf" + WHOLE, Content_Type="text/html").items == [ITEM]
