"""Webhooks, decided purely: signatures, pauses, addresses, secrets, and what is told of answers."""

import hashlib
import hmac
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import UsageError
from models.feed import Entry
from models.redact import redact
from producer.webhooks.messages import (
    LONGEST_PAUSE,
    SIGNATURE,
    Answer,
    Message,
    check_secret,
    check_url,
    is_success,
    new_secret,
    retry_pause,
    shown,
    sign,
    why,
)
from tests.ledger import after

DOCUMENTED = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text(encoding="utf-8")
NOW = 1_800_000_000


@pytest.fixture(scope="module")
def is_genuine() -> Callable[..., bool]:
    """The receiver's check, as the documentation shows it."""
    [block] = re.findall(r"```python\n(.*?)```", DOCUMENTED, re.DOTALL)
    names: dict[str, Any] = {}
    exec(block, names)
    names["time"] = SimpleNamespace(time=lambda: NOW)  # these tests may start long after NOW
    return names["is_genuine"]  # type: ignore[no-any-return]


@given(secret=st.text(min_size=1, max_size=40), body=st.binary(max_size=200), at=st.integers(0, 2**40))
def test_the_signature_is_an_hmac_of_time_and_body(secret: str, body: bytes, at: int) -> None:
    expected = hmac.digest(secret.encode(), str(at).encode() + b"." + body, hashlib.sha256).hex()
    assert sign(secret, at, body) == f"t={at},v1={expected}"


def test_the_documented_check_takes_what_we_sign(is_genuine: Callable[..., bool]) -> None:
    body = msgspec.json.encode(Message(1, [Entry(1, "gone", "tmapi", "jane", "6", after(1.5), None, None, "茶")]))
    assert is_genuine("s" * 16, sign("s" * 16, NOW, body), body)


@pytest.mark.parametrize(
    ("secret", "header", "body"),
    [
        ("other secret here", sign("s" * 16, NOW, b"{}"), b"{}"),
        ("s" * 16, sign("s" * 16, NOW, b"{}"), b"{} "),
        ("s" * 16, sign("s" * 16, NOW - 301, b"{}"), b"{}"),
        ("s" * 16, sign("s" * 16, NOW + 400, b"{}"), b"{}"),
        ("s" * 16, sign("s" * 16, NOW, b"{}").replace(f"t={NOW}", f"t={NOW + 1}"), b"{}"),
        ("s" * 16, "", b"{}"),
        ("s" * 16, "t=,v1=", b"{}"),
        ("s" * 16, "t=²,v1=ä", b"{}"),
        ("s" * 16, f"t={NOW}", b"{}"),
    ],
)
def test_the_documented_check_refuses_everything_else(
    is_genuine: Callable[..., bool], secret: str, header: str, body: bytes
) -> None:
    assert not is_genuine(secret, header, body)


def test_the_documentation_names_what_is_sent() -> None:
    assert f"`{SIGNATURE}`" in DOCUMENTED and "`X-Shopcrawl-Delivery`" in DOCUMENTED
    [example] = re.findall(r"```json\n(.*?)```", DOCUMENTED, re.DOTALL)
    message = msgspec.json.decode(example)
    assert set(message) == set(Message.__struct_fields__)
    assert set(message["deliveries"][0]) == set(Entry.__struct_fields__)


@given(failures=st.integers(1, 10_000), chance=st.floats(0, 1))
def test_pauses_double_up_to_an_hour_with_full_jitter(failures: int, chance: float) -> None:
    longest = min(LONGEST_PAUSE, 5 * 2.0 ** min(failures - 1, 30))
    assert retry_pause(failures, 1) == longest == retry_pause(failures, 0.5) * 2
    assert retry_pause(failures, chance) == pytest.approx(chance * longest)


@pytest.mark.parametrize(
    ("url", "allow_http"),
    [
        ("https://example.com/changes?token=1", False),
        ("https://10.0.0.7:8443", False),
        ("http://127.0.0.1:8000/x", True),
        ("http://localhost:8000", True),
        ("http://192.168.1.5/x", True),
        ("http://[::1]:80/", True),
    ],
)
def test_an_address_that_may_be_sent_to_is_kept_as_it_is(url: str, allow_http: bool) -> None:
    assert check_url(url, allow_http=allow_http) == url


@pytest.mark.parametrize(
    ("url", "allow_http", "complaint"),
    [
        ("http://127.0.0.1/x", False, "--allow-http"),
        ("http://example.com/x", True, "must start with https://"),
        ("http://8.8.8.8/x", True, "must start with https://"),
        ("http://10.0.0.1.example.com/", True, "must start with https://"),
        ("ftp://127.0.0.1/x", True, "must start with https://"),
        ("example.com", True, "such as https://"),
        ("https:///x", True, "such as https://"),
        ("https://example.com:0/", True, "such as https://"),
        ("https://example.com:99999/", True, "not a URL"),
        ("https://[::1/", True, "not a URL"),
        ("https://exa mple.com/", True, "such as https://"),
        ("https://example.com/\r\nX: y", True, "such as https://"),
        ("https://example.com/" + "x" * 2000, True, "such as https://"),
        ("https://me:canary@example.com/", True, "neither a login nor"),
        ("https://example.com/#canary", True, "neither a login nor"),
    ],
)
def test_any_other_address_is_refused_without_repeating_it(url: str, allow_http: bool, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint) as caught:
        check_url(url, allow_http=allow_http)
    assert "canary" not in str(caught.value)


def test_a_new_secret_is_long_different_each_time_and_masked_wherever_it_turns_up() -> None:
    one, two = new_secret(), new_secret()
    assert one != two and len(one) > 40 and check_secret(f" {one}\n") == one
    assert redact(f"said {one}!") == "said ***!"


@pytest.mark.parametrize("text", ["", "short", "x" * 129, "sixteen chars äöü", "sixteen\tcharacters"])
def test_a_weak_or_unprintable_secret_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(UsageError, match="16 to 128 printable ASCII") as caught:
        check_secret(text)
    assert not text or text not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "taken", "words"),
    [
        (Answer(200, "ok"), True, "HTTP 200: ok"),
        (Answer(299, ""), True, "HTTP 299"),
        (Answer(199, ""), False, "HTTP 199"),
        (Answer(302, "see there"), False, "HTTP 302: redirects are not followed"),
        (Answer(410, ""), False, "HTTP 410"),
        (Answer(500, "oh: "), False, "HTTP 500: oh"),
        (Answer(None, "it cannot be reached"), False, "it cannot be reached"),
    ],
)
def test_only_a_status_of_2xx_takes_a_message(answer: Answer, taken: bool, words: str) -> None:
    assert (is_success(answer), why(answer)) == (taken, words)


@given(before=st.integers(0, 60), secret=st.text("abcXYZ+/= %", min_size=16, max_size=64), kept=st.integers(1, 200))
def test_a_secret_that_an_answer_gives_back_is_not_shown_even_if_cut(before: int, secret: str, kept: int) -> None:
    secret = secret.replace(" ", "_") + "core"
    text = ("-" * before + secret * 20)[: before + kept]
    told = shown(Answer(500, text, cut=True), (secret,))
    assert set(told) <= set("-*…")
