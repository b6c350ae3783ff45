"""A page as TMAPI documents it, what it must be read as, and short ways to decode variations of it."""

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from models.errors import FetchError
from models.messages import PageTask
from models.source import FetchedPage, HttpResponse, Item
from worker.sources.tmapi import TmapiSource

SOURCE = TmapiSource()
TASK = PageTask(source="tmapi", shop="jane727", page=1, page_id=1, fence=1, shop_id=1, shop_crawl_id=1, crawl_id=1)
NOW = datetime(2026, 1, 1, tzinfo=UTC)
IMAGE = "https://cbu01.alicdn.com/img/ibank/O1CN01oEsmfk1E96nrFROVF_!!988240308-0-cib.jpg"
ROW: dict[str, Any] = {
    "item_id": "693334796781",
    "title": '欧美跨境饰品 "choker" 项链 💎',
    "img": IMAGE,
    "main_imgs": [IMAGE, IMAGE + "?2"],
    "video_id": "",
    "category_path": ["70763664", "178655228"],
    "category_name": "项链",
    "price": "3.90",
    "price_info": {
        "drop_ship_price": "7.90",
        "wholesale_price": "3.90",
        "origin_price": "3.9",
        "agent_price": "3.9",
    },
    "quantity_begin": "2",
    "new_product": False,
    "sale_info": {
        "gmv_30days": "17724.33",
        "gmv_90days": "56251.1",
        "sale_quantity_30days": "3728",
        "sale_quantity_90days": "12942",
        "orders_count_30days": "222",
    },
    "primary_rank_score": "0",
    "type": "SALE",
    "unit": "PCS",
    "created_time": "2022-11-28T11:26:00+0800",
    "status": "published",
}
ITEM = Item(
    item_id="693334796781",
    title='欧美跨境饰品 "choker" 项链 💎',
    image=IMAGE,
    images=[IMAGE, IMAGE + "?2"],
    video_id=None,
    category_path=["70763664", "178655228"],
    category_name="项链",
    price=Decimal("3.90"),
    drop_ship_price=Decimal("7.90"),
    wholesale_price=Decimal("3.90"),
    origin_price=Decimal("3.9"),
    agent_price=Decimal("3.9"),
    quantity_begin=2,
    gmv_30d=Decimal("17724.33"),
    gmv_90d=Decimal("56251.1"),
    sold_30d=3728,
    sold_90d=12942,
    orders_30d=222,
    rank_score=Decimal(0),
    new_product=False,
    type="SALE",
    unit="PCS",
    status="published",
    created_time=datetime(2022, 11, 28, 3, 26, tzinfo=UTC),
)
PAGE: dict[str, Any] = {
    "code": 200,
    "msg": "success",
    "data": {"page": 1, "page_size": 20, "total_count": "2465", "items": [ROW]},
}
WHOLE = json.dumps(PAGE).encode()


def decode(answer: Any, status: int = 200, **headers: str) -> FetchedPage:
    body = answer if isinstance(answer, bytes) else json.dumps(answer, ensure_ascii=False).encode()
    response = HttpResponse(status, {name.replace("_", "-"): value for name, value in headers.items()}, body)
    return SOURCE.decode(response, TASK, NOW)


def failure(answer: Any, status: int = 200, **headers: str) -> FetchError:
    with pytest.raises(FetchError) as caught:
        decode(answer, status, **headers)
    return caught.value


def page(**data: Any) -> dict[str, Any]:
    return {**PAGE, "data": {**PAGE["data"], **data}}


def item(**fields: Any) -> tuple[Item, tuple[str, ...]]:
    """The one item of a page whose row has `fields` changed, and the page's anomalies."""
    fetched = decode(page(items=[{**ROW, **fields}]))
    return fetched.items[0], fetched.anomalies
