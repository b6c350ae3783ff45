"""Whatever arrives, decoding yields storable items or a FetchError, and nothing else."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import FetchError
from models.source import FetchedPage, HttpResponse
from tests.tmapi_pages import NOW, PAGE, ROW, SOURCE, TASK, WHOLE

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["NaN", "1e9", "\0"])
keys = st.sampled_from(["code", "msg", "data", "items", "total_count", *ROW, *ROW["sale_info"]]) | st.text()
trees = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=6))


def assert_storable(fetched: FetchedPage) -> None:
    for found in fetched.items:
        text = json.dumps(found.extra, allow_nan=False, ensure_ascii=False)
        assert "\\u0000" not in text
        text.encode()
        for amount in (found.price, found.gmv_30d, found.rank_score):
            assert amount is None or (abs(amount) < 10**14 and amount == round(amount, 6))
        assert found.quantity_begin is None or abs(found.quantity_begin) < 2**63
        assert 1 <= len(found.item_id) <= 64


def survives(body: bytes, status: int = 200) -> None:
    """Decoding ends well, and the short way for usual pages ends exactly as the long one does."""
    response = HttpResponse(status, {}, body)
    try:
        fetched = SOURCE.decode(response, TASK, NOW)
    except FetchError as error:
        assert error.code and str(error).isprintable()
        with pytest.raises(type(error)) as raised:
            SOURCE.decode_any(response)
        assert raised.value.code == error.code
    else:
        assert_storable(fetched)
        assert fetched == SOURCE.decode_any(response)


@given(body=st.binary(), status=st.integers(100, 599))
def test_arbitrary_bytes_never_raise_anything_else(body: bytes, status: int) -> None:
    survives(body, status)


@given(tree=trees, status=st.sampled_from([200, 401, 404, 422, 500]))
def test_arbitrary_json_never_raises_anything_else(tree: Any, status: int) -> None:
    survives(json.dumps(tree).encode(), status)


@given(row=st.dictionaries(keys, trees, max_size=8), data=st.dictionaries(keys, trees, max_size=3))
def test_arbitrary_rows_are_skipped_or_storable(row: dict[str, Any], data: dict[str, Any]) -> None:
    survives(json.dumps({"code": 200, "data": {**data, "items": [{**ROW, **row}]}}).encode())


@given(changes=st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.binary(max_size=3)), max_size=5))
def test_damaged_pages_never_raise_anything_else(changes: list[tuple[int, bytes]]) -> None:
    body = bytearray(WHOLE)
    for at, patch in changes:
        body[at : at + len(patch)] = patch
    survives(bytes(body))


@given(path=st.lists(st.integers(0, 30), min_size=1, max_size=5), value=trees)
def test_pages_with_one_value_replaced_never_raise_anything_else(path: list[int], value: Any) -> None:
    answer = copy.deepcopy(PAGE)
    node: Any = answer
    for step in path:
        options = list(node) if isinstance(node, dict) else list(range(len(node))) if isinstance(node, list) else []
        if not options:
            break
        key = options[step % len(options)]
        if step == path[-1] or not isinstance(node[key], (dict, list)):
            node[key] = value
            break
        node = node[key]
    survives(json.dumps(answer).encode())
