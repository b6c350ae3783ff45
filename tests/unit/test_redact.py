"""No secret survives redaction, in whatever spelling it comes."""

import io
import logging
import sys
from urllib.parse import quote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from models.redact import RedactSecrets, redact, redact_value

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


def test_values_inside_containers_are_masked_and_other_types_kept() -> None:
    event = {"url": f"http://h/?k={CANARY}", "n": 3, "list": [CANARY.encode(), (CANARY, None)], "apiToken": "unknown"}
    expected = {"url": "http://h/?k=***", "n": 3, "list": ["***", ("***", None)], "apiToken": "***"}
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
