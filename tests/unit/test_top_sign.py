"""Calls to the Taobao Open Platform are signed as its documentation says."""

import hashlib
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.simulator.top.sign import signature
from tests.top_vectors import KNOWN
from worker.sources.top_sign import sign

METHODS = ["md5", "hmac", "hmac-sha256"]


@pytest.mark.parametrize(("params", "secret", "method", "expected"), KNOWN)
def test_known_calls_have_their_known_signature(
    params: dict[str, str], secret: str, method: str, expected: str
) -> None:
    signed = {**params, "sign_method": method}
    assert sign(signed, secret, method) == expected
    assert sign({**signed, "sign": expected}, secret, method) == expected


def test_names_are_sorted_by_their_bytes() -> None:
    params = {"foo": "1", "bar": "2", "foo_bar": "3", "foobar": "4"}
    assert sign(params, "s", "md5") == hashlib.md5(b"sbar2foo1foo_bar3foobar4s").hexdigest().upper()


names = st.text(string.ascii_lowercase + "_", min_size=1, max_size=12)
values = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(
    params=st.dictionaries(names, values), secret=st.text(string.hexdigits, min_size=1), method=st.sampled_from(METHODS)
)
def test_any_call_is_signed_as_an_independent_reading_of_the_rule_says(
    params: dict[str, str], secret: str, method: str
) -> None:
    signed = sign(params, secret, method)
    assert signed == signature(params, secret, method)
    assert len(signed) == (64 if method == "hmac-sha256" else 32) and not set(signed) - set("0123456789ABCDEF")


@given(params=st.dictionaries(names, values, min_size=1), method=st.sampled_from(METHODS), data=st.data())
def test_the_order_does_not_matter_and_every_value_does(
    params: dict[str, str], method: str, data: st.DataObject
) -> None:
    shuffled = dict(data.draw(st.permutations(list(params.items()))))
    assert sign(shuffled, "secret", method) == sign(params, "secret", method)
    name = data.draw(st.sampled_from(sorted(params)))
    if name != "sign":
        assert sign({**params, name: params[name] + "x"}, "secret", method) != sign(params, "secret", method)
