"""TMAPI's answer in its usual shape, decoded in C: the short way for most pages, with the long way's result."""

from functools import lru_cache
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from models.source import HttpResponse, Item
from worker.sources import base

Text = Annotated[str, Meta(max_length=base.MAX_TEXT)]
Texts = Annotated[list[Text], Meta(max_length=base.MAX_LIST)]
Numeral = Annotated[str, Meta(max_length=40)]
"""A number as text, which is how the vendor sends all of them; short, because it is remembered."""
Time = Annotated[str, Meta(max_length=40)]


class Prices(Struct, frozen=True, forbid_unknown_fields=True):
    """`price_info`: four more prices."""

    drop_ship_price: Numeral | None = None
    wholesale_price: Numeral | None = None
    origin_price: Numeral | None = None
    agent_price: Numeral | None = None


class Sales(Struct, frozen=True, forbid_unknown_fields=True):
    """`sale_info`: what moves every day."""

    gmv_30days: Numeral | None = None
    gmv_90days: Numeral | None = None
    sale_quantity_30days: Numeral | None = None
    sale_quantity_90days: Numeral | None = None
    orders_count_30days: Numeral | None = None


class Row(Struct, forbid_unknown_fields=True):
    """One item as the vendor's page documents it; any other key needs the long way, which keeps it."""

    item_id: Annotated[str, Meta(pattern=r"^[0-9A-Za-z_.\-]{1,64}\Z")]
    title: Text | None = None
    img: Text | None = None
    main_imgs: Texts | None = None
    video_id: Text | None = None
    category_path: Texts | None = None
    category_name: Text | None = None
    price: Numeral | None = None
    price_info: Prices = Prices()
    quantity_begin: Numeral | None = None
    new_product: bool | None = None
    sale_info: Sales = Sales()
    primary_rank_score: Numeral | None = None
    type: Text | None = None
    unit: Text | None = None
    created_time: Time | None = None
    status: Text | None = None


class Data(Struct):
    """The page around the items; keys that only echo the request are passed over."""

    items: list[Row]
    total_count: int | Text | None = None
    page_size: int | Text | None = None


class Answer(Struct):
    """A success and nothing else."""

    code: Annotated[int, Meta(ge=200, le=200)]
    data: Data


_DECODER = msgspec.json.Decoder(Answer)


def usual_answer(response: HttpResponse) -> tuple[Data, list[Item]] | None:
    """The page's data and items, or None for an answer that is in any way unusual."""
    if response.status != 200 or b"\\u0000" in response.body:
        return None
    try:
        data = _DECODER.decode(response.body).data
        return data, [_item(row) for row in data.items]
    except (msgspec.MsgspecError, RecursionError, *base.UNREADABLE):
        return None


# Prices and ranks recur within a page and from page to page; figures and times seldom do.
_recurring = lru_cache(maxsize=4096)(base.read_decimal)


def _item(row: Row) -> Item:
    recurring, decimal, integer = _recurring, base.read_decimal, base.read_integer
    prices, sales = row.price_info, row.sale_info
    return Item(
        item_id=row.item_id,
        title=row.title or None,
        image=row.img or None,
        images=row.main_imgs,
        video_id=row.video_id or None,
        category_path=row.category_path,
        category_name=row.category_name or None,
        price=recurring(row.price) if row.price else None,
        drop_ship_price=recurring(prices.drop_ship_price) if prices.drop_ship_price else None,
        wholesale_price=recurring(prices.wholesale_price) if prices.wholesale_price else None,
        origin_price=recurring(prices.origin_price) if prices.origin_price else None,
        agent_price=recurring(prices.agent_price) if prices.agent_price else None,
        quantity_begin=integer(row.quantity_begin) if row.quantity_begin else None,
        gmv_30d=decimal(sales.gmv_30days) if sales.gmv_30days else None,
        gmv_90d=decimal(sales.gmv_90days) if sales.gmv_90days else None,
        sold_30d=integer(sales.sale_quantity_30days) if sales.sale_quantity_30days else None,
        sold_90d=integer(sales.sale_quantity_90days) if sales.sale_quantity_90days else None,
        orders_30d=integer(sales.orders_count_30days) if sales.orders_count_30days else None,
        rank_score=recurring(row.primary_rank_score) if row.primary_rank_score else None,
        new_product=row.new_product,
        type=row.type or None,
        unit=row.unit or None,
        created_time=base.read_time(row.created_time) if row.created_time else None,
        status=row.status or None,
    )
