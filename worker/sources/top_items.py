"""One row of the Taobao Open Platform read as an item."""

import re
from typing import Any

from models.errors import ShopRefusedError
from models.source import Item
from worker.sources import base

MAX_ID_DIGITS = 20
_ITEM_ID = re.compile(r"[0-9A-Za-z_.\-]{1,64}")
_PROPERTY_ID = re.compile(r"-?[0-9]{1,20}")


def read_items(rows: list[Any], nick: str, anomalies: list[str]) -> list[Item]:
    """The items of one page of the seller `nick`; oddities are added to `anomalies`.

    Raises ShopRefusedError if a single row is another seller's: then none of them can be trusted.
    """
    for row in rows:
        if isinstance(row, dict):
            _check_seller(row.get("nick"), nick, anomalies)
    return [item for row in rows if (item := _item(row, anomalies)) is not None]


def _check_seller(sent: Any, nick: str, anomalies: list[str]) -> None:
    if sent is None or sent == "":
        anomalies.append("item-without-nick")
        return
    try:
        found = base.read_text(sent).strip()
    except base.UNREADABLE:
        anomalies.append("bad-nick")
        return
    if found != nick:
        known = f"seller {base.shown(found)}, not {base.shown(nick)}"
        message = f"the shop's session shows the items of {known}; nothing was stored (option nick names the seller)"
        raise ShopRefusedError("session-mixup", base.one_line(message))


def _item(row: Any, anomalies: list[str]) -> Item | None:
    if not isinstance(row, dict):
        anomalies.append("item-not-object")
        return None
    item_id = _item_id(row.get("num_iid"))
    if item_id is None:
        anomalies.append("item-without-id")
        return None
    sent = {
        name: value
        for name, value in row.items()
        if name not in {"num_iid", "nick"} and value is not None and value != ""
    }
    fields: dict[str, Any] = {}
    extra = base.read_fields(sent, _FIELDS, fields, anomalies)
    return Item(item_id=item_id, extra=extra or None, **fields)


def _item_id(value: Any) -> str | None:
    """The id as text, never by way of a float: ids may have more digits than one holds."""
    if type(value) is int:
        value = str(value) if 0 < value < 10**MAX_ID_DIGITS else ""
    if not isinstance(value, str):
        return None
    value = value.strip()
    return value if _ITEM_ID.fullmatch(value) else None


def read_props(value: Any) -> list[list[str]]:
    """`pid:vid;pid:vid` as [[pid, vid], …]; a name and a value behind them are kept. Raises ValueError."""
    pairs = [part.strip().split(":", 3) for part in base.read_text(value).split(";") if part.strip()]
    if len(pairs) > base.MAX_LIST:
        raise ValueError("too many")
    for pair in pairs:
        if len(pair) < 2 or not all(_PROPERTY_ID.fullmatch(number) for number in pair[:2]):
            raise ValueError("no pid:vid")
    return pairs


_FIELDS: dict[str, tuple[str, base.Reader]] = {
    "title": ("title", base.read_text),
    "cid": ("category_id", base.read_text),
    "outer_id": ("outer_id", base.read_text),
    "props": ("props", read_props),
    "price": ("price", base.read_decimal),
    "num": ("stock", base.read_integer),
    "approve_status": ("status", base.read_text),
}
