"""No secret survives redaction, in whatever spelling it comes."""

import io
import json
import logging
import re
import sys
from base64 import b64encode
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from models.redact import MASK, RedactSecrets, redact, redact_bytes, redact_value

CANARY = "can/ary +5f1d=0c'"
SECRETS = (CANARY, "postgresql://crawler:p%40ss-w0rd@db/shop", "sqlite:///plain.db")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"token {CANARY} used", "token *** used"),
        (f"GET /x?a=1&key={quote(CANARY, safe='')}&b=2", "GET /x?a=1&key=***&b=2"),
        (f"seen {CANARY!r}", 'seen "***"'),
        ("GET /1688/shop/items?apiToken=unknown&page=2", "GET /1688/shop/items?apiToken=***&page=2"),
        ("{'apiToken': 'unknown', 'page': '2'}", "{'apiToken': '***', 'page': '2'}"),
        ('{"apiToken":"unknown"}', '{"apiToken":"***"}'),
        ("('apiToken', 'unknown')", "('apiToken', '***')"),
        ("POST method=x&session=unknown&sign=0FA3&v=2.0", "POST method=x&session=***&sign=***&v=2.0"),
        ("sessionKey=unknown session_key%3Dunknown", "sessionKey=*** session_key%3D***"),
        (
            '{"session": "unknown", "sign":"0FA3", "appSecret" : "unknown"}',
            '{"session": "***", "sign":"***", "appSecret" : "***"}',
        ),
        (
            "{'session': 'unknown', 'app_secret': 'unknown', 'sign': '0FA3'}",
            "{'session': '***', 'app_secret': '***', 'sign': '***'}",
        ),
        ("('sessionKey', 'unknown')", "('sessionKey', '***')"),
        (
            "invalid-sessionkey: session expired, sign in again; design=round assign=me sign_method=md5 sign: plus",
            "invalid-sessionkey: session expired, sign in again; design=round assign=me sign_method=md5 sign: plus",
        ),
        ("its secret whsec_Ab-9_zz, said twice: whsec_Ab-9_zz", "its secret ***, said twice: ***"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("at redis://:hunter2@redis:6379/0", "at redis://:***@redis:6379/0"),
        ("at postgresql://me:p@ss@db/shop failed", "at postgresql://me:***@db/shop failed"),
        ("login p@ss-w0rd refused", "login *** refused"),
        ("login p%40ss-w0rd refused", "login *** refused"),
        ("file sqlite:///plain.db", "file sqlite:///plain.db"),
        ("nothing to hide: 12:30 a@b.c https://x/y", "nothing to hide: 12:30 a@b.c https://x/y"),
    ],
)
def test_masks_the_secret_and_nothing_else(text: str, expected: str) -> None:
    assert redact(text, SECRETS) == expected


@given(before=st.text(), after=st.text(), secret=st.text(min_size=4))
def test_a_known_secret_never_survives(before: str, after: str, secret: str) -> None:
    assume("*" not in secret and "://" not in secret)
    assert secret not in redact(before + secret + after, (secret,))


ECHOES = {
    "as it is": lambda text: text,
    "in a query": quote_plus,
    "in a query with small digits": lambda text: re.sub("%..", lambda match: match[0].lower(), quote(text, safe="")),
    "in JSON": json.dumps,
    "in JSON of a query": lambda text: json.dumps(quote(text)),
    "in ASCII-free JSON": lambda text: json.dumps(text, ensure_ascii=False),
    "in PHP's JSON": lambda text: json.dumps(text).replace("/", r"\/"),
    "in Gson's JSON": lambda text: re.sub("[=+']", lambda match: f"\\u{ord(match[0]):04x}", json.dumps(text)),
}


@pytest.mark.parametrize("echo", ECHOES.values(), ids=ECHOES.keys())
@pytest.mark.parametrize("secret", ["can/ary +5f1d=0c'", 'kätzchen"7f3a\\==', "a-b-c-d-e-f", "+/=+/=+/=+/="])
def test_a_secret_that_a_server_echoes_is_masked_in_the_body(secret: str, echo: Callable[[str], str]) -> None:
    body = f"seen {echo(secret)}, done".encode()
    masked = redact_bytes(body, ("another-secret", secret))
    assert re.fullmatch(rb'seen "?\*\*\*"?, done', masked), masked


def test_the_login_at_a_proxy_is_masked_in_the_body() -> None:
    login = b64encode(b"me:p@ss-w0rd").decode()
    body = f"p%40ss-w0rd p@ss-w0rd Basic {login}".encode()
    assert redact_bytes(body, ("http://me:p%40ss-w0rd@proxy:3128",)) == b"*** *** Basic ***"


def test_the_longer_of_two_secrets_is_masked_as_a_whole() -> None:
    assert redact_bytes(b"token-of-me-and-you", ("token-of-me", "token-of-me-and-you")) == MASK.encode()


@pytest.mark.parametrize("encoding", ["utf-8", "gbk", "latin-1"])
def test_a_secret_is_masked_in_a_body_of_any_usual_encoding(encoding: str) -> None:
    for secret in ("token-é-of-me", "töken-of-me" if encoding == "latin-1" else "令牌-of-me"):
        body = f"sent: {secret}!".encode(encoding)
        assert redact_bytes(body, ("another-secret", secret)) == b"sent: ***!"


def test_a_body_without_a_secret_stays_as_it_came() -> None:
    body = b'{"item_id": "61234567", "title": "secret of tokens"}'
    assert redact_bytes(body, ("1234", "token-of-the-shop", "http://proxy:3128")) is body


def test_values_inside_containers_are_masked_and_other_types_kept() -> None:
    event = {"url": f"http://h/?k={CANARY}", "n": 3, "list": [CANARY.encode(), (CANARY, None)], "apiToken": "unknown"}
    event |= {"session": "unknown", "signed": "yes"}
    expected = {"url": "http://h/?k=***", "n": 3, "list": ["***", ("***", None)], "apiToken": "***"}
    expected |= {"session": "***", "signed": "yes"}
    assert redact_value({**event, "error": ValueError(CANARY)}, SECRETS) == {**expected, "error": "ValueError: ***"}


def logged(*args: object, **kwargs: object) -> str:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(RedactSecrets(SECRETS))
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s %(shop)s", defaults={"shop": "-"}))
    log = logging.Logger("test")
    log.addHandler(handler)
    log.error(*args, **kwargs)  # type: ignore[arg-type]
    return stream.getvalue()


def test_message_arguments_and_extras_are_masked() -> None:
    assert logged("call %s %d", CANARY, 7) == "ERROR call *** 7 -\n"
    assert logged("call", extra={"shop": CANARY}) == "ERROR call ***\n"
    assert logged(ValueError(CANARY)) == "ERROR *** -\n"


def test_a_message_that_cannot_be_formatted_is_masked_too(capsys: pytest.CaptureFixture[str]) -> None:
    text = logged("call %d", CANARY)
    assert CANARY not in text and "call %d" in text
    assert capsys.readouterr().err == ""


def test_a_traceback_with_a_secret_is_masked_and_stays_readable() -> None:
    try:
        raise ValueError(f"http://h/?apiToken={quote(CANARY, safe='')}")
    except ValueError:
        text = logged("call failed", exc_info=sys.exc_info())
    assert text.startswith("ERROR call failed\nTraceback (most recent call last):\n")
    assert "ValueError: http://h/?apiToken=***" in text
    assert quote(CANARY, safe="") not in text


def test_a_harmless_traceback_is_left_to_the_formatter() -> None:
    try:
        raise KeyError("x")
    except KeyError:
        record = logging.LogRecord("n", logging.ERROR, "f", 1, "failed", (), sys.exc_info())
    info = record.exc_info
    assert RedactSecrets(SECRETS).filter(record)
    assert record.exc_info is info


def test_an_event_dict_of_a_structured_logger_keeps_its_form() -> None:
    record = logging.LogRecord("n", logging.INFO, "f", 1, "", (), None)
    record.msg = {"event": f"got {CANARY}", "page": 3}
    RedactSecrets(SECRETS).filter(record)
    assert record.msg == {"event": "got ***", "page": 3}
