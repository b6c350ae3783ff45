"""The judge of fuzzed answers: each is read as storable items or refused with a FetchError, or something is wrong."""

import json
from datetime import UTC, datetime

from models.errors import BannedError, FetchError
from models.messages import PageTask
from models.source import FetchedPage, HttpResponse, Item, source_named

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SHOP = "商家测试17"
_MONEY = (
    "price",
    "drop_ship_price",
    "wholesale_price",
    "origin_price",
    "agent_price",
    "gmv_30d",
    "gmv_90d",
    "rank_score",
)
_WHOLE = ("quantity_begin", "stock", "sold_30d", "sold_90d", "orders_30d")


def survives(source: str, body: bytes, status: int = 200) -> FetchedPage | FetchError:
    """What decoding comes to. Raises AssertionError, or whatever escaped, if it is nothing that can be handled."""
    task = PageTask(source, SHOP, 1, page_id=1, fence=1, shop_id=1, shop_crawl_id=1, crawl_id=1)
    try:
        fetched = source_named(source).decode(HttpResponse(status, {}, body), task, NOW)
    except FetchError as error:
        assert 0 < len(error.code) <= 60 and error.code.isascii() and error.code.isprintable()
        assert error.message and len(error.message) <= 300 and error.message.isprintable()
        assert not isinstance(error, BannedError) or 0 < error.seconds <= 24 * 3600
        return error
    for found in fetched.items:
        _check(found)
    assert fetched.total is None or 0 <= fetched.total <= 10**9
    assert all(word.isascii() for word in fetched.anomalies)
    return fetched


def _check(item: Item) -> None:
    assert 1 <= len(item.item_id) <= 64
    values = (item.extra, item.title, item.props, item.category_id, item.status, item.outer_id)
    text = json.dumps(values, allow_nan=False, ensure_ascii=False)
    assert "\\u0000" not in text
    text.encode()
    for name in _MONEY:
        amount = getattr(item, name)
        assert amount is None or (abs(amount) < 10**14 and amount == round(amount, 6))
    for name in _WHOLE:
        number = getattr(item, name)
        assert number is None or abs(number) < 2**63
