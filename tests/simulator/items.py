"""What an item looks like: every field is a pure function of seed, shop, index and version."""

import json
from base64 import b64encode
from datetime import date, timedelta
from functools import lru_cache
from hashlib import blake2b
from random import Random
from struct import Struct
from typing import Any

_STRIDE = 2_000_000  # items a shop may ever have; keeps the serials of shops apart
_MULTIPLIER = 1_000_000_007  # coprime to 2, 3 and 5, so serial -> id is one-to-one within 9 * 10**k
_WORDS = Struct("<16I")
_PLACE = Struct("<QQ")

_REGIONS = (
    "欧美",
    "跨境",
    "日韩",
    "法式",
    "复古",
    "轻奢",
    "ins风",
    "港风",
    "新中式",
    "北欧",
    "原创",
    "爆款",
    "亚马逊",
    "韩版",
)
_STYLES = (
    "夸张朋克",
    "可调节",
    "多层叠戴",
    "甜酷休闲",
    "气质小众",
    "简约个性",
    "几何圆球",
    "不规则",
    "加厚防滑",
    "大容量",
    "可折叠",
)
_STUFFS = (
    "水钻",
    "仿珍珠",
    "钛钢",
    "真皮",
    "纯棉",
    "帆布",
    "陶瓷",
    "硅胶",
    "亚克力",
    "不锈钢",
    "天然石",
    "羊毛",
    "合金",
    "竹木",
)
_USES = (
    "饰品",
    "沙滩",
    "家用",
    "户外",
    "通勤",
    "婚礼",
    "厨房",
    "宠物",
    "儿童",
    "办公室",
    "车载",
    "学生",
    "旅行",
    "健身",
)
_TAILS = (
    "女",
    "男",
    "批发",
    "现货",
    "厂家直销",
    "一件代发",
    "2024新款",
    "支持定制",
    "外贸",
    "礼盒装",
    "直播货源",
    "情侣款",
)
# Already JSON-escaped: quotes, a backslash, a tab, emoji and markup must survive a store and an export.
_ODDITIES = ('\\"正品\\"', "😍🔥", "A\\\\B", "尺寸\\t大", "<b>热卖</b>", "'单引号'", "½″×3", "👨‍👩‍👧")
_LEAVES = ("项链", "脚饰", "耳环", "手链", "水杯", "背包", "T恤", "毛巾", "收纳盒", "手机壳", "地毯", "台灯")
_CATEGORIES = tuple(
    (name, [str(87574327 + number * 37), str(15481365 + number), str(70763664 + number % 3)])
    for number, name in enumerate(_LEAVES)
)
_UNITS = ("PCS", "条", "个", "件", "套", "双", "KG")
_DEALS = 4096  # combinations of price and sales
_DAY = 1440
_CLOCK = tuple(f"{minute // 60:02d}:{minute % 60:02d}" for minute in range(_DAY))
_FIRST_DAY, _LAST_DAY = 16_436, 29_000  # days since 1970: 2015-01-01 and some day in 2049
_DATES = tuple(str(date(1970, 1, 1) + timedelta(days=day)) for day in range(_FIRST_DAY, _LAST_DAY))


def money(cents: int) -> str:
    """Render cents with both decimals: 390 is "3.90"."""
    return f"{cents // 100}.{cents % 100:02d}"


def short_money(cents: int) -> str:
    """Render cents as the vendor's other fields do: 390 is "3.9", 400 is "4.0"."""
    return f"{cents // 100}.{cents % 100 // 10}" if cents % 10 == 0 else money(cents)


def _look(number: int) -> tuple[bytes, bytes, bytes]:
    """Return title, category fields and unit field of one of the looks that items share."""
    random = Random(f"look:{number}")
    leaf, path = random.choice(_CATEGORIES)
    oddity = random.choice(_ODDITIES) if random.random() < 0.03 else ""
    first, second = random.choice(_STYLES), random.choice(_STYLES)
    title = f"{random.choice(_REGIONS)}{first}{oddity}{random.choice(_STUFFS)}{random.choice(_USES)}{leaf}{second}"
    fields = f'"category_path":{json.dumps(path, separators=(",", ":"))},"category_name":"{leaf}"'
    title += random.choice(_TAILS)
    return title.encode(), fields.encode(), f'"unit":"{random.choice(_UNITS)}"'.encode()


# Composed once: drawing every word of every title would cost more than the rest of an answer.
_LOOKS = tuple(_look(number) for number in range(1024))
_PATHS: tuple[list[str], ...] = tuple(json.loads(b"{%b}" % fields)["category_path"] for _, fields, _ in _LOOKS)


class ItemFactory:
    """Draws items from a seed; equal seeds give equal items, whatever the order of the questions."""

    def __init__(self, seed: int) -> None:
        self._salt = blake2b(str(seed).encode(), digest_size=16).digest()
        self._offset = int.from_bytes(self._salt[:6], "little")

    def item_id(self, shop: int, index: int) -> int:
        """Return the number of an item, 9 to 13 digits, mostly 12, unique over all shops."""
        serial = shop * _STRIDE + index
        kind = (serial * 2_654_435_761 & 0xFFFFFFFF) >> 27
        digits = (9, 10, 11, 13)[kind] if kind < 4 and serial < 900_000_000 else 12
        base = int(10 ** (digits - 1))
        return base + (serial * _MULTIPLIER + self._offset) % (9 * base)

    def price(self, shop: int, index: int, version: int) -> int:
        """Return the price in cents; it differs between any two versions."""
        return _price(self._words(shop, index)[0] % _DEALS, version)

    def sales(self, shop: int, index: int, version: int) -> int:
        """Return the pieces sold in 30 days."""
        return _sales(self._words(shop, index)[0] % _DEALS, version)

    def categories(self, shop: int, index: int) -> list[str]:
        """Return the ids of the category path."""
        return _PATHS[self._words(shop, index)[3] % len(_PATHS)]

    def render(self, shop: int, index: int, version: int, variants: float = 0.0) -> bytes:
        """Return the item's JSON; with probability `variants` some optional key is missing, null or empty."""
        digest = self._digest(shop, index)
        words = _WORDS.unpack(digest)
        text = self._text(shop, index, version, words, b64encode(digest, b"Xy").decode())
        if words[15] < variants * 2**32:
            return json.dumps(_vary(json.loads(text), words[14]), ensure_ascii=False, separators=(",", ":")).encode()
        return text

    def _digest(self, shop: int, index: int) -> bytes:
        return blake2b(_PLACE.pack(shop, index), digest_size=64, salt=self._salt).digest()

    def _words(self, shop: int, index: int) -> tuple[int, ...]:
        return _WORDS.unpack(self._digest(shop, index))

    def _text(self, shop: int, index: int, version: int, words: tuple[int, ...], names: str) -> bytes:
        title, category, unit = _LOOKS[words[3] % len(_LOOKS)]
        stem = "https://cbu01.alicdn.com/img/ibank/O1CN01"
        tail = f"_!!{988_000_000 + shop}-0-cib.jpg"
        cover = f"{stem}{names[:17]}{tail}"
        video = 300_000_000_000 + words[15] * 20 if words[13] % 4 == 0 else ""
        minute = index * 53 + words[14] % 53
        day = _DATES[min(minute // _DAY + shop % 1500, len(_DATES) - 1)]
        opening = f'{{"item_id":"{self.item_id(shop, index)}","title":"'
        images = (
            f'{index}","img":"{cover}","main_imgs":["{cover}","{stem}{names[20:37]}{tail}",'
            f'"{stem}{names[40:57]}{tail}","{stem}{names[60:77]}{tail}"],"video_id":"{video}",'
        )
        closing = f',"created_time":"{day}T{_CLOCK[minute % _DAY]}:00+0800","status":"published"}}'
        figures = _figures(words[0] % _DEALS, version)
        # Only the looks hold Chinese: joining bytes spares Python from widening every character of the rest.
        return b"".join((opening.encode(), title, images.encode(), category, figures, unit, closing.encode()))


def _price(deal: int, version: int) -> int:
    spread = deal * 2_654_435_761 % _DEALS
    return 50 + spread * spread // 1500 + version * (1 + deal % 90)


def _sales(deal: int, version: int) -> int:
    return deal * 40_503 % 5000 * (deal % 7) // 3 + version


@lru_cache(maxsize=2 * _DEALS)
def _figures(deal: int, version: int) -> bytes:
    """Return the fields from price to type; items share a few thousand deals, for the same reason as looks."""
    cents, sold = _price(deal, version), _sales(deal, version)
    price, short = money(cents), short_money(cents)
    dropship = money(cents + 400) if deal % 3 == 0 else price
    return (
        f',"price":"{price}","price_info":{{"drop_ship_price":"{dropship}","wholesale_price":"{price}",'
        f'"origin_price":"{short}","agent_price":"{short}"}},"quantity_begin":"{1 + deal % 6}",'
        f'"new_product":{"true" if deal % 11 == 0 else "false"},"sale_info":{{'
        f'"gmv_30days":"{short_money(sold * cents)}","gmv_90days":"{short_money(sold * cents * 3)}",'
        f'"sale_quantity_30days":"{sold}","sale_quantity_90days":"{sold * 3}","orders_count_30days":"{sold // 9}"}},'
        f'"primary_rank_score":"{deal % 100 * (deal % 5 == 0)}","type":"SALE",'
    ).encode()


def _vary(item: dict[str, Any], pick: int) -> dict[str, Any]:
    """Leave out, null or empty one optional part, as the vendor's answers do."""
    key, value = _VARIANTS[pick % len(_VARIANTS)]
    outer, _, inner = key.partition(".")
    holder = item[outer] if inner else item
    if value is _MISSING:
        del holder[inner or outer]
    else:
        holder[inner or outer] = value
    return item


_MISSING = object()
_VARIANTS: tuple[tuple[str, Any], ...] = (
    ("video_id", _MISSING),
    ("video_id", None),
    ("sale_info.gmv_90days", _MISSING),
    ("sale_info.orders_count_30days", None),
    ("sale_info.gmv_30days", ""),
    ("sale_info", _MISSING),
    ("sale_info", None),
    ("price_info", _MISSING),
    ("price_info", None),
    ("price_info.agent_price", _MISSING),
    ("price_info.drop_ship_price", ""),
    ("quantity_begin", None),
    ("quantity_begin", ""),
    ("quantity_begin", _MISSING),
    ("category_path", []),
    ("category_path", None),
    ("category_name", ""),
    ("main_imgs", []),
    ("main_imgs", _MISSING),
    ("unit", ""),
    ("unit", None),
    ("primary_rank_score", _MISSING),
    ("new_product", None),
    ("created_time", _MISSING),
    ("created_time", ""),
)
