"""What may be asked of the Taobao Open Platform: sellers' nicks, options and fields."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from models.errors import UsageError
from models.settings import Settings
from worker.sources import base

FIELDS = ("num_iid", "title", "nick", "cid", "outer_id", "props", "price", "num", "approve_status", "iid")
NARROW = FIELDS[:4]
"""The fields that the vendor's page allows by name; it documents the others only in answers."""
DEFAULT_FIELDS = ",".join(FIELDS[:-1])  # iid is on its way out

# An item without its id cannot be stored, and without its seller's nick a mixed-up session would not be noticed.
ALWAYS = ("num_iid", "nick")

COLUMNS = ("list_time", "delist_time", "num", "modified", "sold_quantity")

# An item that is edited goes to the end under this order, where pages are read first.
DEFAULT_ORDER = "modified:asc"
MAX_PAGE_SIZE = 200
OPTIONS = ("page_size", "max_pages", "max_calls", "q", "cid", "order_by", "fields", "since", "nick")

# Whatever could end a log line, a query, a CSV cell or a shell word is no part of a nick.
_NICK = re.compile(r"[0-9A-Za-z_.:@·\-\u3041-\u3096\u30a1-\u30fa\u30fc\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3]{1,128}")
_CATEGORY = re.compile(r"[0-9]{1,18}")
_DURATION = re.compile(r"[0-9]{1,6}[smhdw]")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[0-9 TZ:.+\-]{0,25}")
MAX_QUERY = 200


def check_nick(nick: str) -> None:
    """Accept a seller's nick. Raises UsageError that says what is wrong with it."""
    if not _NICK.fullmatch(nick):
        reason = "is empty" if not nick else "is too long" if len(nick) > 128 else "has characters no nick has"
        shown = base.shown(nick)
        raise UsageError(f"shop {shown} {reason} (the seller's nick: 1 to 128 letters, digits and _ . : @ · -)")


def checked(given: Mapping[str, str], settings: Settings) -> dict[str, Any]:
    """Validate options and fill in defaults; an empty text counts as not given. Raises UsageError."""
    unknown = [name for name in given if name not in OPTIONS]
    if unknown:
        raise UsageError(f"unknown option {base.shown(unknown[0])} for top; known: {', '.join(OPTIONS)}")
    chosen = {name: str(value).strip() for name, value in given.items() if str(value).strip()}
    options: dict[str, Any] = {
        "page_size": base.whole_number("page_size", chosen.get("page_size", settings.top_page_size), MAX_PAGE_SIZE),
        "max_pages": base.whole_number(
            "max_pages", chosen.get("max_pages", settings.top_max_pages), settings.top_max_pages
        ),
        "order_by": _order(chosen.get("order_by", DEFAULT_ORDER)),
        "fields": _fields(chosen.get("fields", DEFAULT_FIELDS)),
    }
    if "max_calls" in chosen:
        options["max_calls"] = base.whole_number("max_calls", chosen["max_calls"], base.MAX_CALLS)
    readers = {"q": _query, "cid": _category, "since": _since, "nick": _nick}
    options.update({name: read(chosen[name]) for name, read in readers.items() if name in chosen})
    return options


def is_wide(options: Mapping[str, Any]) -> bool:
    """Whether fields are asked for that the vendor's page does not allow by name."""
    return not set(_asked(options)) <= set(NARROW)


def narrowed(options: Mapping[str, Any]) -> dict[str, Any] | None:
    """The same options with only those fields that the vendor's page allows by name; None if they are so already."""
    if not is_wide(options):
        return None
    return {**options, "fields": ",".join(field for field in _asked(options) if field in NARROW)}


def _asked(options: Mapping[str, Any]) -> list[str]:
    return str(options.get("fields") or DEFAULT_FIELDS).split(",")


def _order(value: str) -> str:
    column, _, direction = value.partition(":")
    if column not in COLUMNS or direction not in {"asc", "desc"}:
        allowed = f"column:asc or column:desc with one of the columns {', '.join(COLUMNS)}"
        raise UsageError(f"order_by must be {allowed}, not {base.shown(value)}")
    return value


def _fields(value: str) -> str:
    """The fields in one order, whichever they were given in: the same wish is the same text."""
    wanted = {part.strip() for part in value.split(",") if part.strip()} | set(ALWAYS)
    unknown = sorted(wanted.difference(FIELDS))
    if unknown:
        raise UsageError(f"fields has {base.shown(unknown[0])}; choose from {', '.join(FIELDS)}")
    return ",".join(field for field in FIELDS if field in wanted)


def _query(value: str) -> str:
    if len(value) > MAX_QUERY or not value.isprintable():
        raise UsageError(f"q must be at most {MAX_QUERY} printable characters, not {base.shown(value)}")
    return value


def _category(value: str) -> str:
    if not _CATEGORY.fullmatch(value):
        raise UsageError(f"cid must be a category's number, not {base.shown(value)}")
    return value


def _nick(value: str) -> str:
    try:
        check_nick(value)
    except UsageError as error:
        raise UsageError(f"nick: {error}") from None
    return value


def _since(value: str) -> str:
    """`last`, a duration as it is, or a time as UTC text in whole seconds; without an offset it is China's."""
    if value == "last" or _DURATION.fullmatch(value):
        return value
    try:
        if not _TIME.fullmatch(value):
            raise ValueError(value)
        return base.read_time(value).astimezone(UTC).replace(microsecond=0).isoformat()
    except (ValueError, OverflowError):
        allowed = "`last`, a duration such as 24h or 7d, or a time such as 2026-01-31 or 2026-01-31 08:00:00 (GMT+8)"
        raise UsageError(f"since must be {allowed}, not {base.shown(value)}") from None


def china_text(moment: datetime) -> str:
    """A moment as the platform writes it: GMT+8, whole seconds, no offset."""
    return moment.astimezone(base.CHINA).strftime("%Y-%m-%d %H:%M:%S")
