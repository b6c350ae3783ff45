"""A page as the Taobao Open Platform documents it, in its shapes, and short ways to decode variations of it."""

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from xml.sax.saxutils import escape

import pytest

from models.errors import FetchError
from models.messages import PageTask
from models.source import FetchedPage, HttpResponse, Item
from worker.sources.taobao import TaobaoSource

SOURCE = TaobaoSource()
SHOP = "商家测试17"
NOW = datetime(2026, 1, 1, 4, 0, tzinfo=UTC)
"""Noon in China."""
DATE = "Thu, 01 Jan 2026 04:00:00 GMT"
WRAPPER = "alibaba_tjb_items_inventory_get_response"
ROW: dict[str, Any] = {
    "cid": 132443,
    "nick": SHOP,
    "title": 'N97 "项链" 💎 <b>&',
    "num_iid": 9007199254740993,
    "iid": "569a64fce2e98bce187bcbbb4a4d262a",
    "outer_id": "34143554352",
    "props": "135255:344454;20000:-3275069",
    "price": "5.00",
    "num": 8888,
    "approve_status": "instock",
}
ITEM = Item(
    item_id="9007199254740993",
    title='N97 "项链" 💎 <b>&',
    category_id="132443",
    price=Decimal("5.00"),
    stock=8888,
    status="instock",
    outer_id="34143554352",
    props=[["135255", "344454"], ["20000", "-3275069"]],
    extra={"iid": "569a64fce2e98bce187bcbbb4a4d262a"},
)
PAGE: dict[str, Any] = {"total_results": 150, "items": [ROW], "request_id": "abc"}
WHOLE = json.dumps(PAGE).encode()
FETCHED = FetchedPage([ITEM], 150)


def task(shop: str = SHOP, page: int = 1, **options: Any) -> PageTask:
    return PageTask("top", shop, page, page_id=1, fence=1, shop_id=1, shop_crawl_id=1, crawl_id=1, options=options)


TASK = task()


def decode(answer: Any, status: int = 200, asked: PageTask = TASK, **headers: str) -> FetchedPage:
    body = answer if isinstance(answer, bytes) else json.dumps(answer, ensure_ascii=False).encode()
    response = HttpResponse(status, {name.replace("_", "-"): value for name, value in headers.items()}, body)
    return SOURCE.decode(response, asked, NOW)


def failure(answer: Any, status: int = 200, asked: PageTask = TASK, **headers: str) -> FetchError:
    with pytest.raises(FetchError) as caught:
        decode(answer, status, asked, **headers)
    return caught.value


def refused(code: Any, sub_code: str | None = None, sub_msg: str | None = None, msg: str = "said") -> dict[str, Any]:
    members = {"code": code, "msg": msg, "sub_code": sub_code, "sub_msg": sub_msg, "request_id": "r"}
    return {"error_response": {name: value for name, value in members.items() if value is not None}}


def page(**members: Any) -> dict[str, Any]:
    return {**PAGE, **members}


def item(**fields: Any) -> tuple[Item, tuple[str, ...]]:
    """The one item of a page whose row has `fields` changed, and the page's anomalies."""
    fetched = decode(page(items=[{**ROW, **fields}]))
    return fetched.items[0], fetched.anomalies


def xml(tree: dict[str, Any]) -> bytes:
    """The same answer as the gateway writes it in XML."""
    return ('<?xml version="1.0" encoding="utf-8" ?>\n' + _elements(tree) + "\n<!--top010--> ").encode()


def _elements(tree: Any) -> str:
    if not isinstance(tree, dict):
        return escape(str(tree))
    parts = [(name, each) for name, value in tree.items() for each in (value if isinstance(value, list) else [value])]
    return "".join(f"<{name}>{_elements(each)}</{name}>" for name, each in parts)
