"""Whatever the Taobao Open Platform answers, decoding yields storable items or a FetchError, and nothing else."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.judge import survives
from tests.top_pages import PAGE, ROW, SHOP, WHOLE, WRAPPER, refused, xml

STATUSES = st.sampled_from([200, 302, 401, 404, 500, 503])
CODES = st.sampled_from([None, 0, 7, "7", 15, 26, 27, 31, 40, 41, 50, 99])
SUB_CODES = st.sampled_from(
    ["accesscontrol.limited-by-app-access-count", "isp.x", "isv.x", "isv.invalid-parameter", "isv.permission-x", ""]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["NaN", "1e9", "\0"])
keys = st.sampled_from([WRAPPER, "error_response", "code", "sub_code", "msg", "item", *PAGE, *ROW]) | st.text()
trees = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=6))
XML = xml({WRAPPER: {**PAGE, "items": {"item": [ROW, ROW]}}})
REFUSED = xml(refused(7, "accesscontrol.limited-by-api-access-count", "This ban will last for 2 more seconds"))
BODIES = [WHOLE, XML, REFUSED, json.dumps(refused(27, "session-expired")).encode()]
names = st.sampled_from(["a_response", "error_response", "item", "items", "total_results", "code", *ROW])
markup = st.recursive(
    st.text(max_size=8)
    | st.sampled_from(["<![CDATA[x]]>", "&amp;", "&#0;", "&#xD800;", "<?x?>", "<!--", "<!DOCTYPE a>"]),
    lambda inner: st.builds(
        lambda name, parts: f"<{name}>{''.join(parts)}</{name}>", names, st.lists(inner, max_size=4)
    ),
)


@given(body=st.binary(), status=st.integers(100, 599))
def test_arbitrary_bytes_never_raise_anything_else(body: bytes, status: int) -> None:
    survives("top", body, status)
    survives("top", b"<a_response>" + body, status)


@given(tree=trees, status=STATUSES)
def test_arbitrary_json_never_raises_anything_else(tree: Any, status: int) -> None:
    survives("top", json.dumps(tree).encode(), status)


@given(row=st.dictionaries(keys, trees, max_size=8), members=st.dictionaries(keys, trees, max_size=3))
def test_arbitrary_rows_are_skipped_or_storable(row: dict[str, Any], members: dict[str, Any]) -> None:
    sent = {**ROW, **row, "nick": SHOP}
    survives("top", json.dumps({"total_results": 1, **members, "items": [sent]}).encode())


@given(
    code=CODES | scalars, sub_code=SUB_CODES | scalars, texts=st.dictionaries(keys, trees, max_size=3), status=STATUSES
)
def test_arbitrary_errors_never_raise_anything_else(
    code: Any, sub_code: Any, texts: dict[str, Any], status: int
) -> None:
    said = {**texts, "code": code, "sub_code": sub_code}
    survives("top", json.dumps({"error_response": said}).encode(), status)


@given(inside=markup, status=STATUSES)
def test_arbitrary_xml_never_raises_anything_else(inside: str, status: int) -> None:
    survives("top", f"<{WRAPPER}><total_results>1</total_results>{inside}</{WRAPPER}>".encode(errors="replace"), status)
    survives("top", f"<error_response>{inside}</error_response>".encode(errors="replace"), status)


@given(
    body=st.sampled_from(BODIES), changes=st.lists(st.tuples(st.integers(0, 900), st.binary(max_size=3)), max_size=5)
)
def test_damaged_pages_never_raise_anything_else(body: bytes, changes: list[tuple[int, bytes]]) -> None:
    damaged = bytearray(body)
    for at, patch in changes:
        damaged[at % len(body) : at % len(body) + len(patch)] = patch
    survives("top", bytes(damaged))


@given(name=st.sampled_from([*ROW, "extra"]), value=trees)
def test_pages_with_one_value_replaced_never_raise_anything_else(name: str, value: Any) -> None:
    answer = copy.deepcopy(PAGE)
    answer["items"][0][name] = value
    survives("top", json.dumps(answer).encode())


@pytest.mark.parametrize("depth", [*range(15, 25), *range(900, 1_010, 5)])
@pytest.mark.parametrize(
    "key", ["msg", "sub_code", "code", "total_results", "items", "nick", "num_iid", "title", "new"]
)
@pytest.mark.parametrize("brackets", ["[]", '{"a":1}'])
def test_deep_nesting_anywhere_never_raises_anything_else(depth: int, key: str, brackets: str) -> None:
    opening, closing = brackets[0] + brackets[1:-1].replace("1", ""), brackets[-1]
    deep = opening * depth + ("1" if "a" in brackets else "") + closing * depth
    survives("top", f'{{"error_response":{{"{key}":{deep}}}}}'.encode())
    survives("top", f'{{"total_results":1,"items":[{{"num_iid":1,"{key}":{deep}}}]}}'.encode())
    survives("top", f'{{"{key}":{deep}}}'.encode())
