"""What a seller's items look like: every value is a function of seed, seller and row, and modified times by profile."""

from array import array
from collections import Counter
from hashlib import blake2b
from random import Random
from typing import Annotated, Any, Literal

import msgspec

from tests.simulator.clock import from_china
from tests.simulator.switches import Count

FIELDS = ("num_iid", "title", "nick", "cid", "outer_id", "props", "price", "num", "approve_status", "iid")
COLUMNS = frozenset({"list_time", "delist_time", "num", "modified", "sold_quantity"})
_FROM = from_china("2019-01-01 00:00:00")
_SPAN = from_china("2025-01-01 00:00:00") - _FROM
_MASK = 2**64 - 1
_STRIDE = 2_000_000  # rows a seller may ever have; keeps the ids of sellers apart
_RANGE = 9 * 10**11
_FACTOR = 618_033_988_751  # coprime to 2, 3 and 5, so that serial -> id is one-to-one
_INVERSE = pow(_FACTOR, -1, _RANGE)
_BIG = 2**60
_CLUSTERED = 0.4  # share of the rows that bulk edits touched

# sixteen each: four bits of a row's number choose one
_BRANDS = (
    "N97",
    "特价",
    "包邮",
    "新款",
    "韩版",
    "日系",
    "港风",
    "复古",
    '"正品"',
    "原创",
    "ins风",
    "轻奢",
    "清仓😀",
    "工厂直销",
    "A&B",
    "<限量>",
)
_LOOKS = (
    "简约",
    "百搭",
    "可调节",
    "加厚",
    "不规则",
    "几何",
    "气质",
    "甜酷",
    "防滑",
    "大容量",
    "可折叠",
    "多层",
    "小众",
    "透明",
    "夜光",
    "迷你",
)
_THINGS = (
    "项链",
    "手链",
    "耳环",
    "戒指",
    "发夹",
    "帆布包",
    "水杯",
    "手机壳",
    "围巾",
    "帽子",
    "袜子",
    "台灯",
    "收纳盒",
    "雨伞",
    "抱枕",
    "贴纸",
)


class SellerSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How many items a seller has, when they were modified, and the session if it is not to be drawn."""

    items: Annotated[int, msgspec.Meta(ge=0, le=_STRIDE // 2)]
    profile: Literal["uniform", "clustered", "one_second"] = "uniform"
    burst_rows: Annotated[int, msgspec.Meta(ge=1)] = 30_000
    bursts: Count | None = None
    one_second: Count | None = None
    cids: Annotated[int, msgspec.Meta(ge=1)] = 12
    big_ids: bool = False
    session: str = ""


def modified_times(spec: SellerSpec, random: Random) -> "array[int]":
    """Return the seconds since the epoch at which the rows were last modified, ascending."""
    times: list[int] = []
    if spec.profile == "clustered":
        rows = min(spec.burst_rows, max(1, spec.items // 4))
        bursts = max(1, round(spec.items * _CLUSTERED / rows)) if spec.bursts is None else spec.bursts
        for _ in range(bursts):
            minute = _FROM + random.randrange(_SPAN // 60) * 60
            times += [minute + random.randrange(60) for _ in range(min(rows, spec.items - len(times)))]
    elif spec.profile == "one_second":
        rows = spec.items if spec.one_second is None else min(spec.one_second, spec.items)
        times += [_FROM + random.randrange(_SPAN)] * rows
    draw = random.random
    times += [_FROM + int(_SPAN * draw()) for _ in range(spec.items - len(times))]
    times.sort()
    return array("q", times)


def _mix(number: int) -> int:
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    number = (number ^ number >> 27) * 0x94D049BB133111EB & _MASK
    return number ^ number >> 31


class Goods:
    """The rows of one seller, numbered in the order of their first modified times."""

    def __init__(self, seed: int, number: int, nick: str, spec: SellerSpec) -> None:
        self.nick = nick
        self.first_size = spec.items
        self.modified = modified_times(spec, Random(f"top|{seed}|{nick}"))
        self.gone: set[int] = set()
        self.was_away: set[int] = set()
        self.edits: Counter[int] = Counter()
        self.repriced: Counter[int] = Counter()
        self._salt = int.from_bytes(blake2b(f"{seed}|{nick}".encode(), digest_size=8).digest(), "little")
        self._base = number * _STRIDE
        self._big_ids = spec.big_ids
        self._cids = [50_000_000 + 17 * n for n in range(spec.cids)]

    def __len__(self) -> int:
        return len(self.modified)

    def num_iid(self, row: int) -> int:
        """Return the id of a row."""
        number = 10**11 + (self._base + row) * _FACTOR % _RANGE
        return number + _BIG if self._big_ids and row % 2 else number

    def row_of(self, num_iid: int) -> int:
        """Return the row of an id; KeyError if there is none."""
        row = (num_iid % _BIG - 10**11) * _INVERSE % _RANGE - self._base
        if not 0 <= row < len(self) or self.num_iid(row) != num_iid:
            raise KeyError(num_iid)
        return row

    def cid(self, row: int) -> int:
        """Return the category of a row."""
        return self._cids[(row * 2654435761 >> 16) % len(self._cids)]

    def title(self, row: int, *, raw: bool = False) -> str:
        """Return the title; with `raw` one in sixteen holds a tab and a newline."""
        return self._title(self._hash(row), row, raw)

    def column(self, row: int, name: str) -> int:
        """Return what a row is sorted by."""
        if name == "modified":
            return self.modified[row]
        number = self._hash(row)
        if name == "num":
            return (number >> 16) % 10_000
        if name == "sold_quantity":
            return (number >> 24) % 5_000
        listed = _FROM + (number >> 8) % _SPAN
        return listed if name == "list_time" else listed + 7 * 86_400

    def row(self, row: int, *, raw: bool = False) -> dict[str, Any]:
        """Return everything the platform tells of a row now."""
        number = self._hash(row)
        twin = _mix(number)
        cents = 100 + (number >> 34) % 50_000
        if row in self.repriced:
            cents = 100 + (cents + 37 * self.repriced[row]) % 60_000
        item: dict[str, Any] = {
            "num_iid": self.num_iid(row),
            "title": self._title(number, row, raw),
            "nick": self.nick,
            "cid": self.cid(row),
            "props": f"{20_000 + twin % 9}:{twin >> 8 & 0xFFFFFF};{122_216_000 + twin % 7}:{twin >> 32 & 0xFFFF}",
            "price": f"{cents // 100}.{cents % 100:02d}",
            "num": (number >> 16) % 10_000,
            "approve_status": "instock" if number >> 55 & 15 else "onsale",
            "iid": f"{number:016x}{twin:016x}",
        }
        if number >> 50 & 7:
            item["outer_id"] = f"SKU-{number & 0xFFFFF:05X}"
        return item

    def _hash(self, row: int) -> int:
        return _mix(self._salt + row * 0x9E3779B97F4A7C15 & _MASK)

    def _title(self, number: int, row: int, raw: bool) -> str:
        text = f"{_BRANDS[number & 15]}{_LOOKS[number >> 4 & 15]}{_THINGS[number >> 8 & 15]} {row:07d}"
        return f"{text}\t现货\n" if raw and not number >> 12 & 15 else text
